"""Scores between each candidate and the user's history, aggregated in six ways: of stored pairs.

Aggregates and missing values are those of `similarity`; what is not stored is 0, and nothing stored may be
negative. All tables whose history is weighed alike are read together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.keys import writable
from features.similarity import WAYS, WeighedHistory, weighted_to, write_row
from recsys.events import Bool, Float32, Float64, Int32, Int64
from recsys.pairs import SparsePairs
from recsys.requests import Requests

_PLACES = 1 << 13
_PIECE = 256

Slots = NDArray[np.int32]
Stored = tuple[tuple[Int64, ...], tuple[Int32, ...], tuple[Float32, ...]]


def write_stored(
    tables: Sequence[SparsePairs],
    requests: Requests,
    history: WeighedHistory,
    as_mean: Bool,
    columns: Int64,
    matrix: Float32,
) -> None:
    """Write the aggregates of stored pair scores into `matrix` (features, rows), where it is NaN so far.

    Args:
        tables: at least one; one without items leaves its columns as they are.
        requests: candidates.
        history: what each request may know, oldest first, weighed.
        as_mean: (tables,) whether weighted aggregates are means, and not sums.
        columns: (tables, 6) where each of AGGREGATES goes, -1 nowhere.
        matrix: float32.
    """
    candidates = (requests.offsets, writable(requests.item_index))
    past = (*history.spans, history.item_index, history.weights)
    stored = (
        tuple(table.offsets for table in tables),
        tuple(table.columns for table in tables),
        tuple(table.values for table in tables),
    )
    _write_stored(stored, candidates, past, as_mean, columns, matrix)


@njit(cache=True, nogil=True)
def _write_stored(
    stored: Stored,
    candidates: tuple[Int64, Int32],
    past: tuple[Int64, Int64, Int32, Float64],
    as_mean: Bool,
    columns: Int64,
    matrix: Float32,
) -> None:
    offsets, items = candidates
    starts, past_offsets, history_items, weights = past
    for request in range(len(starts)):
        begin, end = offsets[request], offsets[request + 1]
        mine = items[begin:end]
        first, after, repeats = _slots_of(mine)
        sums = np.empty((end - begin, 8), np.float64)
        history = (history_items, weights, starts[request], past_offsets[request + 1])
        for table in range(len(columns)):
            sums[:] = 0.0
            one = (stored[0][table], stored[1][table], stored[2][table])
            known, age_mass, place_mass = _collect(one, history, (first, after, mine), sums)
            if known == 0:
                continue
            if repeats:
                _share_sums(first, after, mine, sums)
            masses = (known, age_mass, place_mass)
            size = len(stored[0][table]) - 1
            _write_table(sums, masses, mine, size, as_mean[table], columns[table], begin, matrix)


@njit(cache=True, nogil=True)
def _write_table(
    sums: Float64,
    masses: tuple[int, float, float],
    items: Int32,
    size: int,
    as_mean: bool,
    columns: Int64,
    begin: int,
    matrix: Float32,
) -> None:
    """One table's columns of one request, whose first row is `begin`.

    Most candidates have nothing stored with the history: they get the same, all at once.
    """
    known, age_mass, place_mass = masses
    found = np.zeros(WAYS, np.float32)
    weighted_to(0.0, age_mass, 0.0, place_mass, as_mean, found)
    for way in range(WAYS):
        if columns[way] >= 0:
            matrix[columns[way], begin : begin + len(items)] = found[way]
    for row in range(len(items)):
        total = sums[row]
        if not 0 <= items[row] < size:
            found[:] = np.float32(math.nan)
            write_row(found, columns, begin + row, matrix)
        elif total[7] > 0.0:
            found[0] = total[0] / known
            found[1] = total[1]
            found[2] = (total[1] + total[2] + total[3]) / min(known, 3)
            found[3] = total[4]
            weighted_to(total[5], age_mass, total[6], place_mass, as_mean, found)
            write_row(found, columns, begin + row, matrix)


@njit(cache=True, nogil=True)
def _share_sums(first: Slots, after: Slots, items: Int32, sums: Float64) -> None:
    """Give equal items what the first of them has."""
    for row in range(len(sums)):
        slot = _slot_of(items[row], first, after, items)
        if slot != row:
            sums[row] = sums[slot]


@njit(cache=True, nogil=True, inline="always")
def _slot_of(item: int, first: Slots, after: Slots, items: Int32) -> int:
    """The slot of an item, -1 where it has none."""
    slot = int(first[item & (_PLACES - 1)])
    while slot >= 0 and items[slot] != item:
        slot = int(after[slot])
    return slot


@njit(cache=True, nogil=True)
def _slots_of(items: Int32) -> tuple[Slots, Slots, bool]:
    """The slots 0, 1, ... of these items, found by the remainder of an item; and whether an item repeats.

    `first` (places,) has one slot of each remainder and `after` (items,) the next one of the same. Of equal
    items the first has the slot. With so many places most items that are not there are told by one look.
    """
    first, after = np.full(_PLACES, -1, np.int32), np.full(len(items), -1, np.int32)
    repeats = False
    for row in range(len(items)):
        if _slot_of(items[row], first, after, items) >= 0:
            repeats = True
            continue
        place = items[row] & (_PLACES - 1)
        after[row] = first[place]
        first[place] = row
    return first, after, repeats


@njit(cache=True, nogil=True)
def _collect(
    stored: tuple[Int64, Int32, Float32],
    history: tuple[Int32, Float64, int, int],
    candidates: tuple[Slots, Slots, Int32],
    sums: Float64,
) -> tuple[int, float, float]:
    """Add up the history rows' scores of the candidates into `sums` (candidates, 8).

    Columns: total, highest, second, third, newest, by age, by place, how many. Returns how many history items
    are known, and their two masses.
    """
    offsets, columns, values = stored
    past, weights, start, stop = history
    first, after, items = candidates
    known, age_mass, place_mass = 0, 0.0, 0.0
    slots, places = np.empty(_PIECE, np.int64), np.empty(_PIECE, np.int64)
    for row in range(stop - 1, start - 1, -1):
        item = past[row]
        if not 0 <= item < len(offsets) - 1:
            continue
        newest = known == 0
        known += 1
        age_mass += weights[row, 0]
        place_mass += weights[row, 1]
        for begin in range(offsets[item], offsets[item + 1], _PIECE):
            found = 0  # which are there cannot be guessed: no branch asks
            for place in range(begin, min(begin + _PIECE, offsets[item + 1])):
                slot = int(first[columns[place] & (_PLACES - 1)])
                slots[found], places[found] = slot, place
                found += slot >= 0
            for nth in range(found):
                slot, place = int(slots[nth]), places[nth]
                while slot >= 0 and items[slot] != columns[place]:
                    slot = int(after[slot])
                if slot >= 0:
                    score = np.float64(values[place])
                    _take(score, weights[row, 0] * score, weights[row, 1] * score, newest, sums[slot])
    return known, age_mass, place_mass


@njit(cache=True, nogil=True)
def _take(score: float, by_age: float, by_place: float, newest: bool, total: Float64) -> None:
    total[0] += score
    if score > total[1]:
        total[1], total[2], total[3] = score, total[1], total[2]
    elif score > total[2]:
        total[2], total[3] = score, total[2]
    elif score > total[3]:
        total[3] = score
    if newest:
        total[4] = score
    total[5] += by_age
    total[6] += by_place
    total[7] += 1.0
