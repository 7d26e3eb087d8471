"""Ids to row numbers and back; frames to catalogue, events and slates; the cut in time."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.dataset import Dataset, Ids
from recsys.errors import RecsysError
from recsys.events import DEFAULT_ROLES, EventRole

strings = st.lists(st.text(st.characters(codec="utf-8")), unique=True, max_size=20)
integers = st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=20)


def make_items(**columns: list[object]) -> pl.DataFrame:
    return pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["A", None, "C"]} | columns)


def make_events(rows: list[tuple[str, str, str, float | None]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user_id", "item_id", "event_type", "timestamp"], orient="row")


def make_impressions(**columns: list[object]) -> pl.DataFrame:
    shown = [["b", "a"], ["c", "b", "a"]]
    return pl.DataFrame({"user_id": ["v", "u"], "timestamp": [9.0, 5.0], "shown": shown} | columns)


CLICKS = make_events([("v", "b", "click", 3.0), ("u", "a", "click", 1.0), ("u", "c", "view", 2.0)])


@given(st.one_of(strings, integers), st.randoms())
def test_ids_come_back_as_they_went_in(values, random):
    dtype = pl.Int64 if values and isinstance(values[0], int) else pl.String
    ids = Ids(pl.Series(values, dtype=dtype))
    rows = list(range(len(values)))
    random.shuffle(rows)
    found = ids.take(rows)
    assert found.to_list() == [values[row] for row in rows]
    assert found.dtype == dtype
    assert ids.index(found).tolist() == rows
    assert [ids[row] for row in rows] == found.to_list()


def test_unknown_and_null_ids_are_row_minus_one():
    assert Ids(pl.Series(["a", "b"])).index(pl.Series(["b", "z", None, "a", "b"])).tolist() == [
        1,
        -1,
        -1,
        0,
        1,
    ]
    assert Ids(pl.Series([7, 5])).index(pl.Series([5, 6, None, 7])).tolist() == [1, -1, -1, 0]


def test_an_id_of_another_type_is_found_by_its_value_only():
    numbers = Ids(pl.Series([1, 2, 3]))
    assert numbers.index(pl.Series(["2", "two", "1.5"])).tolist() == [1, -1, -1]
    assert numbers.index(pl.Series([2.0, 1.5, float("nan")])).tolist() == [1, -1, -1]  # pandas with a gap
    assert Ids(pl.Series([1, 2], dtype=pl.Int32)).index(pl.Series([2**40 + 1, 2])).tolist() == [-1, 1]
    assert Ids(pl.Series(["1", "2"])).index(pl.Series([2, 3])).tolist() == [1, -1]


def test_no_ids_ask_and_answer_nothing():
    empty = Ids(pl.Series([], dtype=pl.String))
    assert len(empty) == 0
    assert empty.index(pl.Series(["a"])).tolist() == [-1]
    assert Ids(pl.Series(["a"])).index(pl.Series([])).tolist() == []


def test_missing_columns_of_the_catalogue_count_as_missing_values():
    catalogue = Dataset.from_frames(make_items(), CLICKS).catalogue
    assert (catalogue.title, catalogue.description) == (["A", "", "C"], ["", "", ""])
    assert catalogue.category.tolist() == [-1, -1, -1]
    assert np.isnan(catalogue.created_at).all()


def test_categories_are_coded_by_sorted_name_and_empty_is_missing():
    items = make_items(
        category=["y", "x", None], subcategory=["", "q", "q"], created_at=[None, "1970-01-02", "1970-01-01"]
    ).with_columns(pl.col("created_at").str.to_datetime())
    catalogue = Dataset.from_frames(items, CLICKS).catalogue
    assert (catalogue.category.tolist(), catalogue.category_names) == ([1, 0, -1], ["x", "y"])
    assert (catalogue.subcategory.tolist(), catalogue.subcategory_names) == ([-1, 0, 0], ["q"])
    np.testing.assert_array_equal(catalogue.created_at, [np.nan, 86_400.0, 0.0])


def test_events_stand_in_time_order_and_ties_in_file_order():
    events = make_events(
        [
            ("u", "c", "click", 5.0),
            ("u", "a", "click", 1.0),
            ("v", "b", "view", 5.0),
            ("u", "b", "click", 5.0),
        ]
    )
    data = Dataset.from_frames(make_items(), events)
    assert data.catalogue.ids.take(data.events.item_index).to_list() == ["a", "c", "b", "b"]
    assert [data.event_types[kind] for kind in data.events.type_index] == ["click", "click", "view", "click"]
    assert np.isnan(data.events.value).all()


def test_undated_events_lie_one_second_before_the_first_dated_one():
    events = make_events([("u", "a", "click", 50.0), ("u", "b", "click", None)])
    log = Dataset.from_frames(make_items(), events).events
    assert log.timestamp.tolist() == [49.0, 50.0]
    assert log.item_index.tolist() == [1, 0]


def test_users_are_those_of_every_table():
    users = pl.DataFrame({"user_id": ["w", "u"], "age": [1, 2]})
    impressions = make_impressions().with_columns(user_id=pl.Series(["x", "u"]))
    data = Dataset.from_frames(make_items(), CLICKS, impressions, users)
    assert data.users.values.to_list() == ["u", "v", "w", "x"]
    assert data.attributes is users


def test_roles_decide_weight_target_and_negative():
    roles = {"view": EventRole(0.5, target=False), "dismiss": EventRole(2.0, negative=True)}
    data = Dataset.from_frames(make_items(), CLICKS, roles=roles)
    assert data.event_types == ("view", "dismiss", "click")  # a type without a role comes last
    assert data.weights.tolist() == [0.5, 2.0, 1.0]
    assert data.is_target.tolist() == [False, False, True]
    assert data.is_negative.tolist() == [False, True, False]
    assert data.histories.item_index.tolist() == [0, 1]  # the view of c is not history


def test_a_positive_event_of_every_default_type_but_a_view_is_a_target():
    data = Dataset.from_frames(make_items(), CLICKS)
    kinds = dict(zip(data.event_types, data.is_target.tolist(), strict=True))
    assert {name for name, target in kinds.items() if not target} == {"view", "dismiss"}
    assert data.event_types == tuple(DEFAULT_ROLES)


def test_too_many_event_types_are_refused():
    events = make_events([("u", "a", f"type {n}", float(n)) for n in range(120)])
    with pytest.raises(RecsysError, match="too_many_event_types: 131 event types"):
        Dataset.from_frames(make_items(), events)


def test_slates_are_flattened_in_time_order():
    slates = Dataset.from_frames(make_items(), CLICKS, make_impressions()).slates
    assert slates.timestamp.tolist() == [5.0, 9.0]
    assert slates.offsets.tolist() == [0, 3, 5]
    assert slates.item_index.tolist() == [2, 1, 0, 1, 0]
    assert slates.position.tolist() == [1, 2, 3, 1, 2]
    assert slates.impression_row.tolist() == [1, 0]
    assert not slates.clicked.any()
    assert np.isnan(slates.propensity).all()


@pytest.mark.parametrize(
    "clicked", [[["a"], ["c", "a"]], [[False, True], [True, False, True]]], ids=["ids", "flags"]
)
def test_clicks_are_read_as_ids_or_as_flags(clicked):
    columns = {
        "clicked": clicked,
        "position": [[4, 5], [7, 8, 9]],
        "propensity": [[0.5, 0.25], [1.0, None, 0.5]],
    }
    slates = Dataset.from_frames(make_items(), CLICKS, make_impressions(**columns)).slates
    assert slates.clicked.tolist() == [True, False, True, False, True]
    assert slates.position.tolist() == [7, 8, 9, 4, 5]
    np.testing.assert_array_equal(slates.propensity, np.array([1.0, np.nan, 0.5, 0.5, 0.25], np.float32))


def test_slates_without_a_click_have_none():
    slates = Dataset.from_frames(make_items(), CLICKS, make_impressions(clicked=[None, ["b"]])).slates
    assert slates.clicked.tolist() == [False, True, False, False, False]


def test_taken_slates_keep_their_rows():
    slates = Dataset.from_frames(make_items(), CLICKS, make_impressions(clicked=[["b"], ["c"]])).slates
    turned = slates.take(np.array([1, 0]))
    assert turned.offsets.tolist() == [0, 2, 5]
    assert turned.item_index.tolist() == [1, 0, 2, 1, 0]
    assert turned.clicked.tolist() == [True, False, True, False, False]
    assert turned.impression_row.tolist() == [0, 1]


def test_before_keeps_strictly_earlier_rows_and_all_users_and_items():
    data = Dataset.from_frames(make_items(), CLICKS, make_impressions())
    past = data.before(3.0)
    assert past.events.timestamp.tolist() == [1.0, 2.0]
    assert past.slates is None
    assert data.before(5.1).slates.timestamp.tolist() == [5.0]
    assert (past.users, past.catalogue) == (data.users, data.catalogue)
    assert past.histories.item_index.tolist() == [0]


def test_the_end_is_one_second_after_the_last_row_of_either_table():
    assert Dataset.from_frames(make_items(), CLICKS).end == 4.0
    assert Dataset.from_frames(make_items(), CLICKS, make_impressions()).end == 10.0
    nothing = Dataset.from_frames(make_items(), CLICKS.clear())
    assert (nothing.end, len(nothing.events), len(nothing.users)) == (0.0, 0, 0)
    assert len(nothing.histories.sequence) == 0
