"""The checks of a dataset: good rows go on, bad rows go to the quarantine with a reason, counts add up.

Row rules come from `schema`; here are the checks that need other rows or other tables, and the report.
Nothing here reads or writes files, and nothing is repaired except what a warning counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from recsys import schema
from recsys.cells import parse_cells
from recsys.check_report import CheckReport, TableCounts
from recsys.schema import (
    CLICKED,
    CREATED_AT,
    DESCRIPTION,
    EVENT_ID,
    EVENT_TYPE,
    EVENTS,
    IMPRESSION_ID,
    IMPRESSIONS,
    ITEM_ID,
    ITEMS,
    POSITION,
    PROPENSITY,
    REASON,
    ROW,
    SHOWN,
    TABLES,
    TIMESTAMP,
    TITLE,
    USER_ID,
    USERS,
)

MAX_EVENT_TYPES = 127
LONG_TEXT = 4_096
UNITS = {"milliseconds": 1e3, "microseconds": 1e6, "nanoseconds": 1e9}


@dataclass(frozen=True)
class Table:
    """One table as it was read.

    Attributes:
        frame: its rows, in file order.
        source: file name, for messages.
        text: every cell is text (a CSV file) and is still to be parsed.
    """

    frame: pl.DataFrame
    source: str
    text: bool = False


@dataclass(frozen=True)
class CheckOptions:
    """What counts as bad beyond the fixed rules.

    Attributes:
        require_known_users: quarantine events and slates of users that are not in the users table
            (where there is one); otherwise they are kept and counted as a warning.
    """

    require_known_users: bool = False


@dataclass(frozen=True)
class Checked:
    """Good frames (known columns typed, moments as Datetime UTC), bad rows as read, and the counts.

    Each quarantined frame has all columns of its file, `row` (place in the file, from 0) and `reason`.
    """

    good: dict[str, pl.DataFrame]
    quarantined: dict[str, pl.DataFrame]
    report: CheckReport


def check(tables: Mapping[str, Table], *, options: CheckOptions | None = None) -> Checked:
    """Sort every row of every table into good or quarantined; row order is kept.

    Args:
        tables: `items` and `events`, optionally `impressions` and `users`.
        options: what else counts as bad.

    Raises:
        RecsysError: `input_invalid` where a column is missing or of another type, where ids are text
            in one table and integers in another, or where there are over 127 event types.
    """
    options = options or CheckOptions()
    work = {name: _Verdict.of(name, tables[name]) for name in TABLES if name in tables}
    _one_kind(work, ITEM_ID)
    _one_kind(work, USER_ID)
    _check_items(work[ITEMS])
    if USERS in work:
        work[USERS].reject_repeats([USER_ID], "duplicate_user_id")
    if IMPRESSIONS in work:
        _check_impressions(work[IMPRESSIONS], work)
    _check_events(work[EVENTS], work)
    for name in (EVENTS, IMPRESSIONS):
        if name in work and USERS in work:
            _check_users(work[name], work[USERS], options)
    if IMPRESSIONS in work:
        _count_orphan_clicks(work[EVENTS], work[IMPRESSIONS])
    _limit_event_types(work[EVENTS])
    report = CheckReport({name: verdict.counts() for name, verdict in work.items()}, _hints(work))
    good = {name: _finish(verdict) for name, verdict in work.items()}
    return Checked(good, {name: verdict.quarantined() for name, verdict in work.items()}, report)


class _Verdict:
    """One table under check: its rows, and the first reason found against each."""

    def __init__(self, table: Table, typed: pl.DataFrame, view: pl.DataFrame) -> None:
        self.table = table
        self.typed = typed
        self.view = view
        self.names = [""]  # reason of code 0: none
        self.codes = np.zeros(view.height, np.int16)
        self.warnings: dict[str, int] = {}

    @classmethod
    def of(cls, name: str, table: Table) -> _Verdict:
        """Type the columns and apply the row rules."""
        frame = parse_cells(table.frame, name) if table.text else table.frame
        typed = schema.conform(frame, name, table.source)
        verdict = cls(table, typed, schema.rule_view(typed, name))
        result = schema.ROW_RULES[name].filter(verdict.view.lazy()).collect_all()
        if len(result.failure):
            verdict._apply(result.failure.details())
        return verdict

    def _apply(self, details: pl.DataFrame) -> None:
        rules = [column for column in details.columns if column not in self.view.columns]
        for rule in sorted(rules, key=lambda rule: not rule.endswith("|nullability")):
            column, _, kind = rule.partition("|")
            reason = f"null_{column}" if kind == "nullability" else column
            self.reject(details.filter(pl.col(rule) == "invalid")[ROW], reason)

    def reject(self, rows: pl.Series, reason: str) -> None:
        """Put these rows into the quarantine, unless they are there for another reason."""
        numbers = rows.to_numpy()
        fresh = numbers[self.codes[numbers] == 0]
        if len(fresh):
            if reason not in self.names:
                self.names.append(reason)
            self.codes[fresh] = self.names.index(reason)

    def reject_repeats(self, columns: list[str], reason: str) -> None:
        """Of the good rows with the same values in these columns, keep the first."""
        alive = self.alive()
        self.reject(alive.filter(~pl.struct(columns).is_first_distinct())[ROW], reason)

    def alive(self) -> pl.DataFrame:
        """The view of the rows that nothing speaks against so far."""
        return self.view.filter(pl.Series(self.codes == 0)) if self.codes.any() else self.view

    def warn(self, warning: str, rows: int) -> None:
        """Count good rows that deserve a look."""
        if rows:
            self.warnings[warning] = self.warnings.get(warning, 0) + rows

    def counts(self) -> TableCounts:
        """How many rows came, stayed and went, and why."""
        counts = np.bincount(self.codes, minlength=len(self.names))
        reasons = {name: int(counts[code]) for code, name in enumerate(self.names) if code}
        return TableCounts(len(self.codes), int(counts[0]), dict(sorted(reasons.items())), self.warnings)

    def good(self) -> pl.DataFrame:
        """The good rows, typed."""
        return self.typed.filter(pl.Series(self.codes == 0)) if self.codes.any() else self.typed

    def quarantined(self) -> pl.DataFrame:
        """The bad rows as they were read, with `row` and `reason`."""
        rows = np.flatnonzero(self.codes)
        reasons = pl.Series(REASON, self.names, dtype=pl.String).gather(self.codes[rows].astype(np.int64))
        place = pl.Series(ROW, rows, dtype=pl.UInt32)
        return self.table.frame[rows].drop(ROW, REASON, strict=False).with_columns(place, reasons)


def _one_kind(work: Mapping[str, _Verdict], column: str) -> None:
    """Refuse a dataset whose ids are text in one table and integers in another; empty columns follow."""
    places = [
        (verdict, name)
        for verdict in work.values()
        for name in ((column, SHOWN, CLICKED) if column == ITEM_ID else (column,))
        if name in verdict.typed.columns and verdict.typed[name].dtype != pl.List(pl.Boolean)
    ]
    filled = [(verdict, name) for verdict, name in places if verdict.typed[name].count()]
    for verdict, name in filled:
        kind, first = _element(verdict.typed[name]), _element(filled[0][0].typed[filled[0][1]])
        if kind != first:
            what = (
                f"`{name}` holds {kind} but {filled[0][0].table.source} holds {first}: store ids as one kind"
            )
            raise schema.refused(what, verdict.table.source)
    for verdict, name in places:
        if filled and not verdict.typed[name].count():
            kind = _element(filled[0][0].typed[filled[0][1]])
            wanted = pl.List(kind) if name in (SHOWN, CLICKED) else kind
            verdict.typed = verdict.typed.with_columns(pl.lit(None, dtype=wanted).alias(name))


def _element(ids: pl.Series) -> pl.DataType:
    return schema.element_type(ids.dtype) if isinstance(ids.dtype, pl.List) else ids.dtype


def _check_items(items: _Verdict) -> None:
    items.reject_repeats([ITEM_ID], "duplicate_item_id")
    rows = items.alive()[ROW]
    good = items.typed[rows]
    text = [pl.col(name).fill_null("") for name in (TITLE, DESCRIPTION) if name in good.columns]
    length = good.select(pl.concat_str(text).str.strip_chars().str.len_chars())[TITLE]
    items.warn("empty_text", int((length == 0).sum()))
    items.warn("long_text", int((length > LONG_TEXT).sum()))
    if CREATED_AT in good.columns:
        items.warn("created_at_out_of_range", good.filter(~_credible(CREATED_AT)).height)


def _credible(column: str) -> pl.Expr:
    return pl.col(column).is_between(schema.EARLIEST, schema.LATEST, closed="left")


def _check_events(events: _Verdict, work: Mapping[str, _Verdict]) -> None:
    known = work[ITEMS].alive().select(ITEM_ID)
    events.reject(events.alive().join(known, on=ITEM_ID, how="anti")[ROW], "unknown_item")
    named, unnamed = pl.col(EVENT_ID).is_not_null(), pl.col(EVENT_ID).is_null()
    identity = [USER_ID, ITEM_ID, EVENT_TYPE, TIMESTAMP, IMPRESSION_ID]
    alive = events.alive()
    repeat = alive.filter(named).filter(~pl.col(EVENT_ID).is_first_distinct())
    events.reject(repeat[ROW], "duplicate")
    repeat = alive.filter(unnamed).filter(~pl.struct(identity).is_first_distinct())
    events.reject(repeat.filter(pl.col(TIMESTAMP).is_not_null())[ROW], "duplicate")
    events.warn("undated_repeat", repeat[TIMESTAMP].null_count())
    moments = events.alive()[TIMESTAMP]
    events.warn("undated", moments.null_count())
    events.warn("out_of_time_order", int((moments.drop_nulls().diff() < 0).sum()))


def _check_impressions(impressions: _Verdict, work: Mapping[str, _Verdict]) -> None:
    shown = impressions.alive().select(ROW, SHOWN).explode(SHOWN)
    known = work[ITEMS].alive().select(pl.col(ITEM_ID).alias(SHOWN))
    unknown = shown.join(known, on=SHOWN, how="anti")[ROW].unique()
    impressions.reject(unknown, "unknown_shown_item")
    impressions.reject_repeats([IMPRESSION_ID], "duplicate_impression_id")
    lists = impressions.alive()[SHOWN]
    impressions.warn("repeated_shown_item", int((lists.list.n_unique() < lists.list.len()).sum()))


def _check_users(log: _Verdict, users: _Verdict, options: CheckOptions) -> None:
    known = users.alive().select(USER_ID)
    rows = log.alive().join(known, on=USER_ID, how="anti")[ROW]
    if options.require_known_users:
        log.reject(rows, "unknown_user")
    else:
        log.warn("unknown_user", len(rows))


def _count_orphan_clicks(events: _Verdict, impressions: _Verdict) -> None:
    """Count clicks whose slate is not there: by impression id, else by user and shown item."""
    clicks = events.alive().filter(pl.col(EVENT_TYPE) == "click")
    slates = impressions.alive()
    named = clicks.filter(pl.col(IMPRESSION_ID).is_not_null()).join(slates, on=IMPRESSION_ID, how="anti")
    shown = slates.select(USER_ID, pl.col(SHOWN).alias(ITEM_ID)).explode(ITEM_ID)
    unnamed = clicks.filter(pl.col(IMPRESSION_ID).is_null()).join(shown, on=[USER_ID, ITEM_ID], how="anti")
    events.warn("click_without_impression", named.height + unnamed.height)


def _limit_event_types(events: _Verdict) -> None:
    types = events.alive()[EVENT_TYPE].n_unique()
    if types > MAX_EVENT_TYPES:
        what = f"`{EVENT_TYPE}` holds {types:,} different types, at most {MAX_EVENT_TYPES} are supported"
        raise schema.refused(what, events.table.source)


def _hints(work: Mapping[str, _Verdict]) -> tuple[str, ...]:
    """Say so where most moments of a table would be in range in another unit; nothing is converted."""
    hints = []
    for name in (EVENTS, IMPRESSIONS):
        moments = (
            work[name].typed[TIMESTAMP].drop_nulls() if name in work else pl.Series([], dtype=pl.Float64)
        )
        if 2 * _in_range(moments) >= len(moments):
            continue
        for unit, ticks in UNITS.items():
            if 2 * _in_range(moments / ticks) > len(moments):
                hints.append(
                    f"{work[name].table.source}: `{TIMESTAMP}` looks like {unit}; the unit is seconds: "
                    f"divide by {ticks:,.0f}, or store a Datetime"
                )
    return tuple(hints)


def _in_range(moments: pl.Series) -> int:
    return int(moments.is_between(schema.EARLIEST, schema.LATEST, closed="left").sum())


def _finish(verdict: _Verdict) -> pl.DataFrame:
    """The good rows in the shape that `Dataset.from_frames` expects."""
    good = verdict.good()
    for column in (TIMESTAMP, CREATED_AT):
        if column in good.columns:
            micros = (pl.when(_credible(column)).then(pl.col(column)) * 1e6).round().cast(pl.Int64)
            good = good.with_columns(micros.cast(pl.Datetime("us", "UTC")).alias(column))
    return _aligned(good) if SHOWN in good.columns else good


def _aligned(slates: pl.DataFrame) -> pl.DataFrame:
    """Absent lists beside `shown` written out: no click, places counted from 1, propensity unknown."""
    length = pl.col(SHOWN).list.len()
    flags = slates.schema.get(CLICKED) == pl.List(pl.Boolean)
    filled = {
        CLICKED: pl.col(CLICKED).fill_null(pl.lit(False).repeat_by(length) if flags else []),
        POSITION: pl.col(POSITION).cast(pl.List(pl.Int64)).fill_null(pl.int_ranges(1, length + 1)),
        PROPENSITY: pl.col(PROPENSITY).fill_null(pl.lit(None, dtype=pl.Float64).repeat_by(length)),
    }
    return slates.with_columns(filled[name] for name in filled if name in slates.columns)
