"""Functions without calls, against the library's."""

from __future__ import annotations

import numpy as np
from numba import njit

from recsys.transcendental import exp32, exp64, log1p64


@njit
def _logarithms(values, out):
    for row in range(len(values)):
        out[row] = log1p64(np.float64(values[row]))


@njit
def _exponentials(values, out):
    for row in range(len(values)):
        out[row] = exp32(values[row])


@njit
def _long_exponentials(values, out):
    for row in range(len(values)):
        out[row] = exp64(values[row])


def test_logarithms_are_those_of_the_library():
    rng = np.random.default_rng(0)
    values = np.concatenate([[0.0, 0.5, 1.0, -0.5], 10.0 ** rng.uniform(-30, 12, 20_000)])
    found = np.empty(len(values))
    _logarithms(values, found)
    np.testing.assert_allclose(found, np.log1p(values), rtol=1e-13, atol=0)


def test_the_logarithm_of_nan_is_nan():
    found = np.zeros(1)
    _logarithms(np.array([np.nan]), found)
    assert np.isnan(found[0])


def test_exponentials_are_those_of_the_library():
    values = np.linspace(-86, 87, 20_001, dtype=np.float32)
    found = np.empty(len(values), np.float32)
    _exponentials(values, found)
    np.testing.assert_allclose(found, np.exp(values), rtol=3e-7, atol=0)


def test_long_exponentials_are_those_of_the_library():
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [rng.uniform(-707, 709, 20_000), rng.uniform(-1, 1, 20_000), -(10.0 ** -rng.uniform(0, 300, 99))]
    )
    found = np.empty(len(values))
    _long_exponentials(values, found)
    np.testing.assert_allclose(found, np.exp(values), rtol=5e-16, atol=0)


def test_the_exponential_of_nothing_is_one_and_of_much_less_than_nothing_is_nearly_nothing():
    found = np.empty(4)
    _long_exponentials(np.array([0.0, -0.0, -1e9, -np.inf]), found)
    assert found[:2].tolist() == [1.0, 1.0]
    assert (found[2:] < 1e-300).all()
