"""Logged events as the tables of the dataset layout, whatever the order in which they came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from recsys.schema import (
    CATEGORY,
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
    SHOWN,
    SUBCATEGORY,
    TIMESTAMP,
    TITLE,
    USER_ID,
    VALUE,
)
from serving.events.log import Record
from serving.events.parsing import event_of
from serving.messages import Event, ImpressionEvent, InteractionEvent

CLICK = "click"
ARM = "arm"
_PLACE = "place"

_CHUNK_ROWS = 50_000
_COLUMNS: Mapping[str, Mapping[str, Any]] = {
    EVENTS: {
        EVENT_ID: pl.String,
        USER_ID: pl.String,
        ITEM_ID: pl.String,
        EVENT_TYPE: pl.String,
        TIMESTAMP: pl.Float64,
        VALUE: pl.Float64,
        IMPRESSION_ID: pl.String,
        POSITION: pl.Int32,
    },
    IMPRESSIONS: {
        IMPRESSION_ID: pl.String,
        USER_ID: pl.String,
        TIMESTAMP: pl.Float64,
        SHOWN: pl.List(pl.String),
        PROPENSITY: pl.List(pl.Float64),
        ARM: pl.String,
    },
    ITEMS: {
        EVENT_ID: pl.String,
        ITEM_ID: pl.String,
        TITLE: pl.String,
        DESCRIPTION: pl.String,
        CATEGORY: pl.String,
        SUBCATEGORY: pl.String,
        CREATED_AT: pl.Float64,
        TIMESTAMP: pl.Float64,
    },
}


@dataclass(frozen=True)
class Tables:
    """The frames of the dataset layout, and how many of what they hold.

    `impressions` has a column `arm` more than the layout. Ids are integers where all of their kind are.

    Attributes:
        counts: `events`, `impressions`, `items` are rows; `older_item_words` are item events that a later one
            replaced; of the clicks, `clicks_joined` found their slate and their item in it,
            `clicks_unjoined` name a slate that is not here (yet), `clicks_not_shown` an item that is not in
            it, `clicks_unnamed` no slate.
        mixed_ids: columns where some ids came as numbers and some as text; all of them are text now.
    """

    items: pl.DataFrame
    events: pl.DataFrame
    impressions: pl.DataFrame
    counts: dict[str, int]
    mixed_ids: list[str]


def tables_of(records: Iterable[Record]) -> Tables:
    """Sort records into tables, ordered by moment and id; each id counts once, the first time it comes.

    Raises:
        msgspec.ValidationError: for a record that is no event.
    """
    rows = _Rows()
    for record in records:
        rows.add(event_of(record))
    frames = {name: rows.frame(name) for name in _COLUMNS}
    words = frames[ITEMS].sort(TIMESTAMP, EVENT_ID)
    items = words.unique(ITEM_ID, keep="last", maintain_order=True).drop(EVENT_ID, TIMESTAMP)
    events = frames[EVENTS].sort(TIMESTAMP, EVENT_ID)
    impressions = frames[IMPRESSIONS].sort(TIMESTAMP, IMPRESSION_ID)
    impressions, clicks = _with_clicks(impressions, events.filter(pl.col(EVENT_TYPE) == CLICK))
    counts = {
        "events": events.height,
        "impressions": impressions.height,
        "items": items.height,
        "older_item_words": words.height - items.height,
        **clicks,
    }
    typed = [_with_ids(frame, rows.kinds) for frame in (items, events, impressions)]
    mixed = sorted(column for column, kinds in rows.kinds.items() if len(kinds) > 1)
    return Tables(typed[0].sort(ITEM_ID), typed[1], typed[2], counts, mixed)


class _Rows:
    """Rows of the three tables, which become frames chunk by chunk: a tuple takes ten times their room."""

    def __init__(self) -> None:
        self.kinds: dict[str, set[type]] = {USER_ID: set(), ITEM_ID: set()}
        self._rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in _COLUMNS}
        self._chunks: dict[str, list[pl.DataFrame]] = {name: [] for name in _COLUMNS}

    def add(self, event: Event) -> None:
        """Put an event into its table."""
        if isinstance(event, InteractionEvent):
            name, row = EVENTS, self._interaction(event)
        elif isinstance(event, ImpressionEvent):
            name, row = IMPRESSIONS, self._impression(event)
        else:
            created_at, words = event.created_at, (event.title, event.description)
            kinds = (event.category, event.subcategory)
            item = self._id(ITEM_ID, event.item_id)
            name, row = ITEMS, (event.event_id, item, *words, *kinds, created_at, event.timestamp)
        self._rows[name].append(row)
        if len(self._rows[name]) >= _CHUNK_ROWS:
            self._flush(name)

    def frame(self, name: str) -> pl.DataFrame:
        """All rows of a table, the first of each id."""
        self._flush(name)
        identity = IMPRESSION_ID if name == IMPRESSIONS else EVENT_ID
        return pl.concat(self._chunks[name]).unique(identity, keep="first", maintain_order=True)

    def _interaction(self, event: InteractionEvent) -> tuple[Any, ...]:
        return (
            event.event_id,
            self._id(USER_ID, event.user_id),
            self._id(ITEM_ID, event.item_id),
            event.event_type,
            event.timestamp,
            event.value,
            event.impression_id,
            event.position,
        )

    def _impression(self, event: ImpressionEvent) -> tuple[Any, ...]:
        shown = [self._id(ITEM_ID, item) for item in event.shown]
        user = self._id(USER_ID, event.user_id)
        return event.event_id, user, event.timestamp, shown, event.propensity, event.arm

    def _id(self, column: str, value: str | int) -> str:
        self.kinds[column].add(type(value))
        return str(value)

    def _flush(self, name: str) -> None:
        rows = self._rows[name]
        self._chunks[name].append(pl.DataFrame(rows, schema=_COLUMNS[name], orient="row"))
        rows.clear()


def _with_ids(frame: pl.DataFrame, kinds: Mapping[str, set[type]]) -> pl.DataFrame:
    """Turn the ids back into integers where all of their kind came as such."""
    casts = []
    for column, found in kinds.items():
        if found == {int}:
            casts += [pl.col(column).cast(pl.Int64)] if column in frame.columns else []
            if column == ITEM_ID and SHOWN in frame.columns:
                casts.append(pl.col(SHOWN).cast(pl.List(pl.Int64)))
    return frame.with_columns(casts)


def _with_clicks(slates: pl.DataFrame, clicks: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """The slates with `clicked` and `position` beside `shown`, and what became of the clicks."""
    named = clicks.filter(pl.col(IMPRESSION_ID).is_not_null())
    joinable = named.join(slates, on=IMPRESSION_ID, how="semi")
    places = _places(slates.join(joinable, on=IMPRESSION_ID, how="semi"))
    hits = _hits(joinable, places)
    joined = hits[EVENT_ID].n_unique()
    counts = {
        "clicks_joined": joined,
        "clicks_unjoined": named.height - joinable.height,
        "clicks_not_shown": joinable.height - joined,
        "clicks_unnamed": clicks.height - named.height,
    }
    length = pl.col(SHOWN).list.len()
    flagged = slates.join(_flags(places, hits), on=IMPRESSION_ID, how="left", maintain_order="left")
    filled = flagged.with_columns(
        pl.col(CLICKED).fill_null(pl.lit(False).repeat_by(length)),
        pl.int_ranges(1, length + 1).alias(POSITION),
    )
    return filled, counts


def _places(slates: pl.DataFrame) -> pl.DataFrame:
    """One row for each shown item, with its place."""
    places = pl.int_ranges(1, pl.col(SHOWN).list.len() + 1).alias(_PLACE)
    return slates.select(IMPRESSION_ID, pl.col(SHOWN).alias(ITEM_ID), places).explode(ITEM_ID, _PLACE)


def _hits(clicks: pl.DataFrame, places: pl.DataFrame) -> pl.DataFrame:
    """The place that each click names, or all places of its item where it names none of those."""
    found = clicks.select(EVENT_ID, IMPRESSION_ID, ITEM_ID, POSITION).join(
        places, on=[IMPRESSION_ID, ITEM_ID]
    )
    exact = (pl.col(_PLACE) == pl.col(POSITION)).fill_null(False)
    return found.filter(exact | ~exact.any().over(EVENT_ID))


def _flags(places: pl.DataFrame, hits: pl.DataFrame) -> pl.DataFrame:
    """`clicked` by slate, one boolean a place."""
    hit = hits.select(IMPRESSION_ID, _PLACE).unique().with_columns(pl.lit(True).alias(CLICKED))
    return (
        places.join(hit, on=[IMPRESSION_ID, _PLACE], how="left")
        .sort(IMPRESSION_ID, _PLACE)
        .group_by(IMPRESSION_ID, maintain_order=True)
        .agg(pl.col(CLICKED).fill_null(False))
    )
