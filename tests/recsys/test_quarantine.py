from __future__ import annotations

import json
from collections.abc import Callable

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from recsys.errors import RecsysError
from recsys.quarantine import Checked, CheckOptions, Table, check

START = 1_600_000_000
ITEMS = pl.DataFrame({"item_id": [f"i{n}" for n in range(6)], "title": [f"item {n}" for n in range(6)]})
EVENTS = pl.DataFrame(
    {
        "user_id": [f"u{n % 4}" for n in range(12)],
        "item_id": [f"i{n % 6}" for n in range(12)],
        "event_type": ["click", "view"] * 6,
        "timestamp": [float(START + n) for n in range(12)],
        "value": [None if n % 3 else n / 2 for n in range(12)],
    }
)
SLATES = pl.DataFrame(
    {
        "impression_id": [1, 2, 3],
        "user_id": ["u0", "u1", "u2"],
        "timestamp": [START, START + 1, START + 2],
        "shown": [["i0", "i1"], ["i2", "i3", "i4"], ["i5"]],
        "clicked": [["i0"], [], ["i5"]],
    }
)


def checked(
    items: pl.DataFrame = ITEMS,
    events: pl.DataFrame = EVENTS,
    impressions: pl.DataFrame | None = None,
    users: pl.DataFrame | None = None,
    options: CheckOptions | None = None,
) -> Checked:
    frames = {"items": items, "events": events, "impressions": impressions, "users": users}
    tables = {name: Table(frame, name) for name, frame in frames.items() if frame is not None}
    return check(tables, options=options)


def event(**columns: object) -> dict[str, object]:
    row = {"user_id": "u9", "item_id": "i1", "event_type": "click", "timestamp": START + 99.0, "value": 1.0}
    return {**row, **columns}


def with_rows(frame: pl.DataFrame, rows: list[tuple[int, dict[str, object]]]) -> pl.DataFrame:
    """`frame` with rows put in before the given places."""
    extra = {place: [row for at, row in rows if at == place] for place in range(frame.height + 1)}
    parts = []
    for place in range(frame.height + 1):
        parts.append(pl.DataFrame(extra[place], schema=frame.schema, orient="row"))
        parts.append(frame.slice(place, 1))
    return pl.concat(parts)


EVENT_POISON: dict[str, Callable[[int], dict[str, object]]] = {
    "null_user_id": lambda n: event(user_id=None),
    "null_item_id": lambda n: event(item_id=None),
    "null_event_type": lambda n: event(event_type=None),
    "damaged_id": lambda n: event(user_id="x" * (600 if n % 2 else 0)),
    "empty_event_type": lambda n: event(event_type=""),
    "damaged_event_type": lambda n: event(event_type="cl\0ick"),
    "unreadable_timestamp": lambda n: event(timestamp=float("nan")),
    "timestamp_out_of_range": lambda n: event(timestamp=[0.0, -5.0, 1e300, 253e9][n % 4]),
    "value_not_finite": lambda n: event(value=[float("nan"), float("inf"), float("-inf")][n % 3]),
    "unknown_item": lambda n: event(item_id=f"nowhere{n}"),
}


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 12), st.sampled_from(sorted(EVENT_POISON)), st.integers(0, 9))))
def test_poisoned_events_go_and_the_others_stay_as_in_the_clean_table(poison: list[tuple[int, str, int]]):
    rows = [(place, EVENT_POISON[reason](n)) for place, reason, n in poison]
    result = checked(events=with_rows(EVENTS, rows))
    counts = result.report.tables["events"]
    assert counts.rows_in == counts.good + counts.quarantined == EVENTS.height + len(poison)
    reasons = [reason for _, reason, _ in poison]
    assert counts.reasons == {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    assert_frame_equal(result.good["events"], checked().good["events"])
    assert result.quarantined["events"]["reason"].value_counts().height == len(counts.reasons)


SLATE = {
    "impression_id": 99,
    "user_id": "u3",
    "timestamp": START + 9,
    "shown": ["i1", "i2"],
    "clicked": ["i1"],
}
SLATE_POISON: dict[str, dict[str, object]] = {
    "null_impression_id": {"impression_id": None},
    "null_user_id": {"user_id": None},
    "null_timestamp": {"timestamp": None},
    "damaged_id": {"user_id": "\0"},
    "timestamp_out_of_range": {"timestamp": 5},
    "empty_slate": {"shown": [], "clicked": []},
    "null_shown": {"shown": None, "clicked": []},
    "clicked_not_shown": {"clicked": ["i5"]},
    "unknown_shown_item": {"shown": ["i1", "nowhere"]},
    "duplicate_impression_id": {"impression_id": 1},
}


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(sorted(SLATE_POISON)))))
def test_poisoned_slates_go_and_the_others_stay_as_in_the_clean_table(poison: list[tuple[int, str]]):
    rows = [(place, {**SLATE, **SLATE_POISON[reason]}) for place, reason in poison]
    result = checked(impressions=with_rows(SLATES, rows))
    counts = result.report.tables["impressions"]
    assert counts.rows_in == counts.good + counts.quarantined == SLATES.height + len(poison)
    reasons = [reason for _, reason in poison]
    assert counts.reasons == {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    assert_frame_equal(result.good["impressions"], checked(impressions=SLATES).good["impressions"])


def test_of_items_with_the_same_id_the_first_sound_one_stays():
    items = pl.DataFrame({"item_id": [1, 1, 2, 1, None], "title": ["da\0maged", "first", "two", "more", ""]})
    events = EVENTS.clear().cast({"item_id": pl.Int64})
    result = checked(items, events)
    assert result.good["items"]["title"].to_list() == ["first", "two"]
    assert result.quarantined["items"].select("row", "reason").rows() == [
        (0, "damaged_text"),
        (3, "duplicate_item_id"),
        (4, "null_item_id"),
    ]


def test_a_row_has_one_reason_so_that_counts_add_up():
    bad = event(user_id=None, item_id="nowhere", timestamp=float("nan"), value=float("inf"))
    result = checked(events=with_rows(EVENTS, [(0, bad)]))
    assert result.report.tables["events"].reasons == {"null_user_id": 1}


def test_an_exact_repeat_goes_and_the_first_stays():
    result = checked(events=pl.concat([EVENTS, EVENTS[3:5], EVENTS[3:4].with_columns(value=9.0)]))
    assert result.report.tables["events"].reasons == {"duplicate": 3}
    assert_frame_equal(result.good["events"], checked().good["events"])


def test_event_ids_tell_events_apart_that_are_otherwise_equal():
    same = pl.concat([EVENTS[:1]] * 4).with_columns(event_id=pl.Series(["a", "b", "a", None]))
    result = checked(events=same)
    assert result.good["events"]["event_id"].to_list() == ["a", "b", None]
    assert result.report.tables["events"].reasons == {"duplicate": 1}


def test_undated_events_are_kept_and_their_repeats_counted():
    undated = pl.concat([EVENTS[:1]] * 3).with_columns(timestamp=pl.lit(None, dtype=pl.Float64))
    counts = checked(events=undated).report.tables["events"]
    assert (counts.good, counts.reasons) == (3, {})
    assert counts.warnings == {"undated_repeat": 2, "undated": 3}


def test_events_out_of_time_order_are_kept_as_they_are_and_counted():
    result = checked(events=EVENTS.reverse())
    assert result.report.tables["events"].warnings["out_of_time_order"] == EVENTS.height - 1
    assert result.good["events"]["item_id"].to_list() == EVENTS["item_id"].reverse().to_list()


def test_a_click_without_its_slate_is_kept_and_counted():
    counts = checked(impressions=SLATES).report.tables["events"]
    clicks = EVENTS.filter(pl.col("event_type") == "click")
    shown = SLATES.explode("shown").select("user_id", item_id="shown")
    assert (
        counts.warnings["click_without_impression"]
        == clicks.join(shown, on=["user_id", "item_id"], how="anti").height
    )
    named = EVENTS.with_columns(impression_id=pl.Series([1] * 11 + [77]))
    named = named.with_columns(event_type=pl.lit("click"))
    assert checked(events=named, impressions=SLATES).report.tables["events"].warnings == {
        "click_without_impression": 1
    }


def test_users_outside_the_users_table_are_a_warning_or_a_reason():
    users = pl.DataFrame({"user_id": ["u0", "u1", "u0"], "age": [30, 40, 50]})
    strangers = EVENTS.filter(~pl.col("user_id").is_in(["u0", "u1"])).height
    lenient = checked(users=users).report.tables
    assert lenient["users"].reasons == {"duplicate_user_id": 1}
    assert lenient["events"].warnings == {"unknown_user": strangers}
    strict = checked(users=users, options=CheckOptions(require_known_users=True)).report.tables
    assert strict["events"].reasons == {"unknown_user": strangers}


def test_items_without_text_or_with_very_long_text_are_kept_and_counted():
    items = ITEMS.with_columns(title=pl.Series(["", None, "  ", "x" * 5_000, "a", "b"]))
    counts = checked(items).report.tables["items"]
    assert counts.good == 6
    assert counts.warnings == {"empty_text": 3, "long_text": 1}


def test_an_incredible_creation_date_becomes_unknown_and_the_item_stays():
    items = ITEMS.with_columns(
        created_at=pl.Series([START, 5, None, 1e300, float("nan"), START], dtype=pl.Float64)
    )
    result = checked(items)
    assert result.good["items"]["created_at"].is_null().to_list() == [False, True, True, True, True, False]
    assert result.report.tables["items"].warnings == {"created_at_out_of_range": 3}


def test_lists_that_are_absent_in_some_slates_are_written_out():
    slates = SLATES.with_columns(
        clicked=pl.Series([[True, False], None, [False]]),
        position=pl.Series([[4, 2], None, None]),
        propensity=pl.Series([None, [0.5, 0.5, 1.0], None]),
    )
    good = checked(impressions=slates).good["impressions"]
    assert good["clicked"].to_list() == [[True, False], [False] * 3, [False]]
    assert good["position"].to_list() == [[4, 2], [1, 2, 3], [1]]
    assert good["propensity"].to_list() == [[None, None], [0.5, 0.5, 1.0], [None]]
    no_clicks = SLATES.with_columns(clicked=pl.Series([["i1"], None, []]))
    assert checked(impressions=no_clicks).good["impressions"]["clicked"].to_list() == [["i1"], [], []]


def test_quarantined_rows_keep_every_column_as_it_was_read():
    items = ITEMS.with_columns(item_id=pl.lit("same"), price=pl.int_range(6, dtype=pl.Int16))
    bad = checked(items, EVENTS.clear()).quarantined["items"]
    assert bad["price"].to_list() == [1, 2, 3, 4, 5]
    assert bad["price"].dtype == pl.Int16
    assert bad["row"].to_list() == [1, 2, 3, 4, 5]


def test_ids_come_back_as_they_went_in():
    items = ITEMS.with_columns(item_id=pl.Series(range(6), dtype=pl.Int16))
    events = EVENTS.with_columns(item_id=pl.Series([n % 6 for n in range(12)], dtype=pl.UInt8))
    good = checked(items, events).good
    assert good["items"]["item_id"].to_list() == list(range(6))
    assert good["events"]["item_id"].to_list() == [n % 6 for n in range(12)]
    assert good["events"]["user_id"].to_list() == EVENTS["user_id"].to_list()


def test_ids_of_two_kinds_are_refused_and_both_files_named():
    with pytest.raises(RecsysError, match=r"`item_id` holds String but items holds Int64.*events") as caught:
        checked(ITEMS.with_columns(item_id=pl.int_range(6)))
    assert caught.value.code == "input_invalid"
    with pytest.raises(RecsysError, match="`shown` holds"):
        checked(impressions=SLATES.with_columns(shown=pl.Series([[1], [2], [3]])))


def test_an_empty_log_takes_the_kind_of_the_items_ids():
    nothing = pl.DataFrame(schema=dict.fromkeys(EVENTS.columns, pl.Null))
    good = checked(ITEMS.with_columns(item_id=pl.int_range(6)), nothing).good["events"]
    assert good.schema["item_id"] == pl.Int64
    assert good.height == 0


@pytest.mark.parametrize(
    ("unit", "ticks"), [("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9)]
)
def test_timestamps_in_another_unit_are_refused_with_a_hint(unit: str, ticks: int):
    report = checked(events=EVENTS.with_columns(pl.col("timestamp") * ticks)).report
    assert report.tables["events"].reasons == {"timestamp_out_of_range": 12}
    assert [unit in hint for hint in report.hints] == [True]


def test_more_event_types_than_fit_are_refused():
    many = pl.DataFrame(
        {"user_id": "u", "item_id": "i1", "event_type": [f"t{n}" for n in range(128)], "timestamp": START},
        schema_overrides={"timestamp": pl.Int64},
    )
    with pytest.raises(RecsysError, match="128 different types"):
        checked(events=many)


def test_the_report_is_json_and_lines():
    result = checked(events=with_rows(EVENTS, [(0, event(user_id=None))]), impressions=SLATES)
    document = json.loads(json.dumps(result.report.to_dict()))
    assert document["tables"]["events"]["quarantined"] == 1
    assert document["tables"]["events"]["reasons"] == {"null_user_id": 1}
    lines = "\n".join(result.report.lines())
    assert "13 rows = 12 good + 1 quarantined" in lines
    assert "quarantined: 1 null_user_id" in lines
