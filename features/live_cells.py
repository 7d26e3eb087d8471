"""The kernels of the live state: read the states of all keys of a request, and update them row by row.

The arithmetic is that of `counters`, to the bit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from features.counters import decayed
from features.keys import UNKNOWN, code_of, pair_of, slot_of
from recsys.events import Float32, Float64, Int32, Int64

KEYS = ("global", "user", "item", "category", "subcategory", "user_category", "user_subcategory", "user_item")
"""The kinds of keys by their numbers in `LiveTables.kinds`."""
_USER, _ITEM, _CATEGORY, _OF_USER, _USER_ITEM = 1, 2, 3, 5, 7
_SEEN = 64
_DAY_S = 86_400.0


class LiveTables(NamedTuple):
    """The tables of all keys: what does not change as they grow.

    Attributes:
        kinds: (keys,) numbers in KEYS.
        starts: (keys + 1,) first line of each key.
        lines: (tables, 4 + most) as in `KeyTable.layout`, the keys one behind the other.
        rates: (tables, most) decay a second.
    """

    kinds: Int64
    starts: Int64
    lines: Int64
    rates: Float64


class LiveCells(NamedTuple):
    """What is in them now, each a tuple of one array a key, and (keys,) how many slots there are.

    Attributes:
        slots, keys: as in `CompositeKeys`, both empty for a plain key.
        cells: (slots, width) a row a slot, see `KeyTable`.
    """

    sizes: Int64
    slots: tuple[Int64, ...]
    keys: tuple[Int64, ...]
    cells: tuple[Float64, ...]


@njit(cache=True, nogil=True)
def read_cells(
    tables: LiveTables,
    live: LiveCells,
    catalogue: tuple[Int32, Int32],
    requests: tuple[Int64, Float64, Int32, Int32],
    out: Float32,
) -> None:
    """Write the states of every candidate row, decayed to its request's moment, into their columns of `out`.

    Args:
        tables: of all keys.
        live: what is in them.
        catalogue: (items,) category and subcategory codes, -1 where missing.
        requests: (r + 1,) candidate rows; (r,) moments and users; (rows,) items.
        out: (states, rows) float32.
    """
    offsets, moments, users, items = requests
    widest, most = 0, 0
    for request in range(len(users)):
        widest = max(widest, offsets[request + 1] - offsets[request])
    for key in range(len(tables.kinds)):
        most = max(most, live.cells[key].shape[1])
    keys, slots = np.empty(widest, np.int64), np.empty(widest, np.int64)
    values, elapsed = np.empty((most, widest)), np.empty(widest)
    for request in range(len(users)):
        begin, end = offsets[request], offsets[request + 1]
        for key in range(len(tables.kinds)):
            kind, hashed = tables.kinds[key], (live.slots[key], live.keys[key], live.sizes[key])
            alike = _find_slots(kind, users[request], items[begin:end], catalogue, hashed, keys, slots)
            rows = min(end - begin, 1) if alike else end - begin
            _gather(live.cells[key], slots[:rows], values)
            for line in range(tables.starts[key], tables.starts[key + 1]):
                one = tables.lines[line]
                _write(one, tables.rates[line], moments[request], slots[:rows], values, elapsed, begin, out)
                if rows < end - begin:
                    _spread(one, begin, end, out)


@njit(cache=True, nogil=True)
def _find_slots(
    kind: int,
    user: int,
    items: Int32,
    catalogue: tuple[Int32, Int32],
    hashed: tuple[Int64, Int64, int],
    keys: Int64,
    out: Int64,
) -> bool:
    """Write the slot of each row's key to `out`; True where all rows have the same.

    `keys` is room for the keys of the rows.
    """
    category, subcategory = catalogue
    table, known, size = hashed
    if kind <= _USER:
        out[:1] = slot_of(table, known, size, user if kind == _USER else 0)
        return True
    codes = category if kind in (_CATEGORY, _OF_USER) else subcategory
    of_items = kind in (_ITEM, _USER_ITEM)
    seen = np.full(_SEEN, -1, np.int64)  # rows of one category are looked up once
    for row in range(len(items)):
        key = int(items[row]) if of_items else code_of(items[row], codes)
        if kind >= _OF_USER:
            key = pair_of(int(user), key)
        if of_items:
            out[row] = slot_of(table, known, size, key)
            continue
        place = key & (_SEEN - 1)
        if seen[place] < 0 or keys[seen[place]] != key:
            seen[place], keys[row], out[row] = row, key, slot_of(table, known, size, key)
        else:
            out[row] = out[seen[place]]
    return False


@njit(cache=True, nogil=True)
def _gather(cells: Float64, slots: Int64, values: Float64) -> None:
    """The cells of these slots, each cell of all rows in one piece; NaN for slots that are not there."""
    for row in range(len(slots)):
        slot = slots[row]
        for place in range(cells.shape[1]):
            values[place, row] = cells[slot, place] if 0 <= slot < len(cells) else math.nan


@njit(cache=True, nogil=True)
def _write(
    line: Int64,
    rates: Float64,
    now: float,
    slots: Int64,
    values: Float64,
    elapsed: Float64,
    begin: int,
    out: Float32,
) -> None:
    """The columns of one table, from row `begin` on; no loop with exponentials has a branch."""
    cell, width, rows = line[0], line[1], len(slots)
    last, first = values[cell + width], values[cell + width + 1]
    for row in range(rows):
        since = now - last[row]
        elapsed[row] = since if since > 0.0 else 0.0
    for h in range(width):
        amount, column, rate = values[cell + h], out[line[2 + h], begin : begin + rows], rates[h]
        if rate == 0.0:
            column[:] = amount[:rows]
        else:
            for row in range(rows):
                column[row] = decayed(amount[row], elapsed[row], rate)
        for row in range(rows):
            nothing = np.float32(math.nan) if slots[row] == UNKNOWN else np.float32(0.0)
            column[row] = nothing if math.isnan(last[row]) else column[row]
    if line[2 + width] >= 0:
        column = out[line[2 + width], begin : begin + rows]
        for row in range(rows):
            column[row] = math.nan if math.isnan(last[row]) else elapsed[row] / _DAY_S
    if line[3 + width] >= 0:
        column = out[line[3 + width], begin : begin + rows]
        for row in range(rows):
            since = now - first[row]
            since = 0.0 if since < 0.0 else since
            column[row] = math.nan if math.isnan(last[row]) else since / _DAY_S


@njit(cache=True, nogil=True)
def _spread(line: Int64, begin: int, end: int, out: Float32) -> None:
    """The columns of one table, whose first row holds for all of begin..end-1."""
    for place in range(2, 4 + line[1]):
        if line[place] >= 0:
            out[line[place], begin + 1 : end] = out[line[place], begin]


@njit(cache=True, nogil=True)
def apply_cells(
    cells: Float64,
    layout: tuple[Int64, Float64, Int64],
    slots: Int64,
    timestamp: Float64,
    weight: Float64,
) -> None:
    """Add rows one after another to the states of one key, in place.

    A row older than the last one is added with the decay it has had since, which is the same sum in another
    order.

    Args:
        cells: of the key, as in `KeyTable`.
        layout: its lines and rates, and (k,) the tables that these rows update.
        slots: (rows,) row of each key in `cells`, negative for none.
        timestamp: (rows,) moments.
        weight: (k, rows) what each row adds to each table; 0 leaves the table alone.
    """
    lines, rates, tables = layout
    for nth in range(len(tables)):
        table = tables[nth]
        begin, width = lines[table, 0], lines[table, 1]
        end = begin + width
        for row in range(len(slots)):
            at, now, w = slots[row], timestamp[row], weight[nth, row]
            if at < 0 or w == 0.0:
                continue
            last = cells[at, end]
            if math.isnan(last):
                cells[at, begin:end] = w
                cells[at, end] = cells[at, end + 1] = now
                continue
            for h in range(width):
                if now < last:
                    cells[at, begin + h] += decayed(w, last - now, rates[table, h])
                else:
                    cells[at, begin + h] = decayed(cells[at, begin + h], now - last, rates[table, h]) + w
            cells[at, end] = max(last, now)
            cells[at, end + 1] = min(cells[at, end + 1], now)
