"""The parts of a live state: tables of states by key, and inlets where rows wait until they count."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.counters import last_known
from features.live_cells import apply_cells
from features.plan import Table
from features.replay import TableLog
from recsys.events import Float64, Int32, Int64

Entry = tuple[float, int, int | Int32, int]
"""Moment, user, item or items, and type of event."""


class KeyTable:
    """All states of one key, a row a slot: what a candidate needs of a key lies in one place in memory.

    A row holds, for each table of the key in turn, its sums, then its last and its first moment, which are
    NaN before the first row of its stream.
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        """Lay the tables of one key side by side; there are no slots yet."""
        self._place = {table: place for place, table in enumerate(tables)}
        widths = [len(table.half_lives_days) for table in tables]
        most = max(widths)
        self.begin = np.cumsum([0, *(width + 2 for width in widths)])
        self.layout = np.full((len(tables), 4 + most), -1, np.int64)
        self.rates = np.zeros((len(tables), most))
        for place, (table, width) in enumerate(zip(tables, widths, strict=True)):
            self.layout[place, : 4 + width] = [self.begin[place], width, *table.columns]
            self.rates[place, :width] = table.rates
        self.cells = np.zeros((0, self.begin[-1]))

    def part(self, table: Table) -> tuple[Float64, Float64, Float64]:
        """Views of one table: sums (slots, half-lives), last and first moment (slots,)."""
        place = self._place[table]
        begin, end = self.begin[place], self.begin[place + 1]
        return self.cells[:, begin : end - 2], self.cells[:, end - 2], self.cells[:, end - 1]

    def places(self, tables: Sequence[Table]) -> Int64:
        """(k,) where these tables stand among those of the key."""
        return np.array([self._place[table] for table in tables], np.int64)

    def apply(self, places: Int64, slots: Int64, timestamp: Float64, weight: Float64) -> None:
        """Add rows one after another to the tables in these places; weights (k, rows), 0 leaves one out."""
        apply_cells(self.cells, (self.layout, self.rates, places), slots, timestamp, weight)

    def reserve(self, size: int) -> None:
        """Make room for `size` slots, untouched ones behind the others; views from before are stale then."""
        missing = size - len(self.cells)
        if missing > 0:
            fresh = np.zeros((max(missing, len(self.cells) // 2), self.cells.shape[1]))
            for end in self.begin[1:]:
                fresh[:, end - 2 : end] = np.nan
            self.cells = np.concatenate([self.cells, fresh])

    def fill(self, table: Table, log: TableLog, limit: int) -> None:
        """Write a table's states after the rows of its log with sequence < `limit`."""
        size = len(log.offsets) - 1
        slots = np.arange(size, dtype=np.int64)
        everything = np.array([0, size], np.int64)
        known, oldest = last_known(log.offsets, log.sequence, slots, everything, np.array([limit], np.int64))
        self.reserve(size)
        state, last, first = self.part(table)
        touched = np.flatnonzero(known >= 0)
        state[touched] = log.state[known[touched]]
        last[touched] = log.timestamp[known[touched]]
        first[touched] = log.timestamp[oldest[touched]]


@dataclass(frozen=True)
class LogRows:
    """Rows on their way into the states; `type_index` is that of events, 0 for slate rows."""

    timestamp: Float64
    user_index: Int32
    item_index: Int32
    type_index: Int32

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> LogRows:
        """The rows of these entries, in their order."""
        moments, users, items, kinds = zip(*entries, strict=True) if entries else ((), (), (), ())
        if all(isinstance(each, int) for each in items):
            return cls(
                np.array(moments, np.float64),
                np.array(users, np.int32),
                np.array(items, np.int32),
                np.array(kinds, np.int32),
            )
        counts = [1 if isinstance(each, int) else len(each) for each in items]
        rows = [np.atleast_1d(np.asarray(each, np.int32)) for each in items]
        return cls(
            np.repeat(np.array(moments, np.float64), counts),
            np.repeat(np.array(users, np.int32), counts),
            np.concatenate(rows),
            np.repeat(np.array(kinds, np.int32), counts),
        )


class Inlet:
    """Rows of one source (events or slates) that wait until they are `delay_s` old.

    An event counts from the moment it is exactly that old, a slate only after it; without a delay an event
    counts at once.
    """

    def __init__(self, of_events: bool, delay_s: float) -> None:
        self.of_events = of_events
        self.delay_s = delay_s
        self._waiting: list[tuple[float, int, Entry]] = []
        self._arrivals = 0

    @property
    def waiting(self) -> list[Entry]:
        """What waits, oldest first; entries of equal moments in order of arrival."""
        return [entry for _, _, entry in sorted(self._waiting, key=lambda each: each[:2])]

    def push(self, entry: Entry) -> None:
        """Keep the rows of one moment; those of equal moments stay in order of arrival."""
        heapq.heappush(self._waiting, (entry[0], self._arrivals, entry))
        self._arrivals += 1

    def is_due(self, now: float) -> bool:
        """Whether anything waiting counts at `now`."""
        if not self._waiting:
            return False
        newest = now - self.delay_s
        return self._waiting[0][0] <= newest if self.of_events else self._waiting[0][0] < newest

    def pop(self, now: float) -> LogRows:
        """All rows that count at `now`, oldest first."""
        due = []
        while self.is_due(now):
            due.append(heapq.heappop(self._waiting)[2])
        return LogRows.of(due)
