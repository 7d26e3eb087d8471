"""Importer of MovieLens: 1M (`ratings.dat`, latin-1, `::`) and the `ml-latest` family (`ratings.csv`).

The first genre is the category, all genres are the tags. MovieLens-1M's codes for age and occupation are
spelled out as its README does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from recsys.cells import moment, number, read_csv
from recsys.errors import EXIT_NO_INPUT, RecsysError
from recsys.formats.imported import Imported, one_frame
from recsys.formats.lines import TEXT, LineLog, line_chunks
from recsys.quarantine import Table
from recsys.schema import (
    CATEGORY,
    EVENT_TYPE,
    EVENTS,
    ITEM_ID,
    ITEMS,
    TAGS,
    TIMESTAMP,
    TITLE,
    USER_ID,
    USERS,
    VALUE,
    refused,
)

AGES = {"1": "<18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55", "56": "56+"}
OCCUPATIONS = (
    "other",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
)
RATING_FIELDS = {USER_ID: pl.Int64, ITEM_ID: pl.Int64, VALUE: pl.Float64, TIMESTAMP: pl.Int64}
MOVIE_FIELDS = {ITEM_ID: pl.Int64, TITLE: pl.String, "genres": pl.String}
USER_FIELDS = {
    USER_ID: pl.Int64,
    "gender": pl.String,
    "age": pl.String,
    "occupation": pl.String,
    "zip_code": pl.String,
}
NO_GENRES = "(no genres listed)"

Fields = Mapping[str, type[pl.DataType]]


def read_movielens(source: Path) -> Imported:
    """Read a MovieLens folder; which of the two forms it has is told by its files.

    Args:
        source: folder with `ratings.dat`, `movies.dat` and `users.dat`, or `ratings.csv` and `movies.csv`.
    """
    if (source / "ratings.dat").exists():
        return _read_dat(source)
    if (source / "ratings.csv").exists():
        return _read_csv(source)
    what = "neither ratings.dat nor ratings.csv is there"
    raise RecsysError("no_input", what, str(source), exit_code=EXIT_NO_INPUT)


def _read_dat(source: Path) -> Imported:
    logs: list[LineLog] = []
    ratings = _dat(source / "ratings.dat", RATING_FIELDS, logs)
    movies = _dat(source / "movies.dat", MOVIE_FIELDS, logs)
    tables = {
        ITEMS: Table(_with_genres(movies), str(source / "movies.dat")),
        EVENTS: Table(_rating_events(ratings), str(source / "ratings.dat")),
    }
    if (source / "users.dat").exists():
        users = _named_users(_dat(source / "users.dat", USER_FIELDS, logs))
        tables[USERS] = Table(users, str(source / "users.dat"))
    return Imported(tables, logs)


def _dat(path: Path, fields: Fields, logs: list[LineLog]) -> pl.DataFrame:
    log = LineLog(str(path))
    logs.append(log)
    return one_frame((_split(chunk, fields, log) for chunk in line_chunks(path, log, "latin-1")), fields)


def _split(chunk: pl.DataFrame, fields: Fields, log: LineLog) -> pl.DataFrame:
    """Fields between `::`; a line with another number of them, or with a bad number, is refused."""
    cells = chunk.with_columns(pl.col(TEXT).str.split("::").alias("cells"))
    wrong = pl.col("cells").list.len() != len(fields)
    good = log.sift(cells, pl.when(wrong).then(pl.lit("wrong_field_count"))).with_columns(
        pl.col("cells").list.get(place).cast(dtype, strict=False).alias(name)
        for place, (name, dtype) in enumerate(fields.items())
    )
    unread = pl.any_horizontal(pl.col(name).is_null() for name in fields)
    return log.sift(good, pl.when(unread).then(pl.lit("bad_number")))


def _read_csv(source: Path) -> Imported:
    ratings_file, movies_file = source / "ratings.csv", source / "movies.csv"
    ratings = _renamed(
        ratings_file, {USER_ID: "userId", ITEM_ID: "movieId", VALUE: "rating", TIMESTAMP: "timestamp"}
    )
    movies = _renamed(movies_file, {ITEM_ID: "movieId", TITLE: "title", "genres": "genres"})
    ratings = ratings.with_columns(number(VALUE), moment(TIMESTAMP))
    undated = pl.col(TIMESTAMP).fill_null(float("nan"))
    tables = {
        ITEMS: Table(_with_genres(movies), str(movies_file)),
        EVENTS: Table(_rating_events(ratings.with_columns(undated)), str(ratings_file)),
    }
    return Imported(tables)


def _renamed(path: Path, columns: Mapping[str, str]) -> pl.DataFrame:
    frame = read_csv(path)
    for name in columns.values():
        if name not in frame.columns:
            raise refused(f"column `{name}` is missing", str(path))
    return frame.select(pl.col(theirs).alias(ours) for ours, theirs in columns.items())


def _rating_events(ratings: pl.DataFrame) -> pl.DataFrame:
    return ratings.select(USER_ID, ITEM_ID, pl.lit("rating").alias(EVENT_TYPE), TIMESTAMP, VALUE)


def _with_genres(movies: pl.DataFrame) -> pl.DataFrame:
    genres = pl.col("genres").replace([NO_GENRES, ""], None).str.split("|")
    return movies.select(ITEM_ID, TITLE, genres.list.first().alias(CATEGORY), genres.alias(TAGS))


def _named_users(users: pl.DataFrame) -> pl.DataFrame:
    """Ages and occupations by name; an unknown code stays as it is. Zip codes are left out."""
    occupations = {str(code): name for code, name in enumerate(OCCUPATIONS)}
    return users.select(
        USER_ID, "gender", pl.col("age").replace(AGES), pl.col("occupation").replace(occupations)
    )
