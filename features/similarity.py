"""Scores between each candidate and the user's history, aggregated in six ways by two kernels.

Aggregates, in the order of `declaration.AGGREGATES`: mean, max, mean of the three highest, the newest
event's, and two weighted ones. Only history events whose item is known to the scores count. A request without
any, and a candidate that is unknown, get NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from features.declaration import AGGREGATES, HistorySimilarity
from features.keys import writable
from recsys.dense_products import DenseProducts
from recsys.events import Bool, Float32, Float64, Int32, Int64
from recsys.pairs import SparsePairs
from recsys.requests import HistoryBatch, Requests

_DAY_S = 86_400.0
_WAYS = len(AGGREGATES)
_SIEVE = 1 << 14


@dataclass(frozen=True)
class WeighedHistory:
    """Each request's history with the weights of its events.

    Attributes:
        spans: first row that counts, (r,), and the requests' offsets, (r + 1,).
        item_index: (history rows,).
        weights: (history rows, 2) by age and by place.
    """

    spans: tuple[Int64, Int64]
    item_index: Int32
    weights: Float64

    @classmethod
    def of(cls, similarity: HistorySimilarity, history: HistoryBatch, strength: Float64) -> WeighedHistory:
        """Weigh events of `strength` (history rows,) as a declaration says."""
        start, weights = weigh_history(
            history.offsets, history.age_s, strength, similarity.limit, decay_of(similarity)
        )
        return cls((start, history.offsets), history.item_index, weights)


def decay_of(similarity: HistorySimilarity) -> tuple[float, float]:
    """Exponential rate a second, and factor a place."""
    return math.log(2) / (similarity.half_life_days * _DAY_S), similarity.place_decay


def write_similarity(
    similarity: HistorySimilarity,
    pairs: DenseProducts | SparsePairs,
    requests: Requests,
    history: WeighedHistory,
    columns: Int64,
    matrix: Float32,
) -> None:
    """Write the aggregates of the pair scores into `matrix` (features, rows), where it is NaN so far.

    Args:
        similarity: says whether weighted aggregates are means or sums.
        pairs: the scores; dense ones are products with the same history.
        requests: candidates.
        history: what each request may know, oldest first, weighed as `similarity` wants it.
        columns: (6,) where each of AGGREGATES goes, -1 nowhere.
        matrix: float32.
    """
    candidates = (requests.offsets, writable(requests.item_index))
    past = (*history.spans, history.item_index, history.weights)
    as_mean = similarity.weighted == "mean"
    if isinstance(pairs, DenseProducts):
        _dense((pairs.starts, pairs.values, pairs.pairs.known), candidates, past, as_mean, columns, matrix)
    else:
        stored = (pairs.offsets, pairs.columns, pairs.values)
        _sparse(stored, candidates, past, as_mean, columns, matrix)


@njit(cache=True, nogil=True)
def weigh_history(
    offsets: Int64, age_s: Float64, weight: Float64, limit: int, decay: tuple[float, float]
) -> tuple[Int64, Float64]:
    """First history row that counts, (r,), and the weights (history rows, 2) by age and by place.

    `decay` is (exponential rate a second, factor a place).
    """
    rate, factor = decay
    start = np.empty(len(offsets) - 1, np.int64)
    weights = np.empty((len(age_s), 2), np.float64)
    for request in range(len(start)):
        start[request] = max(offsets[request], offsets[request + 1] - limit)
        by_place = 1.0
        for row in range(offsets[request + 1] - 1, offsets[request] - 1, -1):
            weights[row, 0] = weight[row] * math.exp(-age_s[row] * rate)
            weights[row, 1] = weight[row] * by_place
            by_place *= factor
    return start, weights


@njit(cache=True, nogil=True)
def _write_weighted(
    by_age: float, age_mass: float, by_place: float, place_mass: float, as_mean: bool, out: Float32
) -> None:
    if as_mean:
        out[4] = by_age / age_mass if age_mass > 0 else math.nan
        out[5] = by_place / place_mass if place_mass > 0 else math.nan
    else:
        out[4] = by_age
        out[5] = by_place


@njit(cache=True, nogil=True)
def _write(found: Float32, columns: Int64, row: int, matrix: Float32) -> None:
    for place in range(len(columns)):
        if columns[place] >= 0:
            matrix[columns[place], row] = found[place]


@njit(cache=True, nogil=True)
def _known_events(items: Int32, start: int, stop: int, known: Bool) -> Int64:
    """Rows start..stop-1 whose item is known."""
    rows, count = np.empty(stop - start, np.int64), 0
    for row in range(start, stop):
        if 0 <= items[row] < len(known) and known[items[row]]:
            rows[count] = row
            count += 1
    return rows[:count]


@njit(cache=True, nogil=True)
def _dense(
    products: tuple[Int64, Float32, Bool],
    candidates: tuple[Int64, Int32],
    past: tuple[Int64, Int64, Int32, Float64],
    as_mean: bool,
    columns: Int64,
    matrix: Float32,
) -> None:
    begins, values, known = products
    offsets, items = candidates
    starts, past_offsets, history_items, weights = past
    found = np.empty(_WAYS, np.float32)
    for request in range(len(starts)):
        begin, end = offsets[request], offsets[request + 1]
        events = _known_events(history_items, starts[request], past_offsets[request + 1], known)
        if len(events) == 0 or end == begin:
            continue
        first = begins[request] - past_offsets[request] * (end - begin)
        sums, highest = np.zeros((3, end - begin)), np.full((3, end - begin), np.float32(-np.inf))
        age_mass, place_mass = 0.0, 0.0
        for event in events:
            scores = values[first + event * (end - begin) : first + (event + 1) * (end - begin)]
            _add_event(scores, weights[event, 0], weights[event, 1], sums, highest)
            age_mass += weights[event, 0]
            place_mass += weights[event, 1]
        newest = values[first + events[-1] * (end - begin) : first + (events[-1] + 1) * (end - begin)]
        counted = min(len(events), 3)
        for row in range(end - begin):
            item = items[begin + row]
            if not (0 <= item < len(known) and known[item]):
                continue
            top = 0.0
            for place in range(counted):
                top += np.float64(highest[place, row])
            found[0] = sums[0, row] / len(events)
            found[1] = highest[0, row]
            found[2] = top / counted
            found[3] = newest[row]
            _write_weighted(sums[1, row], age_mass, sums[2, row], place_mass, as_mean, found)
            _write(found, columns, begin + row, matrix)


@njit(cache=True, nogil=True)
def _add_event(scores: Float32, by_age: float, by_place: float, sums: Float64, highest: Float32) -> None:
    """Add one event's scores of all candidates to their sums, plain and weighted, and to their highest three.

    Without a branch, so that many candidates go together.
    """
    total, aged, placed = sums[0], sums[1], sums[2]
    first, second, third = highest[0], highest[1], highest[2]
    for row in range(len(scores)):
        score = scores[row]
        exact = np.float64(score)
        total[row] += exact
        aged[row] += by_age * exact
        placed[row] += by_place * exact
        lower = first[row] if score > first[row] else score
        first[row] = score if score > first[row] else first[row]
        least = second[row] if lower > second[row] else lower
        second[row] = lower if lower > second[row] else second[row]
        third[row] = least if least > third[row] else third[row]


@njit(cache=True, nogil=True)
def _place_of(item: int, slots: Int32, items: Int32, begin: int) -> int:
    """Where the slot of an item stands, or the free place where it belongs (multiplicative hashing)."""
    mask = len(slots) - 1
    place = (item * 0x9E3779B1 >> 15) & mask
    while slots[place] >= 0 and items[begin + slots[place]] != item:
        place = (place + 1) & mask
    return place


@njit(cache=True, nogil=True)
def _slots_of(items: Int32, begin: int, end: int) -> tuple[Int32, NDArray[np.bool_], bool]:
    """A hash table of the slots 0, 1, ... of these items, a sieve before it, and whether an item repeats.

    Of equal items the first has the slot. The table is at most a quarter full, and no larger for a larger
    catalogue. The sieve tells which remainders of item numbers occur: most items that are not there fail it.
    """
    size, repeats = 16, False
    while size < 4 * (end - begin):
        size *= 2
    slots, sieve = np.full(size, -1, np.int32), np.zeros(_SIEVE, np.bool_)
    for row in range(begin, end):
        sieve[items[row] & (_SIEVE - 1)] = True
        place = _place_of(items[row], slots, items, begin)
        if slots[place] < 0:
            slots[place] = row - begin
        else:
            repeats = True
    return slots, sieve, repeats


@njit(cache=True, nogil=True)
def _collect(
    stored: tuple[Int64, Int32, Float32],
    history: tuple[Int32, Float64, int, int],
    candidates: tuple[Int32, Int32, int, NDArray[np.bool_]],
    sums: Float64,
) -> tuple[int, float, float]:
    """Add up the history rows' scores of the candidates into `sums` (candidates, 8).

    Columns: total, highest, second, third, newest, by age, by place, how many. Returns how many history items
    are known, and their two masses.
    """
    offsets, columns, values = stored
    past, weights, start, stop = history
    slots, items, begin, sieve = candidates
    known, age_mass, place_mass = 0, 0.0, 0.0
    for row in range(stop - 1, start - 1, -1):
        item = past[row]
        if not 0 <= item < len(offsets) - 1:
            continue
        newest = known == 0
        known += 1
        age_mass += weights[row, 0]
        place_mass += weights[row, 1]
        for place in range(offsets[item], offsets[item + 1]):
            if not sieve[columns[place] & (_SIEVE - 1)]:
                continue
            slot = slots[_place_of(columns[place], slots, items, begin)]
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


@njit(cache=True, nogil=True)
def _sparse(
    stored: tuple[Int64, Int32, Float32],
    candidates: tuple[Int64, Int32],
    past: tuple[Int64, Int64, Int32, Float64],
    as_mean: bool,
    columns: Int64,
    matrix: Float32,
) -> None:
    """As `_dense` for stored scores, which must not be negative; what is not stored is 0.

    Most candidates have nothing stored with the history: they get the same, all at once.
    """
    offsets, items = candidates
    starts, past_offsets, history_items, weights = past
    size = len(stored[0]) - 1
    found = np.zeros(_WAYS, np.float32)
    for request in range(len(starts)):
        begin, end = offsets[request], offsets[request + 1]
        slots, sieve, repeats = _slots_of(items, begin, end)
        sums = np.zeros((end - begin, 8), np.float64)
        history = (history_items, weights, starts[request], past_offsets[request + 1])
        known, age_mass, place_mass = _collect(stored, history, (slots, items, begin, sieve), sums)
        if known == 0:
            continue
        found[:4] = np.float32(0.0)
        _write_weighted(0.0, age_mass, 0.0, place_mass, as_mean, found)
        for way in range(len(columns)):
            if columns[way] >= 0:
                matrix[columns[way], begin:end] = found[way]
        for row in range(begin, end):
            if not 0 <= items[row] < size:
                found[:] = np.float32(math.nan)
                _write(found, columns, row, matrix)
                continue
            total = sums[row - begin]
            if repeats:
                total = sums[slots[_place_of(items[row], slots, items, begin)]]
            if total[7] == 0.0:
                continue
            found[0] = total[0] / known
            found[1] = total[1]
            found[2] = (total[1] + total[2] + total[3]) / min(known, 3)
            found[3] = total[4]
            _write_weighted(total[5], age_mass, total[6], place_mass, as_mean, found)
            _write(found, columns, row, matrix)


@njit(cache=True, nogil=True)
def count_repeats(
    candidates: tuple[Int64, Int32], history_offsets: Int64, history_items: Int32, out: Float32
) -> None:
    """How often each candidate stands in its request's history, into `out` (rows,)."""
    offsets, items = candidates
    for request in range(len(offsets) - 1):
        for row in range(offsets[request], offsets[request + 1]):
            count = 0
            for past in range(history_offsets[request], history_offsets[request + 1]):
                count += history_items[past] == items[row]
            out[row] = count
