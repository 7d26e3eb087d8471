"""Scores of dense pairs between every candidate and every event of its request's history, computed once.

The relevance head and the features over the history read the same products of text vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from recsys.dot_products import LANES, dots
from recsys.events import Float32, Int32, Int64
from recsys.pairs import DensePairs
from recsys.requests import HistoryBatch, Requests


@dataclass(frozen=True)
class DenseProducts:
    """score(h, c) of each candidate row and each event, 0 where either is unknown.

    Attributes:
        starts: (requests + 1,) where each request's scores begin in `values`: candidate by candidate, each
            with the events of the history, oldest first, and zeros up to a multiple of `LANES`.
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
def padded(events: int) -> int:
    """Scores that are stored for a candidate."""
    return (events + LANES - 1) // LANES * LANES


@njit(cache=True, nogil=True)
def _products(
    factors: Float32, candidates: tuple[Int64, Int32], history: tuple[Int64, Int32]
) -> tuple[Int64, Float32]:
    offsets, items = candidates
    past_offsets, past_items = history
    starts, longest = np.zeros(len(offsets), np.int64), 0
    for request in range(len(offsets) - 1):
        width = padded(past_offsets[request + 1] - past_offsets[request])
        longest = max(longest, width)
        starts[request + 1] = starts[request] + (offsets[request + 1] - offsets[request]) * width
    values, unknown = np.empty(starts[-1], np.float32), np.zeros(factors.shape[1], np.float32)
    past = np.zeros((longest, factors.shape[1]), np.float32)
    for request in range(len(offsets) - 1):
        begin, events = past_offsets[request], past_offsets[request + 1] - past_offsets[request]
        width, at = padded(events), starts[request]
        for nth in range(width):
            item = past_items[begin + nth] if nth < events else -1
            past[nth] = factors[item] if 0 <= item < len(factors) else unknown
        if events == 0:
            continue
        for row in range(offsets[request], offsets[request + 1]):
            item = items[row]
            if 0 <= item < len(factors):
                dots(factors[item], past, events, values[at : at + width])
            else:
                values[at : at + width] = np.float32(0.0)
            at += width
    return starts, values
