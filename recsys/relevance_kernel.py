"""The relevance head's forward pass compiled by numba, over requests in CSR form.

It knows arrays only. What they mean, and how they are made, stands in `relevance`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from recsys.events import Float32, Int32, Int64

REORDER = {"reassoc", "contract", "nsz"}
"""Sums may be vectorised: the order of adding is fixed when the kernel is compiled, not by its input."""

LANES = 4
"""History events whose dot products with a candidate are taken together."""


class KernelLog(NamedTuple):
    """Requests and histories: candidate rows, history events, and each event's attention bias."""

    offsets: Int64
    item_index: Int32
    history_offsets: Int64
    history_item: Int32
    history_bias: Float32


class KernelItems(NamedTuple):
    """The tables of `relevance.ProjectedItems`."""

    vectors: Float32
    candidate: Float32
    history: Float32
    hidden: Float32
    prior: Float32


class KernelWeights(NamedTuple):
    """Those of `relevance.HeadWeights` that are needed per row, units folded in."""

    attention: Float32
    null: Float32
    dense: Float32
    bilinear: Float32
    hidden_pooled: Float32
    hidden_product: Float32
    output: Float32


class _History(NamedTuple):
    """One request's history, padded with zero rows to a multiple of LANES."""

    vectors: Float32
    keys: Float32
    bias: Float32


@njit(cache=True, nogil=True, fastmath=REORDER)
def _dots(vector: Float32, rows: Float32, events: int, out: Float32) -> None:
    """out[j] = vector · rows[j] for j < events, LANES rows at a time."""
    for j in range(0, events, 4):
        a, b, c, d = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
        row_a, row_b, row_c, row_d = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
        for i in range(len(vector)):
            x = vector[i]
            a += x * row_a[i]
            b += x * row_b[i]
            c += x * row_c[i]
            d += x * row_d[i]
        out[j], out[j + 1], out[j + 2], out[j + 3] = a, b, c, d


@njit(cache=True, nogil=True, fastmath=REORDER)
def _attend(
    history: _History,
    vector: Float32,
    projected: Float32,
    weights: KernelWeights,
    pooled: Float32,
    scratch: Float32,
) -> np.float32:
    """Fill `pooled`; return the dense part of the logit. `scratch` is (2, padded events)."""
    events = len(history.bias)
    similarity, logit = scratch[0], scratch[1]
    _dots(vector, history.vectors, events, similarity)
    _dots(projected, history.keys, events, logit)
    top, total, best = weights.attention[2], np.float32(0.0), np.float32(-1.0)
    for j in range(events):
        logit[j] = weights.attention[0] * similarity[j] + weights.attention[1] * logit[j] + history.bias[j]
        total += similarity[j]
        best, top = max(best, similarity[j]), max(top, logit[j])
    share = np.exp(weights.attention[2] - top)
    mass, attended = share, np.float32(0.0)
    for j in range(events):
        logit[j] = np.exp(logit[j] - top)
        mass += logit[j]
        attended += logit[j] * similarity[j]
    for i in range(len(pooled)):
        pooled[i] = share * weights.null[i]
    for j in range(events):
        for i in range(len(pooled)):
            pooled[i] += logit[j] * history.keys[j, i]
    for i in range(len(pooled)):
        pooled[i] /= mass
    if events == 0:
        return np.float32(0.0)
    dense = weights.dense[0] * (attended / mass) + weights.dense[1] * (total / np.float32(events))
    dense += weights.dense[2] * best + weights.dense[3] * similarity[events - 1]
    return dense + weights.dense[4] * np.float32(np.log1p(np.float32(events)))


@njit(cache=True, nogil=True, fastmath=REORDER)
def _perceptron(pooled: Float32, projected: Float32, hidden: Float32, weights: KernelWeights) -> np.float32:
    """Bilinear term and hidden layer; `hidden` holds the candidate's part and is overwritten."""
    total = np.float32(0.0)
    for i in range(len(pooled)):
        product = projected[i] * pooled[i]
        total += weights.bilinear[i] * product
        for k in range(len(hidden)):
            hidden[k] += pooled[i] * weights.hidden_pooled[i, k] + product * weights.hidden_product[i, k]
    for k in range(len(hidden)):
        total += weights.output[k] * max(hidden[k], np.float32(0.0))
    return total


@njit(cache=True, nogil=True, fastmath=REORDER)
def score_requests(
    first: int, last: int, log: KernelLog, items: KernelItems, weights: KernelWeights, out: Float32
) -> None:
    """Logits of the rows of requests first..last-1, written to their places in `out`.

    Item -1 is unknown: it is the last row of the projected tables and has a text vector of zeros.
    """
    longest = 0
    for q in range(first, last):
        longest = max(longest, log.history_offsets[q + 1] - log.history_offsets[q])
    padded = (longest + LANES - 1) // LANES * LANES
    width, dim = items.vectors.shape[1], len(weights.null)
    vectors = np.zeros((padded, width), np.float32)
    keys = np.zeros((padded, dim), np.float32)
    scratch = np.zeros((2, padded), np.float32)
    pooled, hidden = np.empty(dim, np.float32), np.empty(len(weights.output), np.float32)
    unknown = np.zeros(width, np.float32)
    for q in range(first, last):
        start, stop = log.history_offsets[q], log.history_offsets[q + 1]
        for j in range(stop - start):
            item = log.history_item[start + j]
            vectors[j] = items.vectors[item] if item >= 0 else unknown
            keys[j] = items.history[item]
        history = _History(vectors, keys, log.history_bias[start:stop])
        for row in range(log.offsets[q], log.offsets[q + 1]):
            item = log.item_index[row]
            vector = items.vectors[item] if item >= 0 else unknown
            projected = items.candidate[item]
            total = items.prior[item] + _attend(history, vector, projected, weights, pooled, scratch)
            hidden[:] = items.hidden[item]
            out[row] = total + _perceptron(pooled, projected, hidden, weights)
