"""Calibration error against tables checked by hand and simulated probabilities whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.metrics import expected_calibration_error, reliability


def test_hand_computed_bins() -> None:
    probability = np.array([0.1, 0.9, 0.2, 0.8])
    labels = np.array([0, 1, 1, 1])
    got = reliability(probability, labels, bins=2)

    np.testing.assert_array_equal(got.rows, [2, 2])
    np.testing.assert_allclose(got.predicted, [1 / 2 * (0.1 + 0.2), 1 / 2 * (0.9 + 0.8)])
    np.testing.assert_allclose(got.observed, [1 / 2, 1])
    error = expected_calibration_error(probability, labels, bins=2)
    assert error == pytest.approx(1 / 2 * (0.5 - 0.15) + 1 / 2 * (1 - 0.85))


def test_constant_prediction_errs_by_its_distance_to_the_base_rate() -> None:
    labels = np.array([1, 0, 0, 0, 0], np.bool_)

    assert expected_calibration_error(np.full(5, 0.2), labels) == pytest.approx(0)
    assert expected_calibration_error(np.full(5, 0.5), labels) == pytest.approx(0.5 - 1 / 5)
    assert len(reliability(np.full(5, 0.5), labels).rows) == 1


def test_true_probabilities_err_by_chance_alone_and_doubled_ones_by_their_mean() -> None:
    rng = np.random.default_rng(0)
    truth = rng.beta(1, 9, 100_000)
    labels = rng.random(100_000) < truth

    assert expected_calibration_error(truth, labels) < 0.005
    doubled = np.minimum(2 * truth, 1)
    assert expected_calibration_error(doubled, labels) == pytest.approx((doubled - truth).mean(), abs=0.004)


def test_rare_clicks_are_spread_over_all_bins() -> None:
    rng = np.random.default_rng(1)
    probability = rng.uniform(0.001, 0.03, 3000)
    got = reliability(probability, rng.random(3000) < probability, bins=15)

    np.testing.assert_array_equal(got.rows, np.full(15, 200))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_order_of_rows_never_matters_and_every_row_is_counted(seed: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    probability, labels = rng.integers(0, 8, 60) / 8, rng.random(60) < 0.4
    order = rng.permutation(60)
    got = reliability(probability, labels, bins=bins)

    assert got.rows.sum() == 60
    assert len(got.rows) <= bins
    assert (np.diff(got.predicted) > 0).all()
    assert (got.rows * got.observed).sum() == pytest.approx(labels.sum())
    assert expected_calibration_error(probability, labels, bins=bins) == pytest.approx(
        expected_calibration_error(probability[order], labels[order], bins=bins)
    )


def test_no_rows_give_no_bins() -> None:
    assert len(reliability(np.zeros(0), np.zeros(0)).rows) == 0
    assert np.isnan(expected_calibration_error(np.zeros(0), np.zeros(0)))


@pytest.mark.parametrize(
    ("probability", "labels", "message"),
    [
        ([0.1], [0, 1], "same rows"),
        ([1.1], [1], "outside"),
        ([np.nan], [1], "NaN"),
        ([0.5], [0.5], "0 or 1"),
    ],
)
def test_impossible_probabilities_are_refused(probability, labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        expected_calibration_error(np.array(probability), np.array(labels))
