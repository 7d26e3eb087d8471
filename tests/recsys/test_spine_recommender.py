"""Best lists out of scores, and the blocks that requests are worked on in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.events import lengths_to_offsets
from recsys.ranked import top_ranked
from recsys.recommender import request_blocks
from recsys.requests import Requests, blocks

some_rows = st.lists(
    st.lists(st.sampled_from([np.nan, -np.inf, -1.0, 0.0, 2.5, np.inf]), max_size=6), max_size=5
)


def make_requests(lengths: list[int]) -> Requests:
    offsets = lengths_to_offsets(np.array(lengths, np.int64))
    items = np.concatenate([np.arange(length)[::-1] * 3 for length in lengths] or [np.zeros(0)])
    count, rows = len(lengths), int(offsets[-1])
    nothing = np.zeros(count)
    return Requests.of(nothing, nothing, nothing, (offsets, items), np.arange(rows, dtype=np.int32))


@given(some_rows, st.integers(0, 7))
def test_the_best_come_first_with_ties_by_item_number_and_nan_last(rows, k):
    requests = make_requests([len(row) for row in rows])
    scores = np.array([score for row in rows for score in row], np.float64)
    rung = np.arange(len(rows)).astype(np.int8)
    ranked = top_ranked(requests, scores, k, rung)
    table = ranked.table(7)
    for q in range(len(rows)):
        own = np.arange(requests.offsets[q], requests.offsets[q + 1])
        key = {r: (np.isnan(scores[r]), -scores[r], requests.item_index[r]) for r in own}
        best = sorted(own, key=lambda r, key=key: (key[r][0], 0.0 if key[r][0] else key[r][1], key[r][2]))[:k]
        part = slice(ranked.offsets[q], ranked.offsets[q + 1])
        assert ranked.source[part].tolist() == [int(r) for r in best]  # the source is the row number
        assert ranked.item_index[part].tolist() == requests.item_index[best].tolist()
        np.testing.assert_array_equal(ranked.score[part], scores[best])
        assert table[q].tolist() == ranked.item_index[part].tolist() + [-1] * (7 - len(best))
    assert ranked.rung is rung


def test_a_table_can_be_narrower_than_its_lists():
    requests = make_requests([3, 1])
    ranked = top_ranked(requests, np.array([1.0, 3.0, 2.0, 0.0]), 3, np.zeros(2, np.int8))
    assert ranked.table(2).tolist() == [[3, 0], [0, -1]]


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 12))
def test_blocks_hold_every_request_once_and_few_rows(lengths, rows):
    offsets = lengths_to_offsets(np.array(lengths, np.int64))
    found = list(blocks(offsets, rows))
    assert [number for block in found for number in block] == list(range(len(lengths)))
    for block in found:
        assert len(block) == 1 or offsets[block[-1] + 1] - offsets[block[0]] <= rows


@pytest.mark.parametrize(("count", "expected"), [(0, []), (4, [[0, 1, 2, 3]]), (5, [[0, 1, 2, 3], [4]])])
def test_request_blocks_have_one_size(count, expected):
    assert [block.tolist() for block in request_blocks(count, 4)] == expected
