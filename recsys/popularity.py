"""What is popular and what is fresh, as known at the last midnight before a moment.

Both lists change once a day (UTC), so a request's candidates do not depend on which other requests
are answered with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from safetensors.numpy import load, save

from recsys.dataset import Dataset
from recsys.events import Float64, Int32, Int64, lengths_to_offsets
from recsys.requests import DAY_S


@dataclass(frozen=True)
class PopularityConfig:
    """Settings of both lists.

    Attributes:
        half_life_days: age at which an event counts half for popularity.
    """

    half_life_days: float = 30.0


@dataclass
class Popularity:
    """Daily decayed counts: the state of every item on each day on which anything happened.

    A server adds to it in place; everywhere else it stands still.

    Attributes:
        days: (d,) day numbers since the epoch with events, ascending.
        offsets: (d + 1,) rows of each day in `item_index` and `weight`.
        item_index: items touched that day. `weight`: their summed event weight.
        first_seen: (items,) epoch seconds of creation or first event, +inf for never.
        half_life_days: see `PopularityConfig`.
    """

    days: Int64
    offsets: Int64
    item_index: Int32
    weight: Float64
    first_seen: Float64
    half_life_days: float
    _latest: tuple[int, Float64] | None = field(default=None, repr=False, compare=False)

    def scores(self, day: Int64) -> Float64:
        """Decayed counts (moments, items) at the start of each day in `day`, which must ascend."""
        if len(day) != 1:
            return self._counted(day)
        if self._latest is None or self._latest[0] != day[0]:
            self._latest = int(day[0]), self._counted(day)
        return self._latest[1]

    def add(self, day: Int64, item_index: Int32, weight: Float64) -> None:
        """Count more target events in place, (rows,) each, of days in any order."""
        every = np.concatenate([np.repeat(self.days, np.diff(self.offsets)), day])
        order = np.argsort(every, kind="stable")
        self.item_index = np.concatenate([self.item_index, item_index])[order]
        self.weight = np.concatenate([self.weight, weight])[order]
        self.days, counts = np.unique(every, return_counts=True)
        self.offsets = lengths_to_offsets(counts)
        self._latest = None
        np.minimum.at(self.first_touched, item_index, day * DAY_S)

    def _counted(self, day: Int64) -> Float64:
        state = np.zeros(len(self.first_seen))
        out = np.empty((len(day), len(state)))
        next_row, state_day = 0, min((int(days[0]) for days in (day, self.days) if len(days)), default=0)
        for place, wanted in enumerate(day):
            while next_row < len(self.days) and self.days[next_row] < wanted:
                today = int(self.days[next_row])
                state *= 2.0 ** (-(today - state_day) / self.half_life_days)
                rows = slice(self.offsets[next_row], self.offsets[next_row + 1])
                np.add.at(state, self.item_index[rows], self.weight[rows])
                state_day, next_row = today, next_row + 1
            out[place] = state * 2.0 ** (-(int(wanted) - state_day) / self.half_life_days)
        return out

    def freshness(self, day: Int64) -> Float64:
        """First-seen moment (moments, items) of items already there at the start of each day, else -inf."""
        there = self.first_seen < day[:, None] * DAY_S
        return np.where(there, self.first_seen, -np.inf)

    @cached_property
    def first_touched(self) -> Float64:
        """(items,) start of the day of each item's first target event, +inf for never."""
        first = np.full(len(self.first_seen), np.inf)
        day = np.repeat(self.days, np.diff(self.offsets)) * DAY_S
        np.minimum.at(first, self.item_index, day)
        return first

    def to_files(self) -> dict[str, bytes]:
        """Arrays for the bundle."""
        arrays = {
            "days": self.days,
            "offsets": self.offsets,
            "item_index": self.item_index,
            "weight": self.weight,
            "first_seen": self.first_seen,
            "half_life_days": np.array([self.half_life_days]),
        }
        return {"popularity.safetensors": save(arrays)}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Popularity:
        """Read what `to_files` wrote."""
        arrays = load(files["popularity.safetensors"])
        half_life = float(arrays.pop("half_life_days")[0])
        return cls(**arrays, half_life_days=half_life)


def fit_popularity(data: Dataset, config: PopularityConfig) -> Popularity:
    """Count the target events of `data`. Reading a day never sees that day's own events."""
    events = data.events
    rows = np.flatnonzero(data.is_target[events.type_index]) if len(events) else np.zeros(0, np.int64)
    day = np.floor(events.timestamp[rows] / DAY_S).astype(np.int64)
    weight = data.weights[events.type_index[rows]].astype(np.float64)
    items = len(data.catalogue)
    key, inverse = np.unique(day * items + events.item_index[rows], return_inverse=True)
    days, counts = np.unique(key // items, return_counts=True)
    first_seen = np.full(items, np.inf)
    np.minimum.at(first_seen, events.item_index, events.timestamp)
    created = data.catalogue.created_at
    first_seen = np.where(np.isnan(created), first_seen, created)
    return Popularity(
        days,
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        (key % items).astype(np.int32),
        np.asarray(np.bincount(inverse, weights=weight, minlength=len(key)), np.float64),
        first_seen,
        config.half_life_days,
    )
