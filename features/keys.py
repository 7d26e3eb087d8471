"""From a row (user, item) to the slot where a key's state lies: the one place that knows what a key is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numba import njit
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
_MULTIPLIER = 0x9E3779B97F4A7C1
_PIECE = 65_536
_SECOND: dict[Key, Key] = {
    "user_category": "category",
    "user_subcategory": "subcategory",
    "user_item": "item",
}


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


class PlainKeys:
    """Keys that are their own slots 0..size-1."""

    def __init__(self, size: int) -> None:
        self.size = size

    def find(self, keys: Int64) -> Int64:
        """(rows,) slots; UNKNOWN or NOTHING_YET where there is none."""
        return np.where(keys < self.size, keys, NOTHING_YET)

    def find_or_add(self, keys: Int64) -> Int64:
        """(rows,) slots, making room for every new key; UNKNOWN stays UNKNOWN."""
        self.size = max(self.size, int(keys.max(initial=-1)) + 1)
        return keys


class CompositeKeys:
    """Keys of user × something; each gets the next slot in turn, and is found by hashing."""

    def __init__(self, keys: Int64) -> None:
        """Take unique keys in slot order."""
        self.size = len(keys)
        self._keys = keys
        self._rehash()

    @property
    def keys(self) -> Int64:
        """(size,) keys in slot order."""
        return self._keys[: self.size]

    def find(self, keys: Int64) -> Int64:
        """(rows,) slots; UNKNOWN or NOTHING_YET where there is none."""
        return _find(self._table, self._keys, keys)

    def find_or_add(self, keys: Int64) -> Int64:
        """(rows,) slots, giving every new key the next one; UNKNOWN stays UNKNOWN."""
        pieces = [self._add(keys[row : row + _PIECE]) for row in range(0, len(keys), _PIECE)]
        return np.concatenate(pieces) if pieces else keys

    def _add(self, keys: Int64) -> Int64:
        if self.size + len(keys) > len(self._keys):
            self._keys = np.concatenate([self.keys, np.zeros(self.size + len(keys), np.int64)])
            self._rehash()
        slots, self.size = _find_or_add(self._table, self._keys, self.size, keys)
        return slots

    def _rehash(self) -> None:
        """A fresh table of a power of two, at most half full even when all the room for keys is used."""
        self._table = np.full(1 << max(4, int(2 * len(self._keys)).bit_length()), -1, np.int64)
        _find_or_add(self._table, self._keys, 0, self.keys.copy())


KeySpace = PlainKeys | CompositeKeys
"""From keys to slots, growing."""


@njit(cache=True, nogil=True)
def _place(table: Int64, known: Int64, key: int) -> int:
    """Where the key's slot stands, or the free place where it belongs (Knuth's multiplicative hash)."""
    mask = len(table) - 1
    place = (key * _MULTIPLIER) >> _BITS & mask
    while table[place] >= 0 and known[table[place]] != key:
        place = (place + 1) & mask
    return place


@njit(cache=True, nogil=True)
def _find(table: Int64, known: Int64, keys: Int64) -> Int64:
    slots = np.empty(len(keys), np.int64)
    for row in range(len(keys)):
        slot = table[_place(table, known, keys[row])] if keys[row] >= 0 else -1
        slots[row] = slot if slot >= 0 or keys[row] < 0 else -2
    return slots


@njit(cache=True, nogil=True)
def _find_or_add(table: Int64, known: Int64, size: int, keys: Int64) -> tuple[Int64, int]:
    slots = np.empty(len(keys), np.int64)
    for row in range(len(keys)):
        if keys[row] < 0:
            slots[row] = -1
            continue
        place = _place(table, known, keys[row])
        if table[place] < 0:
            table[place] = size
            known[size] = keys[row]
            size += 1
        slots[row] = table[place]
    return slots, size
