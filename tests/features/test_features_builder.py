"""The feature matrix and its schema: names, order, missing values, refusal of another schema."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from features.builder import Features
from features.catalogue import DEFAULT_FEATURES, default_features
from features.declaration import Counter, InSlate, RequestScore
from features.records import from_record, to_record
from features.replay import Replay
from features.schema import FeatureSchema
from recsys.dataset import Dataset
from recsys.errors import RecsysError
from recsys.events import lengths_to_offsets
from recsys.pairs import DensePairs, SparsePairs
from recsys.requests import SOURCES, Requests

DAY = 86_400.0
ITEMS, USERS, EVENTS = 30, 12, 400
SWAPPED = [DEFAULT_FEATURES[place] for place in (0, 2, 1, *range(3, len(DEFAULT_FEATURES)))]


@pytest.fixture(scope="module")
def world() -> Dataset:
    rng = np.random.default_rng(3)
    items = pl.DataFrame(
        {
            "item_id": range(ITEMS),
            "title": ["t"] * ITEMS,
            "category": [f"c{i % 4}" for i in range(ITEMS)],
            "subcategory": [f"s{i % 9}" for i in range(ITEMS)],
        }
    )
    events = pl.DataFrame(
        {
            "user_id": rng.integers(0, USERS, EVENTS),
            "item_id": rng.integers(0, ITEMS, EVENTS),
            "event_type": rng.choice(["click", "purchase", "dismiss"], EVENTS),
            "timestamp": np.sort(rng.random(EVENTS) * 20 * DAY),
        }
    )
    slates = pl.DataFrame(
        {
            "user_id": rng.integers(0, USERS, 60),
            "timestamp": np.sort(rng.random(60) * 20 * DAY),
            "shown": [rng.permutation(ITEMS)[:8].tolist() for _ in range(60)],
        }
    )
    return Dataset.from_frames(items, events, slates)


@pytest.fixture(scope="module")
def pairs() -> dict[str, DensePairs | SparsePairs]:
    rng = np.random.default_rng(4)
    offsets = np.arange(ITEMS + 1, dtype=np.int64) * 6
    columns = np.concatenate([rng.permutation(ITEMS)[:6] for _ in range(ITEMS)]).astype(np.int32)
    sparse = SparsePairs(offsets, columns, rng.random(ITEMS * 6).astype(np.float32))
    text, als = (DensePairs(rng.normal(size=(ITEMS, d)).astype(np.float32)) for d in (16, 8))
    return {"text": text, "als": als, "item_item": sparse, "transition": sparse}


def build(world, features, requests, pairs, scores):
    return features.build(requests, Replay(world, features).read(requests), pairs, scores, world.weights)


def test_default_names_are_unique_and_each_column_says_what_it_means():
    schema = Features().schema
    assert len(set(schema.names)) == len(schema) == 108
    assert all(column.meaning for column in schema.fields)


def test_columns_stand_in_schema_order(world, pairs):
    features = Features()
    requests = Requests.from_slates(world.slates, world.events)
    head = np.arange(requests.rows, dtype=np.float32)
    matrix = build(world, features, requests, pairs, {"head": head, "als_user": -head})
    assert matrix.shape == (requests.rows, len(features.schema))
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix[:, features.schema.index("head")], head)
    np.testing.assert_array_equal(matrix[:, features.schema.index("als_user")], -head)
    np.testing.assert_array_equal(matrix[:, features.schema.index("candidates")], 8)
    best = matrix[:, features.schema.index("head_rank")].reshape(-1, 8)
    np.testing.assert_allclose(best, np.tile(np.arange(8, 0, -1) / 8, (60, 1)), rtol=1e-6)
    rate = matrix[:, features.schema.index("item_rate_lifetime")]
    assert ((rate[8:] >= 0) | np.isnan(rate[8:])).all()


def test_a_request_alone_has_the_features_it_has_in_a_batch(world, pairs):
    features = Features()
    requests = Requests.from_slates(world.slates, world.events)
    batch = build(world, features, requests, pairs, {})
    for number in (0, 17, 59):
        alone = build(world, features, requests.take(np.array([number])), pairs, {})
        np.testing.assert_array_equal(alone, batch[number * 8 : number * 8 + 8])


def test_absent_models_give_missing_columns_and_change_no_other(world, pairs):
    features = Features()
    requests = Requests.from_slates(world.slates, world.events)
    full = build(world, features, requests, pairs, {})
    without = build(world, features, requests, {k: v for k, v in pairs.items() if k != "als"}, {})
    als = np.array([name.startswith("als_history") for name in features.schema.names])
    assert np.isnan(without[:, als]).all()
    np.testing.assert_array_equal(without[:, ~als], full[:, ~als])


def test_sources_are_flags_and_missing_for_logged_slates(world):
    features = Features()
    offsets, items = lengths_to_offsets(np.array([3])), np.array([0, 1, 2], np.int32)
    source = np.array([0b000001, 0b1100000000, 0], np.int32)
    requests = Requests.of(np.array([0]), np.array([20 * DAY]), np.array([EVENTS]), (offsets, items), source)
    matrix = build(world, features, requests, {}, {})
    flags = matrix[:, [features.schema.index(f"from_{name}") for name in SOURCES]]
    np.testing.assert_array_equal(flags[0], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(flags[1], [0, 0, 0, 0, 0, 0, 0, 0, 1, 1])
    assert np.isnan(flags[2]).all()
    np.testing.assert_array_equal(matrix[:, features.schema.index("sources")], [1, 2, np.nan])


def test_an_unknown_user_gets_item_features_and_no_user_features(world, pairs):
    features = Features()
    offsets, items = lengths_to_offsets(np.array([2])), np.array([0, 1], np.int32)
    requests = Requests.of(np.array([-1]), np.array([20 * DAY]), np.array([EVENTS]), (offsets, items))
    row = dict(zip(features.schema.names, build(world, features, requests, pairs, {})[0], strict=True))
    assert row["item_target_lifetime"] > 0
    assert row["history_length"] == 0
    for name in ("user_target_30d", "category_affinity_30d", "user_pace", "text_mean", "item_item_ordered"):
        assert np.isnan(row[name])


def test_rates_are_missing_without_slates(world):
    features = Features()
    requests = Requests.from_slates(world.slates, world.events)
    matrix = build(world.with_log(world.events, None), features, requests, {}, {})
    assert np.isnan(matrix[:, features.schema.index("item_rate_1d")]).all()
    assert not np.isnan(matrix[:, features.schema.index("item_target_7d")]).any()


def test_no_requests_give_an_empty_matrix(world, pairs):
    requests = Requests.from_slates(world.slates, world.events).take(np.zeros(0, np.int64))
    assert build(world, Features(), requests, pairs, {}).shape == (0, 108)


@pytest.mark.parametrize("declaration", default_features(3600.0))
def test_declarations_survive_json(declaration):
    assert from_record(json.loads(json.dumps(to_record(declaration)))) == declaration


def test_features_and_schema_survive_json():
    features = Features(default_features(60.0), history_limit=20, history_delay_s=60.0)
    again = Features.from_json(features.to_json())
    assert again.schema == features.schema
    assert FeatureSchema.from_json(features.schema.to_json()) == features.schema
    features.schema.check(again.schema)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (Features(SWAPPED), "column 5 is `item_trend_month`, expected `item_trend_day`"),
        (Features(DEFAULT_FEATURES[:-1]), "expected 108 columns, got 107"),
        (Features(default_features(60.0)), "`item_target_1d` was declared as"),
        (Features(history_limit=10), "`item_target_1d` was declared as"),
    ],
)
def test_another_schema_is_refused_with_the_first_difference(other, what):
    with pytest.raises(RecsysError, match="feature_mismatch") as refusal:
        Features().schema.check(other.schema)
    assert what in refusal.value.what
    assert other.schema.digest != Features().schema.digest


def test_other_names_are_refused():
    schema = Features().schema
    schema.check_names(schema.names)
    with pytest.raises(RecsysError, match="column 1 is `item_target_1d`, expected `item_target_7d`"):
        schema.check_names([schema.names[0], schema.names[0], *schema.names[2:]])


def test_an_altered_schema_file_is_refused():
    record = json.loads(Features().schema.to_json())
    record["fields"][0]["name"] = "other"
    with pytest.raises(RecsysError, match="altered"):
        FeatureSchema.from_json(json.dumps(record))


@pytest.mark.parametrize(
    ("declarations", "message"),
    [
        ([RequestScore("a"), RequestScore("a")], "share a name"),
        ([InSlate("later", ("rank",)), RequestScore("later")], "no earlier column"),
        ([Counter("n", "item", "any", (1.0,)), InSlate("n", ("rank",))], "no earlier column"),
    ],
)
def test_impossible_declarations_are_refused(declarations, message):
    with pytest.raises(ValueError, match=message):
        Features(declarations)
