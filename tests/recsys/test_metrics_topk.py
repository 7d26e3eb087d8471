"""Top-k metrics against tables checked by hand, scikit-learn, and a naive loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from recsys.events import lengths_to_offsets
from recsys.metrics import topk_metrics


def discount(rank: int) -> float:
    return float(1 / np.log2(1 + rank))


def lists(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.int32)


def positives(*rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    flat = [item for row in rows for item in row]
    return lengths_to_offsets(np.array([len(row) for row in rows])), np.array(flat, np.int32)


def test_hand_computed_table() -> None:
    ranked = lists(
        [7, 3, 9, 1, 5],  # hits at ranks 2 and 5, one positive never found
        [2, 4, 6, 8, 0],  # a hit at rank 1, its only positive
        [1, 2, 3, -1, -1],  # nothing found
    )
    got = topk_metrics(ranked, *positives([3, 5, 100], [2], [0]), cutoffs=(1, 3, 5))

    np.testing.assert_array_equal(got["hr_at_1"], [0, 1, 0])
    np.testing.assert_array_equal(got["hr_at_3"], [1, 1, 0])
    np.testing.assert_allclose(got["recall_at_3"], [1 / 3, 1, 0])
    np.testing.assert_allclose(got["recall_at_5"], [2 / 3, 1, 0])
    np.testing.assert_allclose(got["mrr_at_1"], [0, 1, 0])
    np.testing.assert_allclose(got["mrr_at_5"], [1 / 2, 1, 0])
    ideal = discount(1) + discount(2) + discount(3)
    np.testing.assert_allclose(got["ndcg_at_3"], [discount(2) / ideal, 1, 0])
    np.testing.assert_allclose(got["ndcg_at_5"], [(discount(2) + discount(5)) / ideal, 1, 0])
    assert np.mean(got["recall_at_5"]) == pytest.approx(1 / 3 * (2 / 3 + 1))


def test_ideal_of_ndcg_holds_no_more_than_k_items() -> None:
    got = topk_metrics(lists([0, 1, 9]), *positives([0, 1, 2, 3, 4]), cutoffs=(2, 3))

    assert got["ndcg_at_2"][0] == 1
    assert got["ndcg_at_3"][0] == pytest.approx(
        (discount(1) + discount(2)) / (discount(1) + discount(2) + discount(3))
    )


def test_names_follow_the_cutoffs() -> None:
    got = topk_metrics(lists([0]), *positives([0]))

    assert set(got) == {f"{name}_at_{k}" for name in ("hr", "recall", "ndcg", "mrr") for k in (5, 10, 20)}
    assert all(values.dtype == np.float64 and values.shape == (1,) for values in got.values())


def test_user_without_positives_is_nan_in_every_metric() -> None:
    got = topk_metrics(lists([0, 1], [0, 1]), *positives([], [1]), cutoffs=(2,))

    assert all(np.isnan(values[0]) and not np.isnan(values[1]) for values in got.values())


def test_padding_is_never_a_hit() -> None:
    got = topk_metrics(lists([-1, -1, -1], [4, -1, -1]), *positives([0], [4]), cutoffs=(3,))

    np.testing.assert_array_equal(got["hr_at_3"], [0, 1])


def test_list_shorter_than_the_cutoff_counts_as_padded() -> None:
    short = topk_metrics(lists([5, 6]), *positives([6, 7]), cutoffs=(10,))
    padded = topk_metrics(lists([5, 6] + [-1] * 8), *positives([6, 7]), cutoffs=(10,))

    assert short == padded


def test_positive_named_twice_counts_once() -> None:
    got = topk_metrics(lists([5, 6]), *positives([6, 6]), cutoffs=(2,))

    assert got["recall_at_2"][0] == 1


def test_no_users_and_no_places_give_empty_or_zero() -> None:
    none = topk_metrics(np.zeros((0, 5), np.int32), *positives(), cutoffs=(5,))
    blank = topk_metrics(np.zeros((2, 0), np.int32), *positives([1], [2]), cutoffs=(5,))

    assert all(len(values) == 0 for values in none.values())
    assert all((values == 0).all() for values in blank.values())


@pytest.mark.parametrize(
    ("ranked", "items", "cutoffs", "message"),
    [
        ([[1, 1]], [[0]], (2,), "name an item twice"),
        ([[1, 2], [3, 4]], [[0]], (2,), "users \\+ 1"),
        ([[1, 2]], [[0]], (0,), "at least 1"),
        ([[1, 2]], [[-1]], (2,), "negative"),
    ],
)
def test_impossible_input_is_refused(ranked, items, cutoffs, message) -> None:
    with pytest.raises(ValueError, match=message):
        topk_metrics(np.array(ranked, np.int32), *positives(*items), cutoffs=cutoffs)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 12))
def test_ndcg_is_that_of_scikit_learn(seed: int, items: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(items, dtype=np.int32), (4, 1)), axis=1)
    taken = [sorted(rng.choice(items, rng.integers(1, items + 1), replace=False).tolist()) for _ in range(4)]
    got = topk_metrics(order[:, :k], *positives(*taken), cutoffs=(k,))[f"ndcg_at_{k}"]

    truth, scores = np.zeros((4, items)), np.zeros((4, items))
    for user, row in enumerate(taken):
        truth[user, row] = 1
        scores[user, order[user]] = -np.arange(items)
    expected = [ndcg_score(truth[[user]], scores[[user]], k=k) for user in range(4)]
    np.testing.assert_allclose(got, expected)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_metrics_equal_a_naive_loop(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(20, dtype=np.int32), (6, 1)), axis=1)[:, :8]
    taken = [rng.integers(0, 20, rng.integers(0, 6)).tolist() for _ in range(6)]
    got = topk_metrics(order, *positives(*taken), cutoffs=(k,))

    for user, row in enumerate(taken):
        ranks = [rank for rank, item in enumerate(order[user, :k], start=1) if item in row]
        if not row:
            assert np.isnan(got[f"recall_at_{k}"][user])
            continue
        assert got[f"hr_at_{k}"][user] == bool(ranks)
        assert got[f"recall_at_{k}"][user] == pytest.approx(len(ranks) / len(set(row)))
        assert got[f"mrr_at_{k}"][user] == pytest.approx(1 / ranks[0] if ranks else 0)
