"""The log as arrays: events in time order, slates as shown, and each user's history.

Everything here is row numbers and floats. Ids, text and files are the business of `dataset`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class EventRole:
    """What an event type means to the engine.

    Attributes:
        weight: strength of the preference it shows, in clicks (a click is 1). Not negative.
        negative: the event says "less of this" (a dismissal).
        target: the event is an outcome worth predicting, and stands in the user's history.
            Weak signals (a view) feed counters only.
    """

    weight: float = 1.0
    negative: bool = False
    target: bool = True


DEFAULT_ROLES: dict[str, EventRole] = {
    "view": EventRole(0.1, target=False),
    "click": EventRole(1.0),
    "history_click": EventRole(1.0),
    "rating": EventRole(1.0),
    "review": EventRole(1.0),
    "like": EventRole(2.0),
    "bookmark": EventRole(2.0),
    "comment": EventRole(3.0),
    "share": EventRole(3.0),
    "purchase": EventRole(5.0),
    "dismiss": EventRole(1.0, negative=True, target=False),
}


@dataclass(frozen=True)
class Events:
    """All good events, ordered by (timestamp, place in the file). All arrays have shape (n,).

    `timestamp` is seconds since the epoch, UTC. An undated event (known to lie before the log) stands
    one second before the first dated one. `sequence` of an event is its row number here.
    """

    user_index: Int32
    item_index: Int32
    type_index: NDArray[np.int8]
    timestamp: Float64
    value: Float32

    def __len__(self) -> int:
        return len(self.timestamp)

    def take(self, rows: Int64 | Bool | slice) -> Events:
        """The same columns at `rows`, which must keep the order."""
        return Events(
            self.user_index[rows],
            self.item_index[rows],
            self.type_index[rows],
            self.timestamp[rows],
            self.value[rows],
        )

    def known_at(self, timestamp: Float64 | float) -> Int64:
        """How many leading events happened strictly before each moment; shape of `timestamp`."""
        return np.asarray(np.searchsorted(self.timestamp, timestamp, side="left"), dtype=np.int64)


@dataclass(frozen=True)
class Slates:
    """Impressions in time order, one slate a request; rows of slate s are offsets[s]:offsets[s+1].

    Shapes: `user_index`, `timestamp` (s,); `offsets` (s + 1,); the others (rows,). `position` is
    1-based; `propensity` is NaN where the log has none; `impression_row` (s,) is the row in the
    impressions table.
    """

    user_index: Int32
    timestamp: Float64
    offsets: Int64
    item_index: Int32
    clicked: Bool
    position: NDArray[np.int16]
    propensity: Float32
    impression_row: Int64

    def __len__(self) -> int:
        return len(self.timestamp)

    def take(self, slates: Int64) -> Slates:
        """The slates with these numbers, in the given order."""
        rows = concatenated_ranges(self.offsets[slates], self.offsets[slates + 1])
        return Slates(
            self.user_index[slates],
            self.timestamp[slates],
            lengths_to_offsets(self.offsets[slates + 1] - self.offsets[slates]),
            self.item_index[rows],
            self.clicked[rows],
            self.position[rows],
            self.propensity[rows],
            self.impression_row[slates],
        )


@dataclass(frozen=True)
class Histories:
    """Each user's history-worthy events in time order; user u owns offsets[u]:offsets[u + 1].

    `sequence` is the row of the event in `Events`, ascending within a user, so "what user u had done
    when the first `known` events had happened" is a binary search.
    """

    offsets: Int64
    item_index: Int32
    type_index: NDArray[np.int8]
    timestamp: Float64
    sequence: Int64

    @classmethod
    def of(cls, events: Events, users: int, keep: Bool) -> Histories:
        """Histories of `users` users over the event types where `keep[type_index]` is true."""
        rows = np.flatnonzero(keep[events.type_index]) if len(events) else np.zeros(0, np.int64)
        order = rows[np.argsort(events.user_index[rows], kind="stable")]
        counts = np.bincount(events.user_index[order], minlength=users)
        return cls(
            lengths_to_offsets(counts),
            events.item_index[order],
            events.type_index[order],
            events.timestamp[order],
            order.astype(np.int64),
        )

    def until(self, user_index: Int32, known: Int64) -> tuple[Int64, Int64]:
        """First and one-past-last row here of each user's events with sequence < `known`.

        Both results have shape (requests,). An unknown user (-1) gets an empty range.
        """
        users = len(self.offsets) - 1
        valid = user_index >= 0
        safe = np.where(valid, user_index, 0).astype(np.int64)
        if not users or not len(self.sequence):
            empty = np.zeros(len(user_index), np.int64)
            return empty, empty
        span = np.int64(self.sequence.max() + 2)
        owner = np.repeat(np.arange(users, dtype=np.int64), np.diff(self.offsets))
        keys = owner * span + self.sequence
        stop = np.searchsorted(keys, safe * span + np.clip(known, 0, span - 1), side="left")
        start = self.offsets[safe]
        stop = np.maximum(stop, start)
        return start, np.where(valid, stop, start)


def lengths_to_offsets(lengths: NDArray[np.integer]) -> Int64:
    """Row offsets, shape (n + 1,), of consecutive groups with these lengths."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def concatenated_ranges(starts: Int64, stops: Int64) -> Int64:
    """The numbers start..stop-1 of every range, one range after another."""
    lengths = stops - starts
    offsets = lengths_to_offsets(lengths)
    return np.arange(offsets[-1], dtype=np.int64) + np.repeat(starts - offsets[:-1], lengths)
