"""Item-to-item arrays, ALS, item-item similarity, and fold-in against a dense solve."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from recsys.collaborative import Collaborative, CollaborativeConfig
from recsys.collaborative_training import ease_pairs, fit_collaborative, interaction_matrix
from recsys.dataset import Dataset
from recsys.pairs import SparsePairs, keep_strongest, known_rows
from recsys.requests import DAY_S, HistoryBatch

SIZE, BLOCKS = 40, 4
CONFIG = CollaborativeConfig(embedding_dim=8, epochs=15, regularization=0.01, confidence=20.0, neighbours=30)
ONE = np.ones(3, np.float32)

small = hnp.arrays(np.float64, st.just((6, 6)), elements=st.sampled_from([0.0, 1.0, 2.0, 3.0]))


def make_dataset(rows: list[tuple[int, int, str, float]], users: int, items: int) -> Dataset:
    return Dataset.from_frames(
        pl.DataFrame({"item_id": range(items), "title": [f"item {n}" for n in range(items)]}),
        pl.DataFrame(
            rows,
            schema={
                "user_id": pl.Int64,
                "item_id": pl.Int64,
                "event_type": pl.String,
                "timestamp": pl.Float64,
            },
            orient="row",
        ),
        users=pl.DataFrame({"user_id": range(users)}),
    )


@pytest.fixture(scope="module")
def checkerboard() -> Dataset:
    """User u took every item of u's block but item u: item u is the right answer."""
    rows = [
        (user, item, "click", float(user * SIZE + item))
        for user in range(SIZE)
        for item in range(SIZE)
        if user % BLOCKS == item % BLOCKS and user != item
    ]
    return make_dataset(rows, SIZE, SIZE)


@pytest.fixture(scope="module")
def fitted(checkerboard: Dataset) -> Collaborative:
    return fit_collaborative(checkerboard, CONFIG)


def histories(lists: list[list[int]], kinds: list[list[int]] | None = None) -> HistoryBatch:
    flat = np.array([item for row in lists for item in row], np.int32)
    types = np.array([kind for row in kinds for kind in row], np.int32) if kinds else np.zeros_like(flat)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in lists])]).astype(np.int64)
    return HistoryBatch(offsets, flat, types, np.zeros(len(flat)))


def whole_histories(data: Dataset) -> HistoryBatch:
    past = data.histories
    return HistoryBatch(past.offsets, past.item_index, past.type_index.astype(np.int32), past.timestamp * 0)


def test_als_finds_the_withheld_item_of_every_user(checkerboard, fitted):
    scores = fitted.fold_in(whole_histories(checkerboard), checkerboard.weights) @ fitted.factors.T
    scores[interaction_matrix(checkerboard).toarray() > 0] = -np.inf
    assert scores.argmax(axis=1).tolist() == list(range(SIZE))


def test_item_item_finds_the_withheld_item_of_every_user(checkerboard, fitted):
    taken = interaction_matrix(checkerboard).toarray()
    scores = taken @ fitted.item_item.csr.toarray()
    scores[taken > 0] = -np.inf
    assert scores.argmax(axis=1).tolist() == list(range(SIZE))


def test_item_item_is_cosine_without_the_item_itself(checkerboard, fitted):
    taken = interaction_matrix(checkerboard).toarray()
    unit = taken / np.linalg.norm(taken, axis=0)
    expected = unit.T @ unit
    np.fill_diagonal(expected, 0.0)
    np.testing.assert_allclose(fitted.item_item.csr.toarray(), expected, atol=1e-6)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(checkerboard, fitted):
    assert fit_collaborative(checkerboard, CONFIG).to_files() == fitted.to_files()
    assert fit_collaborative(checkerboard, CONFIG, seed=1).to_files() != fitted.to_files()


def test_files_round_trip_exactly(fitted):
    again = Collaborative.from_files(fitted.to_files())
    np.testing.assert_array_equal(again.factors, fitted.factors)
    np.testing.assert_array_equal(again.item_item.csr.toarray(), fitted.item_item.csr.toarray())
    assert (again.regularization, again.confidence) == (fitted.regularization, fitted.confidence)


def test_items_without_target_events_have_zero_factors_and_no_neighbours():
    rows = [(0, 0, "click", 1.0), (0, 1, "click", 2.0), (1, 1, "click", 3.0), (1, 2, "view", 4.0)]
    fitted = fit_collaborative(make_dataset(rows, 2, 4), CONFIG)
    assert known_rows(fitted.factors).tolist() == [True, True, False, False]
    assert np.diff(fitted.item_item.offsets).tolist() == [1, 1, 0, 0]
    assert fitted.pairs.factors[2:].tolist() == np.zeros((2, 8)).tolist()
    np.testing.assert_allclose(np.linalg.norm(fitted.pairs.factors[:2], axis=1), 1.0, rtol=1e-6)


def test_an_empty_log_gives_zero_factors_and_no_neighbours():
    fitted = fit_collaborative(make_dataset([], 3, 5), CONFIG)
    assert fitted.factors.shape == (5, 8)
    assert not fitted.factors.any()
    assert fitted.item_item.csr.nnz == 0


def test_interactions_add_up_event_weights_and_decay_to_the_end_of_the_log():
    rows = [
        (0, 1, "click", 0.0),
        (0, 1, "purchase", 2 * DAY_S),
        (1, 0, "dismiss", 3 * DAY_S),
        (1, 2, "like", 4 * DAY_S),
    ]
    data = make_dataset(rows, 2, 3)
    assert interaction_matrix(data).toarray().tolist() == [[0, 6, 0], [0, 0, 2]]
    decayed = interaction_matrix(data, half_life_days=2.0).toarray()
    np.testing.assert_allclose(decayed, [[0, 1 / 4 + 5 / 2, 0], [0, 0, 2]])


def naive_fold_in(fitted: Collaborative, items: list[int], strengths: list[float]) -> np.ndarray:
    """Hu, Koren & Volinsky 2008, eq. 4, with the whole diagonal matrix of confidences written out."""
    factors = fitted.factors.astype(np.float64)
    taken = np.zeros(len(factors))
    for item, strength in zip(items, strengths, strict=True):
        taken[item] += fitted.confidence * strength
    confidence = np.diag(np.where(taken > 0, taken, 1.0))
    ridge = fitted.regularization * np.eye(factors.shape[1])
    return np.linalg.solve(factors.T @ confidence @ factors + ridge, factors.T @ taken)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 2)), min_size=1, max_size=8))
def test_fold_in_is_the_dense_ridge_solve(events):
    weights = np.array([0.05, 1.0, 5.0], np.float32)
    factors = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    fitted = Collaborative(factors, empty_pairs(12), empty_pairs(12), 0.3, 4.0)
    items, kinds = [item for item, _ in events], [kind for _, kind in events]
    found = fitted.fold_in(histories([items], [kinds]), weights)
    expected = naive_fold_in(fitted, items, weights[kinds].tolist())
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)


def empty_pairs(items: int) -> SparsePairs:
    return SparsePairs.from_csr(sparse.csr_matrix((items, items), dtype=np.float32))


def test_fold_in_does_not_depend_on_order_or_batch(fitted):
    lists = [[3, 7, 11, 3], [], [2], [11, 3, 3, 7]]
    found = fitted.fold_in(histories(lists), ONE)
    np.testing.assert_allclose(found[0], found[3], rtol=1e-5, atol=1e-6)
    for q, row in enumerate(lists):
        np.testing.assert_array_equal(fitted.fold_in(histories([row]), ONE)[0], found[q])


def test_fold_in_ignores_unknown_items_and_gives_zeros_for_nothing_known(fitted):
    found = fitted.fold_in(histories([[5, -1, 9], [5, 9], [-1], []]), ONE)
    np.testing.assert_array_equal(found[0], found[1])
    assert not found[2:].any()


@given(small)
def test_sparse_pairs_keep_every_value_but_zeros(matrix):
    stored = sparse.csr_matrix(matrix)
    stored.data[:] = np.where(stored.data == 3.0, 0.0, stored.data)  # explicit zeros
    pairs = SparsePairs.from_csr(stored)
    np.testing.assert_array_equal(pairs.csr.toarray(), np.where(matrix == 3.0, 0.0, matrix))
    assert (pairs.values != 0).all()
    assert len(pairs) == 6


@given(small, st.integers(1, 6))
def test_the_strongest_are_kept_with_ties_to_the_smaller_column(matrix, per_row):
    kept = keep_strongest(sparse.csr_matrix(matrix), per_row).toarray()
    for row, found in zip(matrix, kept, strict=True):
        order = [column for column in np.lexsort((np.arange(6), -row)) if row[column] > 0][:per_row]
        expected = np.zeros(6)
        expected[order] = row[order]
        np.testing.assert_array_equal(found, expected)


def test_ease_is_the_closed_form_of_each_column():
    """Steck 2019: column c minimises |X_c - X b|^2 + ridge |b|^2 with b_c = 0."""
    rng = np.random.default_rng(5)
    touched = (rng.random((40, 8)) < 0.4) & (np.arange(8) < 7)
    seen = sparse.csr_matrix(touched.astype(np.float32) * 3.0)
    config = CollaborativeConfig(ease_regularization=2.0, neighbours=100)
    found = ease_pairs(seen, config).csr.toarray()
    dense = (seen.toarray() > 0).astype(float)
    for column in range(7):
        others = np.delete(np.arange(7), column)
        system = dense[:, others].T @ dense[:, others] + 2.0 * np.eye(6)
        expected = np.linalg.solve(system, dense[:, others].T @ dense[:, column])
        np.testing.assert_allclose(found[others, column], np.maximum(expected, 0.0), atol=1e-6)
    assert not found[:, 7].any()
    assert not found[7].any()
    assert len(ease_pairs(seen, CollaborativeConfig(ease_items_max=6)).values) == 0
