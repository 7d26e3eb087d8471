"""Slate metrics against tables checked by hand, scikit-learn, the MIND evaluator and their symmetries."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from recsys.events import lengths_to_offsets
from recsys.metrics import slate_metrics


def discount(rank: float) -> float:
    return float(1 / np.log2(1 + rank))


def one(scores, labels) -> dict[str, float]:
    got = slate_metrics(np.array(scores, np.float64), np.array(labels), np.array([0, len(scores)]))
    return {name: float(values[0]) for name, values in got.items()}


def slates(rng: np.random.Generator, *, levels: int, slates: int = 5):
    """Random slates, every one with both classes; few `levels` make many ties."""
    lengths = rng.integers(2, 15, slates)
    offsets = lengths_to_offsets(lengths)
    labels = (rng.random(offsets[-1]) < 0.4).astype(np.int8)
    labels[offsets[:-1]], labels[offsets[:-1] + 1] = 0, 1
    return rng.integers(0, levels, offsets[-1]).astype(np.float64), labels, offsets


def test_hand_computed_slate() -> None:
    # ranks:      1    4    2    3
    got = one([0.9, 0.1, 0.8, 0.5], [0, 0, 1, 1])

    assert got["auc"] == pytest.approx(2 / 4)
    assert got["mrr"] == pytest.approx(1 / 2 * (1 / 2 + 1 / 3))
    assert got["ndcg_at_5"] == pytest.approx((discount(2) + discount(3)) / (discount(1) + discount(2)))
    assert got["ndcg_at_10"] == got["ndcg_at_5"]


def test_click_behind_the_cutoff_gains_nothing_there() -> None:
    got = one(-np.arange(8), [0, 0, 0, 0, 0, 1, 0, 0])

    assert got["ndcg_at_5"] == 0
    assert got["ndcg_at_10"] == pytest.approx(discount(6))
    assert got["mrr"] == pytest.approx(1 / 6)


def test_ties_share_their_ranks() -> None:
    # ranks 1, then three items over ranks 2, 3 and 4 (average 3)
    got = one([2, 1, 1, 1], [0, 1, 0, 0])

    assert got["auc"] == pytest.approx(1 / 3 * (0 + 1 / 2 + 1 / 2))
    assert got["mrr"] == pytest.approx(1 / 3)
    assert got["ndcg_at_5"] == pytest.approx(1 / 3 * (discount(2) + discount(3) + discount(4)))


def test_tied_group_across_the_cutoff_gains_its_share_of_the_places() -> None:
    got = one(np.zeros(20), [1] + [0] * 19)

    assert got["ndcg_at_5"] == pytest.approx(1 / 20 * sum(discount(rank) for rank in range(1, 6)))
    assert got["ndcg_at_10"] == pytest.approx(1 / 20 * sum(discount(rank) for rank in range(1, 11)))


@given(st.integers(1, 40), st.integers(1, 40))
def test_constant_scorer_has_auc_of_exactly_one_half(clicks: int, others: int) -> None:
    got = one(np.full(clicks + others, 0.3), [1] * clicks + [0] * others)

    assert got["auc"] == 0.5
    assert got["mrr"] == pytest.approx(2 / (clicks + others + 1))
    assert got["ndcg_at_5"] <= 1 + 1e-12


def test_perfect_order_gets_one() -> None:
    got = one([3, 2, 1, 0], [1, 1, 0, 0])

    assert (got["auc"], got["ndcg_at_5"], got["ndcg_at_10"]) == (1, 1, 1)
    assert got["mrr"] == pytest.approx(1 / 2 * (1 + 1 / 2))


def test_one_class_and_empty_slates_are_nan_and_leave_their_neighbours_alone() -> None:
    scores = np.array([1, 2, 3, 4, 5, 6], np.float32)
    labels = np.array([False, False, True, True, True, False])
    got = slate_metrics(scores, labels, np.array([0, 2, 2, 4, 6]))

    for values in got.values():
        assert np.isnan(values[:3]).all()
        assert not np.isnan(values[3])


def test_no_slates_give_empty_arrays() -> None:
    got = slate_metrics(np.zeros(0), np.zeros(0), np.zeros(1, np.int64))

    assert list(got) == ["auc", "mrr", "ndcg_at_5", "ndcg_at_10"]
    assert all(values.shape == (0,) and values.dtype == np.float64 for values in got.values())


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 5, 1000]))
def test_auc_and_ndcg_are_those_of_scikit_learn_with_and_without_ties(seed: int, levels: int) -> None:
    scores, labels, offsets = slates(np.random.default_rng(seed), levels=levels)
    got = slate_metrics(scores, labels, offsets)

    for slate, (start, stop) in enumerate(itertools.pairwise(offsets)):
        truth, guess = labels[start:stop], scores[start:stop]
        assert got["auc"][slate] == pytest.approx(roc_auc_score(truth, guess))
        for k in (5, 10):
            assert got[f"ndcg_at_{k}"][slate] == pytest.approx(ndcg_score([truth], [guess], k=k))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_mrr_and_ndcg_are_those_of_the_mind_evaluator_where_nothing_is_tied(seed: int) -> None:
    rng = np.random.default_rng(seed)
    _, labels, offsets = slates(rng, levels=2)
    scores = rng.permutation(len(labels)).astype(np.float64)
    got = slate_metrics(scores, labels, offsets)

    for slate, (start, stop) in enumerate(itertools.pairwise(offsets)):
        ordered = labels[start:stop][np.argsort(scores[start:stop])[::-1]]
        ranks = np.arange(1, stop - start + 1)
        assert got["mrr"][slate] == pytest.approx(np.sum(ordered / ranks) / np.sum(ordered))
        gain, best = ordered[:10] / np.log2(1 + ranks[:10]), np.sort(ordered)[::-1][:10]
        expected = np.sum(gain) / np.sum(best / np.log2(1 + ranks[:10]))
        assert got["ndcg_at_10"][slate] == pytest.approx(expected)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 100]))
def test_only_the_order_of_scores_matters_never_the_order_of_rows(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels, offsets = slates(rng, levels=levels)
    got = slate_metrics(scores, labels, offsets)
    stretched = slate_metrics(np.exp(scores / 10) - 7, labels, offsets)
    shuffle = np.concatenate([a + rng.permutation(b - a) for a, b in itertools.pairwise(offsets)])
    shuffled = slate_metrics(scores[shuffle], labels[shuffle], offsets)

    for name, values in got.items():
        np.testing.assert_allclose(stretched[name], values)
        np.testing.assert_allclose(shuffled[name], values)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 100]))
def test_reversed_scores_mirror_the_auc(seed: int, levels: int) -> None:
    scores, labels, offsets = slates(np.random.default_rng(seed), levels=levels)

    np.testing.assert_allclose(
        slate_metrics(-scores, labels, offsets)["auc"], 1 - slate_metrics(scores, labels, offsets)["auc"]
    )


@pytest.mark.parametrize(
    ("scores", "labels", "offsets", "message"),
    [
        ([0.1, np.nan], [0, 1], [0, 2], "NaN"),
        ([0.1, 0.2], [0, 2], [0, 2], "0 or 1"),
        ([0.1, 0.2], [0, np.nan], [0, 2], "0 or 1"),
        ([0.1, 0.2], [0, 1], [0, 1], "disagree"),
        ([0.1, 0.2], [0, 1], [1, 2], "rise from 0"),
    ],
)
def test_impossible_slates_are_refused(scores, labels, offsets, message) -> None:
    with pytest.raises(ValueError, match=message):
        slate_metrics(np.array(scores), np.array(labels), np.array(offsets))
