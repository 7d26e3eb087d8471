"""Text tables (CSV): their cells as text, and those cells as typed columns.

A cell that cannot be read never raises: it becomes a value that a row rule refuses (NaN for a number or
a moment, a list with a NUL for a list), so that the row ends in the quarantine with a reason.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import polars as pl

from recsys.schema import LAYOUT, Kind, refused

UNREADABLE = "\0"
FLAGS = {"true": True, "false": False}
ZONED = "%Y-%m-%d %H:%M:%S%.f%:z"
UNZONED = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M")


def read_csv(path: Path, separator: str = ",") -> pl.DataFrame:
    """A UTF-8 CSV file with a header line as String columns; empty cells are null.

    A row with another number of cells than the header, or with bytes that are not UTF-8, is marked with
    NULs, which the row rules refuse.

    Raises:
        RecsysError: `input_invalid` (exit 65) for a file that is not CSV throughout.
    """
    try:
        content = marked_text(path.read_bytes().removeprefix(codecs.BOM_UTF8))
        if not content.strip():
            raise refused("the CSV file is empty", str(path))
        frame = _fast(content, separator)
        return _thorough(content, separator) if frame is None else frame
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, csv.Error) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise refused(f"cannot read the CSV file: {reason[:300]}", str(path)) from error


def _fast(content: str, separator: str) -> pl.DataFrame | None:
    """Read by Polars; None where some row may be too short or too long."""
    try:
        frame = pl.read_csv(io.BytesIO(content.encode()), infer_schema=False, separator=separator)
    except pl.exceptions.ComputeError:
        return None
    return None if frame[:, -1].null_count() else frame


def _thorough(content: str, separator: str) -> pl.DataFrame:
    """Read row by row; rows of another length than the header get a NUL in every cell."""
    rows = csv.reader(io.StringIO(content, newline=""), delimiter=separator)
    header = next(rows)
    if len(set(header)) < len(header):
        raise ValueError("a column name appears more than once")
    columns: list[list[str | None]] = [[] for _ in header]
    for row in rows:
        if row:
            whole = len(row) == len(header)
            cells = row if whole else [*(cell + UNREADABLE for cell in row), *[UNREADABLE] * len(header)]
            for column, cell in zip(columns, cells, strict=False):
                column.append(cell or None)
    return pl.DataFrame(dict(zip(header, columns, strict=True)), dict.fromkeys(header, pl.String))


def parse_cells(frame: pl.DataFrame, table: str) -> pl.DataFrame:
    """Type the known columns of a table whose cells are all text; null cells stay null.

    Ids stay text ("007" is not "7"). A list is a JSON array or text with `|` between the elements.

    Args:
        frame: String columns.
        table: one of TABLES.
    """
    parsers: dict[Kind, Callable[[pl.Series], pl.Series]] = {
        Kind.NUMBER: lambda cells: cells.to_frame().select(number(cells.name)).to_series(),
        Kind.TIME: lambda cells: cells.to_frame().select(moment(cells.name)).to_series(),
        Kind.IDS: lambda cells: _lists(cells, pl.String),
        Kind.CLICKS: _clicks,
        Kind.NUMBERS: lambda cells: _lists(cells, pl.Float64),
    }
    known = [(name, kind) for name, kind in LAYOUT[table].items() if name in frame.columns]
    return frame.with_columns(parsers[kind](frame[name]) for name, kind in known if kind in parsers)


def number(column: str) -> pl.Expr:
    """Float64 of a text column; NaN where the cell is not a number."""
    text = pl.col(column).str.strip_chars()
    return pl.when(text.is_not_null()).then(text.cast(pl.Float64, strict=False).fill_null(float("nan")))


def moment(column: str) -> pl.Expr:
    """Epoch seconds of a text column: a number of seconds or an ISO 8601 moment (UTC without a zone)."""
    text = pl.col(column).str.strip_chars()
    iso = text.str.replace("T", " ", literal=True).str.replace("Z$", "+00:00")
    zoned = iso.str.to_datetime(ZONED, strict=False, time_unit="us", time_zone="UTC").dt.replace_time_zone(
        None
    )
    plain = [iso.str.to_datetime(form, strict=False, time_unit="us") for form in UNZONED]
    day = iso.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us"))
    seconds = pl.coalesce(zoned, *plain, day).to_physical() / 1e6
    read = pl.coalesce(text.cast(pl.Float64, strict=False), seconds, pl.lit(float("nan")))
    return pl.when(text.is_not_null()).then(read).alias(column)


def _clicks(cells: pl.Series) -> pl.Series:
    """Booleans where every element of the column is true or false, ids otherwise."""
    lists = _lists(cells, pl.String)
    words = lists.explode().drop_nulls().str.to_lowercase()
    if len(words) == 0 or not words.is_in(list(FLAGS)).all():
        return lists
    return lists.list.eval(pl.element().str.to_lowercase() == "true")


def _lists(cells: pl.Series, inner: type[pl.String] | type[pl.Float64]) -> pl.Series:
    lists = pl.Series(cells.name, [_elements(cell) for cell in cells], dtype=pl.List(pl.String))
    if inner is pl.String:
        return lists
    numbers = pl.element().cast(pl.Float64, strict=False).fill_null(float("nan"))
    return lists.list.eval(pl.when(pl.element().is_not_null()).then(numbers))


def _elements(cell: str | None) -> list[str | None] | None:
    """The elements of one list cell as text; [UNREADABLE] for JSON that is not a flat array."""
    if cell is None:
        return None
    if not cell.lstrip().startswith("["):
        return [part.strip() for part in cell.split("|")]
    try:
        values = json.loads(cell)
    except (ValueError, RecursionError):
        return [UNREADABLE]
    if any(isinstance(value, list | dict) for value in values):
        return [UNREADABLE]
    return [_text(value) for value in values]


def _text(value: object) -> str | None:
    """A JSON scalar as the text that a `|` list would hold; lone surrogates become unreadable."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return text if text.isascii() or encodable(text) else UNREADABLE


def marked_text(data: bytes, encoding: str = "utf-8") -> str:
    """The bytes as text; what is not in the encoding becomes U+FFFD and a NUL, which the rules refuse."""
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return data.decode(encoding, errors="replace").replace("\ufffd", "\ufffd" + UNREADABLE)


def encodable(text: str) -> bool:
    """Whether the text has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
