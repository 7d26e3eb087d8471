"""Aggregated pair scores and in-slate comparisons, against definitions written out in numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from features.declaration import AGGREGATES, HistorySimilarity
from features.similarity import WeighedHistory, write_dense
from features.slate import compare_in_slate
from features.stored_similarity import write_stored
from recsys.dense_products import DenseProducts
from recsys.events import lengths_to_offsets
from recsys.pairs import DensePairs, SparsePairs
from recsys.requests import HistoryBatch, Requests

DAY = 86_400.0
ITEMS, DIM = 12, 5
WEIGHTS = np.array([1.0, 5.0], np.float32)


def make_batch(seed: int, requests: int = 6) -> tuple[Requests, HistoryBatch]:
    """Random candidates and histories, some empty, some with items outside the catalogue."""
    rng = np.random.default_rng(seed)
    lengths, past = rng.integers(1, 9, requests), rng.integers(0, 7, requests)
    items = rng.integers(-1, ITEMS + 2, lengths.sum()).astype(np.int32)
    batch = Requests.of(
        np.zeros(requests), np.zeros(requests), np.zeros(requests), (lengths_to_offsets(lengths), items)
    )
    age = -np.sort(-rng.random(past.sum())) * 30 * DAY
    kinds = rng.integers(0, 2, past.sum()).astype(np.int32)
    history_items = rng.integers(-1, ITEMS + 2, past.sum()).astype(np.int32)
    return batch, HistoryBatch(lengths_to_offsets(past), history_items, kinds, age)


def dense_scores(seed: int) -> tuple[DensePairs, np.ndarray, np.ndarray]:
    factors = np.random.default_rng(seed).normal(size=(ITEMS, DIM)).astype(np.float32)
    factors[[2, 7]] = 0
    return DensePairs(factors), factors @ factors.T, factors.any(axis=1)


def sparse_scores(seed: int) -> tuple[SparsePairs, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    table = np.where(rng.random((ITEMS, ITEMS)) < 0.3, rng.random((ITEMS, ITEMS)), 0).astype(np.float32)
    rows, columns = np.nonzero(table)
    offsets = lengths_to_offsets(np.bincount(rows, minlength=ITEMS))
    pairs = SparsePairs(offsets, columns.astype(np.int32), table[rows, columns])
    return pairs, table, np.ones(ITEMS, np.bool_)


def naive(declaration, table, known, requests, history) -> np.ndarray:
    out = np.full((requests.rows, len(AGGREGATES)), np.nan)
    for request in range(len(requests)):
        rows = np.arange(history.offsets[request], history.offsets[request + 1])
        place = rows[::-1] - history.offsets[request]
        rows, place = rows[-declaration.limit :], place[-declaration.limit :]
        items = history.item_index[rows]
        keep = [0 <= item < ITEMS and bool(known[item]) for item in items]
        rows, place, items = rows[keep], place[keep], items[keep]
        weight = WEIGHTS[history.type_index[rows]]
        recent = weight * 0.5 ** (history.age_s[rows] / DAY / declaration.half_life_days)
        ordered = weight * declaration.place_decay**place
        for row in range(requests.offsets[request], requests.offsets[request + 1]):
            item = requests.item_index[row]
            if not len(rows) or not 0 <= item < ITEMS or not known[item]:
                continue
            scores = table[items, item]
            sums = np.array([(recent * scores).sum(), (ordered * scores).sum()])
            masses = np.array([recent.sum(), ordered.sum()]) if declaration.weighted == "mean" else 1.0
            plain = [scores.mean(), scores.max(), np.sort(scores)[-3:].mean(), scores[-1]]
            out[row] = [*plain, *(sums / masses)]
    return out


def similarity(declaration, pairs, requests, history):
    """(rows, 6) what is written for a declaration."""
    out = np.full((len(AGGREGATES), requests.rows), np.nan, np.float32)
    weighed = WeighedHistory.of(declaration, history, WEIGHTS.astype(np.float64)[history.type_index])
    as_mean, columns = declaration.weighted == "mean", np.arange(len(AGGREGATES))
    if isinstance(pairs, DensePairs):
        products = DenseProducts.of(pairs, requests, history, declaration.limit)
        write_dense(products, requests, weighed, as_mean, columns, out)
    else:
        write_stored([pairs], requests, weighed, np.array([as_mean]), columns[None], out)
    return out.T


@pytest.mark.parametrize("scores", [dense_scores, sparse_scores])
@pytest.mark.parametrize("weighted", ["mean", "sum"])
@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), limit=st.integers(1, 8))
def test_aggregates_equal_their_definition(scores, weighted, seed, limit):
    declaration = HistorySimilarity("s", "text", AGGREGATES, weighted, limit, 7.0, 0.8)
    requests, history = make_batch(seed)
    pairs, table, known = scores(seed)
    found = similarity(declaration, pairs, requests, history)
    expected = naive(declaration, table, known, requests, history)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scores", [dense_scores, sparse_scores])
def test_an_empty_history_and_an_unknown_candidate_have_no_similarity(scores):
    pairs, _, _ = scores(0)
    requests = Requests.of(
        np.zeros(2), np.zeros(2), np.zeros(2), (np.array([0, 2, 4]), np.array([0, 1, -1, ITEMS]))
    )
    history = HistoryBatch(
        np.array([0, 0, 1]), np.array([3], np.int32), np.array([0], np.int32), np.array([0.0])
    )
    declaration = HistorySimilarity("s", "text", AGGREGATES)
    assert np.isnan(similarity(declaration, pairs, requests, history)).all()


def compare(values, offsets):
    """Rank, ratio and z-score of one column, each (rows,)."""
    matrix = np.full((4, len(values)), np.nan, np.float32)
    matrix[0] = values
    compare_in_slate(np.array(offsets, np.int64), np.array([[0, 1, 2, 3]]), matrix)
    return matrix[1:]


def test_comparisons_by_hand():
    rank, ratio, zscore = compare([4, 2, 2, np.nan, 7, -1, -1], [0, 4, 5, 7])
    np.testing.assert_allclose(rank, [1 / 3, 2.5 / 3, 2.5 / 3, np.nan, 1, 1.5 / 2, 1.5 / 2], rtol=1e-6)
    np.testing.assert_allclose(ratio, [1, 0.5, 0.5, np.nan, 1, np.nan, np.nan], rtol=1e-6)
    np.testing.assert_allclose(zscore, [2**0.5, -(2**-0.5), -(2**-0.5), np.nan, 0, 0, 0], rtol=1e-6)


@settings(max_examples=50)
@given(st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=60))
def test_rank_is_scipys_average_rank_from_the_top(values):
    rank, _, _ = compare(values, [0, len(values)])
    expected = rankdata(-np.array(values), method="average") / len(values)
    np.testing.assert_allclose(rank, expected, rtol=1e-6)
