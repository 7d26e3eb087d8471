"""Coverage, novelty, similarity and entropy against tables checked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.metrics import category_entropy, coverage, intra_list_similarity, novelty

RANKED = np.array([[0, 1, 2], [0, 3, -1], [-1, -1, -1]], np.int32)


def test_coverage_counts_each_item_once_and_only_up_to_k() -> None:
    assert coverage(RANKED, 10, 1) == 1 / 10
    assert coverage(RANKED, 10, 2) == 3 / 10
    assert coverage(RANKED, 10, 5) == 4 / 10


def test_coverage_of_no_lists_is_zero_and_of_no_catalogue_unknown() -> None:
    assert coverage(np.zeros((0, 5), np.int32), 10, 5) == 0
    assert np.isnan(coverage(np.zeros((0, 5), np.int32), 0, 5))


def test_novelty_of_a_hand_computed_table() -> None:
    popularity = np.array([7, 3, 0, 1])  # 8, 4, 1 and 2 of 15 after smoothing
    bits = [np.log2(15 / 8), np.log2(15 / 4), np.log2(15 / 1), np.log2(15 / 2)]
    got = novelty(RANKED, popularity, 3)

    np.testing.assert_allclose(got[:2], [1 / 3 * (bits[0] + bits[1] + bits[2]), 1 / 2 * (bits[0] + bits[3])])
    assert np.isnan(got[2])
    np.testing.assert_allclose(novelty(RANKED, popularity, 1)[:2], [bits[0], bits[0]])


@given(st.integers(1, 500), st.integers(0, 50))
def test_novelty_of_equally_popular_items_is_the_logarithm_of_their_number(items: int, events: int) -> None:
    got = novelty(np.array([[0, -1]], np.int32), np.full(items, events), 2)

    assert got[0] == pytest.approx(np.log2(items), abs=1e-9)


def test_rarer_items_are_more_novel() -> None:
    got = novelty(np.array([[0], [1], [2]], np.int32), np.array([100, 10, 0]), 1)

    assert got[0] < got[1] < got[2]


@pytest.mark.parametrize("item", [4, -2])
def test_items_outside_the_catalogue_are_refused(item: int) -> None:
    with pytest.raises(ValueError, match="outside the catalogue"):
        coverage(np.array([[item]], np.int32), 4, 1)
    with pytest.raises(ValueError, match="outside the catalogue"):
        novelty(np.array([[item]], np.int32), np.ones(4, np.int64), 1)


def test_similarity_within_a_list_is_the_mean_over_its_pairs() -> None:
    embeddings = np.array([[1, 0], [0, 1], [0.6, 0.8], [0, 0]], np.float32)
    lists = np.array([[0, 1, 2], [0, 3, -1], [2, -1, -1], [-1, -1, -1]], np.int32)
    found = intra_list_similarity(lists, embeddings, 3)
    np.testing.assert_allclose(found, [(0 + 0.6 + 0.8) / 3, 0.0, np.nan, np.nan], atol=1e-6)


def test_entropy_of_categories_leaves_out_items_without_one() -> None:
    category = np.array([0, 1, 1, -1], np.int32)
    lists = np.array([[0, 1, -1], [1, 2, 3], [3, -1, -1], [0, 1, 2]], np.int32)
    expected = [1.0, 0.0, np.nan, 1 / 3 * np.log2(3) + 2 / 3 * np.log2(3 / 2)]
    np.testing.assert_allclose(category_entropy(lists, category, 3), expected)
    np.testing.assert_allclose(category_entropy(lists, category, 1), [0.0, 0.0, np.nan, 0.0])
