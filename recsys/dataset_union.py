"""Several dataset folders as one: a base, and the days that a server has logged since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from recsys.cells import parse_cells
from recsys.dataset_folder import REQUIRED_TABLES, read_tables, write_dataset
from recsys.schema import (
    CLICKED,
    EVENT_ID,
    EVENTS,
    IMPRESSION_ID,
    IMPRESSIONS,
    ITEM_ID,
    ITEMS,
    SHOWN,
    TABLES,
    USER_ID,
    USERS,
    conform,
)

KEYS: Mapping[str, str] = {
    ITEMS: ITEM_ID,
    EVENTS: EVENT_ID,
    IMPRESSIONS: IMPRESSION_ID,
    USERS: USER_ID,
}
"""By what rows of a table are the same."""

LATER_WINS = frozenset({ITEMS, USERS})
"""An item gets its newest words; what happened stays what it was first said to be."""


def unite(folders: Sequence[Path], out: Path) -> dict[str, dict[str, int]]:
    """Write the rows of all folders, in their order, as one dataset folder.

    Rows of one id stand once: the last of items and users, the first of events and impressions. Events
    without an id all stay. Ids that are whole numbers in one folder and text in another become text, unless
    all the text is whole numbers. Nothing is checked: `recsys validate` and every reader do that.

    Args:
        folders: at least one, none of them `out`.
        out: made, or its tables replaced.

    Returns:
        By table: `rows` written, and rows that `repeated` others.

    Raises:
        RecsysError: of `read_tables` and `write_dataset`; `input_invalid` for a column of another type.
    """
    parts = [_typed(folder) for folder in folders]
    _one_kind(parts)
    united, counts = {}, {}
    for table in TABLES:
        frames = [part[table] for part in parts if table in part]
        if frames:
            united[table] = _distinct(table, pl.concat(frames, how="diagonal_relaxed"))
            rows = united[table].height
            counts[table] = {"rows": rows, "repeated": sum(frame.height for frame in frames) - rows}
    required = [united[table] for table in REQUIRED_TABLES]
    out.mkdir(parents=True, exist_ok=True)
    write_dataset(out, required[0], required[1], united.get(IMPRESSIONS), united.get(USERS))
    return counts


def _typed(folder: Path) -> dict[str, pl.DataFrame]:
    tables = {
        name: conform(parse_cells(table.frame, name) if table.text else table.frame, name, table.source)
        for name, table in read_tables(folder).items()
    }
    slates = tables.get(IMPRESSIONS)
    if slates is not None and slates.schema.get(CLICKED) == pl.List(pl.Boolean):
        places = pl.col(CLICKED).list.eval(pl.element().arg_true())
        tables[IMPRESSIONS] = slates.with_columns(pl.col(SHOWN).list.gather(places).alias(CLICKED))
    return tables


def _one_kind(parts: Sequence[dict[str, pl.DataFrame]]) -> None:
    """Give the ids of each column one type in all folders, in place."""
    for column in (ITEM_ID, USER_ID, EVENT_ID, IMPRESSION_ID):
        holders = [(part, name) for part in parts for name, frame in part.items() if column in frame.columns]
        types = {part[name].schema[column] for part, name in holders}
        if len(types) < 2:
            continue
        texts = [part[name][column] for part, name in holders if part[name].schema[column] == pl.String]
        numeric = all(_is_whole(text) for text in texts)
        kind = pl.Int64 if numeric else pl.String
        for part, name in holders:
            part[name] = part[name].with_columns(pl.col(column).cast(kind))
        if column == ITEM_ID:
            _lists_of(parts, kind)


def _lists_of(parts: Sequence[dict[str, pl.DataFrame]], kind: type[pl.DataType]) -> None:
    for part in parts:
        if IMPRESSIONS in part:
            lists = [name for name in (SHOWN, CLICKED) if name in part[IMPRESSIONS].columns]
            part[IMPRESSIONS] = part[IMPRESSIONS].with_columns(pl.col(lists).cast(pl.List(kind)))


def _is_whole(ids: pl.Series) -> bool:
    """Whether all of these texts are whole numbers as they would be written again."""
    again = ids.cast(pl.Int64, strict=False).cast(pl.String)
    return bool((again == ids).fill_null(False).all()) if ids.null_count() < len(ids) else True


def _distinct(table: str, frame: pl.DataFrame) -> pl.DataFrame:
    key = KEYS[table]
    if key not in frame.columns:
        return frame
    place = frame[key].is_last_distinct() if table in LATER_WINS else frame[key].is_first_distinct()
    return frame.filter(place | frame[key].is_null())
