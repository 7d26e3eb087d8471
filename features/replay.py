"""States and histories at any past moment, from the whole log: read before it is updated, never after.

A request sees the first `known` events; where a declaration has a delay, only those of them that are at
least that old; of slates only those strictly before its moment less the delay. So a row's own click, or its
own slate, is never in its features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from features.builder import Features
from features.counters import accumulate, group_by_slot, last_known, read_states
from features.declaration import Key, Stream
from features.keys import CompositeKeys, ItemTable, KeySpace, PlainKeys, writable
from features.plan import Table
from features.reading import Reading, fill_catalogue
from features.streams import StreamWeights, weights_of
from recsys.dataset import Dataset
from recsys.events import Float64, Int32, Int64
from recsys.requests import HistoryBatch, Requests


@dataclass(frozen=True)
class StreamRows:
    """The rows of one stream in log order; `sequence` is the row in the events, or in the slates' rows."""

    user_index: Int32
    item_index: Int32
    timestamp: Float64
    weight: Float64
    sequence: Int64


@dataclass(frozen=True)
class TableLog:
    """A table's rows grouped by slot, in time order within it, with the state after each."""

    offsets: Int64
    sequence: Int64
    timestamp: Float64
    state: Float64


class Replay:
    """Random access into the log's past, for the states that `features` needs.

    Memory: 8 bytes × (2 + half-lives) a stream row and table. Reading is O(log rows) a key and does not
    depend on the order of requests, so callers may cut their requests into chunks of any size.
    """

    def __init__(self, dataset: Dataset, features: Features, weights: StreamWeights | None = None) -> None:
        """Group the log by every key once; `weights` are those of a longer log that this one is cut from."""
        self.dataset = dataset
        self.features = features
        self.items = ItemTable.of(dataset.catalogue)
        self._weights = weights if weights is not None else weights_of(dataset)
        streams = {table.stream: self._stream(table) for table in features.plan.tables}
        self.spaces = self._key_spaces(streams)
        self.logs = [self._log(table, streams[table.stream]) for table in features.plan.tables]

    def read(self, requests: Requests) -> Reading:
        """Histories and states of these requests; see `Reading` for shapes."""
        features = self.features
        history = self._history(requests)
        states = np.empty((len(features.plan), requests.rows), np.float32)
        moments = writable(requests.timestamp)
        slots = slots_of_rows(self.spaces, self.items, requests)
        for table, log in zip(features.plan.tables, self.logs, strict=True):
            limits = self.limits(table, moments, writable(requests.known))
            place, first = last_known(log.offsets, log.sequence, slots[table.key], requests.offsets, limits)
            read_states(
                (place, log.timestamp, log.state),
                (first, log.timestamp),
                (requests.offsets, moments),
                table.rates,
                table.column_array,
                states,
            )
        fill_catalogue(features.plan, self.items, requests, history, states)
        return Reading(history, states.T)

    def limits(self, table: Table, moment: Float64, known: Int64) -> Int64:
        """(r,) the sequence number in the table's stream that each request may not reach."""
        if not table.of_events:
            slates = self.dataset.slates
            if slates is None:
                return np.zeros(len(moment), np.int64)
            newest = moment - table.delay_s
            return slates.offsets[np.searchsorted(slates.timestamp, newest, side="left")]
        return self._known(moment, known, table.delay_s)

    def _stream(self, table: Table) -> StreamRows:
        """The log rows that update a table, those with a weight."""
        events, slates = self.dataset.events, self.dataset.slates
        if table.of_events:
            weight = self._weights[table.stream][events.type_index]
            rows = np.flatnonzero(weight)
            return StreamRows(
                events.user_index[rows],
                events.item_index[rows],
                events.timestamp[rows],
                weight[rows],
                rows.astype(np.int64),
            )
        if slates is None:
            nobody, nothing = np.zeros(0, np.int32), np.zeros(0, np.float64)
            return StreamRows(nobody, nobody, nothing, nothing, np.zeros(0, np.int64))
        lengths = np.diff(slates.offsets)
        rows = np.arange(len(slates.item_index), dtype=np.int64)
        return StreamRows(
            np.repeat(slates.user_index, lengths),
            slates.item_index,
            np.repeat(slates.timestamp, lengths),
            np.ones(len(rows), np.float64),
            rows,
        )

    def _known(self, moment: Float64, known: Int64, delay_s: float) -> Int64:
        """(r,) how many leading events each request may look at that are at least `delay_s` old."""
        if delay_s <= 0:
            return known
        old_enough = np.searchsorted(self.dataset.events.timestamp, moment - delay_s, side="right")
        return np.minimum(known, old_enough)

    def _history(self, requests: Requests) -> HistoryBatch:
        known = self._known(requests.timestamp, requests.known, self.features.history_delay_s)
        old_enough = replace(requests, known=known)
        return HistoryBatch.of(self.dataset.histories, old_enough, limit=self.features.history_limit)

    def _key_spaces(self, streams: Mapping[Stream, StreamRows]) -> dict[Key, KeySpace]:
        catalogue = self.dataset.catalogue
        sizes: dict[Key, int] = {
            "global": 1,
            "user": len(self.dataset.users),
            "item": len(catalogue),
            "category": len(catalogue.category_names),
            "subcategory": len(catalogue.subcategory_names),
        }
        spaces: dict[Key, KeySpace] = {}
        for table in self.features.plan.tables:
            if table.key in sizes:
                spaces[table.key] = PlainKeys(sizes[table.key])
                continue
            space = spaces.setdefault(table.key, CompositeKeys(np.zeros(0, np.int64)))
            space.find_or_add(self._keys(table.key, streams[table.stream]))
        return spaces

    def _log(self, table: Table, rows: StreamRows) -> TableLog:
        space = self.spaces[table.key]
        offsets, order = group_by_slot(space.find(self._keys(table.key, rows)), space.size)
        timestamp = rows.timestamp[order]
        state = accumulate(offsets, timestamp, rows.weight[order], table.rates)
        return TableLog(offsets, rows.sequence[order], timestamp, state)

    def _keys(self, key: Key, rows: StreamRows) -> Int64:
        return self.items.key(key, rows.user_index, rows.item_index)


def slots_of_rows(spaces: dict[Key, KeySpace], items: ItemTable, requests: Requests) -> dict[Key, Int64]:
    """(rows,) slot of each candidate row, for every key."""
    user = np.repeat(requests.user_index, requests.lengths)
    keys = items.keys(user, writable(requests.item_index))
    return {key: space.find(keys[key]) for key, space in spaces.items()}
