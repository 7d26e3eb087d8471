"""What was read for a batch of requests, by replay or from the live state: histories and states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from features.keys import ItemTable, code_of
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
    _fill(
        plan.of_catalogue,
        (requests.offsets, requests.timestamp, requests.item_index),
        (history.offsets, history.item_index),
        (items.category, items.subcategory, items.created_at, items.most_codes),
        states,
    )


@njit(cache=True, nogil=True)
def _fill(
    columns: Int64,
    requests: tuple[Int64, Float64, Int32],
    history: tuple[Int64, Int32],
    items: tuple[Int32, Int32, Float64, int],
    states: Float32,
) -> None:
    """Write the columns that `StatePlan.of_catalogue` names."""
    offsets, moments, candidates = requests
    past_offsets, past_items = history
    category, subcategory, created_at, most = items
    counts = np.zeros(most, np.int64)
    for request in range(len(moments)):
        begin, end = offsets[request], offsets[request + 1]
        mine = candidates[begin:end]
        if columns[0] >= 0:
            _write_ages(mine, moments[request], created_at, states[columns[0], begin:end])
        if columns[1] >= 0:
            past = past_items[past_offsets[request] : past_offsets[request + 1]]
            states[columns[1], begin:end] = _count_codes(past, category, counts)
        if columns[2] >= 0:
            _write_shares(mine, category, counts, states[columns[2], begin:end])
        if columns[3] >= 0:
            _write_shares(mine, subcategory, counts, states[columns[3], begin:end])


@njit(cache=True, nogil=True)
def _write_ages(items: Int32, moment: float, created_at: Float64, out: Float32) -> None:
    """The age of each item in days, 0 for one that is yet to come, NaN where it is not known."""
    for row in range(len(items)):
        created = created_at[items[row]] if 0 <= items[row] < len(created_at) else math.nan
        age = moment - created
        out[row] = (age if not age < 0.0 else 0.0) / DAY_S


@njit(cache=True, nogil=True)
def _count_codes(items: Int32, codes: Int32, counts: Int64) -> int:
    """How many different codes these items have; `counts` (codes,) is zeros before and after."""
    distinct = 0
    for item in items:
        code = code_of(item, codes)
        if code >= 0:
            distinct += counts[code] == 0
            counts[code] = 1
    for item in items:
        if code_of(item, codes) >= 0:
            counts[code_of(item, codes)] = 0
    return distinct


@njit(cache=True, nogil=True)
def _write_shares(items: Int32, codes: Int32, counts: Int64, out: Float32) -> None:
    """The share of these items that have the code of each, NaN without one; `counts` as in `_count_codes`."""
    for item in items:
        if code_of(item, codes) >= 0:
            counts[code_of(item, codes)] += 1
    for row in range(len(items)):
        code = code_of(items[row], codes)
        out[row] = counts[code] / len(items) if code >= 0 else math.nan
    for item in items:
        if code_of(item, codes) >= 0:
            counts[code_of(item, codes)] = 0
