"""Popular and fresh items as they stood at midnight, with the decay computed by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.dataset import Dataset
from recsys.popularity import Popularity, PopularityConfig, fit_popularity
from recsys.requests import DAY_S

ITEMS = 4
LOG = [
    (0, "click", 10.2),
    (0, "click", 10.9),
    (1, "purchase", 12.0),
    (0, "click", 14.0),
    (2, "dismiss", 10.5),
]


def make_dataset(rows: list[tuple[int, str, float]], created: list[float | None] | None = None) -> Dataset:
    items = pl.DataFrame({"item_id": range(ITEMS), "title": ["t"] * ITEMS})
    if created is not None:
        items = items.with_columns(created_at=pl.Series(created, dtype=pl.Float64))
    events = pl.DataFrame(
        [(1, item, kind, day * DAY_S) for item, kind, day in rows],
        schema={"user_id": pl.Int64, "item_id": pl.Int64, "event_type": pl.String, "timestamp": pl.Float64},
        orient="row",
    )
    return Dataset.from_frames(items, events)


def fit(rows: list[tuple[int, str, float]], half_life_days: float = 2.0) -> Popularity:
    return fit_popularity(make_dataset(rows), PopularityConfig(half_life_days))


def test_counts_decay_from_day_to_day_by_hand():
    found = fit(LOG).scores(np.array([9, 10, 11, 12, 13, 14, 15, 17]))
    decay = 2**-0.5  # one day at a half-life of two
    item_0 = [0, 0, 2 * decay, 2 * decay**2, 2 * decay**3, 2 * decay**4, (2 * decay**4 + 1) * decay]
    item_0.append(item_0[-1] * decay**2)
    item_1 = [0, 0, 0, 0, 5 * decay, 5 * decay**2, 5 * decay**3, 5 * decay**5]
    np.testing.assert_allclose(found[:, 0], item_0)
    np.testing.assert_allclose(found[:, 1], item_1)
    assert not found[:, 2:].any()  # a dismissal makes nothing popular


@given(st.lists(st.tuples(st.integers(0, ITEMS - 1), st.floats(10, 16)), max_size=20), st.integers(9, 17))
def test_scores_equal_a_loop_over_the_log_before_that_day(rows, day):
    found = fit([(item, "click", moment) for item, moment in rows]).scores(np.array([day]))
    expected = np.zeros(ITEMS)
    for item, moment in rows:
        if moment < day:
            expected[item] += 2.0 ** (-(day - np.floor(moment)) / 2.0)
    np.testing.assert_allclose(found[0], expected, rtol=1e-9)


def test_a_day_never_sees_its_own_events():
    today = [(3, "click", 15.0), (3, "purchase", 15.999), (1, "click", 16.0)]
    day = np.array([15])
    np.testing.assert_array_equal(fit([*LOG, *today]).scores(day), fit(LOG).scores(day))


def test_one_day_alone_equals_the_same_day_among_others():
    popularity = fit(LOG)
    days = np.array([9, 11, 12, 13, 40])
    alone = np.concatenate([popularity.scores(days[[n]]) for n in range(len(days))])
    np.testing.assert_allclose(popularity.scores(days), alone)
    assert popularity.scores(np.zeros(0, np.int64)).shape == (0, ITEMS)


@pytest.mark.parametrize("day", [5, 20_000])
def test_a_half_life_far_shorter_than_the_log_is_no_overflow(day):
    rows = [(0, "click", 1.0), (1, "click", 6_000.5), (2, "click", 19_999.5)]
    found = fit(rows, half_life_days=0.5).scores(np.array([day, 25_000]))
    assert np.isfinite(found).all()
    expected = [2.0**-8, 0, 0, 0] if day == 5 else [0, 0, 2.0**-2, 0]
    np.testing.assert_array_equal(found[0], expected)
    before_the_log = fit([(0, "click", 20_000.0)], half_life_days=0.5).scores(np.array([3]))
    assert before_the_log.tolist() == [[0.0] * ITEMS]


def test_an_item_is_there_from_its_creation_or_else_from_its_first_event():
    rows = [(0, "click", 10.2), (1, "view", 12.5), (1, "click", 13.0), (2, "click", 11.0)]
    data = make_dataset(rows, created=[None, None, 9.0 * DAY_S, None])
    popularity = fit_popularity(data, PopularityConfig())
    np.testing.assert_allclose(popularity.first_seen / DAY_S, [10.2, 12.5, 9.0, np.inf])
    np.testing.assert_allclose(popularity.freshness(np.array([11])) / DAY_S, [[10.2, -np.inf, 9.0, -np.inf]])
    np.testing.assert_allclose(
        popularity.freshness(np.array([9])), [[-np.inf] * ITEMS]
    )  # created at that very midnight


def test_an_empty_log_makes_nothing_popular():
    popularity = fit([])
    assert popularity.scores(np.array([10, 20])).tolist() == [[0.0] * ITEMS] * 2
    assert np.isneginf(popularity.freshness(np.array([20]))).all()


def test_files_round_trip_exactly():
    popularity = fit(LOG)
    again = Popularity.from_files(popularity.to_files())
    days = np.arange(9, 20)
    np.testing.assert_array_equal(again.scores(days), popularity.scores(days))
    np.testing.assert_array_equal(again.first_seen, popularity.first_seen)
    assert again.half_life_days == popularity.half_life_days
