"""From a row (user, item) to the slot where a key's state lies: the one place that knows what a key is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from features.declaration import Key
from recsys.dataset import Catalogue
from recsys.events import Float64, Int32, Int64

UNKNOWN = -1
"""Slot of a key that cannot be named (unknown user, item without category): reads NaN."""

NOTHING_YET = -2
"""Slot of a good key that no row of any stream has touched: reads 0."""

Array = TypeVar("Array", bound=NDArray[Any])

_BITS = 32
_SECOND: dict[Key, Key] = {
    "user_category": "category",
    "user_subcategory": "subcategory",
    "user_item": "item",
}


def is_composite(key: Key) -> bool:
    """True for user × something, whose slots are looked up; other keys are their own slot."""
    return key in _SECOND


def writable(array: Array) -> Array:
    """The array, or a copy where it is read-only or strided, so that kernels compile for one layout only."""
    return array if array.flags.writeable and array.flags.c_contiguous else array.copy()


@dataclass
class ItemTable:
    """What the keys need of the catalogue: (items,) codes, -1 where missing, and creation, NaN if unknown."""

    category: Int32
    subcategory: Int32
    created_at: Float64

    @classmethod
    def of(cls, catalogue: Catalogue) -> ItemTable:
        """The columns of a catalogue."""
        return cls(
            writable(catalogue.category), writable(catalogue.subcategory), writable(catalogue.created_at)
        )

    def __len__(self) -> int:
        return len(self.created_at)

    def keys(self, key: Key, user_index: Int32, item_index: Int32) -> Int64:
        """(rows,) the key of each row as one number, UNKNOWN where it has none."""
        if key == "global":
            return np.zeros(len(item_index), np.int64)
        if key == "user":
            return user_index.astype(np.int64)
        if key == "item":
            return item_index.astype(np.int64)
        if key == "category" or key == "subcategory":
            codes = self.category if key == "category" else self.subcategory
            return _gather(codes, item_index)
        second = self.keys(_SECOND[key], user_index, item_index)
        user = user_index.astype(np.int64)
        return np.where((user >= 0) & (second >= 0), (user << _BITS) | second, UNKNOWN)

    def created(self, item_index: Int32) -> Float64:
        """(rows,) created_at of each item, NaN for an unknown one."""
        known = (item_index >= 0) & (item_index < len(self))
        if known.all():
            return self.created_at[item_index]
        found = np.full(len(item_index), np.nan)
        found[known] = self.created_at[item_index[known]]
        return found


def _gather(codes: Int32, item_index: Int32) -> Int64:
    known = (item_index >= 0) & (item_index < len(codes))
    if known.all():
        return codes[item_index].astype(np.int64)
    found = np.full(len(item_index), UNKNOWN, np.int64)
    found[known] = codes[item_index[known]]
    return found


class KeySpace:
    """Keys to slots 0..size-1, growing. A plain key is its own slot; composite keys get one each."""

    def __init__(self, size: int, keys: Int64 | None = None) -> None:
        """Take the number of plain keys, or the composite `keys`, sorted and unique."""
        self._keys = keys
        self._added: dict[int, int] = {}
        self.size = size if keys is None else len(keys)

    def find(self, keys: Int64) -> Int64:
        """(rows,) slots; UNKNOWN or NOTHING_YET where there is none."""
        if self._keys is None:
            return np.where(keys < self.size, keys, NOTHING_YET)
        slots = np.full(len(keys), NOTHING_YET, np.int64)
        if len(self._keys):
            place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            hit = self._keys[place] == keys
            slots[hit] = place[hit]
        if self._added:
            for row in np.flatnonzero(slots == NOTHING_YET):
                slots[row] = self._added.get(int(keys[row]), NOTHING_YET)
        slots[keys == UNKNOWN] = UNKNOWN
        return slots

    def find_or_add(self, keys: Int64) -> Int64:
        """(rows,) slots, giving every new key the next one; UNKNOWN stays UNKNOWN."""
        if self._keys is None:
            self.size = max(self.size, int(keys.max(initial=-1)) + 1)
            return keys
        slots = self.find(keys)
        for row in np.flatnonzero(slots == NOTHING_YET):
            slot = self._added.setdefault(int(keys[row]), self.size)
            self.size = max(self.size, slot + 1)
            slots[row] = slot
        return slots

    def sorted_keys(self) -> tuple[Int64, Int64] | None:
        """Composite keys ascending and the slot of each; None for plain keys."""
        if self._keys is None:
            return None
        keys = np.concatenate([self._keys, np.fromiter(self._added, np.int64, len(self._added))])
        slots = np.argsort(keys, kind="stable")
        return keys[slots], slots.astype(np.int64)
