"""The parts of a live state: tables of sums by slot, and inlets where rows wait until they count."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.counters import last_known
from features.replay import TableLog
from recsys.events import Float64, Int32


@dataclass
class LiveTable:
    """A table's states by slot: sums (slots, half-lives), last and first moment, NaN before the first."""

    state: Float64
    last: Float64
    first: Float64

    @classmethod
    def empty(cls, half_lives: int) -> LiveTable:
        """No slots yet."""
        return cls(np.zeros((0, half_lives)), np.zeros(0), np.zeros(0))

    @classmethod
    def of_log(cls, log: TableLog, limit: int) -> LiveTable:
        """The states after the rows with sequence < `limit`."""
        size = len(log.offsets) - 1
        slots = np.arange(size, dtype=np.int64)
        everything = np.array([0, size], np.int64)
        last, first = last_known(log.offsets, log.sequence, slots, everything, np.array([limit], np.int64))
        table = cls.empty(log.state.shape[1])
        table.reserve(size)
        touched = last >= 0
        table.state[touched] = log.state[last[touched]]
        table.last[touched] = log.timestamp[last[touched]]
        table.first[touched] = log.timestamp[first[touched]]
        return table

    def reserve(self, size: int) -> None:
        """Make room for `size` slots, untouched ones behind the others."""
        missing = size - len(self.last)
        if missing > 0:
            missing = max(missing, len(self.last) // 2)
            self.state = np.concatenate([self.state, np.zeros((missing, self.state.shape[1]))])
            self.last = np.concatenate([self.last, np.full(missing, np.nan)])
            self.first = np.concatenate([self.first, np.full(missing, np.nan)])


@dataclass(frozen=True)
class LogRows:
    """Rows on their way into the states; `type_index` is that of events, 0 for slate rows."""

    timestamp: Float64
    user_index: Int32
    item_index: Int32
    type_index: NDArray[np.int8]

    @classmethod
    def of(cls, timestamp: float, user: int, items: Int32, kind: int = 0) -> LogRows:
        """One row an item, all of one user and moment."""
        rows = len(items)
        return cls(
            np.full(rows, timestamp, np.float64),
            np.full(rows, user, np.int32),
            np.ascontiguousarray(items, np.int32),
            np.full(rows, kind, np.int8),
        )


class Inlet:
    """Rows of one source (events or slates) that wait until they are `delay_s` old.

    An event counts from the moment it is exactly that old, a slate only after it; without a delay an event
    counts at once.
    """

    def __init__(self, of_events: bool, delay_s: float) -> None:
        self.of_events = of_events
        self.delay_s = delay_s
        self.waiting: list[tuple[float, int, LogRows]] = []
        self._arrivals = 0

    def push(self, rows: LogRows) -> None:
        """Keep rows of one moment; those of equal moments stay in order of arrival."""
        if len(rows.timestamp):
            heapq.heappush(self.waiting, (float(rows.timestamp[0]), self._arrivals, rows))
            self._arrivals += 1

    def is_due(self, now: float) -> bool:
        """Whether anything waiting counts at `now`."""
        if not self.waiting:
            return False
        newest = now - self.delay_s
        return self.waiting[0][0] <= newest if self.of_events else self.waiting[0][0] < newest

    def pop(self) -> LogRows:
        """The oldest waiting rows."""
        return heapq.heappop(self.waiting)[2]
