"""Importer of the Microsoft News data set (MIND): one split's folder with `behaviors.tsv` and `news.tsv`.

A reader's history becomes undated `history_click` events, once a reader. A slate becomes an impression, and
its clicks become `click` events. Slates without labels (the test split) cannot be learned from: they are
set apart as `unlabelled_slate`. Moments carry no zone in the files and are taken as UTC.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recsys.formats.imported import Imported, Schema, one_frame
from recsys.formats.lines import TEXT, LineLog, line_chunks
from recsys.quarantine import Table
from recsys.schema import (
    CATEGORY,
    CLICKED,
    DESCRIPTION,
    EVENT_TYPE,
    EVENTS,
    IMPRESSION_ID,
    IMPRESSIONS,
    ITEM_ID,
    ITEMS,
    SHOWN,
    SUBCATEGORY,
    TIMESTAMP,
    TITLE,
    USER_ID,
)

NEWS_COLUMNS = (ITEM_ID, CATEGORY, SUBCATEGORY, TITLE, DESCRIPTION)
MOMENT = "%m/%d/%Y %I:%M:%S %p"
HISTORY = "history"
LABELLED = r"^.+-[01]$"
IDS = pl.List(pl.String)
ITEM_SCHEMA: Schema = dict.fromkeys(NEWS_COLUMNS, pl.String)
SLATE_SCHEMA: Schema = {
    IMPRESSION_ID: pl.String,
    USER_ID: pl.String,
    TIMESTAMP: pl.Datetime("us"),
    SHOWN: IDS,
    CLICKED: IDS,
}
HISTORY_SCHEMA: Schema = {USER_ID: pl.String, HISTORY: IDS}


def read_mind(source: Path) -> Imported:
    """Read one split, train, dev or test.

    Args:
        source: the split's folder.
    """
    news, behaviors = source / "news.tsv", source / "behaviors.tsv"
    logs = [LineLog(str(news)), LineLog(str(behaviors))]
    items = one_frame((_news(chunk, logs[0]) for chunk in line_chunks(news, logs[0])), ITEM_SCHEMA)
    histories, slates = [], []
    for chunk in line_chunks(behaviors, logs[1]):
        good = _behaviors(chunk, logs[1])
        histories.append(_longest(good.select(USER_ID, HISTORY)))
        slates.append(_slates(good, logs[1]))
    shown = one_frame(slates, SLATE_SCHEMA)
    events = pl.concat([_history_events(one_frame(histories, HISTORY_SCHEMA)), _clicks(shown)])
    tables = {
        ITEMS: Table(items, str(news)),
        EVENTS: Table(events, str(behaviors)),
        IMPRESSIONS: Table(shown, str(behaviors)),
    }
    return Imported(tables, logs)


def _news(chunk: pl.DataFrame, log: LineLog) -> pl.DataFrame:
    cells = chunk.with_columns(pl.col(TEXT).str.split("\t").alias("cells"))
    wrong = pl.col("cells").list.len() < len(NEWS_COLUMNS)
    good = log.sift(cells, pl.when(wrong).then(pl.lit("wrong_field_count")))
    return good.select(
        pl.col("cells").list.get(place).replace("", None).alias(name)
        for place, name in enumerate(NEWS_COLUMNS)
    )


def _behaviors(chunk: pl.DataFrame, log: LineLog) -> pl.DataFrame:
    """Rows of a chunk as impression, user, moment, history and shown (ids with labels)."""
    cells = chunk.with_columns(pl.col(TEXT).str.split("\t").alias("cells"))
    good = log.sift(
        cells, pl.when(pl.col("cells").list.len() != 5).then(pl.lit("wrong_field_count"))
    ).with_columns(
        pl.col("cells").list.get(0).alias(IMPRESSION_ID),
        pl.col("cells").list.get(1).alias(USER_ID),
        pl.col("cells").list.get(2).str.to_datetime(MOMENT, strict=False, time_unit="us").alias(TIMESTAMP),
        _words(3).alias(HISTORY),
        _words(4).alias(SHOWN),
    )
    labels = pl.col(SHOWN).list.eval(pl.element().str.contains(LABELLED)).list
    some_labels = labels.any() & ~labels.all()
    return log.sift(
        good.drop("cells"),
        pl.coalesce(
            pl.when(pl.col(TIMESTAMP).is_null()).then(pl.lit("bad_timestamp")),
            pl.when(some_labels).then(pl.lit("bad_labels")),
        ),
    )


def _words(place: int) -> pl.Expr:
    words = pl.col("cells").list.get(place).str.split(" ")
    return words.list.eval(pl.element().filter(pl.element() != ""))


def _slates(rows: pl.DataFrame, log: LineLog) -> pl.DataFrame:
    has_slate = rows.filter(pl.col(SHOWN).list.len() > 0)
    unlabelled = ~pl.col(SHOWN).list.first().str.contains(LABELLED)
    slates = log.sift(has_slate, pl.when(unlabelled).then(pl.lit("unlabelled_slate")))
    stripped = pl.element().str.head(-2)
    return slates.select(
        IMPRESSION_ID,
        USER_ID,
        TIMESTAMP,
        pl.col(SHOWN).list.eval(stripped),
        pl.col(SHOWN).list.eval(stripped.filter(pl.element().str.ends_with("-1"))).alias(CLICKED),
    )


def _longest(histories: pl.DataFrame) -> pl.DataFrame:
    """One history a reader, the longest (the first of several), readers in order of appearance."""
    length = pl.col(HISTORY).list.len()
    return histories.group_by(USER_ID, maintain_order=True).agg(pl.col(HISTORY).get(length.arg_max()))


def _history_events(histories: pl.DataFrame) -> pl.DataFrame:
    clicks = _longest(histories).filter(pl.col(HISTORY).list.len() > 0).explode(HISTORY)
    return clicks.select(
        USER_ID,
        pl.col(HISTORY).alias(ITEM_ID),
        pl.lit("history_click").alias(EVENT_TYPE),
        pl.lit(None, dtype=pl.Datetime("us")).alias(TIMESTAMP),
        pl.lit(None, dtype=pl.String).alias(IMPRESSION_ID),
    )


def _clicks(slates: pl.DataFrame) -> pl.DataFrame:
    clicks = slates.filter(pl.col(CLICKED).list.len() > 0).explode(CLICKED)
    return clicks.select(
        USER_ID,
        pl.col(CLICKED).alias(ITEM_ID),
        pl.lit("click").alias(EVENT_TYPE),
        TIMESTAMP,
        IMPRESSION_ID,
    )
