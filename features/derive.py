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
from recsys.transcendental import log1p64

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
        """Write the derived columns of `out` (features, rows) from `states` (states, rows)."""
        _run(self.lines, self.constants, np.ascontiguousarray(states), out)


# Each line is one loop without a call or a branch, over columns that lie in one piece.


@njit(cache=True, nogil=True, error_model="numpy")
def _run(lines: Int64, constants: Float64, states: Float32, out: Float32) -> None:
    for number in range(len(lines)):
        operation, constant, target = lines[number, 0], constants[number], out[lines[number, 1]]
        first, second = states[lines[number, 2]], states[lines[number, 3]]
        third, fourth = states[lines[number, 4]], states[lines[number, 5]]
        if operation == _LOG1P:
            for row in range(len(target)):
                target[row] = log1p64(np.float64(first[row]))
        elif operation == _RATIO:
            for row in range(len(target)):
                target[row] = _ratio(np.float64(first[row]), np.float64(second[row]) + constant)
        elif operation == _RATE:
            for row in range(len(target)):
                base = _ratio(np.float64(third[row]), np.float64(fourth[row]))
                over = np.float64(second[row]) + constant
                target[row] = _ratio(np.float64(first[row]) + constant * base, over)
        elif operation == _OLDEST:
            for row in range(len(target)):
                target[row] = _oldest(first[row], second[row], third[row])
        else:
            target[:] = first


@njit(cache=True, nogil=True, inline="always", error_model="numpy")
def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0.0 else math.nan


@njit(cache=True, nogil=True, inline="always")
def _oldest(created: np.float32, acted: np.float32, shown: np.float32) -> np.float32:
    """Age since creation, or since whatever was seen first; NaN where nothing is known."""
    seen = shown if math.isnan(acted) or shown > acted else acted
    return seen if math.isnan(created) else created
