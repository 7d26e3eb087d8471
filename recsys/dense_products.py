"""Scores of dense pairs between every candidate and every event of its request's history, computed once.

The relevance head and the features over the history read the same products of text vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from recsys.dot_products import LANES, dots_of_two
from recsys.events import Float32, Int32, Int64
from recsys.pairs import DensePairs
from recsys.requests import HistoryBatch, Requests


@dataclass(frozen=True)
class DenseProducts:
    """score(h, c) of each candidate row and each event, 0 where either is unknown.

    Attributes:
        starts: (requests + 1,) where each request's scores begin in `values`: event by event, oldest first,
            each with all candidates.
        values: (scores,).
        pairs: what they are the scores of.
    """

    starts: Int64
    values: Float32
    pairs: DensePairs

    @classmethod
    def of(cls, pairs: DensePairs, requests: Requests, history: HistoryBatch) -> DenseProducts:
        """The scores of these requests; an item outside the pairs, as -1 is, is unknown.

        4 bytes a candidate and event. A score does not depend on what else is in the batch, to the bit.
        """
        starts, values = _products(
            pairs.factors,
            (requests.offsets, requests.item_index),
            (history.offsets, history.item_index),
        )
        return cls(starts, values, pairs)


@njit(cache=True, nogil=True)
def _products(
    factors: Float32, candidates: tuple[Int64, Int32], history: tuple[Int64, Int32]
) -> tuple[Int64, Float32]:
    offsets, items = candidates
    past_offsets, past_items = history
    starts, longest = np.zeros(len(offsets), np.int64), 0
    for request in range(len(offsets) - 1):
        events = past_offsets[request + 1] - past_offsets[request]
        longest = max(longest, events)
        starts[request + 1] = starts[request] + (offsets[request + 1] - offsets[request]) * events
    longest = (longest + LANES - 1) // LANES * LANES
    values, found = np.empty(starts[-1], np.float32), np.empty((2, longest), np.float32)
    past, unknown = np.zeros((longest, factors.shape[1]), np.float32), np.zeros(factors.shape[1], np.float32)
    for request in range(len(offsets) - 1):
        begin, events = past_offsets[request], past_offsets[request + 1] - past_offsets[request]
        first, rows = offsets[request], offsets[request + 1] - offsets[request]
        for nth in range(events):
            item = past_items[begin + nth]
            past[nth] = factors[item] if 0 <= item < len(factors) else unknown
        scores = values[starts[request] : starts[request + 1]]
        for row in range(0, rows if events else 0, 2):
            item, other = items[first + row], items[first + min(row + 1, rows - 1)]
            one = factors[item] if 0 <= item < len(factors) else unknown
            two = factors[other] if 0 <= other < len(factors) else unknown
            dots_of_two(one, two, past, events, found[0], found[1])
            for nth in range(events):
                scores[nth * rows + row] = found[0, nth]
                scores[nth * rows + min(row + 1, rows - 1)] = found[1, nth]
    return starts, values
