"""A column compared within its request: rank, ratio to the highest, z-score."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from recsys.dot_products import REORDER
from recsys.events import Float32, Int32, Int64

_PASSES, _BYTES = 4, 256


class Sorting(NamedTuple):
    """Room for sorting: a key, and two orders, for each value; and how often each byte occurs."""

    keys: NDArray[np.uint32]
    order: Int32
    moved: Int32
    counts: Int32


@njit(cache=True, nogil=True)
def compare_in_slate(offsets: Int64, program: Int64, matrix: Float32) -> None:
    """Write the comparisons of each request's rows into `matrix` (features, rows), in place.

    Args:
        offsets: (r + 1,) rows of each request.
        program: (lines, 4) columns: source, then where rank, ratio and z-score go, -1 nowhere.
        matrix: float32; NaN rows of a source stay NaN and do not count.
    """
    widest = 0
    for request in range(len(offsets) - 1):
        widest = max(widest, offsets[request + 1] - offsets[request])
    values, rows = np.empty(widest, np.float32), np.empty(widest, np.int64)
    sorting = Sorting(
        np.empty(widest, np.uint32),
        np.empty(widest, np.int32),
        np.empty(widest, np.int32),
        np.empty((_PASSES, _BYTES), np.int32),
    )
    for request in range(len(offsets) - 1):
        begin, end = offsets[request], offsets[request + 1]
        for line in range(len(program)):
            source = matrix[program[line, 0]]
            count = 0
            for row in range(begin, end):
                values[count], rows[count] = source[row], row
                count += not math.isnan(source[row])
            if count < end - begin:
                _clear(begin, end, program[line, 1:], matrix)
            if count == 0:
                continue
            if program[line, 1] >= 0:
                _rank(values[:count], rows, sorting, matrix[program[line, 1]])
            if program[line, 2] >= 0 or program[line, 3] >= 0:
                _scale(values[:count], rows, program[line, 2], program[line, 3], matrix)


@njit(cache=True, nogil=True)
def _clear(begin: int, end: int, columns: Int64, matrix: Float32) -> None:
    for column in columns:
        if column >= 0:
            for row in range(begin, end):
                matrix[column, row] = math.nan


@njit(cache=True, nogil=True, inline="always")
def _sort_key(value: np.float32) -> np.uint32:
    """Bits that ascend as float32 values do: those of negative numbers turned over."""
    bits = np.float32(value).view(np.uint32)
    return np.uint32(~bits) if bits >> np.uint32(31) else np.uint32(bits | np.uint32(0x80000000))


@njit(cache=True, nogil=True)
def _ascending(values: Float32, sorting: Sorting) -> Int32:
    """Places in ascending order of value, equal ones as they stand: a radix sort, a byte at a time.

    A byte that all values share is passed over. No value is NaN.
    """
    count, counts = len(values), sorting.counts
    keys, order, moved = sorting.keys, sorting.order, sorting.moved
    counts[:] = 0
    for place in range(count):
        key = _sort_key(values[place])
        keys[place], order[place] = key, place
        for nth in range(_PASSES):
            counts[nth, key >> np.uint32(8 * nth) & np.uint32(255)] += 1
    for nth in range(_PASSES):
        shift, starts, total = np.uint32(8 * nth), counts[nth], 0
        if starts[keys[0] >> shift & np.uint32(255)] == count:
            continue
        for byte in range(_BYTES):
            total += starts[byte]
            starts[byte] = total - starts[byte]
        for each in range(count):
            place = order[each]
            at = keys[place] >> shift & np.uint32(255)
            moved[starts[at]] = place
            starts[at] += 1
        order, moved = moved, order
    return order[:count]


@njit(cache=True, nogil=True)
def _rank(values: Float32, rows: Int64, sorting: Sorting, column: Float32) -> None:
    """Average rank from the top over the number ranked: 1/n for a single best, 1 for a single worst."""
    count = len(values)
    order = _ascending(values, sorting)
    first = 0
    while first < count:
        last = first
        while last + 1 < count and values[order[last + 1]] == values[order[first]]:
            last += 1
        from_top = count - (first + last) / 2.0
        for place in range(first, last + 1):
            column[rows[order[place]]] = from_top / count
        first = last + 1


@njit(cache=True, nogil=True, fastmath=REORDER)
def _scale(values: Float32, rows: Int64, ratio: int, zscore: int, matrix: Float32) -> None:
    count = len(values)
    highest, total, spread = values[0], 0.0, 0.0
    for value in values:
        highest = value if value > highest else highest
        total += np.float64(value)
    mean = total / count
    for value in values:
        spread += (np.float64(value) - mean) ** 2
    spread = math.sqrt(spread / count)
    top, width = np.float64(highest), spread if spread > 0 else math.inf
    for place in range(count):
        if ratio >= 0:
            matrix[ratio, rows[place]] = np.float64(values[place]) / top if top > 0 else math.nan
        if zscore >= 0:
            matrix[zscore, rows[place]] = (np.float64(values[place]) - mean) / width
