"""Importer of any CSV or Parquet tables: files and columns are named by the caller."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from recsys.cells import read_csv
from recsys.dataset_folder import read_table
from recsys.errors import EXIT_NO_INPUT, RecsysError
from recsys.formats.imported import Imported
from recsys.quarantine import Table
from recsys.schema import EVENT_TYPE, EVENTS, ITEMS, REQUIRED, TABLES, refused

SUFFIXES = (".parquet", ".csv", ".tsv")


def read_tables_as(
    source: Path,
    *,
    files: Mapping[str, str] | None = None,
    columns: Mapping[str, Mapping[str, str]] | None = None,
    event_type: str | None = None,
    separator: str = ",",
) -> Imported:
    """Read tables under other names.

    Args:
        source: folder with the files.
        files: file name by table (`items`, `events`, `impressions`, `users`); by default the table's own
            name with .parquet, .csv or .tsv.
        columns: by table, our column name to theirs, such as {"events": {"user_id": "customer"}}. A
            required column that is not named is taken under its own name; of the other columns, those of
            items and users are kept.
        event_type: type of every event, where the file has no column for it.
        separator: between the cells of a .csv file; in .tsv files it is a tab.
    """
    files, columns = dict(files or {}), dict(columns or {})
    for name in {*files, *columns} - set(TABLES):
        raise refused(f"no such table: `{name}`; there are {', '.join(TABLES)}", str(source))
    tables = {}
    for name in TABLES:
        path = _path(source, name, files.get(name))
        if path is not None:
            table = _renamed(_read(path, separator), name, columns.get(name, {}))
            tables[name] = _typed_events(table, event_type) if name == EVENTS else table
    return Imported(tables)


def _path(source: Path, table: str, name: str | None) -> Path | None:
    candidates = [source / name] if name else [source / f"{table}{suffix}" for suffix in SUFFIXES]
    found = [path for path in candidates if path.is_file()]
    if len(found) > 1:
        raise refused(f"both {found[0].name} and {found[1].name} are there; name one", str(source))
    if not found and (name or table in (ITEMS, EVENTS)):
        what = f"no file for the table `{table}`"
        raise RecsysError("no_input", what, str(candidates[0]), exit_code=EXIT_NO_INPUT)
    return found[0] if found else None


def _read(path: Path, separator: str) -> Table:
    if path.suffix not in SUFFIXES:
        raise refused(f"expected one of {', '.join(SUFFIXES)}", str(path))
    if path.suffix == ".parquet":
        return read_table(path)
    return Table(read_csv(path, "\t" if path.suffix == ".tsv" else separator), str(path), text=True)


def _renamed(table: Table, name: str, columns: Mapping[str, str]) -> Table:
    for theirs in columns.values():
        if theirs not in table.frame.columns:
            found = ", ".join(table.frame.columns[:20])
            raise refused(f"column `{theirs}` is missing; found {found}", table.source)
    taken = [column for column in table.frame.columns if column not in (*columns, *columns.values())]
    if name in (EVENTS, "impressions"):
        taken = [column for column in taken if column in REQUIRED[name]]
    renamed = [pl.col(theirs).alias(ours) for ours, theirs in columns.items()]
    return Table(table.frame.select(*renamed, *taken), table.source, table.text)


def _typed_events(table: Table, event_type: str | None) -> Table:
    if event_type is None or EVENT_TYPE in table.frame.columns:
        return table
    return Table(table.frame.with_columns(pl.lit(event_type).alias(EVENT_TYPE)), table.source, table.text)
