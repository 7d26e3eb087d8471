"""Scores between each candidate and the user's history, aggregated in six ways by two kernels.

Aggregates, in the order of `declaration.AGGREGATES`: mean, max, mean of the three highest, the newest
event's, and two weighted ones. Only history events whose item is known to the scores count. A request without
any, and a candidate that is unknown, get NaN.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from features.declaration import AGGREGATES, HistorySimilarity
from features.keys import writable
from recsys.events import Float32, Float64, Int32, Int64
from recsys.pairs import DensePairs, SparsePairs
from recsys.requests import HistoryBatch, Requests

_DAY_S = 86_400.0
_WAYS = len(AGGREGATES)


def history_similarity(
    declaration: HistorySimilarity,
    pairs: DensePairs | SparsePairs,
    requests: Requests,
    history: HistoryBatch,
    event_weights: Float32,
) -> Float32:
    """(rows, 6) aggregates of the pair scores, one column each in the order of AGGREGATES.

    Args:
        declaration: decay, limit and whether weighted aggregates are means or sums.
        pairs: the scores; `DensePairs` rows of zeros are unknown items.
        requests: candidates.
        history: what each request may know, oldest first.
        event_weights: (types,) weight of an event by its type_index.
    """
    start, weights = weigh_history(
        history.offsets,
        history.age_s,
        event_weights.astype(np.float64)[history.type_index],
        declaration.limit,
        (math.log(2) / (declaration.half_life_days * _DAY_S), declaration.place_decay),
    )
    spans = (start, history.offsets[1:])
    candidates = (requests.offsets, writable(requests.item_index))
    out = np.full((requests.rows, _WAYS), np.nan, np.float32)
    as_mean = declaration.weighted == "mean"
    if isinstance(pairs, DensePairs):
        _dense(pairs.factors, candidates, spans, history.item_index, weights, as_mean, out)
    else:
        matrix = (pairs.offsets, pairs.columns, pairs.values)
        _sparse(matrix, candidates, spans, history.item_index, weights, as_mean, out)
    return out


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
def _gather_known(factors: Float32, item_index: Int32, start: int, stop: int) -> tuple[Float32, Int64]:
    """The rows start..stop-1 of the items whose factors are not all zero, and their row numbers."""
    width = factors.shape[1]
    found = np.empty((stop - start, width), np.float32)
    rows = np.empty(stop - start, np.int64)
    count = 0
    for row in range(start, stop):
        item = item_index[row]
        if item < 0 or item >= len(factors):
            continue
        known = False
        for d in range(width):
            value = factors[item, d]
            found[count, d] = value
            known |= value != 0
        if known:
            rows[count] = row
            count += 1
    return found[:count], rows[:count]


@njit(cache=True, nogil=True)
def _aggregate(scores: Float32, rows: Int64, weights: Float64, as_mean: bool, out: Float32) -> None:
    """The six aggregates of one candidate's scores, (k,) with k > 0, into `out` (6,)."""
    total, by_age, by_place, age_mass, place_mass = 0.0, 0.0, 0.0, 0.0, 0.0
    best, second, third = -np.inf, -np.inf, -np.inf
    for place in range(len(scores)):
        score = np.float64(scores[place])
        total += score
        by_age += weights[rows[place], 0] * score
        by_place += weights[rows[place], 1] * score
        age_mass += weights[rows[place], 0]
        place_mass += weights[rows[place], 1]
        if score > best:
            best, second, third = score, best, second
        elif score > second:
            second, third = score, second
        elif score > third:
            third = score
    count = len(scores)
    top = best + (second if count > 1 else 0.0) + (third if count > 2 else 0.0)
    out[0] = total / count
    out[1] = best
    out[2] = top / min(count, 3)
    out[3] = scores[count - 1]
    _write_weighted(by_age, age_mass, by_place, place_mass, as_mean, out)


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
def _dense(
    factors: Float32,
    candidates: tuple[Int64, Int32],
    spans: tuple[Int64, Int64],
    history_items: Int32,
    weights: Float64,
    as_mean: bool,
    out: Float32,
) -> None:
    offsets, items = candidates
    starts, stops = spans
    for request in range(len(starts)):
        if starts[request] == stops[request]:
            continue
        history, rows = _gather_known(factors, history_items, starts[request], stops[request])
        if len(rows) == 0:
            continue
        shown, places = _gather_known(factors, items, offsets[request], offsets[request + 1])
        scores = np.dot(shown, history.T)
        for place in range(len(places)):
            _aggregate(scores[place], rows, weights, as_mean, out[places[place]])


@njit(cache=True, nogil=True)
def _collect(
    matrix: tuple[Int64, Int32, Float32],
    history: tuple[Int32, int, int],
    weights: Float64,
    slot_of_item: Int64,
    sums: Float64,
) -> tuple[int, float, float]:
    """Add up the history rows' scores of marked candidates into `sums` (candidates, 7).

    Columns: total, highest, second, third, newest, by age, by place. Returns how many history items are
    known, and their two masses.
    """
    offsets, columns, values = matrix
    items, start, stop = history
    known, age_mass, place_mass = 0, 0.0, 0.0
    for row in range(stop - 1, start - 1, -1):
        item = items[row]
        if not 0 <= item < len(offsets) - 1:
            continue
        newest = known == 0
        known += 1
        age_mass += weights[row, 0]
        place_mass += weights[row, 1]
        for place in range(offsets[item], offsets[item + 1]):
            slot = slot_of_item[columns[place]]
            if slot < 0:
                continue
            score = np.float64(values[place])
            total = sums[slot]
            total[0] += score
            if score > total[1]:
                total[1], total[2], total[3] = score, total[1], total[2]
            elif score > total[2]:
                total[2], total[3] = score, total[2]
            elif score > total[3]:
                total[3] = score
            if newest:
                total[4] = score
            total[5] += weights[row, 0] * score
            total[6] += weights[row, 1] * score
    return known, age_mass, place_mass


@njit(cache=True, nogil=True)
def _sparse(
    matrix: tuple[Int64, Int32, Float32],
    candidates: tuple[Int64, Int32],
    spans: tuple[Int64, Int64],
    history_items: Int32,
    weights: Float64,
    as_mean: bool,
    out: Float32,
) -> None:
    """As `_dense` for stored scores, which must not be negative; what is not stored is 0."""
    offsets, items = candidates
    starts, stops = spans
    size = len(matrix[0]) - 1
    slot_of_item = np.full(size, -1, np.int64)
    for request in range(len(starts)):
        begin, end = offsets[request], offsets[request + 1]
        for row in range(begin, end):
            if 0 <= items[row] < size:
                slot_of_item[items[row]] = row - begin
        sums = np.zeros((end - begin, 7), np.float64)
        history = (history_items, starts[request], stops[request])
        known, age_mass, place_mass = _collect(matrix, history, weights, slot_of_item, sums)
        for row in range(begin, end):
            if known == 0 or not 0 <= items[row] < size:
                continue
            total = sums[slot_of_item[items[row]]]
            out[row, 0] = total[0] / known
            out[row, 1] = total[1]
            out[row, 2] = (total[1] + total[2] + total[3]) / min(known, 3)
            out[row, 3] = total[4]
            _write_weighted(total[5], age_mass, total[6], place_mass, as_mean, out[row])
        for row in range(begin, end):
            if 0 <= items[row] < size:
                slot_of_item[items[row]] = -1


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
