"""A column compared within its request: rank, ratio to the highest, z-score."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from recsys.events import Float32, Float64, Int64


@njit(cache=True, nogil=True)
def compare_in_slate(offsets: Int64, program: Int64, matrix: Float32) -> None:
    """Write the comparisons of each request's rows into `matrix` (features, rows), in place.

    Args:
        offsets: (r + 1,) rows of each request.
        program: (lines, 4) columns: source, then where rank, ratio and z-score go, -1 nowhere.
        matrix: float32; NaN rows of a source stay NaN and do not count.
    """
    for request in range(len(offsets) - 1):
        begin, end = offsets[request], offsets[request + 1]
        values = np.empty(end - begin, np.float64)
        rows = np.empty(end - begin, np.int64)
        for line in range(len(program)):
            source = program[line, 0]
            count = 0
            for row in range(begin, end):
                if not math.isnan(matrix[source, row]):
                    values[count] = matrix[source, row]
                    rows[count] = row
                    count += 1
            if count < end - begin:
                _clear(begin, end, program[line, 1:], matrix)
            if count == 0:
                continue
            if program[line, 1] >= 0:
                _rank(values[:count], rows, program[line, 1], matrix)
            _scale(values[:count], rows, program[line, 2], program[line, 3], matrix)


@njit(cache=True, nogil=True)
def _clear(begin: int, end: int, columns: Int64, matrix: Float32) -> None:
    for column in columns:
        if column >= 0:
            for row in range(begin, end):
                matrix[column, row] = math.nan


@njit(cache=True, nogil=True)
def _sort_key(value: float) -> np.int64:
    """32 bits that ascend as float32 values do: those of negative numbers turned over."""
    bits = np.int64(np.float32(value).view(np.uint32))
    return np.int64(0xFFFFFFFF) - bits if bits >> 31 else bits + np.int64(0x80000000)


@njit(cache=True, nogil=True)
def _ascending(values: Float64) -> Int64:
    """Places in ascending order of value, equal ones as they stand: a radix sort, a byte at a time.

    The values are those of a float32 column, without NaN.
    """
    count = len(values)
    keys, order = np.empty(count, np.int64), np.arange(count)
    for place in range(count):
        keys[place] = _sort_key(values[place])
    moved = np.empty(count, np.int64)
    for shift in range(0, 32, 8):
        starts = np.zeros(257, np.int64)
        for place in range(count):
            starts[(keys[place] >> shift & 255) + 1] += 1
        for byte in range(256):
            starts[byte + 1] += starts[byte]
        for nth in range(count):
            place = order[nth]
            at = keys[place] >> shift & 255
            moved[starts[at]] = place
            starts[at] += 1
        order, moved = moved, order
    return order


@njit(cache=True, nogil=True)
def _rank(values: Float64, rows: Int64, column: int, matrix: Float32) -> None:
    """Average rank from the top over the number ranked: 1/n for a single best, 1 for a single worst."""
    count = len(values)
    order = _ascending(values)
    first = 0
    while first < count:
        last = first
        while last + 1 < count and values[order[last + 1]] == values[order[first]]:
            last += 1
        from_top = count - (first + last) / 2.0
        for place in range(first, last + 1):
            matrix[column, rows[order[place]]] = from_top / count
        first = last + 1


@njit(cache=True, nogil=True)
def _scale(values: Float64, rows: Int64, ratio: int, zscore: int, matrix: Float32) -> None:
    count = len(values)
    highest, total, spread = -math.inf, 0.0, 0.0
    for value in values:
        highest = max(highest, value)
        total += value
    mean = total / count
    for value in values:
        spread += (value - mean) ** 2
    spread = math.sqrt(spread / count)
    for place in range(count):
        if ratio >= 0:
            matrix[ratio, rows[place]] = values[place] / highest if highest > 0 else math.nan
        if zscore >= 0:
            matrix[zscore, rows[place]] = (values[place] - mean) / spread if spread > 0 else 0.0
