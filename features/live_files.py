"""The live state as files of a bundle: one safetensors file and one JSON file, bytes in and bytes out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from features.builder import Features
from features.declaration import Key
from features.keys import CompositeKeys, ItemTable, KeySpace, PlainKeys
from features.live_tables import Inlet, KeyTable, LogRows
from features.plan import Table
from features.streams import StreamWeights
from recsys.array_files import read_arrays
from recsys.errors import RecsysError

if TYPE_CHECKING:
    from features.live import LiveState

ARRAYS = "live.safetensors"
SETTINGS = "live.json"

_FORMAT = 1
_PARTS = ("state", "last", "first")
_ROWS = 4096

Arrays = dict[str, NDArray[Any]]


def live_files(live: LiveState) -> dict[str, bytes]:
    """The files by name. The same state gives the same bytes."""
    arrays: Arrays = {
        "items.category": live.items.category,
        "items.subcategory": live.items.subcategory,
        "items.created_at": live.items.created_at,
    }
    offsets, columns = live.histories.compact()
    names = ("history.item_index", "history.type_index", "history.timestamp")
    arrays |= {"history.offsets": offsets, **dict(zip(names, columns, strict=True))}
    _put_tables(live, arrays)
    for place, inlet in enumerate(live.inlets):
        _put_inlet(f"inlet{place}", inlet, arrays)
    settings = {
        "format": _FORMAT,
        "features": json.loads(live.features.to_json()),
        "schema": live.features.schema.digest,
        "weights": {stream: weights.tolist() for stream, weights in live.weights.items()},
        "sizes": {key: space.size for key, space in live.spaces.items()},
    }
    arrays = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    return {ARRAYS: save(arrays), SETTINGS: json.dumps(settings, sort_keys=True).encode()}


def open_live(
    files: Mapping[str, bytes],
) -> tuple[Features, ItemTable, StreamWeights, dict[Key, KeySpace], Arrays]:
    """What a live state is made of, and the arrays to fill it with; see `LiveState.from_files`.

    The arrays lie in the bytes of their file; nothing that is returned beside them does.
    """
    settings = json.loads(files[SETTINGS])
    if settings["format"] != _FORMAT:
        raise RecsysError("live_state_format", f"format {settings['format']}, expected {_FORMAT}", SETTINGS)
    features = Features.from_json(json.dumps(settings["features"]))
    if features.schema.digest != settings["schema"]:
        raise RecsysError("feature_mismatch", "saved by a version that declares features otherwise", SETTINGS)
    arrays = read_arrays(files, ARRAYS)
    columns = (arrays[f"items.{name}"].copy() for name in ("category", "subcategory", "created_at"))
    items = ItemTable(*columns)
    weights = {stream: np.array(weights, np.float64) for stream, weights in settings["weights"].items()}
    return features, items, weights, _spaces(settings["sizes"], arrays), arrays


def fill_live(live: LiveState, arrays: Arrays) -> None:
    """Put the saved tables and waiting rows into a fresh state.

    Raises:
        RecsysError: `live_state_format` where the tables of a key are not all as long as its keys.
    """
    saved: dict[Key, list[tuple[Table, Arrays]]] = {}
    for place, table in enumerate(live.features.plan.tables):
        parts = {name: arrays[f"table{place}.{name}"] for name in _PARTS}
        saved.setdefault(table.key, []).append((table, parts))
    for key, tables in saved.items():
        size = live.spaces[key].size
        if any(len(values) != size for _, parts in tables for values in parts.values()):
            raise RecsysError("live_state_format", f"tables of other lengths than their keys: {key}", ARRAYS)
        _fill_cells(live.tables[key], tables, size)
    for place, inlet in enumerate(live.inlets):
        _take_inlet(f"inlet{place}", inlet, arrays)


def _fill_cells(kept: KeyTable, tables: Sequence[tuple[Table, Arrays]], size: int) -> None:
    """All cells of one key, some rows at a time: each line of memory is written while it is at hand."""
    kept.cells = np.empty((size, kept.cells.shape[1]))
    columns = [
        (view, parts[name])
        for table, parts in tables
        for name, view in zip(_PARTS, kept.part(table), strict=True)
    ]
    for begin in range(0, size, _ROWS):
        rows = slice(begin, begin + _ROWS)
        for view, values in columns:
            view[rows] = values[rows]


def _put_tables(live: LiveState, arrays: Arrays) -> None:
    """The states by slot, and the composite keys in slot order."""
    for key, space in live.spaces.items():
        if isinstance(space, CompositeKeys):
            arrays[f"keys.{key}"] = space.keys
    for place, table in enumerate(live.features.plan.tables):
        size = live.spaces[table.key].size
        live.tables[table.key].reserve(size)
        parts = zip(_PARTS, live.tables[table.key].part(table), strict=True)
        arrays |= {f"table{place}.{name}": view[:size] for name, view in parts}


def _spaces(sizes: Mapping[str, int], arrays: Arrays) -> dict[Key, KeySpace]:
    keys: tuple[Key, ...] = get_args(Key)
    spaces: dict[Key, KeySpace] = {}
    for key in keys:
        if f"keys.{key}" in arrays:
            spaces[key] = CompositeKeys(arrays[f"keys.{key}"].copy())
        elif key in sizes:
            spaces[key] = PlainKeys(sizes[key])
    return spaces


def _put_inlet(name: str, inlet: Inlet, arrays: Arrays) -> None:
    rows = LogRows.of(inlet.waiting)
    for column in ("timestamp", "user_index", "item_index", "type_index"):
        arrays[f"{name}.{column}"] = getattr(rows, column)


def _take_inlet(name: str, inlet: Inlet, arrays: Arrays) -> None:
    columns = [arrays[f"{name}.{column}"] for column in ("user_index", "item_index", "type_index")]
    for row, timestamp in enumerate(arrays[f"{name}.timestamp"]):
        user, item, kind = (column[row] for column in columns)
        inlet.push((float(timestamp), int(user), int(item), int(kind)))
