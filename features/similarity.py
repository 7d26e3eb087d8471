"""Scores between each candidate and the user's history, aggregated in six ways: of dense pairs here.

Aggregates, in the order of `declaration.AGGREGATES`: mean, max, mean of the three highest, the newest
event's, and two weighted ones. Only history events whose item is known to the scores count. A request without
any, and a candidate that is unknown, get NaN. Stored pairs have kernels of their own in `stored_similarity`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from features.declaration import AGGREGATES, HistorySimilarity
from features.keys import writable
from recsys.dense_products import DenseProducts
from recsys.events import Bool, Float32, Float64, Int32, Int64
from recsys.requests import HistoryBatch, Requests

_DAY_S = 86_400.0
WAYS = len(AGGREGATES)


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


def write_dense(
    products: DenseProducts,
    requests: Requests,
    history: WeighedHistory,
    as_mean: bool,
    columns: Int64,
    matrix: Float32,
) -> None:
    """Write the aggregates of dense pair scores into `matrix` (features, rows), where it is NaN so far.

    Args:
        products: of the requests' candidates with the same history.
        requests: candidates.
        history: what each request may know, oldest first, weighed.
        as_mean: whether weighted aggregates are means, and not sums.
        columns: (6,) where each of AGGREGATES goes, -1 nowhere.
        matrix: float32.
    """
    candidates = (requests.offsets, writable(requests.item_index))
    past = (*history.spans, history.item_index, history.weights)
    found = (products.begins, products.values, products.pairs.known)
    _dense(found, candidates, past, as_mean, columns, matrix)


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
def weighted_to(
    by_age: float, age_mass: float, by_place: float, place_mass: float, as_mean: bool, out: Float32
) -> None:
    """Write the two weighted aggregates to out[4:6]."""
    if as_mean:
        out[4] = by_age / age_mass if age_mass > 0 else math.nan
        out[5] = by_place / place_mass if place_mass > 0 else math.nan
    else:
        out[4] = by_age
        out[5] = by_place


@njit(cache=True, nogil=True)
def write_row(found: Float32, columns: Int64, row: int, matrix: Float32) -> None:
    """Write a row's aggregates to the columns that are wanted."""
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
    found = np.empty(WAYS, np.float32)
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
            weighted_to(sums[1, row], age_mass, sums[2, row], place_mass, as_mean, found)
            write_row(found, columns, begin + row, matrix)


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
