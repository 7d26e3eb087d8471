"""Untouched items get the places that are theirs, and nothing else moves."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.events import lengths_to_offsets
from recsys.newcomers import newcomer_share, with_newcomers
from recsys.popularity import Popularity
from recsys.ranked import top_ranked
from recsys.requests import DAY_S, SOURCES, Requests

COLD = 1 << SOURCES.index("cold")


def ask(sources: list[list[int]]) -> Requests:
    lengths = [len(row) for row in sources]
    items = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
    count = len(sources)
    offsets = lengths_to_offsets(np.array(lengths))
    source = np.array([bits for row in sources for bits in row], np.int32)
    return Requests.of(
        np.arange(count, dtype=np.int32), np.zeros(count), np.zeros(count, np.int64), (offsets, items), source
    )


def order(requests: Requests, scores: np.ndarray) -> list[int]:
    return top_ranked(requests, scores, 99, np.zeros(len(requests), np.int8)).item_index.tolist()


def test_each_newcomer_stands_where_its_share_falls_due():
    requests = ask([[0] * 10 + [COLD] * 2])
    scores = np.arange(12.0)[::-1].copy()
    assert order(requests, with_newcomers(requests, scores, 0.2)) == [0, 1, 10, 2, 3, 4, 5, 11, 6, 7, 8, 9]
    assert order(requests, with_newcomers(requests, scores, 0.05)) == [*range(9), 10, 9, 11]
    assert order(requests, with_newcomers(requests, scores, 0.0)) == list(range(12))


def test_newcomers_that_stand_high_enough_take_no_further_place():
    requests = ask([[COLD, 0, 0, 0, 0, COLD]])
    scores = np.array([9.0, 8.0, 7.0, 6.0, 5.0, 1.0])
    assert order(requests, with_newcomers(requests, scores, 0.25)) == [0, 1, 2, 3, 4, 5]


def test_rows_without_the_source_keep_their_scores():
    requests = ask([[0, 3, 1], [0, 0]])
    scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert with_newcomers(requests, scores, 0.5) is scores


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.lists(st.booleans(), max_size=30), min_size=1, max_size=4),
    st.floats(0.01, 1.0),
    st.integers(0, 99),
)
def test_lists_hold_at_least_the_share_and_keep_both_orders(rows, share, seed):
    requests = ask([[COLD if cold else 0 for cold in row] for row in rows])
    scores = np.random.default_rng(seed).permutation(requests.rows).astype(float)
    raised = with_newcomers(requests, scores, share)
    for q in range(len(requests)):
        own = slice(requests.offsets[q], requests.offsets[q + 1])
        cold = requests.source[own] > 0
        one = requests.take(np.array([q]))
        before, after = (np.array(order(one, found[own]), np.int64) for found in (scores, raised))
        for kind in (cold, ~cold):
            ranks = scores[own][after[kind[after]]]
            assert (np.diff(ranks) <= 0).all()
            assert sorted(after[kind[after]]) == sorted(before[kind[before]])
        held = np.cumsum(cold[after])
        due = np.minimum(np.floor(np.arange(1, len(after) + 1) * share + 0.5), cold.sum())
        assert (held >= due).all()


def test_the_share_counts_what_nobody_had_touched():
    popularity = Popularity(
        np.array([2, 5]),
        np.array([0, 1, 2]),
        np.array([0, 1], np.int32),
        np.ones(2),
        np.zeros(4),
        30.0,
    )
    requests = ask([[0], [0]])
    asked = Requests.of(
        requests.user_index,
        np.array([3.5, 5.0]) * DAY_S,
        requests.known,
        (requests.offsets, requests.item_index),
    )
    positives = (np.array([0, 3, 4]), np.array([0, 1, 3, 1], np.int32))
    assert newcomer_share(popularity, asked, positives) == 3 / 4
    assert newcomer_share(popularity, asked, (np.zeros(3, np.int64), np.zeros(0, np.int32))) == 0.0
