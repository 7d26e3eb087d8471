"""The four tables of a dataset: every column's name and kind, and the rules that one row can break.

Rules that need other rows or other tables (duplicates, unknown items) are in `quarantine`; files are
in `storage`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any

import dataframely as dy
import polars as pl

from recsys.errors import RecsysError
from recsys.limits import MAX_ID_BYTES

ITEMS = "items"
EVENTS = "events"
IMPRESSIONS = "impressions"
USERS = "users"
TABLES = (ITEMS, EVENTS, IMPRESSIONS, USERS)

USER_ID = "user_id"
ITEM_ID = "item_id"
EVENT_ID = "event_id"
IMPRESSION_ID = "impression_id"
TITLE = "title"
DESCRIPTION = "description"
CATEGORY = "category"
SUBCATEGORY = "subcategory"
TAGS = "tags"
CREATED_AT = "created_at"
EVENT_TYPE = "event_type"
TIMESTAMP = "timestamp"
VALUE = "value"
SHOWN = "shown"
CLICKED = "clicked"
POSITION = "position"
PROPENSITY = "propensity"

ROW = "row"
"""Place in the file, counted from 0; added by the checks and kept in the quarantine."""
REASON = "reason"
"""Why a row is in the quarantine; the first reason where there are several."""

MAX_POSITION = 32_767
EARLIEST = 631_152_000.0
"""1990-01-01 UTC in epoch seconds, the first moment that a log may hold."""
LATEST = 4_102_444_800.0
"""2100-01-01 UTC in epoch seconds, the first moment that a log may not hold."""


class Kind(Enum):
    """What a column holds, and what it is turned into before the rules run."""

    ID = "an id: text or integer"
    TEXT = "text"
    NUMBER = "a number"
    TIME = "a moment: epoch seconds, or Datetime (UTC where it has no zone)"
    IDS = "a list of ids"
    CLICKS = "a list of item ids, or of booleans beside `shown`"
    NUMBERS = "a list of numbers"


LAYOUT: Mapping[str, Mapping[str, Kind]] = MappingProxyType(
    {
        ITEMS: {
            ITEM_ID: Kind.ID,
            TITLE: Kind.TEXT,
            DESCRIPTION: Kind.TEXT,
            CATEGORY: Kind.TEXT,
            SUBCATEGORY: Kind.TEXT,
            CREATED_AT: Kind.TIME,
        },
        EVENTS: {
            USER_ID: Kind.ID,
            ITEM_ID: Kind.ID,
            EVENT_TYPE: Kind.TEXT,
            TIMESTAMP: Kind.TIME,
            EVENT_ID: Kind.ID,
            VALUE: Kind.NUMBER,
            IMPRESSION_ID: Kind.ID,
            POSITION: Kind.NUMBER,
        },
        IMPRESSIONS: {
            IMPRESSION_ID: Kind.ID,
            USER_ID: Kind.ID,
            TIMESTAMP: Kind.TIME,
            SHOWN: Kind.IDS,
            CLICKED: Kind.CLICKS,
            POSITION: Kind.NUMBERS,
            PROPENSITY: Kind.NUMBERS,
        },
        USERS: {USER_ID: Kind.ID},
    }
)
"""Known columns of each table. Items and users may have any others, which are kept as they are."""

REQUIRED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        ITEMS: (ITEM_ID, TITLE),
        EVENTS: (USER_ID, ITEM_ID, EVENT_TYPE, TIMESTAMP),
        IMPRESSIONS: (IMPRESSION_ID, USER_ID, TIMESTAMP, SHOWN),
        USERS: (USER_ID,),
    }
)


def _holds(condition: pl.Expr) -> Any:
    """A row rule; the attribute's name is the reason that a failing row is given."""
    return dy.rule()(lambda _schema: condition)


def _sound_id(column: str) -> pl.Expr:
    text = pl.col(column).str
    return text.len_bytes().is_between(1, MAX_ID_BYTES) & ~text.contains("\0", literal=True)


def _sound_text(column: str) -> pl.Expr:
    return ~pl.col(column).str.contains("\0", literal=True).fill_null(False)


def _in_range(column: str) -> pl.Expr:
    return pl.col(column).is_nan() | pl.col(column).is_between(EARLIEST, LATEST, closed="left")


def _all_elements(column: str, condition: pl.Expr) -> pl.Expr:
    return pl.col(column).list.eval(condition).list.all()


def _beside_shown(column: str) -> pl.Expr:
    return (pl.col(column).list.len() == pl.col(SHOWN).list.len()).fill_null(True)


class ItemRows(dy.Schema):
    """Rules for one row of the catalogue; ids are compared as text."""

    row = dy.UInt32()
    item_id = dy.String()
    title = dy.String(nullable=True)
    description = dy.String(nullable=True)

    damaged_id = _holds(_sound_id(ITEM_ID))
    damaged_text = _holds(_sound_text(TITLE) & _sound_text(DESCRIPTION))


class EventRows(dy.Schema):
    """Rules for one event. A null timestamp is legal: the event lies before the log."""

    row = dy.UInt32()
    user_id = dy.String()
    item_id = dy.String()
    event_type = dy.String()
    timestamp = dy.Float64(nullable=True, allow_inf=True, allow_nan=True)
    value = dy.Float64(nullable=True, allow_inf=True, allow_nan=True)
    event_id = dy.String(nullable=True)
    impression_id = dy.String(nullable=True)

    damaged_id = _holds(
        _sound_id(USER_ID)
        & _sound_id(ITEM_ID)
        & _sound_id(EVENT_ID).fill_null(True)
        & _sound_id(IMPRESSION_ID).fill_null(True)
    )
    empty_event_type = _holds(pl.col(EVENT_TYPE).str.len_bytes() > 0)
    damaged_event_type = _holds(_sound_id(EVENT_TYPE))
    unreadable_timestamp = _holds(pl.col(TIMESTAMP).is_not_nan())
    timestamp_out_of_range = _holds(_in_range(TIMESTAMP))
    value_not_finite = _holds(pl.col(VALUE).is_finite())


class ImpressionRows(dy.Schema):
    """Rules for one slate. `clicked` holds ids, `clicked_flags` booleans; at most one is there."""

    row = dy.UInt32()
    impression_id = dy.String()
    user_id = dy.String()
    timestamp = dy.Float64(allow_inf=True, allow_nan=True)
    shown = dy.List(dy.String(nullable=True))
    clicked = dy.List(dy.String(nullable=True), nullable=True)
    clicked_flags = dy.List(dy.Bool(nullable=True), nullable=True)
    position = dy.List(dy.Float64(nullable=True, allow_inf=True, allow_nan=True), nullable=True)
    propensity = dy.List(dy.Float64(nullable=True, allow_inf=True, allow_nan=True), nullable=True)

    damaged_id = _holds(_sound_id(IMPRESSION_ID) & _sound_id(USER_ID))
    unreadable_timestamp = _holds(pl.col(TIMESTAMP).is_not_nan())
    timestamp_out_of_range = _holds(_in_range(TIMESTAMP))
    empty_slate = _holds(pl.col(SHOWN).list.len() > 0)
    length_mismatch = _holds(
        _beside_shown("clicked_flags") & _beside_shown(POSITION) & _beside_shown(PROPENSITY)
    )
    clicked_not_shown = _holds(pl.col(CLICKED).list.set_difference(SHOWN).list.len() == 0)
    position_out_of_range = _holds(
        _all_elements(POSITION, pl.element().is_between(1, MAX_POSITION).fill_null(False))
    )
    propensity_out_of_range = _holds(_all_elements(PROPENSITY, pl.element().is_between(0, 1, closed="right")))


class UserRows(dy.Schema):
    """Rules for one row of the users table."""

    row = dy.UInt32()
    user_id = dy.String()

    damaged_id = _holds(_sound_id(USER_ID))


ROW_RULES: Mapping[str, type[dy.Schema]] = MappingProxyType(
    {ITEMS: ItemRows, EVENTS: EventRows, IMPRESSIONS: ImpressionRows, USERS: UserRows}
)


def conform(frame: pl.DataFrame, table: str, source: str) -> pl.DataFrame:
    """The same rows with every known column in one type of its kind, where that loses nothing.

    Ids become String or Int64, text String, numbers Float64, moments Float64 epoch seconds UTC, lists
    List of these. Other columns stay as they are. Null stays null.

    Args:
        frame: a table as it was read.
        table: one of TABLES.
        source: file name for the message.

    Raises:
        RecsysError: `input_invalid`, for a missing required column or one of another type.
    """
    for column in REQUIRED[table]:
        if column not in frame.columns:
            found = ", ".join(frame.columns[:20]) or "none"
            raise refused(f"column `{column}` is missing; found {found}", source)
    known = {name: kind for name, kind in LAYOUT[table].items() if name in frame.columns}
    typed = []
    for name, kind in known.items():
        cast = _CASTS[kind](pl.col(name), frame.schema[name])
        if cast is None:
            raise refused(f"column `{name}` holds {frame.schema[name]}, expected {kind.value}", source)
        typed.append(cast)
    try:
        return frame.with_columns(typed)
    except pl.exceptions.InvalidOperationError as error:
        raise refused("an integer id is beyond 64 bits; store such ids as text", source) from error


def refused(what: str, source: str) -> RecsysError:
    """The error for input that cannot be read as the dataset layout (exit 65)."""
    return RecsysError("input_invalid", what, source)


def rule_view(typed: pl.DataFrame, table: str) -> pl.DataFrame:
    """The columns that the row rules look at: `row`, ids as text, absent optional columns as null."""
    columns = []
    for name, column in ROW_RULES[table].columns().items():
        if name == ROW:
            columns.append(pl.int_range(pl.len(), dtype=pl.UInt32).alias(ROW))
        elif name in (CLICKED, "clicked_flags"):
            columns.append(_clicks(typed.schema.get(CLICKED), column.dtype).alias(name))
        elif name in typed.columns:
            columns.append(pl.col(name).cast(column.dtype))
        else:
            columns.append(pl.lit(None, dtype=column.dtype).alias(name))
    return typed.select(columns)


def _clicks(found: pl.DataType | None, wanted: pl.DataType) -> pl.Expr:
    is_flags = found == pl.List(pl.Boolean)
    if found is None or is_flags != (wanted == pl.List(pl.Boolean)):
        return pl.lit(None, dtype=wanted)
    return pl.col(CLICKED).cast(wanted)


def _id(column: pl.Expr, dtype: pl.DataType) -> pl.Expr | None:
    if dtype.is_integer():
        return column.cast(pl.Int64)
    return _text(column, dtype) if not dtype.is_numeric() else None


def _text(column: pl.Expr, dtype: pl.DataType) -> pl.Expr | None:
    textual = dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null)
    return column.cast(pl.String) if textual else None


def _number(column: pl.Expr, dtype: pl.DataType) -> pl.Expr | None:
    numeric = dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)
    return column.cast(pl.Float64) if numeric else None


def _moment(column: pl.Expr, dtype: pl.DataType) -> pl.Expr | None:
    if dtype in (pl.Datetime, pl.Date):
        return column.cast(pl.Datetime("us")).to_physical().cast(pl.Float64) / 1e6
    return _number(column, dtype) if dtype != pl.Boolean else None


def _ids(column: pl.Expr, dtype: pl.DataType) -> pl.Expr | None:
    if dtype == pl.Null:
        return column.cast(pl.List(pl.String))
    if not isinstance(dtype, pl.List | pl.Array):
        return None
    inner = element_type(dtype)
    if inner.is_integer():
        return column.cast(pl.List(pl.Int64))
    return column.cast(pl.List(pl.String)) if _text(column, inner) is not None else None


def _click_list(column: pl.Expr, dtype: pl.DataType) -> pl.Expr | None:
    if isinstance(dtype, pl.List | pl.Array) and element_type(dtype) == pl.Boolean:
        return column.cast(pl.List(pl.Boolean))
    return _ids(column, dtype)


def _numbers(column: pl.Expr, dtype: pl.DataType) -> pl.Expr | None:
    if dtype == pl.Null:
        return column.cast(pl.List(pl.Float64))
    if not isinstance(dtype, pl.List | pl.Array) or _number(column, element_type(dtype)) is None:
        return None
    return column.cast(pl.List(pl.Float64))


def element_type(dtype: pl.List | pl.Array) -> pl.DataType:
    """Type of the elements of a list."""
    inner = dtype.inner
    return inner if isinstance(inner, pl.DataType) else inner()


_CASTS = {
    Kind.ID: _id,
    Kind.TEXT: _text,
    Kind.NUMBER: _number,
    Kind.TIME: _moment,
    Kind.IDS: _ids,
    Kind.CLICKS: _click_list,
    Kind.NUMBERS: _numbers,
}
