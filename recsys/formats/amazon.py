"""Importer of Amazon reviews and metadata (JSON lines, plain or gzip), field names of 2014, 2018 and 2023.

A review is a `review` event with its stars as `value`. Moments are told apart by field name, never guessed:
`unixReviewTime` is in seconds, `timestamp` (2023) in milliseconds. Metadata of 2014 is written as Python
literals, which are read as data and never run.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from recsys.cells import encodable
from recsys.errors import EXIT_NO_INPUT, RecsysError
from recsys.formats.imported import Imported, one_frame
from recsys.formats.lines import LINE, TEXT, LineLog, Refusal, line_chunks
from recsys.quarantine import Table
from recsys.schema import (
    CATEGORY,
    DESCRIPTION,
    EVENT_TYPE,
    EVENTS,
    ITEM_ID,
    ITEMS,
    SUBCATEGORY,
    TIMESTAMP,
    TITLE,
    USER_ID,
    VALUE,
)

USER_FIELDS = ("user_id", "reviewerID")
ITEM_FIELDS = ("parent_asin", "asin")
STAR_FIELDS = ("rating", "overall")
MOMENT_FIELDS = {"unixReviewTime": 1.0, "timestamp": 1e3}
"""Field of the moment, and its ticks a second."""

REVIEW_SCHEMA = {
    USER_ID: pl.String,
    ITEM_ID: pl.String,
    EVENT_TYPE: pl.String,
    TIMESTAMP: pl.Float64,
    VALUE: pl.Float64,
}
ITEM_SCHEMA = dict.fromkeys((ITEM_ID, TITLE, DESCRIPTION, CATEGORY, SUBCATEGORY), pl.String)
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")

Record = Mapping[str, Any]
Row = tuple[object, ...]


class _RefusedLineError(ValueError):
    """A line that gives no row; the message is the reason."""


def read_amazon(source: Path, *, reviews: str | None = None, metadata: str | None = None) -> Imported:
    """Read one review file and one metadata file.

    Args:
        source: folder with both.
        reviews: file name; by default the only JSON lines file whose name does not begin with `meta`.
        metadata: file name; by default the only one whose name begins with `meta`.
    """
    reviews_file = _file(source, reviews, is_metadata=False)
    metadata_file = _file(source, metadata, is_metadata=True)
    logs = [LineLog(str(metadata_file)), LineLog(str(reviews_file))]
    items = _rows(metadata_file, _item, ITEM_SCHEMA, logs[0])
    events = _rows(reviews_file, _review, REVIEW_SCHEMA, logs[1])
    tables = {ITEMS: Table(items, str(metadata_file)), EVENTS: Table(events, str(reviews_file))}
    return Imported(tables, logs)


def _file(source: Path, name: str | None, *, is_metadata: bool) -> Path:
    if name is not None:
        return source / name
    found = sorted(path for path in source.glob("*") if path.name.endswith(SUFFIXES))
    found = [path for path in found if path.name.startswith("meta") == is_metadata]
    option = "metadata" if is_metadata else "reviews"
    if len(found) != 1:
        names = ", ".join(path.name for path in found[:5]) or "none"
        what = f"expected one {option} file (.json, .jsonl, or .gz of it), found {names}; name it: `{option}`"
        raise RecsysError("no_input", what, str(source), exit_code=EXIT_NO_INPUT)
    return found[0]


def _rows(
    path: Path, parse: Callable[[Record], Row], schema: Mapping[str, type[pl.DataType]], log: LineLog
) -> pl.DataFrame:
    """One row a good line, a chunk of lines at a time."""

    def rows_of(chunk: pl.DataFrame) -> pl.DataFrame:
        rows: list[Row] = []
        refusals: list[Refusal] = []
        for number, text in chunk.select(LINE, TEXT).iter_rows():
            try:
                rows.append(parse(_record(text)))
            except _RefusedLineError as refusal:
                refusals.append((number, str(refusal), text))
        log.refuse(refusals)
        return pl.DataFrame(rows, schema, orient="row")

    return one_frame((rows_of(chunk) for chunk in line_chunks(path, log)), schema)


def _record(text: str) -> Record:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = _literal(text)
    if not isinstance(record, dict):
        raise _RefusedLineError("damaged_json")
    return record


def _literal(text: str) -> object:
    """A Python literal, as the metadata of 2014 has them; constants and containers only."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        raise _RefusedLineError("damaged_json") from None


def _review(record: Record) -> Row:
    user, item = _id(record, USER_FIELDS, "missing_user_id"), _id(record, ITEM_FIELDS, "missing_item_id")
    stars = _first(record, STAR_FIELDS)
    value = None if stars is None else _finite(stars, "bad_value")
    return user, item, "review", _seconds(record), value


def _seconds(record: Record) -> float:
    for name, ticks in MOMENT_FIELDS.items():
        if record.get(name) is not None:
            return _finite(record[name], "bad_timestamp") / ticks
    raise _RefusedLineError("missing_timestamp")


def _item(record: Record) -> Row:
    path = _flat(record.get("categories") or record.get("category"))
    main = _flat(record.get("main_category") or record.get("main_cat"))
    category = next(iter([*main, *path]), None)
    deeper = [name for name in path[:2] if name != category] if main else path[1:2]
    return (
        _id(record, ITEM_FIELDS, "missing_item_id"),
        _prose(record.get("title")),
        _prose(record.get("description")),
        category,
        deeper[0] if deeper else None,
    )


def _first(record: Record, names: tuple[str, ...]) -> object:
    return next((record[name] for name in names if record.get(name) not in (None, "")), None)


def _id(record: Record, names: tuple[str, ...], reason: str) -> str:
    found = _first(record, names)
    if not isinstance(found, str | int) or isinstance(found, bool):
        raise _RefusedLineError(reason)
    return _sound(str(found))


def _finite(value: object, reason: str) -> float:
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        raise _RefusedLineError(reason)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise _RefusedLineError(reason) from None
    if not math.isfinite(number):
        raise _RefusedLineError(reason)
    return number


def _flat(value: object) -> list[str]:
    """The texts of a text, a list of texts or a list of lists of texts; the first inner list only."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    parts = value if isinstance(value, list) else [value]
    return [_sound(part.strip()) for part in parts if isinstance(part, str) and part.strip()]


def _prose(value: object) -> str | None:
    return " ".join(_flat(value)) or None


def _sound(text: str) -> str:
    if not encodable(text) or "\0" in text:
        raise _RefusedLineError("damaged_text")
    return text
