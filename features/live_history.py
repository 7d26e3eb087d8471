"""Every user's last events in memory, appended to as they come and read like the log's histories."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from recsys.events import Float64, Int32, Int64, concatenated_ranges, lengths_to_offsets
from recsys.requests import HistoryBatch, Requests

_FIRST_BLOCK = 8


class LiveHistories:
    """The last `limit` events of each user, at least.

    All users' events lie in three shared columns; each user owns a block of them. A full block moves to the
    end at twice its size, or, once it holds twice the limit, drops its older half in place.
    """

    def __init__(self, offsets: Int64, columns: tuple[Int32, NDArray[np.int8], Float64], limit: int) -> None:
        """Take (users + 1,) offsets into the columns (item_index, type_index, timestamp), oldest first."""
        self.limit = limit
        item, kind, timestamp = columns
        self._item, self._type, self._timestamp = item.copy(), kind.copy(), timestamp.copy()
        self._used = int(offsets[-1])
        self._begin = offsets[:-1].copy()
        self._start = offsets[:-1].copy()
        self._stop = offsets[1:].copy()
        self._end = offsets[1:].copy()

    @classmethod
    def empty(cls, limit: int) -> LiveHistories:
        """Histories of nobody so far."""
        columns = (np.zeros(0, np.int32), np.zeros(0, np.int8), np.zeros(0, np.float64))
        return cls(np.zeros(1, np.int64), columns, limit)

    def __len__(self) -> int:
        return len(self._start)

    def extend(self, users: Int32, items: Int32, kinds: Int32, timestamps: Float64) -> None:
        """Add events of users, who may be new, one after another: each behind those that are not younger."""
        if len(users) and (most := int(users.max()) + 1) > len(self):
            self._add_users(most)
        done = 0
        while True:
            columns = (self._item, self._type, self._timestamp)
            places = (self._start, self._stop, self._end)
            done = _insert(places, columns, (users, items, kinds, timestamps), done)
            if done == len(users):
                return
            self._make_room(int(users[done]))

    def read(self, requests: Requests) -> HistoryBatch:
        """The last `limit` events of each request's user; nothing for an unknown user."""
        places, columns = (self._start, self._stop), (self._item, self._type, self._timestamp)
        return HistoryBatch(*_read(requests.user_index, requests.timestamp, places, columns, self.limit))

    def compact(self) -> tuple[Int64, tuple[Int32, NDArray[np.int8], Float64]]:
        """The constructor's arguments, without the gaps and without events beyond the limit."""
        start = np.maximum(self._start, self._stop - self.limit)
        rows = concatenated_ranges(start, self._stop)
        columns = (self._item[rows], self._type[rows], self._timestamp[rows])
        return lengths_to_offsets(self._stop - start), columns

    def _add_users(self, users: int) -> None:
        new = np.full(max(users, len(self) * 3 // 2) - len(self), self._used, np.int64)
        self._begin, self._start, self._stop, self._end = (
            np.concatenate([places, new]) for places in (self._begin, self._start, self._stop, self._end)
        )

    def _make_room(self, user: int) -> None:
        keep = int(min(self._stop[user] - self._start[user], self.limit))
        rows = slice(self._stop[user] - keep, self._stop[user])
        if self._end[user] - self._begin[user] < 2 * self.limit:
            size = min(max(_FIRST_BLOCK, 2 * (keep + 1)), 2 * self.limit)
            self._reserve(self._used + size)
            self._begin[user], self._end[user] = self._used, self._used + size
            self._used += size
        start = self._begin[user]
        for column in (self._item, self._type, self._timestamp):
            column[start : start + keep] = column[rows].copy()
        self._start[user], self._stop[user] = start, start + keep

    def _reserve(self, size: int) -> None:
        if size <= len(self._item):
            return
        missing = max(size, 2 * len(self._item)) - len(self._item)
        self._item = np.concatenate([self._item, np.zeros(missing, np.int32)])
        self._type = np.concatenate([self._type, np.zeros(missing, np.int8)])
        self._timestamp = np.concatenate([self._timestamp, np.zeros(missing, np.float64)])


@njit(cache=True, nogil=True)
def _read(
    users: Int32,
    moments: Float64,
    places: tuple[Int64, Int64],
    columns: tuple[Int32, NDArray[np.int8], Float64],
    limit: int,
) -> tuple[Int64, Int32, Int32, Float64]:
    """The fields of a `HistoryBatch`: offsets (r + 1,), items, types and ages of the events."""
    start, stop = places
    item, kind, timestamp = columns
    offsets = np.zeros(len(users) + 1, np.int64)
    for request in range(len(users)):
        user = users[request]
        known = 0 <= user < len(start)
        offsets[request + 1] = offsets[request] + (min(stop[user] - start[user], limit) if known else 0)
    found = (
        np.empty(offsets[-1], np.int32),
        np.empty(offsets[-1], np.int32),
        np.empty(offsets[-1], np.float64),
    )
    for request in range(len(users)):
        for to in range(offsets[request], offsets[request + 1]):
            row = stop[users[request]] - (offsets[request + 1] - to)
            found[0][to], found[1][to] = item[row], kind[row]
            found[2][to] = max(moments[request] - timestamp[row], 0.0)
    return offsets, found[0], found[1], found[2]


@njit(cache=True, nogil=True)
def _insert(
    places: tuple[Int64, Int64, Int64],
    columns: tuple[Int32, NDArray[np.int8], Float64],
    events: tuple[Int32, Int32, Int32, Float64],
    begin: int,
) -> int:
    """Put events from `begin` on in their places, up to the first for whose user there is no room; which."""
    start, stop, end = places
    item, kind, timestamp = columns
    users, items, kinds, moments = events
    for row in range(begin, len(users)):
        user, now = users[row], moments[row]
        place = stop[user]
        if place == end[user]:
            return row
        while place > start[user] and timestamp[place - 1] > now:
            before = place - 1
            item[place], kind[place], timestamp[place] = item[before], kind[before], timestamp[before]
            place = before
        item[place], kind[place], timestamp[place] = items[row], kinds[row], now
        stop[user] += 1
    return len(users)
