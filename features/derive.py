"""Columns that follow from states of the same row, all written by one kernel from a compiled program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from features.declaration import Column
from features.plan import StatePlan
from recsys.events import Float32, Float64, Int64

_OPERATIONS = ("log1p", "identity", "ratio", "rate", "oldest")
_LOG1P, _IDENTITY, _RATIO, _RATE, _OLDEST = range(len(_OPERATIONS))
_INPUTS = 4


@dataclass(frozen=True)
class Program:
    """One line a derived column: (operation, column written, up to four states read), and its constant."""

    lines: Int64
    constants: Float64

    @classmethod
    def of(cls, columns: Sequence[Column], plan: StatePlan) -> Program:
        """Compile the columns that have a formula; places are those of `columns`."""
        lines, constants = [], []
        for place, column in enumerate(columns):
            if column.formula is None:
                continue
            inputs = [plan.column[state] for state in column.formula.inputs]
            inputs += [0] * (_INPUTS - len(inputs))
            lines.append([_OPERATIONS.index(column.formula.operation), place, *inputs])
            constants.append(column.formula.constant)
        return cls(np.array(lines, np.int64).reshape(-1, 2 + _INPUTS), np.array(constants, np.float64))

    def run(self, states: Float32, out: Float32) -> None:
        """Write the derived columns of `out` (rows, features) from `states` (rows, states)."""
        _run(self.lines, self.constants, states, out)


@njit(cache=True, nogil=True)
def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan


@njit(cache=True, nogil=True)
def _oldest(created: float, acted: float, shown: float) -> float:
    """Age since creation, or since whatever was seen first; NaN where nothing is known."""
    if not math.isnan(created):
        return created
    if math.isnan(acted) or shown > acted:
        return shown
    return acted


@njit(cache=True, nogil=True)
def _run(lines: Int64, constants: Float64, states: Float32, out: Float32) -> None:
    """Line by line; rows that read the same as the one before, as those of one user do, get the same."""
    for number in range(len(lines)):
        operation, column, constant = lines[number, 0], lines[number, 1], constants[number]
        first, second, third, fourth = lines[number, 2], lines[number, 3], lines[number, 4], lines[number, 5]
        a_before = b_before = c_before = d_before = np.float32(math.nan)
        for row in range(len(states)):
            a, b, c, d = states[row, first], states[row, second], states[row, third], states[row, fourth]
            if a == a_before and b == b_before and c == c_before and d == d_before:
                out[row, column] = out[row - 1, column]
            else:
                out[row, column] = _value(operation, constant, a, b, c, d)
            a_before, b_before, c_before, d_before = a, b, c, d


@njit(cache=True, nogil=True)
def _value(operation: int, constant: float, a: float, b: float, c: float, d: float) -> float:
    x, y = np.float64(a), np.float64(b)
    if operation == _LOG1P:
        return math.log1p(x)
    if operation == _RATIO:
        return _ratio(x, y + constant)
    if operation == _RATE:
        return _ratio(x + constant * _ratio(np.float64(c), np.float64(d)), y + constant)
    if operation == _OLDEST:
        return _oldest(x, y, np.float64(c))
    return x
