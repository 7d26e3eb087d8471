"""Pairs of a history and what came next, and their hard negatives."""

import numpy as np
import polars as pl
import pytest

from recsys.dataset import Dataset
from recsys.next_items import next_items, with_hard_negatives
from recsys.pairs import SparsePairs
from recsys.retrieval.sources import neighbour_scores

ITEMS, USERS, EVENTS = 30, 12, 150


def dataset(user, item, kind=None):
    log = {
        "user_id": user,
        "item_id": item,
        "event_type": kind or ["click"] * len(item),
        "timestamp": np.arange(len(item)) * 100.0,
    }
    catalogue = {"item_id": range(ITEMS), "title": [f"item {item}" for item in range(ITEMS)]}
    return Dataset.from_frames(pl.DataFrame(catalogue), pl.DataFrame(log))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return dataset(rng.integers(0, USERS, EVENTS), rng.integers(0, ITEMS, EVENTS))


def pairs_of(data, most=1000, history_limit=4):
    return next_items(data, most=most, history_limit=history_limit, half_life_days=365.0, position_decay=0.5)


def popularity(data):
    counts = np.bincount(data.events.item_index, minlength=ITEMS).astype(np.float32)
    return lambda part: np.tile(counts, (len(part), 1))


def test_pairs_are_first_touches_with_what_went_before():
    user = [0, 1, 0, 0, 1, 0]
    item = [5, 6, 7, 5, 8, 9]  # the second 5 of user 0 is no news, and a view is no target
    pairs = pairs_of(dataset([*user, 0], [*item, 3], ["click"] * 6 + ["view"]), history_limit=2)
    assert pairs.item_index.tolist() == [7, 8, 9]
    assert pairs.history.item_index.tolist() == [5, 6, 7, 5]
    assert pairs.history.offsets.tolist() == [0, 1, 2, 4]
    np.testing.assert_allclose(pairs.recency, [1.0, 1.0, 0.5, 1.0], rtol=1e-4)
    assert pairs.take(np.array([2, 0])).history.item_index.tolist() == [7, 5, 5]
    assert pairs_of(dataset(user, item), most=1).item_index.tolist() == [9]


def test_hard_negatives_hold_nothing_that_the_user_took_by_then_and_no_item_twice(data):
    pairs = pairs_of(data)
    reverse = popularity(data)
    found = with_hard_negatives(pairs, [popularity(data), lambda part: -reverse(part)], data, 8).negatives
    assert found.shape == (len(pairs), 16)
    for row in range(len(pairs)):
        rows = slice(0, int(pairs.requests.known[row]))
        own = data.events.user_index[rows] == pairs.requests.user_index[row]
        taken = {*data.events.item_index[rows][own].tolist(), int(pairs.item_index[row])}
        chosen = [item for item in found[row].tolist() if item >= 0]
        assert len(chosen) >= 8
        assert len(chosen) == len(set(chosen))
        assert not taken & set(chosen)


def test_hard_negatives_are_the_best_of_each_source_in_its_order(data):
    pairs = pairs_of(data)
    last = len(pairs) - 1
    found = with_hard_negatives(pairs, [popularity(data)], data, 3).negatives[last]
    seen = {*data.events.item_index[data.events.user_index == pairs.requests.user_index[last]].tolist()}
    counts = np.bincount(data.events.item_index, minlength=ITEMS)
    order = [item for item in np.lexsort((np.arange(ITEMS), -counts)) if item not in seen]
    assert found.tolist() == order[:3]


def test_what_happens_later_moves_no_hard_negative(data):
    early = data.with_log(data.events.take(slice(0, 100)), None)
    counts = popularity(early)
    short = with_hard_negatives(pairs_of(early), [counts], early, 5)
    long = with_hard_negatives(pairs_of(data), [counts], data, 5)
    np.testing.assert_array_equal(long.negatives[: len(short)], short.negatives)


def test_a_source_that_knows_nothing_gives_none(data):
    pairs = pairs_of(data)
    empty = SparsePairs.empty(ITEMS)
    sources = [lambda part: neighbour_scores(empty, part.history, part.recency)]
    assert (with_hard_negatives(pairs, sources, data, 4).negatives == -1).all()
    nobody = dataset([0, 1], [0, 1])
    assert with_hard_negatives(pairs_of(nobody), sources, nobody, 4).negatives.shape == (0, 4)
