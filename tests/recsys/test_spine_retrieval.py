"""Candidates: what each source proposes, how sources are merged, and what an answer may depend on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from recsys.collaborative import Collaborative
from recsys.events import Events, Histories
from recsys.pairs import DensePairs, SparsePairs
from recsys.popularity import Popularity
from recsys.requests import DAY_S, SOURCES, HistoryBatch, Requests, source_names
from recsys.retrieval import RetrievalConfig, Retriever, seen_items, top_items
from recsys.retrieval.sources import als_scores, fresh_scores, neighbour_scores, popular_scores, text_scores
from recsys.sequence import SequenceConfig, SequenceModel, SequenceWeights
from recsys.transitions import Covisitation

ITEMS, USERS = 30, 5
WEIGHTS = np.array([1.0, 5.0], np.float32)
LIMITS = RetrievalConfig(
    als=4, item_item=3, ease=2, transition=3, covisitation=3, sequence=4, text=4, cold=2, fresh=2, popular=3
)
NONE = dict.fromkeys(SOURCES, 0)


def make_pairs(seed: int) -> SparsePairs:
    matrix = sparse.random(ITEMS, ITEMS, 0.2, "csr", np.float32, np.random.default_rng(seed))
    matrix.setdiag(0)
    return SparsePairs.from_csr(matrix)


def make_popularity() -> Popularity:
    """Item 22 is the most popular on day 1; items 28 and 29 came on day 1."""
    first_seen = np.zeros(ITEMS)
    first_seen[[28, 29]] = [1.25 * DAY_S, 1.5 * DAY_S]
    return Popularity(
        np.array([0, 1]),
        np.array([0, 3, 5]),
        np.array([22, 23, 24, 23, 25], np.int32),
        np.array([3.0, 2.0, 1.0, 9.0, 8.0]),
        first_seen,
        30.0,
    )


def make_sequence(embeddings: np.ndarray) -> SequenceModel:
    rng = np.random.default_rng(4)
    empty = SequenceModel.empty(embeddings, SequenceConfig(embedding_dim=4))
    weights = {name: rng.normal(size=a.shape).astype(np.float32) for name, a in vars(empty.weights).items()}
    return replace(empty, weights=SequenceWeights(**weights))


def make_retriever(config: RetrievalConfig = LIMITS) -> Retriever:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(ITEMS, 6)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    embeddings[1] = 0.0  # no text
    factors = rng.normal(size=(ITEMS, 4)).astype(np.float32)
    factors[[1, 28, 29]] = 0.0  # not in the training log
    collaborative = Collaborative(factors, make_pairs(1), make_pairs(3), 0.1, 8.0)
    sequence = make_sequence(embeddings)
    covisitation = Covisitation(make_pairs(5), make_pairs(6))
    return Retriever(
        collaborative, make_pairs(2), covisitation, sequence, embeddings, make_popularity(), WEIGHTS, config
    )


def make_log() -> Histories:
    """User 4 has no history, user 3 one item without text or factors."""
    rng = np.random.default_rng(3)
    user, item = rng.integers(0, 3, 20), rng.permutation(np.arange(2, 22))
    user[10], item[10] = 3, 1
    moments = np.sort(rng.random(20)) * DAY_S
    events = Events(
        user.astype(np.int32),
        item.astype(np.int32),
        rng.integers(0, 2, 20).astype(np.int8),
        moments,
        np.full(20, np.nan, np.float32),
    )
    return Histories.of(events, USERS, np.array([True, True]))


HISTORIES = make_log()


def ask(users: list[int], moment: float = 2.5 * DAY_S, known: int = 20) -> Requests:
    nothing = (np.zeros(len(users) + 1, np.int64), np.zeros(0, np.int32))
    return Requests.of(np.array(users), np.full(len(users), moment), np.full(len(users), known), nothing)


def retrieve(requests: Requests, **changes: object) -> Requests:
    retriever = make_retriever(replace(LIMITS, **changes))
    return retriever.retrieve(requests, HistoryBatch.of(HISTORIES, requests), seen_items(HISTORIES, requests))


def candidates_of(found: Requests, q: int = 0) -> dict[int, str]:
    own = slice(found.offsets[q], found.offsets[q + 1])
    return dict(zip(found.item_index[own].tolist(), source_names(found.source[own]), strict=True))


def test_candidates_are_the_union_of_the_sources_with_their_names():
    whole = candidates_of(retrieve(ask([0])))
    assert whole
    for name, limit in {
        "als": 4,
        "item_item": 3,
        "ease": 2,
        "transition": 3,
        "covisitation": 3,
        "sequence": 4,
        "text": 4,
        "cold": 2,
        "fresh": 2,
        "popular": 3,
    }.items():
        alone = candidates_of(retrieve(ask([0]), **NONE | {name: limit}))
        assert set(alone.values()) == {name}
        assert len(alone) == limit
        assert {item for item, sources in whole.items() if name in sources.split("+")} == set(alone)


def test_candidates_stand_in_item_order_once():
    found = retrieve(ask([0, 1, 2]))
    for q in range(3):
        own = found.item_index[found.offsets[q] : found.offsets[q + 1]]
        assert (np.diff(own) > 0).all()
    assert np.isnan(found.label).all()


def test_seen_items_are_left_out_unless_config_says_otherwise():
    requests = ask([0, 1, 2])
    seen = seen_items(HISTORIES, requests)
    seen_pairs = set(zip(seen.owner().tolist(), seen.item_index.tolist(), strict=True))
    found, repeated = retrieve(requests), retrieve(requests, exclude_seen=False)
    assert seen_pairs.isdisjoint(zip(found.request_of_row().tolist(), found.item_index.tolist(), strict=True))
    assert seen_pairs & set(
        zip(repeated.request_of_row().tolist(), repeated.item_index.tolist(), strict=True)
    )


def test_everything_in_the_known_history_is_seen_and_nothing_later():
    early = seen_items(HISTORIES, ask([0, 1], known=8))
    late = seen_items(HISTORIES, ask([0, 1]))
    for q in range(2):
        own = HISTORIES.sequence[HISTORIES.offsets[q] : HISTORIES.offsets[q + 1]]
        items = HISTORIES.item_index[HISTORIES.offsets[q] : HISTORIES.offsets[q + 1]]
        assert early.item_index[early.offsets[q] : early.offsets[q + 1]].tolist() == items[own < 8].tolist()
        assert late.item_index[late.offsets[q] : late.offsets[q + 1]].tolist() == items.tolist()


def test_a_request_alone_gets_the_candidates_it_gets_in_a_batch():
    users = [2, -1, 0, 4, 1, 3, 0]
    requests = ask(users)
    requests = replace(requests, timestamp=requests.timestamp + np.arange(7) * DAY_S)
    batch = retrieve(requests)
    for q in range(len(users)):
        assert candidates_of(retrieve(requests.take(np.array([q])))) == candidates_of(batch, q)


def test_unknown_user_gets_popular_and_fresh_items_only():
    for user in (-1, 4):
        found = candidates_of(retrieve(ask([user])))
        assert set("+".join(found.values()).split("+")) == {"fresh", "popular"}
        assert set(found) == {28, 29, 22, 23, 25}


def test_a_history_without_factors_or_text_gets_neighbours_popular_and_fresh_items():
    sources = set("+".join(candidates_of(retrieve(ask([3]))).values()).split("+"))
    assert (
        {"fresh", "popular"}
        <= sources
        <= {"item_item", "ease", "transition", "covisitation", "fresh", "popular"}
    )


def test_no_requests_and_no_sources_give_no_candidates():
    assert retrieve(ask([])).offsets.tolist() == [0]
    nothing = retrieve(ask([0, 1]), **NONE)
    assert (nothing.offsets.tolist(), nothing.rows) == ([0, 0, 0], 0)


def test_popular_and_fresh_are_those_of_the_last_midnight():
    popularity = make_popularity()
    moments = np.array([0.9, 1.0, 1.99, 2.0]) * DAY_S
    popular = popular_scores(popularity, moments)
    assert np.isneginf(popular[0]).all()
    np.testing.assert_array_equal(popular[1], popular[2])
    assert popular[1].argmax() == 22
    assert popular[3].argmax() == 23
    fresh = fresh_scores(popularity, moments)
    assert np.isneginf(fresh[:3, [28, 29]]).all()
    assert fresh[3].argmax() == 29


def make_history(lists: list[list[int]]) -> HistoryBatch:
    flat = np.array([item for row in lists for item in row], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in lists])]).astype(np.int64)
    return HistoryBatch(offsets, flat, np.zeros(len(flat), np.int32), np.zeros(len(flat)))


def test_neighbour_scores_are_weighted_sums_of_pair_scores():
    retriever, recency = make_retriever(), np.array([0.5, 1.0, 2.0])
    table = retriever.transitions.csr.toarray()
    found = neighbour_scores(retriever.transitions, make_history([[7, 9], [], [7]]), recency)
    expected = np.stack([0.5 * table[7] + table[9], np.zeros(ITEMS), 2 * table[7]])
    np.testing.assert_allclose(found, np.where(expected > 0, expected, -np.inf), rtol=1e-6)


def test_text_scores_are_cosine_to_the_mean_plus_cosine_to_the_newest():
    embeddings = make_retriever().embeddings
    found = text_scores(DensePairs(embeddings), make_history([[7, 9], []]), np.array([1.0, 3.0]))
    mean = embeddings[7] + 3 * embeddings[9]
    expected = embeddings @ (mean / np.linalg.norm(mean)) + embeddings @ embeddings[9]
    expected[1] = -np.inf  # it has no text
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-6)
    assert np.isneginf(found[1]).all()


def test_an_unknown_newest_item_is_not_taken_for_another():
    embeddings = make_retriever().embeddings
    found = text_scores(DensePairs(embeddings), make_history([[7, -1], [-1]]), np.array([1.0, 1.0, 1.0]))
    np.testing.assert_allclose(found[0, 2:], (embeddings @ embeddings[7])[2:], rtol=1e-4, atol=1e-6)
    assert np.isneginf(found[1]).all()


def test_als_scores_know_nothing_of_items_and_users_without_factors():
    found = als_scores(make_retriever().collaborative, make_history([[7], [1], []]), WEIGHTS)
    assert np.flatnonzero(np.isneginf(found[0])).tolist() == [1, 28, 29]
    assert np.isneginf(found[1:]).all()


scores = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=7),
    elements=st.sampled_from([-np.inf, np.nan, -1.0, 0.0, 2.0]),
)


@given(scores, st.integers(0, 9))
def test_top_items_are_the_best_finite_scores_with_ties_by_item_number(scores, limit):
    owner, item, value = top_items(scores, limit)
    expected = []
    for row, line in enumerate(scores):
        finite = [place for place in range(len(line)) if np.isfinite(line[place])]
        expected += [(row, place) for place in sorted(finite, key=lambda n, s=line: (-s[n], n))[:limit]]
    assert list(zip(owner.tolist(), item.tolist(), strict=True)) == expected
    np.testing.assert_array_equal(value, [scores[pair] for pair in expected])


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_an_empty_block_has_no_top_items(shape):
    assert [len(part) for part in top_items(np.zeros(shape, np.float32), 3)] == [0, 0, 0]
