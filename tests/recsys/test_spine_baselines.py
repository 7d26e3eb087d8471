"""The baselines: what each knows, that none depends on the block, and that seen items are left out."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from recsys import baselines
from recsys.baselines import BASELINES, baseline_scorers, slate_scores, top_lists
from recsys.collaborative import Collaborative
from recsys.dataset import Dataset
from recsys.metrics.slate import slate_metrics
from recsys.pairs import SparsePairs
from recsys.popularity import PopularityConfig, fit_popularity
from recsys.protocols import Split, split_at
from recsys.requests import HistoryBatch, Requests
from recsys.retrieval import RetrievalConfig, Retriever, seen_items
from recsys.sequence import SequenceConfig, SequenceModel
from recsys.transitions import Covisitation

ITEMS, USERS = 12, 20


@pytest.fixture(scope="module")
def window() -> Split:
    rng = np.random.default_rng(0)
    count = 200
    events = pl.DataFrame(
        {
            "user_id": rng.integers(0, USERS, count),
            "item_id": np.minimum(rng.exponential(3, count), ITEMS - 2).astype(np.int64),
            "event_type": rng.choice(["click", "purchase", "view"], count),
            "timestamp": np.arange(count) * 100.0,
        }
    )
    items = pl.DataFrame({"item_id": range(ITEMS), "title": ["t"] * ITEMS})
    return split_at(Dataset.from_frames(items, events), 12_000.0)


@pytest.fixture(scope="module")
def retriever(window: Split) -> Retriever:
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(ITEMS, 5)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    embeddings[ITEMS - 1] = 0.0  # no text
    factors = rng.normal(size=(ITEMS, 3)).astype(np.float32)
    factors[ITEMS - 1] = 0.0
    similar = sparse.random(ITEMS, ITEMS, 0.4, "csr", np.float32, rng)
    similar.setdiag(0)
    pairs = SparsePairs.from_csr(similar)
    popularity = fit_popularity(window.train, PopularityConfig())
    weights = window.train.weights
    return Retriever(
        Collaborative(factors, pairs, pairs, 0.1, 4.0),
        pairs,
        Covisitation(pairs, pairs),
        SequenceModel.empty(embeddings, SequenceConfig()),
        embeddings,
        popularity,
        weights,
        RetrievalConfig(),
    )


def history_of(window: Split, requests: Requests) -> HistoryBatch:
    return HistoryBatch.of(window.visible.histories, requests)


def all_lists(window: Split, retriever: Retriever, requests: Requests, k: int = 5) -> dict[str, np.ndarray]:
    seen, history = seen_items(window.visible.histories, requests), history_of(window, requests)
    scorers = baseline_scorers(window, retriever, seed=3)
    return {name: top_lists(scorers[name], requests, history, seen, k) for name in BASELINES}


def test_lists_do_not_depend_on_the_block_or_the_order(window, retriever, monkeypatch):
    requests = window.requests
    whole = all_lists(window, retriever, requests)
    turned = all_lists(window, retriever, requests.take(np.arange(len(requests))[::-1]))
    monkeypatch.setattr(baselines, "request_blocks", one_by_one)
    single = all_lists(window, retriever, requests)
    for name in BASELINES:
        np.testing.assert_array_equal(single[name], whole[name], err_msg=name)
        np.testing.assert_array_equal(turned[name][::-1], whole[name], err_msg=name)


def one_by_one(count: int, size: int = 1):
    return (np.array([number]) for number in range(count))


def test_no_list_holds_a_seen_item_or_one_item_twice(window, retriever):
    seen = seen_items(window.visible.histories, window.requests)
    seen_pairs = set(zip(seen.owner().tolist(), seen.item_index.tolist(), strict=True))
    for name, lists in all_lists(window, retriever, window.requests, k=ITEMS).items():
        for q, line in enumerate(lists.tolist()):
            named = [item for item in line if item >= 0]
            assert line == named + [-1] * (ITEMS - len(named)), name
            assert len(set(named)) == len(named), name
            assert seen_pairs.isdisjoint((q, item) for item in named), name


def test_popularity_is_the_count_of_target_events_of_the_past(window, retriever):
    past = window.train.events
    counted = past.item_index[window.train.is_target[past.type_index]]
    expected = np.bincount(counted, minlength=ITEMS)
    found = baseline_scorers(window, retriever)["popularity"](
        window.requests, history_of(window, window.requests)
    )
    np.testing.assert_array_equal(found, np.tile(expected, (len(window.requests), 1)))


def test_text_neighbours_are_cosine_to_the_sum_of_the_history(window, retriever):
    history = history_of(window, window.requests)
    found = baseline_scorers(window, retriever)["text_neighbours"](window.requests, history)
    for q in range(len(window.requests)):
        own = history.item_index[history.offsets[q] : history.offsets[q + 1]]
        if len(own):
            expected = retriever.embeddings @ retriever.embeddings[own].sum(axis=0)
            np.testing.assert_allclose(found[q, :-1], expected[:-1], rtol=1e-4, atol=1e-5)
        assert np.isneginf(found[q, -1])  # an item without text is no neighbour


def test_item_knn_sums_the_similarities_of_the_history(window, retriever):
    history = history_of(window, window.requests)
    found = baseline_scorers(window, retriever)["item_knn"](window.requests, history)
    table = retriever.collaborative.item_item.csr.toarray()
    own = history.item_index[history.offsets[0] : history.offsets[1]]
    expected = table[own].sum(axis=0)
    np.testing.assert_allclose(found[0], np.where(expected > 0, expected, -np.inf), rtol=1e-5)


def test_random_lists_differ_between_users_and_seeds(window, retriever):
    requests, history = window.requests, history_of(window, window.requests)
    first, second = (
        baseline_scorers(window, retriever, seed=seed)["random"](requests, history) for seed in (0, 1)
    )
    assert len(np.unique(first[:, 0])) == len(requests)
    assert (first != second).mean() > 0.99


def make_slates(window: Split) -> Requests:
    rng = np.random.default_rng(5)
    lengths = rng.integers(2, 7, 700)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(-1, ITEMS, offsets[-1]).astype(np.int32)
    count = len(lengths)
    users = rng.integers(0, len(window.train.users), count)
    requests = Requests.of(users, np.full(count, 12_000.0), np.full(count, 120), (offsets, items))
    return requests.labelled(rng.random(offsets[-1]) < 0.4)


def test_slate_scores_are_the_block_scores_of_the_shown_items(window, retriever):
    requests = make_slates(window)
    history = history_of(window, requests)
    scorers = baseline_scorers(window, retriever)
    owner = requests.request_of_row()
    for name in BASELINES:
        found = slate_scores(scorers[name], requests, history)
        block = scorers[name](requests, history)
        expected = np.where(requests.item_index >= 0, block[owner, requests.item_index], -np.inf)
        known = np.isfinite(expected)
        np.testing.assert_allclose(found[known], expected[known], rtol=1e-5, atol=1e-6, err_msg=name)
        assert np.isfinite(found).all()
        for q in range(len(requests)):
            own = slice(requests.offsets[q], requests.offsets[q + 1])
            if known[own].any() and not known[own].all():
                assert found[own][~known[own]].max() < found[own][known[own]].min(), name


@pytest.mark.parametrize("level", [0.0, -np.inf])
def test_a_constant_scorer_has_an_auc_of_exactly_one_half(window, level):
    requests = make_slates(window)
    known = requests.take(
        np.flatnonzero(np.minimum.reduceat(requests.item_index, requests.offsets[:-1]) >= 0)
    )

    def constant(part: Requests, history: HistoryBatch) -> np.ndarray:
        return np.full((len(part), ITEMS), level, np.float32)

    scores = slate_scores(constant, known, history_of(window, known))
    auc = slate_metrics(scores, known.label, known.offsets)["auc"]
    assert set(auc[~np.isnan(auc)].tolist()) == {0.5}


def test_no_slates_have_no_scores(window, retriever):
    nothing = make_slates(window).take(np.zeros(0, np.int64))
    scorer = baseline_scorers(window, retriever)["random"]
    assert slate_scores(scorer, nothing, history_of(window, nothing)).shape == (0,)
    seen = seen_items(window.visible.histories, nothing)
    assert top_lists(scorer, nothing, history_of(window, nothing), seen, 4).shape == (0, 4)
