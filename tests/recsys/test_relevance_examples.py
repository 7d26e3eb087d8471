import numpy as np
import pytest

from recsys.events import Events, Slates
from recsys.relevance_examples import (
    Examples,
    SamplingConfig,
    requests_within,
    sampled_examples,
    sampled_rows,
    slate_examples,
    with_both_classes,
)
from recsys.requests import HistoryBatch, Requests

ITEMS, USERS = 50, 12
IS_TARGET = np.array([True, False, True])
WEIGHTS = np.array([1.0, 0.1, 5.0], np.float32)
CREATED = np.full(ITEMS, np.nan)
CONFIG = SamplingConfig(negatives=6)


def make_events(n=400, seed=0):
    rng = np.random.default_rng(seed)
    return Events(
        rng.integers(0, USERS, n).astype(np.int32),
        np.minimum(rng.exponential(10, n), ITEMS - 1).astype(np.int32),
        rng.integers(0, 3, n).astype(np.int8),
        np.sort(rng.random(n)) * 1e6,
        np.full(n, np.nan, np.float32),
    )


def make_slates(timestamps, shown, clicked, user=0):
    lengths = [len(items) for items in shown]
    rows = sum(lengths)
    return Slates(
        np.full(len(shown), user, np.int32),
        np.array(timestamps, np.float64),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate(shown).astype(np.int32),
        np.concatenate(clicked).astype(np.bool_),
        np.arange(rows).astype(np.int16),
        np.full(rows, np.nan, np.float32),
        np.arange(len(shown)),
    )


def test_every_request_has_one_positive_and_distinct_untouched_negatives():
    events = make_events()
    examples = sampled_examples(events, IS_TARGET, WEIGHTS, CREATED, CONFIG)
    requests = examples.requests
    assert len(requests) > 100
    assert np.diff(requests.offsets).mean() > 5
    for q in range(len(requests)):
        rows = slice(requests.offsets[q], requests.offsets[q + 1])
        items, label, sequence = requests.item_index[rows], requests.label[rows], requests.known[q]
        assert label.tolist() == [1.0] + [0.0] * (len(items) - 1)
        assert len(set(items.tolist())) == len(items) <= 1 + CONFIG.negatives
        assert items[0] == events.item_index[sequence]
        assert requests.timestamp[q] == events.timestamp[sequence]
        mine = events.user_index[:sequence] == requests.user_index[q]
        assert not set(items[1:].tolist()) & set(events.item_index[:sequence][mine].tolist())
        assert examples.weight[rows][0] == WEIGHTS[events.type_index[sequence]]


def test_only_the_first_target_event_with_an_item_is_a_request():
    events = make_events()
    examples = sampled_examples(events, IS_TARGET, WEIGHTS, CREATED, CONFIG)
    targets = examples.requests.known
    pairs = list(zip(events.user_index[targets], events.item_index[targets], strict=True))
    assert len(set(pairs)) == len(pairs)
    assert IS_TARGET[events.type_index[targets]].all()


def test_a_longer_log_leaves_earlier_examples_as_they_were():
    events = make_events()
    half = len(events) // 2
    early = sampled_examples(events.take(slice(0, half)), IS_TARGET, WEIGHTS, CREATED, CONFIG)
    late = sampled_examples(events, IS_TARGET, WEIGHTS, CREATED, CONFIG)
    same = late.take(np.arange(len(early)))
    assert same.requests.known.tolist() == early.requests.known.tolist()
    assert same.requests.item_index.tolist() == early.requests.item_index.tolist()
    assert same.weight.tolist() == early.weight.tolist()


def test_items_that_do_not_exist_yet_are_not_drawn_evenly():
    events = make_events()
    created = np.where(np.arange(ITEMS) % 2 == 0, np.nan, 5e5)
    even_only = SamplingConfig(negatives=6, popular_share=0.0)
    requests = sampled_examples(events, IS_TARGET, WEIGHTS, created, even_only).requests
    drawn = requests.label == 0
    moment = requests.timestamp[requests.request_of_row()]
    assert (requests.item_index[drawn & (moment < 5e5)] % 2 == 0).all()
    assert (requests.item_index[drawn & (moment > 5e5)] % 2 == 1).any()


def test_popular_negatives_follow_popularity():
    events = make_events(2_000)
    config = SamplingConfig(negatives=4, popular_share=1.0)
    requests = sampled_examples(events, IS_TARGET, WEIGHTS, CREATED, config).requests
    drawn = np.bincount(requests.item_index[requests.label == 0], minlength=ITEMS)
    even = SamplingConfig(negatives=4, popular_share=0.0)
    requests = sampled_examples(events, IS_TARGET, WEIGHTS, CREATED, even).requests
    evenly = np.bincount(requests.item_index[requests.label == 0], minlength=ITEMS)
    popularity = np.bincount(events.item_index, minlength=ITEMS)
    assert drawn @ popularity / drawn.sum() > evenly @ popularity / evenly.sum()


def test_an_empty_log_gives_no_examples():
    examples = sampled_examples(make_events(0), IS_TARGET, WEIGHTS, CREATED, CONFIG)
    assert len(examples) == examples.requests.rows == len(examples.weight) == 0


def test_a_click_weighs_as_much_as_what_followed_it():
    slates = make_slates([100.0, 200.0], [[1, 2, 3], [1, 4]], [[True, True, False], [False, True]])
    events = Events(
        np.array([0, 0, 1, 0], np.int32),
        np.array([1, 1, 2, 4], np.int32),
        np.array([2, 0, 2, 2], np.int8),
        np.array([50.0, 101.0, 102.0, 100_000.0]),
        np.full(4, np.nan, np.float32),
    )
    requests = Requests.from_slates(slates, events)
    short = slate_examples(requests, events, WEIGHTS, window_s=1_000.0)
    assert short.weight.tolist() == [
        1.0,
        1.0,
        1.0,
        1.0,
        1.0,
    ]  # the purchase of 1 was before, 2 is another user's
    late = slate_examples(requests, events, WEIGHTS, window_s=1e6)
    assert late.weight.tolist() == [1.0, 1.0, 1.0, 1.0, 5.0]


def test_rows_without_a_label_have_no_weight():
    slates = make_slates([100.0], [[1, 2]], [[True, False]])
    requests = Requests.from_slates(slates, make_events(0))
    unknown = requests.labelled(np.array([1.0, np.nan]))
    assert slate_examples(unknown, make_events(0), WEIGHTS).weight.tolist() == [1.0, 0.0]


@pytest.fixture
def labelled():
    rng = np.random.default_rng(3)
    lengths = [0, 1, 12, 5, 30]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = len(lengths)
    requests = Requests.of(np.zeros(n), np.arange(n), np.zeros(n), (offsets, np.arange(48, dtype=np.int32)))
    return requests.labelled((rng.random(48) < 0.4).astype(np.float32))


def test_sampled_rows_keep_clicks_first_and_stay_under_the_limit(labelled):
    rows = sampled_rows(labelled, 6, rng=np.random.default_rng(0))
    owner, clicked = labelled.request_of_row(), labelled.label > 0.5
    kept = np.bincount(owner[rows], minlength=5)
    assert (kept <= 6).all()
    assert (
        np.bincount(owner[rows & clicked], minlength=5)
        == np.minimum(np.bincount(owner[clicked], minlength=5), 3)
    ).all()
    thinned = Examples(labelled, np.arange(48, dtype=np.float32)).keep(rows)
    assert thinned.requests.item_index.tolist() == thinned.weight.tolist() == np.flatnonzero(rows).tolist()
    assert np.diff(thinned.requests.offsets).tolist() == kept.tolist()


def test_requests_with_one_class_do_not_count(labelled):
    chosen = with_both_classes(labelled).tolist()
    for q in range(len(labelled)):
        label = labelled.label[labelled.offsets[q] : labelled.offsets[q + 1]]
        assert (q in chosen) == (len(set(label.tolist())) == 2)


def test_requests_within_a_budget_of_items(labelled):
    history = HistoryBatch(np.zeros(6, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0))
    for budget in (0, 20, 48):
        chosen = requests_within(labelled, history, items=budget, rng=np.random.default_rng(0))
        assert labelled.take(chosen).rows <= budget
        assert (np.diff(chosen) > 0).all()
    assert len(requests_within(labelled, history, items=48, rng=np.random.default_rng(0))) == 5
