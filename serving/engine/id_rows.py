"""Ids to row numbers and back, in memory, growing: what `Ids` is for a table that stands still."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from operator import itemgetter

import numpy as np

from recsys.dataset import Ids
from recsys.events import Int32


class IdRows:
    """A two-way map between external ids, all strings or all integers, and row numbers 0..n-1.

    A text that is a whole number finds the integer, and the other way round, as in a dataset.
    """

    def __init__(self, ids: Ids) -> None:
        """Start from the ids of a model."""
        self.integers = bool(ids.values.dtype.is_integer())
        self._ids: list[str | int] = ids.values.to_list()
        self._rows = {each: row for row, each in enumerate(self._ids)}

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row: int) -> str | int:
        return self._ids[row]

    def find(self, each: str | int | None) -> int:
        """The row of an id, -1 for an unknown one or none."""
        return self._rows.get(self._key(each), -1)  # type: ignore[arg-type]

    def find_all(self, ids: Sequence[str | int]) -> Int32:
        """(ids,) rows, likewise."""
        try:
            found = itemgetter(*ids)(self._rows) if len(ids) > 1 else ()
        except KeyError:
            found = ()
        if found:  # all are there, and in the form that they have here
            return np.fromiter(found, np.int32, len(ids))
        keys = ids
        if not set(map(type, ids)) <= {int if self.integers else str}:
            keys = [self._key(each) for each in ids]  # type: ignore[misc]
        return np.fromiter(map(self._rows.get, keys, repeat(-1)), np.int32, len(ids))

    def add(self, each: str | int) -> int:
        """The row of an id, which gets the next one where it is new.

        Raises:
            ValueError: a text that is no whole number among ids that are.
        """
        key = self._key(each)
        if key is None:
            raise ValueError("ids are whole numbers here")
        row = self._rows.setdefault(key, len(self._ids))
        if row == len(self._ids):
            self._ids.append(key)
        return row

    def _key(self, each: str | int | None) -> str | int | None:
        if each is None or isinstance(each, int) == self.integers:
            return each
        if not self.integers:
            return str(each)
        try:
            number = int(each)
        except ValueError:
            return None
        return number if str(number) == each else None
