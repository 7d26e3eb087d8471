from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import polars as pl
import pytest

from recsys import schema
from recsys.errors import RecsysError
from recsys.schema import EVENTS, IMPRESSIONS, ITEMS, ROW_RULES, conform, rule_view


def events(**columns: object) -> pl.DataFrame:
    return pl.DataFrame(
        {"user_id": ["u"], "item_id": ["i"], "event_type": ["click"], "timestamp": [1.6e9], **columns}
    )


def reasons(frame: pl.DataFrame, table: str) -> dict[str, int]:
    view = rule_view(conform(frame, table, "file"), table)
    return ROW_RULES[table].filter(view).failure.counts()


@pytest.mark.parametrize("dtype", [pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt32, pl.UInt64])
def test_integer_ids_of_any_width_become_int64(dtype: type[pl.DataType]):
    typed = conform(events(user_id=pl.Series([7], dtype=dtype)), EVENTS, "f")
    assert typed["user_id"].dtype == pl.Int64
    assert typed["user_id"].to_list() == [7]


def test_an_id_beyond_64_bits_is_refused():
    with pytest.raises(RecsysError, match="beyond 64 bits") as caught:
        conform(events(user_id=pl.Series([2**64 - 1], dtype=pl.UInt64)), EVENTS, "events.parquet")
    assert caught.value.where == "events.parquet"


def test_categorical_text_becomes_string():
    typed = conform(events(event_type=pl.Series(["click"], dtype=pl.Categorical)), EVENTS, "f")
    assert typed["event_type"].dtype == pl.String


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (1_573_257_673, 1_573_257_673.0),
        (1_573_257_673.25, 1_573_257_673.25),
        (datetime(2019, 11, 9, 0, 1, 13), 1_573_257_673.0),
        (datetime(2019, 11, 9, 0, 1, 13, tzinfo=UTC), 1_573_257_673.0),
        (datetime(2019, 11, 9, 2, 1, 13, tzinfo=timezone(timedelta(hours=2))), 1_573_257_673.0),
        (date(2019, 11, 9), 1_573_257_600.0),
        (None, None),
    ],
)
def test_every_form_of_a_moment_becomes_epoch_seconds_utc(value: object, seconds: float | None):
    typed = conform(events(timestamp=[value]), EVENTS, "f")
    assert typed["timestamp"].dtype == pl.Float64
    assert typed["timestamp"].to_list() == [seconds]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_the_unit_of_a_datetime_does_not_matter(unit: str):
    moment = pl.Series([datetime(2019, 11, 9, 0, 1, 13)]).cast(pl.Datetime(unit))  # type: ignore[arg-type]
    assert conform(events(timestamp=moment), EVENTS, "f")["timestamp"].to_list() == [1_573_257_673.0]


@pytest.mark.parametrize("column", schema.REQUIRED[EVENTS])
def test_a_missing_column_is_named_with_its_file(column: str):
    with pytest.raises(RecsysError, match=f"`{column}` is missing") as caught:
        conform(events().drop(column), EVENTS, "events.parquet")
    assert (caught.value.code, caught.value.where, caught.value.exit_code) == (
        "input_invalid",
        "events.parquet",
        65,
    )


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("user_id", [1.5]),
        ("item_id", [True]),
        ("item_id", [["i"]]),
        ("event_type", [2.0]),
        ("timestamp", ["yesterday"]),
        ("timestamp", [True]),
        ("value", ["5"]),
    ],
)
def test_a_column_of_another_type_is_refused(column: str, values: list[object]):
    with pytest.raises(RecsysError, match=f"`{column}` holds") as caught:
        conform(events(**{column: values}), EVENTS, "events.parquet")
    assert caught.value.code == "input_invalid"


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"user_id": [None]}, "user_id|nullability"),
        ({"user_id": [""]}, "damaged_id"),
        ({"item_id": ["a\0b"]}, "damaged_id"),
        ({"item_id": ["é" * 256 + "x"]}, "damaged_id"),  # 513 bytes
        ({"event_type": [""]}, "empty_event_type"),
        ({"timestamp": [float("nan")]}, "unreadable_timestamp"),
        ({"timestamp": [float("inf")]}, "timestamp_out_of_range"),
        ({"timestamp": [631_151_999.0]}, "timestamp_out_of_range"),
        ({"timestamp": [4_102_444_800.0]}, "timestamp_out_of_range"),
        ({"value": [float("nan")]}, "value_not_finite"),
        ({"value": [float("-inf")]}, "value_not_finite"),
        ({"event_id": ["\0"]}, "damaged_id"),
    ],
)
def test_a_bad_event_breaks_the_rule_of_that_name(columns: dict[str, object], reason: str):
    assert reason in reasons(events(**columns), EVENTS)


@pytest.mark.parametrize(
    "columns",
    [
        {"item_id": ["é" * 256]},  # 512 bytes
        {"item_id": ["👩‍👩‍👧"]},
        {"timestamp": [631_152_000.0]},
        {"timestamp": [None]},
        {"value": [None]},
        {"value": [-3.0]},
        {"event_id": [None]},
    ],
)
def test_a_legal_event_breaks_no_rule(columns: dict[str, object]):
    assert reasons(events(**columns), EVENTS) == {}


def slate(**columns: object) -> pl.DataFrame:
    return pl.DataFrame(
        {"impression_id": [1], "user_id": ["u"], "timestamp": [1.6e9], "shown": [["a", "b"]], **columns}
    )


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"shown": pl.Series([[]], dtype=pl.List(pl.String))}, "empty_slate"),
        ({"shown": pl.Series([None], dtype=pl.List(pl.String))}, "shown|nullability"),
        ({"clicked": [["c"]]}, "clicked_not_shown"),
        ({"clicked": [[True]]}, "length_mismatch"),
        ({"position": [[1]]}, "length_mismatch"),
        ({"position": [[0, 1]]}, "position_out_of_range"),
        ({"position": [[1, None]]}, "position_out_of_range"),
        ({"propensity": [[0.5]]}, "length_mismatch"),
        ({"propensity": [[0.0, 0.5]]}, "propensity_out_of_range"),
        ({"propensity": [[1.1, 0.5]]}, "propensity_out_of_range"),
        ({"propensity": [[float("nan"), 0.5]]}, "propensity_out_of_range"),
        ({"timestamp": pl.Series([None], dtype=pl.Float64)}, "timestamp|nullability"),
    ],
)
def test_a_bad_slate_breaks_the_rule_of_that_name(columns: dict[str, object], reason: str):
    assert reasons(slate(**columns), IMPRESSIONS) == {reason: 1}


@pytest.mark.parametrize(
    "columns",
    [
        {"clicked": [["b"]]},
        {"clicked": pl.Series([[]], dtype=pl.List(pl.String))},
        {"clicked": [[False, True]]},
        {"clicked": pl.Series([None], dtype=pl.List(pl.String))},
        {"position": [[2, 1]]},
        {"propensity": [[1.0, None]]},
    ],
)
def test_a_legal_slate_breaks_no_rule(columns: dict[str, object]):
    assert reasons(slate(**columns), IMPRESSIONS) == {}


def test_item_text_with_a_nul_is_damaged_and_without_text_is_legal():
    items = pl.DataFrame({"item_id": [1, 2], "title": ["a\0", None]})
    assert reasons(items, ITEMS) == {"damaged_text": 1}
