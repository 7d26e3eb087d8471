"""Vectors of users whose history has not changed since they were asked for last."""

from __future__ import annotations

from collections.abc import Callable

from recsys.events import Float32
from recsys.requests import HistoryBatch

MOST = 20_000


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
        key = history.item_index.tobytes() + history.type_index.tobytes() + beside
        found = self._vectors.get(key)
        if found is None:
            if len(self._vectors) >= self._most:
                self._vectors = {}
            found = self._vectors[key] = compute()
        return found

    def clear(self) -> None:
        """Forget everything: the model has changed."""
        self._vectors = {}
