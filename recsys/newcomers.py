"""Places for items that nobody has touched yet, in the share in which people choose such items.

A ranker of counters puts what has none last, however well its text fits. Lists are calibrated instead
(Steck 2018, "Calibrated recommendations", with "untouched" as the category): the first p places of a list
hold at least `share` times p untouched items, rounded, where share is that of untouched items in what
people chose in the window that the ranker learned from.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from recsys.events import Bool, Float64, Int32, Int64
from recsys.popularity import Popularity
from recsys.requests import SOURCES, Requests

_PLACES = 100
"""Places down to which a list is calibrated."""


def newcomer_share(popularity: Popularity, requests: Requests, positives: tuple[Int64, Int32]) -> float:
    """Share of the positives that nobody had touched by the moment of their request; 0.0 without any.

    `positives` is (offsets, item_index), one range a request.
    """
    offsets, items = positives
    if not len(items):
        return 0.0
    moment = np.repeat(requests.timestamp, np.diff(offsets))
    return float((popularity.first_touched[items] >= moment).mean())


def with_newcomers(requests: Requests, scores: Float64, share: float) -> Float64:
    """The scores, with those of untouched candidates raised to halfway above the place that is theirs.

    Untouched are candidates that the source `cold` proposed; rows without sources keep their scores. The
    order among untouched candidates, and among all others, stays where scores are distinct.
    """
    bit = 1 << SOURCES.index("cold")
    if share <= 0.0 or not np.bitwise_or.reduce(requests.source) & bit:
        return scores
    newcomer = (requests.source & bit).astype(np.bool_)
    out = scores.copy()
    _raise(requests.offsets, scores, newcomer, share, out)
    return out


@njit(cache=True, nogil=True)
def _raise(offsets: Int64, scores: Float64, newcomer: Bool, share: float, out: Float64) -> None:
    for request in range(len(offsets) - 1):
        start, stop = offsets[request], offsets[request + 1]
        order = start + np.argsort(-scores[start:stop], kind="mergesort")
        fresh = order[newcomer[order]]
        others = order[~newcomer[order]]
        placed, next_fresh, next_other = 0, 0, 0
        last = np.inf
        while placed < _PLACES and next_fresh < len(fresh):
            ahead = scores[others[next_other]] if next_other < len(others) else -np.inf
            due = next_fresh < np.floor((placed + 1) * share + 0.5)
            row = fresh[next_fresh]
            if scores[row] > ahead or due:
                if scores[row] <= ahead:
                    out[row] = 0.5 * (last + ahead) if np.isfinite(last) else ahead + 1.0
                last = out[row]
                next_fresh += 1
            else:
                last = ahead
                next_other += 1
            placed += 1
