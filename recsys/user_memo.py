"""Vectors of users whose history has not changed since they were asked for last."""

from __future__ import annotations

from collections.abc import Callable

from recsys.events import Float32
from recsys.requests import HistoryBatch

MOST = 20_000
MOST_NEW = 16
"""So many events back a shorter history is looked for."""


class UserMemo:
    """Remembers what a model made of single histories: the next page view of a user costs nothing again.

    A key is the history itself, items and types in order, so that a new event needs no word to anybody. Once
    it is full it starts anew.
    """

    def __init__(self, most: int = MOST) -> None:
        """Take how many users are remembered."""
        self._most = most
        self._vectors: dict[bytes, Float32] = {}

    def get(self, history: HistoryBatch, compute: Callable[[], Float32], beside: bytes = b"") -> Float32:
        """(requests, d) what `compute` gives for this history, not to be changed.

        Only batches of one request are remembered. The ages of events must not matter to `compute`; whatever
        else does stands in `beside`.
        """
        if len(history) != 1:
            return compute()
        key = _key(history, len(history.item_index)) + beside
        found = self._vectors.get(key)
        if found is None:
            if len(self._vectors) >= self._most:
                self._vectors = {}
            found = self._vectors[key] = compute()
        return found

    def before(self, history: HistoryBatch) -> tuple[int, Float32] | None:
        """What is remembered of one history without its newest events, and how many events that was; or None.

        So a model that reads event by event need not begin anew when a user does something.
        """
        if len(history) != 1:
            return None
        events = len(history.item_index)
        for count in range(events - 1, max(events - 1 - MOST_NEW, 0), -1):
            found = self._vectors.get(_key(history, count))
            if found is not None:
                return count, found
        return None

    def clear(self) -> None:
        """Forget everything: the model has changed."""
        self._vectors = {}


def _key(history: HistoryBatch, events: int) -> bytes:
    """The oldest `events` of a single history."""
    return history.item_index[:events].tobytes() + history.type_index[:events].tobytes()
