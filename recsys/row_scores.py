"""Dot products between the users of requests and their candidates, row by row."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from recsys.dot_products import dot
from recsys.events import Bool, Float32, Int32, Int64
from recsys.requests import Requests


def row_scores(requests: Requests, users: Float32, items: Float32, known: Bool, bias: Float32) -> Float32:
    """(rows,) score of every candidate; NaN where the item, or the user, is unknown.

    A row's score does not depend on the rows beside it, to the bit.

    Args:
        requests: with candidates.
        users: (requests, d); a row of zeros is an unknown user.
        items: (items, d).
        known: (items,) whether an item has a row.
        bias: (items,) added to its scores.
    """
    out = np.empty(requests.rows, np.float32)
    _score(requests.offsets, requests.item_index, users, items, known, bias, out)
    return out


@njit(cache=True, nogil=True)
def _score(
    offsets: Int64,
    item_index: Int32,
    users: Float32,
    items: Float32,
    known: Bool,
    bias: Float32,
    out: Float32,
) -> None:
    for request in range(len(offsets) - 1):
        is_known = False
        for value in users[request]:
            is_known |= value != 0
        for row in range(offsets[request], offsets[request + 1]):
            item = item_index[row]
            if is_known and item >= 0 and known[item]:
                out[row] = dot(users[request], items[item]) + bias[item]
            else:
                out[row] = math.nan
