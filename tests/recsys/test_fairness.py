"""The fairness gap: by hand, and what is too small to say anything."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from recsys.dataset import Dataset
from recsys.fairness import SMALLEST_GROUP, fairness_gap, user_groups


def test_the_gap_is_the_largest_relative_difference_of_a_mean():
    values = np.array([0.2, 0.2, 0.4, 0.4, np.nan])
    users = np.arange(5)
    groups = {"a": np.array([1, 1, 0, 0, 1], bool), "b": np.array([0, 0, 1, 1, 0], bool)}
    found = fairness_gap(values, users, groups)
    assert found.mean == pytest.approx(0.1 / 0.3)
    assert found.low <= found.mean <= found.high
    above = fairness_gap(values + 0.5, users, groups, chance=0.5)
    assert above.mean == pytest.approx(found.mean)


def test_the_interval_draws_whole_users():
    rng = np.random.default_rng(0)
    of_user = rng.random(60)
    once = fairness_gap(of_user, np.arange(60), {"half": np.arange(60) < 30})
    values, users = np.repeat(of_user, 10), np.repeat(np.arange(60), 10)
    tenfold = fairness_gap(values, users, {"half": np.repeat(np.arange(60) < 30, 10)})
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))


def test_no_group_and_a_whole_at_chance_give_nan():
    assert math.isnan(fairness_gap(np.ones(3), np.arange(3), {}).mean)
    assert math.isnan(fairness_gap(np.full(3, np.nan), np.arange(3), {"all": np.ones(3, bool)}).mean)
    with np.errstate(all="raise"):
        assert not math.isfinite(fairness_gap(np.zeros(3), np.arange(3), {"all": np.ones(3, bool)}).mean)


def world(users: int) -> Dataset:
    ids = [f"u{number}" for number in range(users)]
    items = pl.DataFrame({"item_id": ["i"], "title": ["thing"]})
    events = pl.DataFrame(
        {
            "user_id": ids,
            "item_id": ["i"] * users,
            "event_type": ["click"] * users,
            "timestamp": [1.0] * users,
        }
    )
    country = ["de" if number % 3 else "fr" for number in range(users)]
    country[0] = None
    table = pl.DataFrame({"user_id": ids, "country": country, "name": ids})
    return Dataset.from_frames(items, events, users=table)


def test_groups_are_bands_of_activity_and_values_of_attributes_large_enough():
    data = world(3 * SMALLEST_GROUP + 3)
    users = np.arange(len(data.users), dtype=np.int32)
    activity = np.where(users < SMALLEST_GROUP, 0, 12)
    groups = user_groups(data, users, activity)
    assert set(groups) == {"activity 0", "activity 10+", "country de", "country fr"}
    assert groups["activity 0"].sum() == SMALLEST_GROUP
    french = data.users.index(pl.Series([f"u{n}" for n in range(3, len(users), 3)]))
    assert set(np.flatnonzero(groups["country fr"])) == set(french.tolist())  # user 0 has no country
    fewer = user_groups(data, users[: SMALLEST_GROUP - 1], activity[: SMALLEST_GROUP - 1])
    assert fewer == {}


def test_many_requests_of_few_users_are_no_group():
    data = world(5)
    users = np.repeat(np.arange(5, dtype=np.int32), 100)
    assert user_groups(data, users, np.zeros(500, np.int64)) == {}
