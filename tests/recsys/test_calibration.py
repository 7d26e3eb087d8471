import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from recsys.calibration import (
    ISOTONIC_ROWS,
    Calibration,
    fit_calibration,
    fit_isotonic,
    fit_platt,
    log_loss,
    sigmoid,
)
from recsys.errors import RecsysError
from recsys.metrics.calibration import expected_calibration_error


def draw(rows, truth, seed=0):
    """Logits and labels with P(label) = truth(logit)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, rows).astype(np.float32)
    return logits, (rng.random(rows) < truth(logits)).astype(np.float32)


def test_platt_finds_the_true_line():
    logits, labels = draw(40_000, lambda x: sigmoid(0.5 * x - 1.0))
    fitted = fit_platt(logits, labels)
    assert (fitted.slope, fitted.intercept) == pytest.approx((0.5, -1.0), abs=0.05)
    peer = LogisticRegression(C=np.inf).fit(logits[:, None], labels)
    assert fitted.slope == pytest.approx(peer.coef_[0, 0], abs=1e-2)
    assert fitted.intercept == pytest.approx(peer.intercept_[0], abs=1e-2)


@pytest.mark.parametrize("shift", [0.0, 40.0, -1000.0])
def test_platt_does_not_mind_where_the_logits_lie(shift):
    logits, labels = draw(2_000, lambda x: sigmoid(x))
    here = fit_platt(logits, labels).probability(logits)
    there = fit_platt(logits + np.float32(shift), labels).probability(logits + np.float32(shift))
    np.testing.assert_allclose(here, there, atol=1e-3)


def test_isotonic_knots_are_those_of_scikit_learn():
    logits, labels = draw(500, lambda x: 0.2 + 0.6 * (x > 0))
    logits = np.round(logits, 1)  # ties
    fitted = fit_isotonic(logits, labels)
    steps = IsotonicRegression().fit_transform(logits, labels)
    at = np.searchsorted(fitted.knots, logits, side="left").clip(0, len(fitted.knots) - 1)
    nearest = np.where(
        (at > 0) & (np.abs(fitted.knots[at - 1] - logits) < np.abs(fitted.knots[at] - logits)), at - 1, at
    )
    assert set(np.round(fitted.values, 6)) == set(np.round(steps.astype(np.float64), 6))
    assert np.mean(np.abs(fitted.values[nearest] - steps) < 0.1) > 0.9


def test_calibration_lowers_the_error_of_an_overconfident_model():
    logits, labels = draw(20_000, lambda x: sigmoid(0.3 * x - 2.0))
    fresh, fresh_labels = draw(20_000, lambda x: sigmoid(0.3 * x - 2.0), seed=1)
    before = expected_calibration_error(sigmoid(fresh.astype(np.float64)), fresh_labels)
    after = expected_calibration_error(fit_calibration(logits, labels).probability(fresh), fresh_labels)
    assert before > 0.2
    assert after < 0.02


def test_a_bent_curve_takes_isotonic_and_a_straight_one_or_few_rows_platt():
    bent, bent_labels = draw(3 * ISOTONIC_ROWS, lambda x: np.where(np.abs(x) < 1, 0.5, 0.1 + 0.8 * (x > 0)))
    straight, straight_labels = draw(3 * ISOTONIC_ROWS, lambda x: sigmoid(x))
    assert fit_calibration(bent, bent_labels).kind == "isotonic"
    assert fit_calibration(straight, straight_labels).kind == "platt"
    assert fit_calibration(bent[:1_000], bent_labels[:1_000]).kind == "platt"


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 200), st.sampled_from([fit_platt, fit_isotonic]))
def test_calibration_never_changes_an_order(seed, rows, fit):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, rows).astype(np.float32)
    fitted = fit(logits, (rng.random(rows) < 0.3).astype(np.float32))
    grid = np.linspace(-12, 12, 500, dtype=np.float32)
    probabilities = fitted.probability(grid)
    assert (np.diff(probabilities) >= 0).all()
    assert np.isfinite(probabilities).all()
    wide = fitted.probability(np.array([-2.0, 0.0, 2.0], np.float32))
    assert wide[0] < wide[1] < wide[2] or wide[1] < 1e-30 or wide[1] > 1 - 1e-6  # as far as float32 can tell


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
def test_one_class_gives_a_finite_curve(label, fit):
    fitted = fit(np.linspace(-1, 1, 50, dtype=np.float32), np.full(50, label, np.float32))
    probability = fitted.probability(np.zeros(1, np.float32))[0]
    assert abs(probability - label) < 0.05
    assert 0 < probability < 1


def test_a_logit_that_orders_wrongly_is_flattened_not_turned_round():
    logits, labels = draw(1_000, lambda x: sigmoid(-x))
    assert 0 < fit_platt(logits, labels).slope < 0.01


def test_no_rows_give_the_plain_sigmoid():
    empty = np.zeros(0, np.float32)
    assert fit_calibration(empty, empty).probability(np.zeros(1, np.float32))[0] == 0.5
    assert np.isnan(log_loss(empty, empty))


def test_arrays_round_trip_and_damaged_ones_are_refused():
    logits, labels = draw(2_000, lambda x: sigmoid(x))
    fitted = fit_isotonic(logits, labels)
    again = Calibration.from_arrays(fitted.to_arrays())
    assert (again.probability(logits) == fitted.probability(logits)).all()
    arrays = fitted.to_arrays()
    for damaged in (
        {**arrays, "platt": np.array([-1.0, 0.0])},
        {**arrays, "values": arrays["values"][::-1]},
        {**arrays, "knots": arrays["knots"] * np.nan},
    ):
        with pytest.raises(RecsysError, match="calibration_invalid"):
            Calibration.from_arrays(damaged)
