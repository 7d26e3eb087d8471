"""Ranking requests: who asks, when, what may be known, and which candidates are to be ordered.

A training row, an evaluation slate, a nightly user and an online call are all rows of this one shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from recsys.events import (
    Bool,
    Events,
    Float32,
    Float64,
    Histories,
    Int32,
    Int64,
    Slates,
    concatenated_ranges,
    lengths_to_offsets,
)

DAY_S = 86400.0

SOURCES = (
    "als",
    "item_item",
    "ease",
    "transition",
    "covisitation",
    "sequence",
    "text",
    "cold",
    "fresh",
    "popular",
)
"""Retrievers in bit order: bit b of `source` is set where SOURCES[b] proposed the candidate."""


def source_mask(names: Sequence[str]) -> Int32:
    """(rows,) bit mask of source names joined by "+"; "" and unknown names set no bit."""
    bit = {name: 1 << place for place, name in enumerate(SOURCES)}
    cache = {text: sum(bit.get(name, 0) for name in set(text.split("+"))) for text in set(names)}
    return np.array([cache[text] for text in names], np.int32)


def source_names(masks: Int32) -> list[str]:
    """Inverse of `source_mask`, names in bit order."""
    cache = {
        mask: "+".join(name for place, name in enumerate(SOURCES) if mask >> place & 1)
        for mask in np.unique(masks).tolist()
    }
    return [cache[mask] for mask in masks.tolist()]


@dataclass(frozen=True)
class Requests:
    """A batch of r requests with their candidates; request q owns rows offsets[q]:offsets[q + 1].

    Attributes:
        user_index: (r,) row number of the user, -1 for an unknown one.
        timestamp: (r,) the moment of the request, epoch seconds.
        known: (r,) how many leading events of the log the request may look at.
        offsets: (r + 1,) candidate rows.
        item_index: (rows,) candidates.
        source: (rows,) bit mask over SOURCES, 0 where the candidate was not retrieved by us.
        label: (rows,) training target or ground truth, NaN where unknown.
        position: (rows,) 1-based place where the item was shown, 0 where it was not.
    """

    user_index: Int32
    timestamp: Float64
    known: Int64
    offsets: Int64
    item_index: Int32
    source: Int32
    label: Float32
    position: Int32

    def __len__(self) -> int:
        return len(self.timestamp)

    @property
    def rows(self) -> int:
        """Number of candidate rows in all."""
        return len(self.item_index)

    @cached_property
    def lengths(self) -> Int64:
        """(r,) candidates of each request."""
        return self.offsets[1:] - self.offsets[:-1]

    def request_of_row(self) -> Int64:
        """(rows,) number of the request that owns each candidate row."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def take(self, requests: Int64) -> Requests:
        """These requests with their candidates, in the given order."""
        rows = concatenated_ranges(self.offsets[requests], self.offsets[requests + 1])
        return Requests(
            self.user_index[requests],
            self.timestamp[requests],
            self.known[requests],
            lengths_to_offsets(self.lengths[requests]),
            self.item_index[rows],
            self.source[rows],
            self.label[rows],
            self.position[rows],
        )

    def with_rows(self, keep: Bool) -> Requests:
        """The same requests with those candidate rows only where `keep` (rows,) holds."""
        counts = np.bincount(self.request_of_row()[keep], minlength=len(self))
        names = ("item_index", "source", "label", "position")
        columns = {name: getattr(self, name)[keep] for name in names}
        return replace(self, offsets=lengths_to_offsets(counts), **columns)

    def labelled(self, label: Float32) -> Requests:
        """The same requests with these labels, shape (rows,)."""
        return replace(self, label=np.asarray(label, np.float32))

    @classmethod
    def of(
        cls,
        user_index: Int32,
        timestamp: Float64,
        known: Int64,
        candidates: tuple[Int64, Int32],
        source: Int32 | None = None,
    ) -> Requests:
        """Unlabelled requests; `candidates` is (offsets, item_index)."""
        offsets, item_index = candidates
        rows = len(item_index)
        return cls(
            np.asarray(user_index, np.int32),
            np.asarray(timestamp, np.float64),
            np.asarray(known, np.int64),
            offsets,
            np.asarray(item_index, np.int32),
            np.zeros(rows, np.int32) if source is None else source,
            np.full(rows, np.nan, np.float32),
            np.zeros(rows, np.int32),
        )

    @classmethod
    def from_slates(cls, slates: Slates, events: Events) -> Requests:
        """One request a slate, labelled with its clicks, knowing what came strictly before it."""
        return cls(
            slates.user_index,
            slates.timestamp,
            events.known_at(slates.timestamp),
            slates.offsets,
            slates.item_index,
            np.zeros(len(slates.item_index), np.int32),
            slates.clicked.astype(np.float32),
            slates.position.astype(np.int32),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Requests]) -> Requests:
        """All requests of the first part, then all of the second, and so on; at least one part."""
        names = ("user_index", "timestamp", "known", "item_index", "source", "label", "position")
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(offsets=lengths_to_offsets(lengths), **columns)


@dataclass(frozen=True)
class HistoryBatch:
    """What each of r requests may know of its user's past, oldest first, at most `limit` events.

    Request q owns offsets[q]:offsets[q + 1] of `item_index`, `type_index` and `age_s`, the seconds
    from the event to the request (never negative). A request without history has an empty range.
    """

    offsets: Int64
    item_index: Int32
    type_index: Int32
    age_s: Float64

    @classmethod
    def of(
        cls, histories: Histories, requests: Requests, *, limit: int = 50, delay_s: float = 0.0
    ) -> HistoryBatch:
        """The last `limit` events that each request may know and that are at least `delay_s` old."""
        start, stop = histories.until(requests.user_index, requests.known)
        if delay_s > 0 and len(histories.sequence):
            stop = _drop_younger(histories, start, stop, requests.timestamp - delay_s)
        start = np.maximum(start, stop - limit)
        rows = concatenated_ranges(start, stop)
        lengths = stop - start
        age = np.repeat(requests.timestamp, lengths) - histories.timestamp[rows]
        return cls(
            lengths_to_offsets(lengths),
            histories.item_index[rows],
            histories.type_index[rows].astype(np.int32),
            np.maximum(age, 0.0),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> Int64:
        """(r,) events of each history."""
        return self.offsets[1:] - self.offsets[:-1]

    def recency_weights(self, weights: Float32, *, half_life_days: float, position_decay: float) -> Float64:
        """(events,) weight of each event: its type's, times decay by age, times decay by place from the end.

        `weights` is (types,). The newest event has place 0.
        """
        place = np.repeat(self.offsets[1:], self.lengths) - 1 - np.arange(len(self.item_index))
        age = self.age_s / (half_life_days * DAY_S)
        return weights[self.type_index] * np.exp2(-age) * position_decay ** place.astype(np.float64)

    def take(self, requests: Int64) -> HistoryBatch:
        """The histories of these requests, in the given order."""
        rows = concatenated_ranges(self.offsets[requests], self.offsets[requests + 1])
        return HistoryBatch(
            lengths_to_offsets(self.lengths[requests]),
            self.item_index[rows],
            self.type_index[rows],
            self.age_s[rows],
        )


def _drop_younger(histories: Histories, start: Int64, stop: Int64, newest: Float64) -> Int64:
    """Shrink each range until its last event is not after `newest`."""
    stop = stop.copy()
    while True:
        late = (stop > start) & (histories.timestamp[np.maximum(stop - 1, 0)] > newest)
        if not late.any():
            return stop
        stop[late] -= 1


def blocks(offsets: Int64, rows: int = 65_536) -> Iterator[Int64]:
    """Consecutive request numbers in runs of at most `rows` candidate rows, at least one request each."""
    first, count = 0, len(offsets) - 1
    while first < count:
        stop = int(np.searchsorted(offsets, offsets[first] + rows, side="right")) - 1
        stop = min(max(stop, first + 1), count)
        yield np.arange(first, stop, dtype=np.int64)
        first = stop
