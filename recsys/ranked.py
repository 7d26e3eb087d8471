"""Lists that we produce: the best items of each request, in the order that they are to be shown in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.events import Float64, Int32, Int64, lengths_to_offsets
from recsys.requests import Requests


@dataclass(frozen=True)
class Ranked:
    """The best k of each of r requests, best first; request q owns offsets[q]:offsets[q + 1].

    `score` and `source` are (rows,); `rung` is (r,), the cold-start rung that answered. `propensity` is
    (rows,), the probability of this item in this place given those above; None where nothing is random.
    """

    offsets: Int64
    item_index: Int32
    score: Float64
    source: Int32
    rung: NDArray[np.int8]
    propensity: Float64 | None = None

    def table(self, k: int) -> Int32:
        """(requests, k) item numbers, -1 where a request has fewer than k."""
        out = np.full((len(self.offsets) - 1, k), -1, np.int32)
        lengths = np.minimum(np.diff(self.offsets), k)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(len(owner)) - np.repeat(lengths_to_offsets(lengths)[:-1], lengths)
        out[owner, place] = self.item_index[self.offsets[:-1][owner] + place]
        return out


def top_ranked(requests: Requests, scores: Float64, k: int, rung: NDArray[np.int8]) -> Ranked:
    """The best k candidates of each request by score, ties by item number; NaN scores come last."""
    owner = requests.request_of_row()
    order = np.lexsort((requests.item_index, -np.nan_to_num(scores, nan=-np.inf), owner))
    place = np.arange(len(owner)) - requests.offsets[owner]
    chosen = order[place < k]
    counts = np.minimum(requests.lengths, k)
    return Ranked(
        lengths_to_offsets(counts), requests.item_index[chosen], scores[chosen], requests.source[chosen], rung
    )
