"""The cold-start ladder: which evidence an answer rests on.

personal    the user was in the collaborative training data
folded_in   a newer user, whose history holds items that the collaborative model knows
content     only the text of the history is known
category    only the categories of the history are known
popular     nothing is known of the user
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from recsys.events import Bool, Int32, Int64
from recsys.requests import HistoryBatch

RUNGS = ("personal", "folded_in", "content", "category", "popular")


def rungs(
    user_index: Int32,
    history: HistoryBatch,
    known_users: Bool,
    collaborative_items: Bool,
    worded_items: Bool,
    category: Int32,
) -> NDArray[np.int8]:
    """(requests,) place in RUNGS of each request.

    `known_users` is (users,); `collaborative_items` and `worded_items` are (items,), whether the
    collaborative model and the encoder know them; `category` is (items,), -1 where missing.
    """
    found = np.empty(len(history), np.int8)
    tables = (known_users, collaborative_items, worded_items, category)
    _climb(user_index, history.offsets, history.item_index, tables, found)
    return found


@njit(cache=True, nogil=True)
def _climb(
    user_index: Int32,
    offsets: Int64,
    history: Int32,
    tables: tuple[Bool, Bool, Bool, Int32],
    found: NDArray[np.int8],
) -> None:
    known_users, collaborative, worded, category = tables
    for request in range(len(found)):
        best = 4
        for row in range(offsets[request], offsets[request + 1]):
            item = history[row]
            if item < 0:
                continue
            if collaborative[item]:
                best = 1
                break
            if worded[item]:
                best = min(best, 2)
            elif category[item] >= 0:
                best = min(best, 3)
        user = user_index[request]
        if best == 1 and 0 <= user < len(known_users) and known_users[user]:
            best = 0
        found[request] = best
