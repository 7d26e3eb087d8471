"""The logging policy: which items a request was shown, and with what probability.

A slate is drawn item by item, without repetition, from one mixture of four distributions over live
items: popular, fresh, on the user's (roughly known) tastes, and uniform. So the order in a slate is
mostly chance, and each propensity is exact: P(this item here | the request, the items above).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.draws import Draws
from recsys.events import Bool, Float32, Float64, Int32, Int64, lengths_to_offsets
from recsys.simulation.world import DAY_S, Items, Tastes

POPULAR_SHARE, FRESH_SHARE, TASTE_SHARE, RANDOM_SHARE = 0.25, 0.15, 0.35, 0.25
RECENT_CLICKS = 8
"""A user's last clicks before today: as many as this are not shown again."""

_FRESH_DAYS = 2.0
_WRONG_TASTE = 0.8
_POPULARITY_DECAY = 0.8
_CELLS = 400_000
"""Draws made at once at most, so that a tiny catalogue takes no more memory than a large one."""


@dataclass(frozen=True)
class Visits:
    """Requests of one day, in time order. All shapes (n,).

    `ordinal` is the number of the request among the user's requests of that day, from 0.
    A day's visits are the largest thing held at one time, hence the small types.
    """

    user: Int32
    day: int
    ordinal: NDArray[np.int8]
    timestamp_s: Float64

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: Int64 | slice) -> Visits:
        """These rows, in the given order."""
        return Visits(self.user[rows], self.day, self.ordinal[rows], self.timestamp_s[rows])

    @classmethod
    def merged(cls, parts: list[Visits]) -> Visits:
        """All requests of these parts of one day, by time, then user, then ordinal."""
        user, ordinal, timestamp_s = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("user", "ordinal", "timestamp_s")
        )
        order = np.lexsort((ordinal, user, timestamp_s))
        return cls(user, parts[0].day, ordinal, timestamp_s).take(order)


class Memory:
    """What the policy remembers between days: item popularity and each user's last few clicks."""

    def __init__(self, users: int, items: int) -> None:
        self.popularity: Float64 = np.zeros(items)
        self.recent: Int32 = np.full((users, RECENT_CLICKS), -1, np.int32)

    def learn(self, user: Int32, item: Int32) -> None:
        """Take in a day's clicks, in time order; both arrays (clicks,)."""
        self.popularity *= _POPULARITY_DECAY
        self.popularity += np.bincount(item, minlength=len(self.popularity))
        order = np.argsort(user, kind="stable")
        who, first, counts = np.unique(user[order], return_index=True, return_counts=True)
        first, counts = first + np.maximum(counts - RECENT_CLICKS, 0), np.minimum(counts, RECENT_CLICKS)
        for place in range(int(counts.max(initial=0))):
            busy = counts > place
            newest = order[first[busy] + place]
            rows = who[busy]
            self.recent[rows, 1:] = self.recent[rows, :-1]
            self.recent[rows, 0] = item[newest]


@dataclass(frozen=True)
class _Belief:
    """Shapes: `shelf`, `weight` (n, slots), weights of a row summing to 1 or 0; `share` (n,)."""

    shelf: NDArray[np.int64]
    weight: Float64
    share: Float64

    @property
    def last(self) -> Int64:
        """(n,) the last slot with weight, so that rounding never picks an empty subcategory."""
        slots = self.weight.shape[1]
        return slots - 1 - np.argmax(self.weight[:, ::-1] > 0, axis=1)

    def take(self, rows: Int64) -> _Belief:
        return _Belief(self.shelf[rows], self.weight[rows], self.share[rows])


class DayPolicy:
    """The policy of one day; what it knows is from before midnight."""

    def __init__(
        self, items: Items, day_start_s: float, memory: Memory, slate_size: int, draws: Draws
    ) -> None:
        """Set up the four distributions over the items created before `day_start_s`."""
        self.live = int(np.searchsorted(items.created_s, day_start_s, side="left"))
        self.length = min(slate_size, self.live)
        self._items = items
        self._draws = draws
        self._recent = memory.recent if self.live > slate_size + RECENT_CLICKS else None
        clicks = memory.popularity[: self.live]
        popular = (clicks + 0.2 * clicks.mean() + 0.2) ** 0.8
        fresh = np.exp((items.created_s[: self.live] - day_start_s) / (_FRESH_DAYS * DAY_S)) + 1e-6
        self._popular = popular / popular.sum()
        self._fresh = fresh / fresh.sum()
        self._popular_edges = np.cumsum(self._popular)
        self._fresh_edges = np.cumsum(self._fresh)
        shelves = items.subcategory[: self.live]
        self._by_shelf = np.argsort(shelves, kind="stable")
        self._shelf_size = np.bincount(shelves, minlength=items.subcategories)
        self._shelf_start = lengths_to_offsets(self._shelf_size)[:-1]

    def slates(self, visits: Visits, tastes: Tastes) -> tuple[Int64, Float32]:
        """Shown items and their propensities, both (n, length), first place first."""
        belief = self._belief(visits, tastes)
        barred = self._barred(visits)
        shown = self._drawn(visits, belief, barred)
        mass = self._mass(shown, belief)
        counted = first_seen(barred) & (barred >= 0)
        taken = np.where(counted, self._mass(np.maximum(barred, 0), belief), 0.0)
        above = np.cumsum(mass, axis=1) - mass + taken.sum(axis=1, keepdims=True)
        propensity = np.minimum(mass / np.maximum(1.0 - above, mass), 1.0)
        return shown, propensity.astype(np.float32)

    def _belief(self, visits: Visits, tastes: Tastes) -> _Belief:
        """What the policy takes the tastes to be: flattened strengths and one wrong subcategory."""
        wrong = self._draws.integers(len(self._shelf_size), "wrong taste", visits.user, visits.day // 7)
        shelf = np.concatenate([tastes.subcategory, wrong[:, None]], axis=1)
        weight = np.concatenate(
            [np.sqrt(tastes.strength), np.full((len(visits), 1), _WRONG_TASTE)], axis=1, dtype=np.float64
        )
        weight = np.where(self._shelf_size[shelf] > 0, weight, 0.0)
        total = weight.sum(axis=1, keepdims=True)
        share = np.where(total[:, 0] > 0, TASTE_SHARE, 0.0)
        return _Belief(shelf, weight / np.where(total > 0, total, 1.0), share)

    def _barred(self, visits: Visits) -> Int64:
        """(n, RECENT_CLICKS) items not to show; negative and distinct where there is none."""
        if self._recent is None:
            return np.zeros((len(visits), 0), np.int64)
        recent = self._recent[visits.user].astype(np.int64)
        return np.where(recent < 0, -1 - np.arange(RECENT_CLICKS), recent)

    def _drawn(self, visits: Visits, belief: _Belief, barred: Int64) -> Int64:
        """The first `length` distinct items of an endless row of independent draws."""
        shown = np.zeros((len(visits), self.length), np.int64)
        missing = np.arange(len(visits))
        width = 2 * self.length
        while len(missing):
            left = []
            step = max(1, _CELLS // width)
            for first in range(0, len(missing), step):
                rows = missing[first : first + step]
                draws = self._independent(visits.take(rows), belief.take(rows), width)
                done, filled = _leading_distinct(barred[rows], draws, self.length)
                shown[rows[done]] = filled
                left.append(rows[~done])
            missing = np.concatenate(left)
            width *= 2
        return shown

    def _independent(self, visits: Visits, belief: _Belief, width: int) -> Int64:
        """(n, width) draws from the mixture; draw w of a request is the same whatever the width."""
        keys = (visits.user[:, None], visits.day, visits.ordinal[:, None], np.arange(width))
        source = self._draws.uniform("policy source", *keys)
        u = self._draws.uniform("policy item", *keys)
        item = (u * self.live).astype(np.int64)
        popular = source < POPULAR_SHARE
        item[popular] = np.searchsorted(self._popular_edges, u[popular])
        fresh = ~popular & (source < POPULAR_SHARE + FRESH_SHARE)
        item[fresh] = np.searchsorted(self._fresh_edges, u[fresh])
        low = POPULAR_SHARE + FRESH_SHARE
        row, column = np.nonzero((source >= low) & (source < low + belief.share[:, None]))
        edges = np.cumsum(belief.weight, axis=1)[row]
        within = (source[row, column] - low) / belief.share[row]
        slot = np.minimum((within[:, None] >= edges).sum(axis=1), belief.last[row])
        shelf = belief.shelf[row, slot]
        place = self._shelf_start[shelf] + (u[row, column] * self._shelf_size[shelf]).astype(np.int64)
        item[row, column] = self._by_shelf[place]
        return np.minimum(item, self.live - 1)

    def _mass(self, items: Int64, belief: _Belief) -> Float64:
        """(n, m) probability that one independent draw is each of these live items."""
        shelf = self._items.subcategory[items]
        taste = np.zeros(items.shape)
        for slot in range(belief.shelf.shape[1]):
            taste += np.where(shelf == belief.shelf[:, slot, None], belief.weight[:, slot, None], 0.0)
        taste /= np.maximum(self._shelf_size[shelf], 1)
        uniform = (1.0 - POPULAR_SHARE - FRESH_SHARE - belief.share) / self.live
        return np.asarray(
            POPULAR_SHARE * self._popular[items]
            + FRESH_SHARE * self._fresh[items]
            + belief.share[:, None] * taste
            + uniform[:, None]
        )


def first_seen(values: Int64) -> Bool:
    """(n, m) true where a value has not occurred before in its row."""
    order = np.argsort(values, axis=1, kind="stable")
    ranked = np.take_along_axis(values, order, axis=1)
    fresh = np.ones(values.shape, np.bool_)
    fresh[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    result = np.empty_like(fresh)
    np.put_along_axis(result, order, fresh, axis=1)
    return result


def _leading_distinct(barred: Int64, draws: Int64, length: int) -> tuple[Bool, Int64]:
    """Rows with at least `length` distinct draws that are not barred, and those rows' first ones."""
    fresh = first_seen(np.concatenate([barred, draws], axis=1))[:, barred.shape[1] :]
    place = np.cumsum(fresh, axis=1)
    done = place[:, -1] >= length
    chosen = draws[done][fresh[done] & (place[done] <= length)]
    return done, chosen.reshape(-1, length)
