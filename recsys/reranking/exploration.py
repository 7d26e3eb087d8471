"""Exploration: a stated share of the places is drawn at random, and every probability is written down.

The policy is epsilon-greedy over the places of a list (Sutton & Barto 2018, section 2.2, once a place): with
probability `share` a place shows a uniform draw from all candidates that do not stand above it, otherwise
the best item of the list that does not. So every candidate can stand in every place, as off-policy estimates
need.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from recsys.draws import Draws
from recsys.events import Float64, Int64
from recsys.requests import Requests


@dataclass(frozen=True)
class ExplorationConfig:
    """Random places.

    Attributes:
        share: expected share of the places that are drawn at random; 0 is none.
        seed: of the draws; with the user and the moment of a request it fixes its list.
    """

    share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for a share outside 0..1."""
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"share is {self.share}, it must lie in 0..1")


def explored(
    order: tuple[Int64, Int64], lengths: Int64, requests: Requests, config: ExplorationConfig
) -> tuple[Int64, Float64]:
    """Lists with random places, and the exact probability of each place's item.

    A draw is a function of (seed, user_index, timestamp, place): the same night gives the same lists,
    whatever the order and the blocks of its requests.

    Args:
        order: (offsets, rows): the candidate rows of each request, its list first, then the others.
        lengths: (requests,) length of the list; it is kept.
        requests: who asks, and when.
        config: share and seed.

    Returns:
        (rows,) the rows of the lists, request by request, and (rows,) the probability that the policy
        puts this item into this place, given the request and the items above: the meaning of the column
        `propensity` of impressions. Their product over a list is the probability of the list.
    """
    offsets, rows = order
    place = np.arange(int(lengths.max(initial=0)))
    draws = Draws(config.seed)
    keys = (requests.user_index[:, None], requests.timestamp.view(np.int64)[:, None], place)
    coin, pick = draws.uniform("exploration coin", *keys), draws.uniform("exploration item", *keys)
    out, propensity = np.empty(int(lengths.sum()), np.int64), np.empty(int(lengths.sum()))
    _explore(offsets, rows.copy(), lengths, config.share, coin, pick, out, propensity)
    return out, propensity


@njit(cache=True, nogil=True)
def _explore(
    offsets: Int64,
    rows: Int64,
    lengths: Int64,
    share: float,
    coin: Float64,
    pick: Float64,
    out: Int64,
    propensity: Float64,
) -> None:
    """Take from the front of what is left, or from anywhere in it; `rows` is used up."""
    written = 0
    for request in range(len(lengths)):
        left = rows[offsets[request] : offsets[request + 1]]
        count = len(left)
        for place in range(lengths[request]):
            chosen = 0
            if coin[request, place] < share:
                chosen = min(int(pick[request, place] * count), count - 1)
            out[written] = left[chosen]
            propensity[written] = share / count + (1.0 - share if chosen == 0 else 0.0)
            written += 1
            for later in range(chosen, count - 1):
                left[later] = left[later + 1]
            count -= 1
