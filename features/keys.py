"""From a row (user, item) to the slot where a key's state lies: the one place that knows what a key is."""

from __future__ import annotations

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
_NONE = np.zeros(0, np.int64)


def writable(array: Array) -> Array:
    """The array, or a copy where it is read-only or strided, so that kernels compile for one layout only."""
    return array if array.flags.writeable and array.flags.c_contiguous else array.copy()


class ItemTable:
    """What the keys need of the catalogue.

    Attributes:
        category, subcategory: (items,) codes, -1 where missing.
        created_at: (items,) epoch seconds, NaN if unknown.
        most_codes: more than any code.
    """

    def __init__(self, category: Int32, subcategory: Int32, created_at: Float64) -> None:
        """Take the columns of a catalogue; they are not changed."""
        self.category, self.subcategory = writable(category), writable(subcategory)
        self.created_at = writable(created_at)
        self.most_codes = 1 + max(int(category.max(initial=-1)), int(subcategory.max(initial=-1)))
        self._room = (self.category, self.subcategory, self.created_at)

    @classmethod
    def of(cls, catalogue: Catalogue) -> ItemTable:
        """The columns of a catalogue."""
        return cls(catalogue.category, catalogue.subcategory, catalogue.created_at)

    def __len__(self) -> int:
        return len(self.created_at)

    def append(self, category: Int32, subcategory: Int32, created_at: Float64) -> None:
        """Add items behind the others; views from before may be stale then."""
        begin, end = len(self), len(self) + len(created_at)
        if end > len(self._room[0]):
            size = max(end, 2 * begin)
            codes = _grown(self.category, size), _grown(self.subcategory, size)
            self._room = (*codes, _grown(self.created_at, size))
        first, second, moments = self._room
        first[begin:end], second[begin:end], moments[begin:end] = category, subcategory, created_at
        self.category, self.subcategory, self.created_at = first[:end], second[:end], moments[:end]
        self.most_codes = max(self.most_codes, 1 + int(max(category.max(), subcategory.max())))

    def key(self, kind: Key, user_index: Int32, item_index: Int32) -> Int64:
        """(rows,) the key of each row as one number, UNKNOWN where it has none."""
        if kind == "global":
            return np.zeros(len(item_index), np.int64)
        if kind == "user":
            return user_index.astype(np.int64)
        second = kind.removeprefix("user_")
        if second == "item":
            found = item_index.astype(np.int64)
        else:
            found = _gather(self.category if second == "category" else self.subcategory, item_index)
        return found if second == kind else _pair(user_index.astype(np.int64), found)

    def keys(self, user_index: Int32, item_index: Int32) -> dict[Key, Int64]:
        """`key` of every kind."""
        user, item = user_index.astype(np.int64), item_index.astype(np.int64)
        category, subcategory = _gather(self.category, item_index), _gather(self.subcategory, item_index)
        return {
            "global": np.zeros(len(item), np.int64),
            "user": user,
            "item": item,
            "category": category,
            "subcategory": subcategory,
            "user_category": _pair(user, category),
            "user_subcategory": _pair(user, subcategory),
            "user_item": _pair(user, item),
        }


def _grown(column: Array, size: int) -> Array:
    grown: Array = np.empty(size, column.dtype)  # type: ignore[assignment]
    grown[: len(column)] = column
    return grown


@njit(cache=True, nogil=True, inline="always")
def code_of(item: int, codes: Int32) -> int:
    """The code of an item, -1 for one without a code or outside the catalogue."""
    return int(codes[item]) if 0 <= item < len(codes) else -1


@njit(cache=True, nogil=True, inline="always")
def pair_of(user: int, second: int) -> int:
    """The key of user and item, or user and code, as one number; UNKNOWN where either is."""
    return (user << _BITS) | second if user >= 0 and second >= 0 else UNKNOWN


@njit(cache=True, nogil=True)
def _gather(codes: Int32, item_index: Int32) -> Int64:
    found = np.empty(len(item_index), np.int64)
    for row in range(len(item_index)):
        found[row] = code_of(item_index[row], codes)
    return found


@njit(cache=True, nogil=True)
def _pair(user: Int64, second: Int64) -> Int64:
    found = np.empty(len(user), np.int64)
    for row in range(len(user)):
        found[row] = pair_of(user[row], second[row])
    return found


@njit(cache=True, nogil=True)
def _within(keys: Int64, size: int) -> Int64:
    found = np.empty(len(keys), np.int64)
    for row in range(len(keys)):
        found[row] = keys[row] if keys[row] < size else NOTHING_YET
    return found


class PlainKeys:
    """Keys that are their own slots 0..size-1."""

    def __init__(self, size: int) -> None:
        self.size = size

    @property
    def hashed(self) -> tuple[Int64, Int64]:
        """What `slot_of` needs beside the size: two empty arrays."""
        return _NONE, _NONE

    def find(self, keys: Int64) -> Int64:
        """(rows,) slots; UNKNOWN or NOTHING_YET where there is none."""
        return _within(keys, self.size)

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

    @property
    def hashed(self) -> tuple[Int64, Int64]:
        """What `slot_of` needs beside the size: the table of slots, and the keys with their room."""
        return self._table, self._keys

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
def slot_of(table: Int64, known: Int64, size: int, key: int) -> int:
    """The slot of one key, as `find` of a key space gives it; plain keys have empty arrays and a size."""
    if key < 0:
        return UNKNOWN
    if len(table) == 0:
        return key if key < size else NOTHING_YET
    slot = table[_place(table, known, key)]
    return slot if slot >= 0 else NOTHING_YET


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
