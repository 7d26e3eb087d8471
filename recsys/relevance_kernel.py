"""The relevance head's forward pass compiled by numba, over requests in CSR form.

It knows arrays only. What they mean, and how they are made, stands in `relevance`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from recsys.dot_products import LANES, REORDER, dots, dots_of_two
from recsys.events import Float32, Float64, Int32, Int64
from recsys.transcendental import exp32


class KernelLog(NamedTuple):
    """Requests and histories: candidate rows, history events, and each event's attention bias.

    The text similarities of a request stand in `similarity` from its `begin` on: event by event, each with
    all candidates.
    """

    offsets: Int64
    item_index: Int32
    history_offsets: Int64
    history_item: Int32
    history_bias: Float32
    similarity: Float32
    begin: Int64


class KernelItems(NamedTuple):
    """The projected tables of `relevance.ProjectedItems`."""

    candidate: Float32
    history: Float32
    hidden: Float32
    prior: Float32


class KernelWeights(NamedTuple):
    """Those of `relevance.HeadWeights` that are needed per row, units folded in.

    `hidden` holds the first layer's pooled and product parts side by side, one row a hidden unit and
    zero rows up to a multiple of LANES: (hidden, 2d).
    """

    attention: Float32
    null: Float32
    dense: Float32
    bilinear: Float32
    hidden: Float32
    output: Float32


class _History(NamedTuple):
    """One request's history: keys, padded to a multiple of LANES; similarities (events, candidates)."""

    keys: Float32
    bias: Float32
    similarity: Float32


@njit(cache=True, nogil=True)
def are_rows(index: Int32, size: int) -> bool:
    """Whether all numbers are in -1..size - 1."""
    wrong = 0
    for row in range(len(index)):
        wrong += (index[row] < -1) | (index[row] >= size)
    return wrong == 0


# The functions below work on all candidates of a request at a time: handing numba a tuple of arrays costs
# as much as a hundred multiplications, once a request instead of once a row.


@njit(cache=True, nogil=True)
def weigh_events(
    offsets: Int64,
    item_index: Int32,
    type_index: Int32,
    age_s: Float64,
    limit: int,
    biases: tuple[Float32, Float32, Float32],
) -> tuple[Int64, Int32, Float32]:
    """The newest `limit` events of each history, (r + 1,) and (events,), with their attention bias (events,).

    As `relevance.HistorySlots` sorts them into slots; `biases` are those of age, of place, and of the event
    types, whose last one is for types that the head does not know.
    """
    of_age, of_place, of_type = biases
    kept = np.zeros(len(offsets), np.int64)
    for q in range(len(offsets) - 1):
        kept[q + 1] = kept[q] + min(offsets[q + 1] - offsets[q], limit)
    items, bias = np.empty(kept[-1], np.int32), np.empty(kept[-1], np.float32)
    for q in range(len(offsets) - 1):
        for place in range(kept[q + 1] - kept[q]):
            row, to = offsets[q + 1] - 1 - place, kept[q + 1] - 1 - place
            age = min(math.log2(max(age_s[row], 0.0) / 3600.0 + 1.0), len(of_age) - 1.0)
            nth = min(math.log2(place + 1.0), len(of_place) - 1.0)
            kind = type_index[row]
            if not 0 <= kind < len(of_type) - 1:
                kind = len(of_type) - 1
            items[to] = item_index[row]
            bias[to] = of_age[int(age)] + of_place[int(nth)] + of_type[kind]
    return kept, items, bias


@njit(cache=True, nogil=True, fastmath=REORDER, error_model="numpy")
def _attend(
    index: Int32, history: _History, items: KernelItems, weights: KernelWeights, pooled: Float32, out: Float32
) -> None:
    """Fill `pooled` (candidates, d), and `out` (candidates,) with the dense part of the logit."""
    attended_w, mean_w, best_w, last_w, length_w = weights.dense
    rows, events = len(index), len(history.bias)
    length = length_w * np.float32(np.log1p(np.float32(events)))
    share = _weigh(index, history, items, weights)
    mass, attended = share[events].copy(), np.zeros(rows, np.float32)
    total, best = np.zeros(rows, np.float32), np.full(rows, np.float32(-1.0))
    for event in range(events):
        similarity, mine = history.similarity[event], share[event]
        for row in range(rows):
            mass[row] += mine[row]
            attended[row] += mine[row] * similarity[row]
            total[row] += similarity[row]
            best[row] = similarity[row] if similarity[row] > best[row] else best[row]
    for row in range(rows):
        _pool(share[:, row], history.keys, weights.null, mass[row], pooled[row])
        out[row] = length
    if events:
        newest = history.similarity[events - 1]
        for row in range(rows):
            out[row] += attended_w * (attended[row] / mass[row]) + mean_w * (total[row] / np.float32(events))
            out[row] += best_w * best[row] + last_w * newest[row]


@njit(cache=True, nogil=True, fastmath=REORDER, error_model="numpy")
def _weigh(index: Int32, history: _History, items: KernelItems, weights: KernelWeights) -> Float32:
    """Attention before it is divided by its mass, (events + 1, candidates), that of the null slot last."""
    scale, cross, empty = weights.attention
    rows, events = len(index), len(history.bias)
    share, found = np.empty((events + 1, rows), np.float32), np.empty((2, len(history.keys)), np.float32)
    for row in range(0, rows if events else 0, 2):
        other = min(row + 1, rows - 1)
        one, two = items.candidate[index[row]], items.candidate[index[other]]
        dots_of_two(one, two, history.keys, events, found[0], found[1])
        for event in range(events):
            share[event, row], share[event, other] = found[0, event], found[1, event]
    top = np.full(rows, empty)
    for event in range(events):
        logit, similarity, bias = share[event], history.similarity[event], history.bias[event]
        for row in range(rows):
            logit[row] = scale * similarity[row] + cross * logit[row] + bias
            top[row] = logit[row] if logit[row] > top[row] else top[row]
    share[events] = empty
    for event in range(events + 1):
        logit = share[event]
        for row in range(rows):
            logit[row] = exp32(logit[row] - top[row])
    return share


@njit(cache=True, nogil=True, fastmath=REORDER, error_model="numpy")
def _pool(share: Float32, keys: Float32, null: Float32, mass: np.float32, out: Float32) -> None:
    """The mean of the keys and the null key by one candidate's attention, to `out` (d,)."""
    events = len(share) - 1
    for i in range(len(null)):
        out[i] = share[events] * null[i]
    for event in range(events):
        for i in range(len(null)):
            out[i] += share[event] * keys[event, i]
    for i in range(len(null)):
        out[i] /= mass


@njit(cache=True, nogil=True, fastmath=REORDER, error_model="numpy")
def _interact(
    index: Int32, pooled: Float32, items: KernelItems, weights: KernelWeights, out: Float32
) -> None:
    """Add prior, bilinear term and hidden layer to `out` (candidates,)."""
    bilinear, output = weights.bilinear, weights.output
    dim, units = len(bilinear), len(output)
    inputs, sums = np.empty(2 * dim, np.float32), np.empty(len(weights.hidden), np.float32)
    for row in range(len(index)):
        item = index[row]
        total = items.prior[item]
        for i in range(dim):
            product = pooled[row, i] * items.candidate[item, i]
            inputs[i], inputs[dim + i] = pooled[row, i], product
            total += bilinear[i] * product
        dots(inputs, weights.hidden, units, sums)
        for k in range(units):
            total += output[k] * max(items.hidden[item, k] + sums[k], np.float32(0.0))
        out[row] += total


@njit(cache=True, nogil=True, fastmath=REORDER, error_model="numpy")
def score_requests(log: KernelLog, items: KernelItems, weights: KernelWeights, out: Float32) -> None:
    """Write the logits of all candidate rows to `out` (rows,).

    Item -1 is unknown: it is the last row of the projected tables.
    """
    longest, widest = 0, 0
    for q in range(len(log.offsets) - 1):
        longest = max(longest, log.history_offsets[q + 1] - log.history_offsets[q])
        widest = max(widest, log.offsets[q + 1] - log.offsets[q])
    padded = (longest + LANES - 1) // LANES * LANES
    keys = np.zeros((padded, len(weights.null)), np.float32)
    pooled = np.empty((widest, len(weights.null)), np.float32)
    for q in range(len(log.offsets) - 1):
        start, stop = log.history_offsets[q], log.history_offsets[q + 1]
        for j in range(stop - start):
            keys[j] = items.history[log.history_item[start + j]]
        index = log.item_index[log.offsets[q] : log.offsets[q + 1]]
        scores = log.similarity[log.begin[q] : log.begin[q] + (stop - start) * len(index)]
        history = _History(keys, log.history_bias[start:stop], scores.reshape(stop - start, len(index)))
        logits = out[log.offsets[q] : log.offsets[q + 1]]
        _attend(index, history, items, weights, pooled, logits)
        _interact(index, pooled, items, weights, logits)
