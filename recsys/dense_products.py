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
    """score(h, c) of each candidate row and each of the newest events, 0 where either is unknown.

    Attributes:
        begins: (requests,) where in `values` the scores of a request's oldest event stand, or would stand if
            they had been computed; those of the others follow event by event, each with all candidates.
        values: (scores,).
        pairs: what they are the scores of.
    """

    begins: Int64
    values: Float32
    pairs: DensePairs

    @classmethod
    def of(cls, pairs: DensePairs, requests: Requests, history: HistoryBatch, limit: int) -> DenseProducts:
        """The scores of these requests with the newest `limit` events of each.

        An item outside the pairs, as -1 is, is unknown. 4 bytes a candidate and event. A score does not
        depend on what else is in the batch, to the bit.
        """
        begins, values = _products(
            pairs.factors,
            (requests.offsets, requests.item_index),
            (history.offsets, history.item_index),
            limit,
        )
        return cls(begins, values, pairs)


@njit(cache=True, nogil=True)
def _products(
    factors: Float32, candidates: tuple[Int64, Int32], history: tuple[Int64, Int32], limit: int
) -> tuple[Int64, Float32]:
    offsets, items = candidates
    past_offsets, past_items = history
    begins, longest, size = np.empty(len(offsets) - 1, np.int64), 0, 0
    for request in range(len(begins)):
        events, rows = (
            past_offsets[request + 1] - past_offsets[request],
            offsets[request + 1] - offsets[request],
        )
        kept = min(events, limit)
        longest = max(longest, kept)
        begins[request] = size - (events - kept) * rows
        size += kept * rows
    longest = (longest + LANES - 1) // LANES * LANES
    values, found, start = np.empty(size, np.float32), np.empty((2, longest), np.float32), 0
    past, unknown = np.zeros((longest, factors.shape[1]), np.float32), np.zeros(factors.shape[1], np.float32)
    for request in range(len(begins)):
        events = min(past_offsets[request + 1] - past_offsets[request], limit)
        begin = past_offsets[request + 1] - events
        first, rows = offsets[request], offsets[request + 1] - offsets[request]
        for nth in range(events):
            item = past_items[begin + nth]
            past[nth] = factors[item] if 0 <= item < len(factors) else unknown
        scores = values[start : start + events * rows]
        start += events * rows
        for row in range(0, rows if events else 0, 2):
            item, other = items[first + row], items[first + min(row + 1, rows - 1)]
            one = factors[item] if 0 <= item < len(factors) else unknown
            two = factors[other] if 0 <= other < len(factors) else unknown
            dots_of_two(one, two, past, events, found[0], found[1])
            for nth in range(events):
                scores[nth * rows + row] = found[0, nth]
                scores[nth * rows + min(row + 1, rows - 1)] = found[1, nth]
    return begins, values
