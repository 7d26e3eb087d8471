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
    for row in range(len(states)):
        for number in range(len(lines)):
            operation, column = lines[number, 0], lines[number, 1]
            constant = constants[number]
            a = np.float64(states[row, lines[number, 2]])
            value: float = a
            if operation == _LOG1P:
                value = math.log1p(a)
            elif operation == _RATIO:
                value = _ratio(a, np.float64(states[row, lines[number, 3]]) + constant)
            elif operation == _RATE:
                shown = np.float64(states[row, lines[number, 3]])
                overall = _ratio(
                    np.float64(states[row, lines[number, 4]]), np.float64(states[row, lines[number, 5]])
                )
                value = _ratio(a + constant * overall, shown + constant)
            elif operation == _OLDEST:
                value = _oldest(
                    a,
                    np.float64(states[row, lines[number, 3]]),
                    np.float64(states[row, lines[number, 4]]),
                )
            out[row, column] = value
