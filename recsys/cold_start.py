"""The cold-start ladder: which evidence an answer rests on.

personal    the user was in the collaborative training data
folded_in   a newer user, whose history holds items that the collaborative model knows
content     only the text of the history is known
category    only the categories of the history are known
popular     nothing is known of the user
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys.events import Bool, Int32
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
    item = np.maximum(history.item_index, 0)
    in_catalogue = history.item_index >= 0
    collaborative = _any(history, in_catalogue & collaborative_items[item])
    content = _any(history, in_catalogue & worded_items[item])
    categorised = _any(history, in_catalogue & (category[item] >= 0))
    trained = (user_index >= 0) & (user_index < len(known_users))
    trained &= known_users[np.where(trained, user_index, 0)] if len(known_users) else False
    conditions = [trained & collaborative, collaborative, content, categorised]
    chosen = np.select(conditions, [0, 1, 2, 3], default=4)
    return chosen.astype(np.int8)


def _any(history: HistoryBatch, holds: Bool) -> Bool:
    """(requests,) whether any history event of the request holds."""
    owner = np.repeat(np.arange(len(history)), np.diff(history.offsets))
    return np.bincount(owner[holds], minlength=len(history)) > 0
