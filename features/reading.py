"""What was read for a batch of requests, by replay or from the live state: histories and states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from features.keys import ItemTable
from features.plan import DAY_S, StatePlan
from recsys.events import Float32, Float64, Int32, Int64, concatenated_ranges, lengths_to_offsets
from recsys.requests import HistoryBatch, Requests


@dataclass(frozen=True)
class Reading:
    """The past of r requests with `rows` candidates.

    Attributes:
        history: each user's last events, oldest first.
        counters: (rows, states) float32, columns in the order of `StatePlan.states`, each in one piece.
    """

    history: HistoryBatch
    counters: Float32

    def take(self, requests: Requests, numbers: Int64) -> Reading:
        """The readings of these numbers of `requests`, in the given order."""
        rows = concatenated_ranges(requests.offsets[numbers], requests.offsets[numbers + 1])
        return Reading(self.history.take(numbers), self.counters[rows])

    @classmethod
    def concatenate(cls, parts: Sequence[Reading]) -> Reading:
        """All requests of the first part, then all of the second, and so on; at least one part."""
        lengths = np.concatenate([part.history.lengths for part in parts])
        history = HistoryBatch(
            lengths_to_offsets(lengths),
            np.concatenate([part.history.item_index for part in parts]),
            np.concatenate([part.history.type_index for part in parts]),
            np.concatenate([part.history.age_s for part in parts]),
        )
        return cls(history, np.concatenate([part.counters for part in parts]))


def fill_catalogue(
    plan: StatePlan, items: ItemTable, requests: Requests, history: HistoryBatch, states: Float32
) -> None:
    """Write the rows of `states` (states, rows) that no stream updates: ages, and kinds in past and slate."""
    for state, column in plan.of_catalogue:
        if state.mark == "created":
            write_ages(
                requests.offsets,
                requests.timestamp,
                requests.item_index,
                items.created_at,
                states[column],
            )
        elif state.mark == "categories":
            distinct = distinct_codes(history.offsets, history.item_index, items.category, items.most_codes)
            states[column] = np.repeat(distinct, requests.lengths)
        elif state.mark == "slate_share":
            codes = items.category if state.key == "category" else items.subcategory
            states[column] = shares_in_slate(requests.offsets, requests.item_index, codes, items.most_codes)


@njit(cache=True, nogil=True)
def write_ages(
    offsets: Int64, timestamp: Float64, item_index: Int32, created_at: Float64, out: Float32
) -> None:
    """Write the age in days of each row's item at its request's moment into `out` (rows,), NaN if unknown."""
    for request in range(len(offsets) - 1):
        for row in range(offsets[request], offsets[request + 1]):
            item = item_index[row]
            created = created_at[item] if 0 <= item < len(created_at) else math.nan
            age = timestamp[request] - created
            out[row] = (age if not age < 0.0 else 0.0) / DAY_S


@njit(cache=True, nogil=True)
def distinct_codes(offsets: Int64, item_index: Int32, codes: Int32, most: int) -> Int64:
    """(r,) how many different codes, all below `most`, stand in each range; -1 does not count."""
    distinct = np.zeros(len(offsets) - 1, np.int64)
    seen = np.full(most, -1, np.int64)
    for request in range(len(distinct)):
        for row in range(offsets[request], offsets[request + 1]):
            item = item_index[row]
            code = codes[item] if 0 <= item < len(codes) else -1
            if code >= 0 and seen[code] != request:
                seen[code] = request
                distinct[request] += 1
    return distinct


@njit(cache=True, nogil=True)
def shares_in_slate(offsets: Int64, item_index: Int32, codes: Int32, most: int) -> Float32:
    """(rows,) share of its request's rows that have the same code as the row's item; NaN without one."""
    shares = np.full(len(item_index), np.nan, np.float32)
    counts = np.zeros(most + 1, np.int64)  # the last place is for no code
    for request in range(len(offsets) - 1):
        start, stop = offsets[request], offsets[request + 1]
        for row in range(start, stop):
            counts[codes[item_index[row]] if 0 <= item_index[row] < len(codes) else -1] += 1
        for row in range(start, stop):
            code = codes[item_index[row]] if 0 <= item_index[row] < len(codes) else -1
            if code >= 0:
                shares[row] = counts[code] / (stop - start)
        for row in range(start, stop):
            counts[codes[item_index[row]] if 0 <= item_index[row] < len(codes) else -1] = 0
    return shares
