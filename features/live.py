"""The states of this moment, updated event by event: what the server reads where training replays.

A read gives the same bits as `Replay.read` over the same log at the same moment, as long as rows arrive in
time order. Not thread-safe: one writer, and reads only between writes. The clock does not go back: once a
read has taken in what was due at its moment, an earlier moment sees it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from features.builder import Features
from features.declaration import Key
from features.keys import ItemTable, KeySpace, writable
from features.live_cells import KEYS, LiveCells, LiveTables, read_cells
from features.live_files import fill_live, live_files, open_live
from features.live_history import LiveHistories
from features.live_tables import Entry, Inlet, KeyTable, LogRows
from features.reading import Reading, fill_catalogue
from features.replay import Replay
from features.streams import StreamWeights, weights_of
from recsys.dataset import Dataset
from recsys.events import Float64, Int32, Int64, concatenated_ranges, lengths_to_offsets
from recsys.requests import Requests

MOST_FRESH = 256
"""Events that wait for a read at most before they go into the tables together."""


class _Update(NamedTuple):
    """The tables of one key that a row changes, (k,), and what it adds to each by its type, (k, types)."""

    key: Key
    places: Int64
    weights: Float64


class LiveState:
    """Histories and states up to now, for `features`; same reading as `Replay`."""

    def __init__(
        self,
        features: Features,
        items: ItemTable,
        weights: StreamWeights,
        spaces: Mapping[Key, KeySpace],
        histories: LiveHistories,
    ) -> None:
        """Start with untouched tables; `at` and `from_files` start from a past."""
        self.features = features
        self.items = items
        self.weights = weights
        self.spaces = dict(spaces)
        self.histories = histories
        self.tables = {key: KeyTable(tables) for key, tables in features.plan.by_key.items()}
        sources = {(table.of_events, table.delay_s) for table in features.plan.tables}
        sources.add((True, features.history_delay_s))
        self.inlets = [Inlet(*source) for source in sorted(sources)]
        self._layout = _layout(self.tables)
        self._fresh: list[Entry] = []
        self._updates = {source: self._updates_of(*source) for source in sources}

    @classmethod
    def at(cls, dataset: Dataset, as_of: float, features: Features) -> LiveState:
        """The state that has seen the log strictly before `as_of`, and holds back what is too young."""
        past = dataset.before(as_of)
        weights = weights_of(dataset)
        replay = Replay(past, features, weights)
        histories = _histories_at(past, as_of, features)
        live = cls(features, replay.items, weights, replay.spaces, histories)
        moment, known = np.array([as_of]), np.array([len(past.events)], np.int64)
        for table, log in zip(features.plan.tables, replay.logs, strict=True):
            live.tables[table.key].fill(table, log, int(replay.limits(table, moment, known)[0]))
        for inlet in live.inlets:
            _hold_back(past, as_of, inlet)
        return live

    def to_files(self) -> dict[str, bytes]:
        """The files by name. The same state gives the same bytes."""
        self.settle()
        return live_files(self)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> LiveState:
        """Inverse of `to_files`; the features come with them.

        Raises:
            RecsysError: `live_state_format` for another format number, `feature_mismatch` where this
                version of the code declares the saved features differently.
        """
        features, items, weights, spaces, arrays = open_live(files)
        columns = (arrays["history.item_index"], arrays["history.type_index"], arrays["history.timestamp"])
        histories = LiveHistories(arrays["history.offsets"], columns, features.history_limit)
        live = cls(features, items, weights, spaces, histories)
        fill_live(live, arrays)
        return live

    def read(self, requests: Requests) -> Reading:
        """Histories and states at the requests' moments; `requests.known` is not looked at.

        Requests of different moments are read one moment after another where rows come due between them.
        """
        if not len(requests):
            return self._read(requests)
        self._take_in(float(requests.timestamp.min()))
        if not any(inlet.is_due(float(requests.timestamp.max())) for inlet in self.inlets):
            return self._read(requests)
        order = np.argsort(requests.timestamp, kind="stable").astype(np.int64)
        moments, starts = np.unique(requests.timestamp[order], return_index=True)
        parts = []
        for moment, numbers in zip(moments, np.split(order, starts[1:]), strict=True):
            self._take_in(float(moment))
            parts.append(self._read(requests.take(numbers)))
        return Reading.concatenate(parts).take(requests.take(order), np.argsort(order).astype(np.int64))

    def update(self, user: int, item: int, kind: int, timestamp: float) -> None:
        """Take in one event; a user index may be new, an item index must have been added.

        Raises:
            ValueError: `kind` is no type_index of the log that this state was started from.
        """
        if not 0 <= kind < len(self.weights["any"]):
            raise ValueError(f"event type {kind} is unknown to this state")
        self._fresh.append((timestamp, user, item, kind))
        if len(self._fresh) >= MOST_FRESH:
            self.settle()

    def settle(self) -> None:
        """Put what came into the tables, which happens before a read and for many events at a time."""
        if not self._fresh:
            return
        fresh, self._fresh = self._fresh, []
        for inlet in self.inlets:
            if inlet.of_events and inlet.delay_s <= 0:
                self._apply(inlet, LogRows.of(fresh))
            elif inlet.of_events:
                for entry in fresh:
                    inlet.push(entry)

    def show(self, user: int, items: Int32, timestamp: float) -> None:
        """Take in one slate; it counts for moments after its own."""
        if len(items):
            for inlet in self.inlets:
                if not inlet.of_events:
                    inlet.push((timestamp, user, items, 0))

    def add_items(self, category: Int32, subcategory: Int32, created_at: Float64) -> None:
        """Append new items to the catalogue, one row each: codes (-1 missing), created_at (NaN unknown)."""
        self.items.append(category, subcategory, created_at)

    def get_ready(self) -> None:
        """Load the kernels that updates need, which takes 50 ms, by updating with nothing."""
        nothing = LogRows.of([])
        for inlet in self.inlets:
            self._apply(inlet, nothing)

    def _take_in(self, now: float) -> None:
        self.settle()
        for inlet in self.inlets:
            if inlet.is_due(now):
                self._apply(inlet, inlet.pop(now))

    def _apply(self, inlet: Inlet, rows: LogRows) -> None:
        source = (inlet.of_events, inlet.delay_s)
        keys = self.items.keys(rows.user_index, rows.item_index)
        for update in self._updates[source]:
            kept, space = self.tables[update.key], self.spaces[update.key]
            slots = space.find_or_add(keys[update.key])
            kept.reserve(space.size)
            kept.apply(update.places, slots, rows.timestamp, update.weights.take(rows.type_index, axis=1))
        if source == (True, self.features.history_delay_s):
            self._remember(rows)

    def _updates_of(self, of_events: bool, delay_s: float) -> list[_Update]:
        """What a row of one source changes."""
        found = []
        for key, kept in self.tables.items():
            alike = [
                table
                for table in self.features.plan.by_key[key]
                if (table.of_events, table.delay_s) == (of_events, delay_s)
            ]
            if alike:
                once = np.ones(1)  # a slate row counts once
                weights = [self.weights[table.stream] if of_events else once for table in alike]
                found.append(_Update(key, kept.places(alike), np.stack(weights)))
        return found

    def _remember(self, rows: LogRows) -> None:
        chosen = np.flatnonzero((rows.user_index >= 0) & (self.weights["outcome"][rows.type_index] > 0))
        self.histories.extend(
            rows.user_index[chosen], rows.item_index[chosen], rows.type_index[chosen], rows.timestamp[chosen]
        )

    def _cells(self) -> LiveCells:
        """What is in the tables now; views are stale once anything has grown."""
        spaces = [self.spaces[key] for key in self.tables]
        slots, keys = zip(*(space.hashed for space in spaces), strict=True)
        sizes = np.array([space.size for space in spaces], np.int64)
        return LiveCells(sizes, slots, keys, tuple(kept.cells for kept in self.tables.values()))

    def _read(self, requests: Requests) -> Reading:
        plan = self.features.plan
        moments = writable(requests.timestamp)
        history = self.histories.read(requests)
        states = np.empty((len(plan), requests.rows), np.float32)
        asked = (requests.offsets, moments, writable(requests.user_index), writable(requests.item_index))
        catalogue = (self.items.category, self.items.subcategory)
        if self.tables:
            read_cells(self._layout, self._cells(), catalogue, asked, states)
        fill_catalogue(plan, self.items, requests, history, states)
        return Reading(history, states.T)


def _layout(tables: Mapping[Key, KeyTable]) -> LiveTables:
    """The tables of all keys as one."""
    most = max((table.rates.shape[1] for table in tables.values()), default=0)
    count = [len(table.layout) for table in tables.values()]
    lines = np.full((sum(count), 4 + most), -1, np.int64)
    rates = np.zeros((sum(count), most))
    starts = lengths_to_offsets(np.array(count, np.int64))
    for begin, table in zip(starts.tolist(), tables.values(), strict=False):
        lines[begin : begin + len(table.layout), : table.layout.shape[1]] = table.layout
        rates[begin : begin + len(table.rates), : table.rates.shape[1]] = table.rates
    return LiveTables(np.array([KEYS.index(key) for key in tables], np.int64), starts, lines, rates)


def _histories_at(past: Dataset, as_of: float, features: Features) -> LiveHistories:
    """Each user's last events of the log, those old enough."""
    known = len(past.events)
    if features.history_delay_s > 0:
        newest = as_of - features.history_delay_s
        known = int(np.searchsorted(past.events.timestamp, newest, side="right"))
    users = np.arange(len(past.users), dtype=np.int32)
    _, stop = past.histories.until(users, np.full(len(users), known, np.int64))
    start = np.maximum(past.histories.offsets[:-1], stop - features.history_limit)
    rows = concatenated_ranges(start, stop)
    log = past.histories
    columns = (log.item_index[rows], log.type_index[rows], log.timestamp[rows])
    return LiveHistories(lengths_to_offsets(stop - start), columns, features.history_limit)


def _hold_back(past: Dataset, as_of: float, inlet: Inlet) -> None:
    """Put the log's youngest rows, which do not count yet at `as_of`, into the inlet."""
    newest = as_of - inlet.delay_s
    if inlet.of_events:
        events = past.events
        first = int(np.searchsorted(events.timestamp, newest, side="right"))
        for row in range(first if inlet.delay_s > 0 else len(events), len(events)):
            user, kind = int(events.user_index[row]), int(events.type_index[row])
            inlet.push((float(events.timestamp[row]), user, int(events.item_index[row]), kind))
    elif past.slates is not None:
        slates = past.slates
        for slate in range(int(np.searchsorted(slates.timestamp, newest, side="left")), len(slates)):
            items = slates.item_index[slates.offsets[slate] : slates.offsets[slate + 1]]
            if len(items):
                inlet.push((float(slates.timestamp[slate]), int(slates.user_index[slate]), items, 0))
