"""Maximal marginal relevance: each next item is relevant and unlike those above it.

Carbonell & Goldstein 1998. The similarity is the cosine of the items' text embeddings; what relevance is
made of is the caller's business, as long as its scale is 0 to 1 within a request.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from recsys.events import Float32, Float64, Int32, Int64, lengths_to_offsets


@dataclass(frozen=True)
class DiversityConfig:
    """Maximal marginal relevance.

    Attributes:
        relevance_share: lambda of the paper: 1 orders by relevance alone, 0 by dissimilarity alone.
        pool: best candidates of a request that are looked at; the others are never taken.
    """

    relevance_share: float = 1.0
    pool: int = 200

    def __post_init__(self) -> None:
        """Raises ValueError for a share outside 0..1 or an empty pool."""
        if not 0.0 <= self.relevance_share <= 1.0:
            raise ValueError(f"relevance_share is {self.relevance_share}, it must lie in 0..1")
        if self.pool < 1:
            raise ValueError(f"pool is {self.pool}, it must be at least 1")


def diversified(
    order: tuple[Int64, Int64],
    item_index: Int32,
    relevance: Float64,
    embeddings: Float32,
    share: float,
    depth: int,
) -> tuple[Int64, Int64]:
    """The first `depth` rows of each request in the order of maximal marginal relevance.

    The next row is the one with the highest share * relevance - (1 - share) * s, where s is the highest
    cosine to an item already taken (0 for the first); ties go to the row that came first in `order`.

    Args:
        order: (offsets, rows): request q has the candidate rows rows[offsets[q]:offsets[q + 1]].
        item_index: (all candidate rows,) items.
        relevance: (all candidate rows,) finite, comparable within a request.
        embeddings: (items, dim) of length 1; zeros where there is none, which is like nothing (nor is
            the unknown item -1).
        share: weight of the relevance, 0..1.
        depth: rows to choose a request.

    Returns:
        Offsets and rows of the choice, best first.
    """
    chosen = lengths_to_offsets(np.minimum(np.diff(order[0]), depth))
    out = np.empty(chosen[-1], np.int64)
    _diversify(order, item_index, relevance, np.ascontiguousarray(embeddings), share, (chosen, out))
    return chosen, out


def cut(order: tuple[Int64, Int64], depth: int) -> tuple[Int64, Int64]:
    """The first `depth` rows of each request."""
    offsets, rows = order
    lengths = np.diff(offsets)
    place = np.arange(len(rows)) - np.repeat(offsets[:-1], lengths)
    return lengths_to_offsets(np.minimum(lengths, depth)), rows[place < depth]


@njit(cache=True, nogil=True)
def _diversify(
    order: tuple[Int64, Int64],
    item_index: Int32,
    relevance: Float64,
    embeddings: Float32,
    share: float,
    chosen: tuple[Int64, Int64],
) -> None:
    (offsets, rows), (starts, out) = order, chosen
    for request in range(len(offsets) - 1):
        own = rows[offsets[request] : offsets[request + 1]]
        _pick(own, item_index, relevance, embeddings, share, out[starts[request] : starts[request + 1]])


@njit(cache=True, nogil=True)
def _pick(
    own: Int64, item_index: Int32, relevance: Float64, embeddings: Float32, share: float, out: Int64
) -> None:
    """Greedy choice with stale upper bounds (Minoux 1978): a value only falls as more is taken."""
    count = len(own)
    similarity = np.full(count, -1.0)
    compared = np.zeros(count, np.int64)
    value = np.empty(count)
    for place in range(count):
        value[place] = share * relevance[own[place]] + (1.0 - share)
    taken = 0
    while taken < len(out):
        best = int(np.argmax(value))
        if compared[best] < taken:
            for other in range(compared[best], taken):
                cosine = _cosine(item_index[own[best]], item_index[out[other]], embeddings)
                similarity[best] = max(similarity[best], cosine)
            compared[best] = taken
            value[best] = share * relevance[own[best]] - (1.0 - share) * similarity[best]
        else:
            out[taken] = own[best]
            value[best] = -np.inf
            taken += 1


@njit(cache=True, nogil=True)
def _cosine(left: int, right: int, embeddings: Float32) -> float:
    return _dot(embeddings[left], embeddings[right]) if left >= 0 and right >= 0 else 0.0


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _dot(left: Float32, right: Float32) -> float:
    total = np.float32(0.0)
    for place in range(len(left)):
        total += left[place] * right[place]
    return float(total)
