"""The best items of each row of a score block, by one pass over it with a small heap."""

from __future__ import annotations

import numpy as np
from numba import njit

from recsys.events import Float32, Int32, Int64


def top_items(scores: Float32, limit: int) -> tuple[Int64, Int32, Float32]:
    """Row, item and score of the `limit` best finite scores of each row, best first, ties by item number.

    `scores` has shape (rows, items); scores that are not finite are never chosen.
    """
    rows, items = scores.shape
    limit = min(limit, items)
    if not rows or not limit:
        return np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32)
    chosen = np.full((rows, limit), -1, np.int32)
    _select(np.ascontiguousarray(scores), chosen)
    owner = np.nonzero(chosen >= 0)[0]
    item = chosen[chosen >= 0]
    value = scores[owner, item]
    order = np.lexsort((item, -value, owner))
    return owner[order], item[order], value[order]


@njit(cache=True, nogil=True)
def _select(scores: Float32, chosen: Int32) -> None:
    """Write the best items of each row into `chosen` (rows, limit), in heap order; -1 where too few."""
    limit = chosen.shape[1]
    worst = np.empty(limit, np.float32)
    for row in range(len(scores)):
        size = 0
        line = scores[row]
        for item in range(len(line)):
            value = line[item]
            if not np.isfinite(value):
                continue
            if size < limit:
                worst[size], chosen[row, size] = value, item
                size += 1
                if size == limit:
                    for place in range(limit // 2 - 1, -1, -1):
                        _sink(worst, chosen[row], place)
            elif value > worst[0]:  # an equal score loses to the smaller item number, which came before
                worst[0], chosen[row, 0] = value, item
                _sink(worst, chosen[row], 0)


@njit(cache=True, nogil=True)
def _sink(worst: Float32, items: Int32, place: int) -> None:
    """Restore the heap below `place`: the lowest score on top, of equal ones the highest item number."""
    size = len(worst)
    while True:
        child = 2 * place + 1
        if child >= size:
            return
        if child + 1 < size and _is_worse(worst, items, child + 1, child):
            child += 1
        if not _is_worse(worst, items, child, place):
            return
        worst[place], worst[child] = worst[child], worst[place]
        items[place], items[child] = items[child], items[place]
        place = child


@njit(cache=True, nogil=True)
def _is_worse(worst: Float32, items: Int32, first: int, second: int) -> bool:
    if worst[first] != worst[second]:
        return bool(worst[first] < worst[second])
    return bool(items[first] > items[second])
