"""Vectors of users are computed once for a history, and for another one anew."""

import numpy as np

from recsys.requests import HistoryBatch
from recsys.user_memo import MOST_NEW, UserMemo


def history(*items: int, kind: int = 0) -> HistoryBatch:
    count = len(items)
    return HistoryBatch(
        np.array([0, count]), np.array(items, np.int32), np.full(count, kind, np.int32), np.zeros(count)
    )


def test_a_history_is_computed_once_and_another_one_anew():
    memo, asked = UserMemo(), []

    def ask(batch: HistoryBatch, beside: bytes = b"") -> np.ndarray:
        return memo.get(batch, lambda: asked.append(batch) or np.full((1, 2), len(asked), np.float32), beside)

    first = ask(history(1, 2))
    assert ask(history(1, 2)) is first
    others = [ask(history(2, 1)), ask(history(1, 2, kind=1)), ask(history(1, 2), b"w"), ask(history(1))]
    assert len({int(each[0, 0]) for each in [first, *others]}) == len(asked) == 5
    memo.clear()
    assert ask(history(1, 2)) is not first


def test_what_was_before_the_newest_events_is_found():
    memo, two = UserMemo(), np.full((1, 2), 2.0, np.float32)
    memo.get(history(1, 2), lambda: two)
    assert memo.before(history(1, 2)) is None
    for newer in ([3], range(3, 3 + MOST_NEW)):
        assert memo.before(history(1, 2, *newer)) == (2, two)
    assert memo.before(history(1, 2, *range(3, 4 + MOST_NEW))) is None
    assert memo.before(history(0, 2, 3)) is None
    assert memo.before(history(1, 2, 3, kind=1)) is None


def test_it_stays_small_and_keeps_no_batches():
    memo = UserMemo(most=3)
    for item in range(10):
        memo.get(history(item), lambda: np.zeros((1, 2), np.float32))
        assert len(memo._vectors) <= 3
    empty = HistoryBatch(np.zeros(3, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0))
    before = len(memo._vectors)
    memo.get(empty, lambda: np.zeros((2, 2), np.float32))
    assert len(memo._vectors) == before
