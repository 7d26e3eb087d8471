"""Trees: LightGBM's scores to the bit, and what a damaged text does."""

from __future__ import annotations

import lightgbm as lgb
import numpy as np
import pytest

from recsys.errors import RecsysError
from recsys.forest import Forest

WIDTH = 6


def trained(seed: int, *, missing: bool, rounds: int = 12, leaves: int = 31) -> lgb.Booster:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(3000, WIDTH)).astype(np.float32)
    matrix[:, 1] = np.round(matrix[:, 1])
    matrix[:, 2] *= 1e-6
    if missing:
        matrix[rng.random(matrix.shape) < 0.2] = np.nan
    label = np.nan_to_num(matrix[:, 0]) * 2 + np.isnan(matrix[:, 1]) + rng.normal(size=3000)
    parameters = {"verbosity": -1, "num_leaves": leaves, "min_data_in_leaf": 5, "num_threads": 1}
    return lgb.train(parameters, lgb.Dataset(matrix, label=label), num_boost_round=rounds)


def awkward(seed: int, rows: int) -> np.ndarray:
    """Values at and beside thresholds, zeros of both signs, infinities and missing ones."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(rows, WIDTH)).astype(np.float32)
    special = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-36, 0.5, -0.5], np.float32)
    chosen = rng.random(matrix.shape) < 0.3
    matrix[chosen] = rng.choice(special, chosen.sum())
    return matrix


@pytest.mark.parametrize("missing", [True, False])
@pytest.mark.parametrize("leaves", [2, 31, 200])
def test_scores_are_those_of_lightgbm_to_the_bit(missing, leaves):
    booster = trained(leaves, missing=missing, leaves=leaves)
    forest = Forest.parse(booster.model_to_string())
    assert len(forest) == booster.num_trees()
    for rows in (0, 1, 3, 4, 7, 257, 1300):
        matrix = awkward(rows, rows)
        expected = booster.predict(matrix, raw_score=True, num_threads=1) if rows else np.zeros(0)
        np.testing.assert_array_equal(forest.score(matrix), expected)
        np.testing.assert_array_equal(forest.score(matrix, threads=3), expected)


@pytest.mark.parametrize("missing", [True, False])
@pytest.mark.parametrize("leaves", [2, 31, 200])
def test_effects_are_those_of_lightgbm_and_add_up(missing, leaves):
    booster = trained(leaves, missing=missing, leaves=leaves)
    forest = Forest.parse(booster.model_to_string())
    for rows in (0, 1, 33):
        matrix = awkward(rows, rows)
        found = forest.effects(matrix)
        assert found.shape == (rows, WIDTH + 1)
        if rows:
            expected = booster.predict(matrix, pred_contrib=True, num_threads=1)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
            np.testing.assert_allclose(found.sum(axis=1), forest.score(matrix), rtol=0, atol=1e-12)


def test_values_on_a_threshold_go_where_lightgbm_sends_them():
    booster = trained(3, missing=True)
    forest = Forest.parse(booster.model_to_string())
    thresholds = forest.nodes["threshold"]
    matrix = np.zeros((len(thresholds) * 3, WIDTH), np.float32)
    for place, (threshold, feature) in enumerate(zip(thresholds, forest.nodes["feature"], strict=True)):
        around = (
            np.nextafter(threshold, np.float32(-np.inf)),
            threshold,
            np.nextafter(threshold, np.float32(9)),
        )
        matrix[place * 3 : place * 3 + 3, feature] = around
    np.testing.assert_array_equal(
        forest.score(matrix), booster.predict(matrix, raw_score=True, num_threads=1)
    )


def test_a_tree_without_a_decision_is_its_value():
    dataset = lgb.Dataset(np.zeros((50, WIDTH)), label=np.full(50, 2.0))
    booster = lgb.train({"verbosity": -1}, dataset, num_boost_round=2)
    forest = Forest.parse(booster.model_to_string())
    assert forest.score(np.zeros((3, WIDTH), np.float32)) == pytest.approx([2.0] * 3)
    assert forest.effects(np.zeros((1, WIDTH), np.float32))[0].tolist() == pytest.approx(
        [0.0] * WIDTH + [2.0]
    )


def test_another_width_is_refused():
    forest = Forest.parse(trained(1, missing=False).model_to_string())
    with pytest.raises(ValueError, match="6 columns"):
        forest.score(np.zeros((2, 5), np.float32))


def test_a_damaged_text_is_refused_or_scores_and_never_kills():
    text = trained(5, missing=True, rounds=3).model_to_string()
    trees = text.split("end of trees")[0]
    rng = np.random.default_rng(0)
    matrix, refused = awkward(1, 40), 0
    for _ in range(400):
        place = int(rng.integers(len(trees)))
        damaged = trees[:place] + chr(int(rng.integers(32, 127))) + trees[place + 1 :] + "end of trees"
        try:
            forest = Forest.parse(damaged)
            assert forest.score(matrix).shape == (40,)
            assert np.isfinite(forest.effects(matrix)).all()
        except (RecsysError, ValueError):
            refused += 1
    assert refused > 40
    for cut in range(0, len(trees), 97):
        with pytest.raises(RecsysError) as caught:
            Forest.parse(trees[:cut])
        assert caught.value.code in {"ranker_invalid", "non_finite_scores"}


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ("left_child=", "left_child=0"),
        ("split_feature=", "split_feature=99"),
        ("leaf_value=", "leaf_value=nan"),
        ("decision_type=", "decision_type=1"),
        ("decision_type=", f"decision_type={2**63}"),
        ("leaf_count=", f"leaf_count={2**64}"),
        ("num_class=", "num_class=3"),
    ],
)
def test_what_is_no_tree_of_ours_is_refused(line, other):
    text = trained(6, missing=True, rounds=1).model_to_string()
    first = next(each for each in text.splitlines() if each.startswith(line))
    name, value = other.split("=")
    values = first.split("=")[1].split()
    damaged = text.replace(first, f"{name}={' '.join([value, *values[1:]])}")
    with pytest.raises(RecsysError, match=r"ranker_invalid|non_finite_scores"):
        Forest.parse(damaged)


def test_a_ranker_without_trees_is_refused():
    with pytest.raises(RecsysError, match="ranker_invalid"):
        Forest.parse("num_class=1\nnum_tree_per_iteration=1\nfeature_names=a\nend of trees")
