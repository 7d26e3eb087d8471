"""Bootstrap intervals: what they mean, whom they draw, and that they cover the truth as often as they say."""

import numpy as np
import pytest

from recsys.metrics import Interval, mean_interval, paired_interval
from recsys.metrics.intervals import ratio_interval


def test_mean_lies_between_its_bounds_and_every_unit_weighs_the_same() -> None:
    got = mean_interval(np.array([0.0, 1.0, 1.0, 1.0]), np.array([7, 9, 9, 9]))

    assert got.mean == 1 / 4 * (0 + 1 + 1 + 1)
    assert got.low <= got.mean <= got.high


def test_same_seed_gives_the_same_bounds_and_another_seed_others() -> None:
    values = np.random.default_rng(1).random(200)

    assert mean_interval(values, seed=5) == mean_interval(values, seed=5)
    assert mean_interval(values, seed=5) != mean_interval(values, seed=6)


def test_width_is_that_of_the_normal_approximation_for_many_independent_units() -> None:
    values = np.random.default_rng(2).normal(size=4000)
    got = mean_interval(values, resamples=2000)

    standard_error = values.std() / np.sqrt(len(values))
    assert got.high - got.low == pytest.approx(2 * 1.96 * standard_error, rel=0.08)


def test_repeated_units_of_one_user_do_not_narrow_the_interval() -> None:
    users = np.random.default_rng(3).normal(size=300)
    repeated, owner = np.repeat(users, 10), np.repeat(np.arange(300), 10)
    alone, clustered, naive = (
        mean_interval(users),
        mean_interval(repeated, owner),
        mean_interval(repeated),
    )

    assert clustered.high - clustered.low == pytest.approx(alone.high - alone.low)
    assert naive.high - naive.low < 0.5 * (clustered.high - clustered.low)


@pytest.mark.parametrize("kind", [np.int32, np.int64, str])
def test_cluster_ids_may_be_any_sortable_type(kind) -> None:
    values, owner = np.arange(12.0), np.repeat([3, 1, 2], 4)

    assert mean_interval(values, owner.astype(kind)) == mean_interval(values, owner)


def test_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for trial in range(300):
        taste = rng.normal(0.3, 0.2, 80)
        owner = np.repeat(np.arange(80), rng.integers(1, 6, 80))
        values = taste[owner] + rng.normal(0, 0.3, len(owner))
        got = mean_interval(values, owner, seed=trial, resamples=400)
        covered += got.low <= 0.3 <= got.high
    # binomial(300, .95) has a standard deviation of 3.8; the bootstrap runs a little narrow
    assert 270 <= covered <= 297


def test_nan_units_are_left_out() -> None:
    values = np.array([1.0, np.nan, 3.0, 5.0, np.nan])
    owner = np.array([0, 0, 1, 2, 3])

    assert mean_interval(values, owner) == mean_interval(values[[0, 2, 3]], owner[[0, 2, 3]])


def test_pairs_with_a_nan_on_either_side_are_left_out() -> None:
    a, b = np.array([1.0, np.nan, 3.0, 2.0]), np.array([0.5, 1.0, np.nan, 1.0])

    assert paired_interval(a, b).mean == 1 / 2 * (0.5 + 1.0)
    assert paired_interval(a, b) == paired_interval(a[[0, 3]], b[[0, 3]])


def test_pairing_removes_what_both_sides_share() -> None:
    rng = np.random.default_rng(5)
    difficulty = rng.normal(size=500)
    b = difficulty + rng.normal(0, 0.05, 500)
    a = difficulty + 0.02 + rng.normal(0, 0.05, 500)

    assert paired_interval(a, b).low > 0
    assert mean_interval(a).low < mean_interval(b).high


def test_no_difference_is_exactly_zero() -> None:
    values = np.random.default_rng(6).random(50)

    assert paired_interval(values, values) == Interval(0.0, 0.0, 0.0)


def test_no_known_unit_gives_nan() -> None:
    for values in (np.zeros(0), np.full(3, np.nan)):
        got = mean_interval(values)
        assert np.isnan([got.mean, got.low, got.high]).all()


def test_one_user_alone_has_a_mean_but_no_bounds() -> None:
    got = mean_interval(np.array([1.0, 2.0]), np.array([4, 4]))

    assert got.mean == 1.5
    assert np.isnan([got.low, got.high]).all()


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="clusters"):
        mean_interval(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="same units"):
        paired_interval(np.zeros(3), np.zeros(1))


def test_a_ratio_is_of_means_above_chance_and_drawn_together():
    rng = np.random.default_rng(0)
    base = 0.5 + rng.random(400) * 0.2
    found = ratio_interval(0.5 + (base - 0.5) * 0.9, base, chance=0.5)
    assert (found.mean, found.low, found.high) == pytest.approx((0.9, 0.9, 0.9))
    noisy = ratio_interval(base + rng.normal(size=400) * 0.01, base, np.arange(400) // 2)
    assert noisy.low < noisy.mean < noisy.high


def test_a_ratio_leaves_out_what_one_side_lacks_and_knows_no_ratio_to_nothing():
    a, b = np.array([1.0, np.nan, 3.0, 2.0]), np.array([1.0, 5.0, np.nan, 4.0])
    assert ratio_interval(a, b).mean == pytest.approx(3.0 / 5.0)
    assert np.isnan(ratio_interval(np.ones(3), np.zeros(3)).mean)
    assert np.isnan(ratio_interval(np.ones(1), np.ones(1)).low)
    with pytest.raises(ValueError, match="same units"):
        ratio_interval(np.ones(2), np.ones(3))
