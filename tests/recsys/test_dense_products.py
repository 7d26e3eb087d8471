"""Products of candidates and history events: what they are, and that nobody else changes them."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.dense_products import DenseProducts
from recsys.pairs import DensePairs
from recsys.requests import HistoryBatch, Requests

ITEMS = 50


def asked(*slates: list[int]) -> Requests:
    count = len(slates)
    offsets = np.cumsum([0, *map(len, slates)])
    rows = np.concatenate([np.array(slate, np.int32) for slate in slates])
    return Requests.of(np.zeros(count), np.zeros(count), np.zeros(count), (offsets, rows))


def past(*items: list[int]) -> HistoryBatch:
    offsets = np.cumsum([0, *map(len, items)])
    rows = np.concatenate([np.array(each, np.int32) for each in items])
    return HistoryBatch(offsets, rows, np.zeros(len(rows), np.int32), np.zeros(len(rows)))


@pytest.mark.parametrize("dim", [3, 16, 17, 64, 385])
def test_each_event_has_a_product_with_each_candidate(dim):
    rng = np.random.default_rng(dim)
    factors = rng.normal(size=(ITEMS, dim)).astype(np.float32)
    slates = [[1, 2, 3], [], [-1, 7, ITEMS, 7, 9]]
    histories = [[4, 4, -1, 30, 31, 32], [5], [8]]
    products = DenseProducts.of(DensePairs(factors), asked(*slates), past(*histories), 9)
    padded = np.concatenate([factors, np.zeros((2, dim), np.float32)])
    assert products.begins.tolist() == [0, 18, 18]
    assert len(products.values) == 23
    for begin, slate, history in zip(products.begins.tolist(), slates, histories, strict=True):
        found = products.values[begin : begin + len(slate) * len(history)]
        expected = padded[history] @ padded[slate].T
        np.testing.assert_allclose(found.reshape(len(history), -1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("events", [1, 2, 5, 31])
@pytest.mark.parametrize("dim", [16, 33, 384])
def test_a_product_is_the_same_to_the_bit_whoever_stands_beside_it(dim, events):
    rng = np.random.default_rng(events)
    pairs = DensePairs(rng.normal(size=(ITEMS, dim)).astype(np.float32))
    history = past(rng.integers(-1, ITEMS, events).tolist())
    slate = rng.permutation(ITEMS)[:21].tolist()
    whole = DenseProducts.of(pairs, asked(slate), history, 99).values.reshape(events, -1)
    for place in range(len(slate)):
        rest = DenseProducts.of(pairs, asked(slate[place:]), history, 99).values.reshape(events, -1)
        np.testing.assert_array_equal(rest, whole[:, place:])


def test_without_history_there_are_none():
    pairs = DensePairs(np.ones((ITEMS, 4), np.float32))
    products = DenseProducts.of(pairs, asked([1, 2]), past([]), 3)
    assert products.begins.tolist() == [0]
    assert len(products.values) == 0


def test_events_past_the_limit_have_none():
    pairs = DensePairs(np.random.default_rng(0).normal(size=(ITEMS, 7)).astype(np.float32))
    requests, history = asked([1, 2, 3], [4]), past([5, 6, 7, 8, 9], [10])
    whole, newest = (DenseProducts.of(pairs, requests, history, limit) for limit in (9, 2))
    assert newest.begins.tolist() == [-9, 6]
    np.testing.assert_array_equal(newest.values[:6], whole.values[9:15])
    np.testing.assert_array_equal(newest.values[6:], whole.values[15:])
