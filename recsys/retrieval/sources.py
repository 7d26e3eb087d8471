"""Retrievers: each gives every request a score for every item; what it knows nothing of scores -inf.

A block of scores has shape (requests, items), float32. Lists of popular and fresh items are those of
the last midnight before the request.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from recsys.collaborative import Collaborative
from recsys.events import Float32, Float64
from recsys.pairs import DensePairs, SparsePairs
from recsys.popularity import Popularity
from recsys.requests import DAY_S, HistoryBatch


def als_scores(collaborative: Collaborative, history: HistoryBatch, weights: Float32) -> Float32:
    """Folded-in user vector times item factors."""
    users = collaborative.fold_in(history, weights)
    scores = users @ collaborative.factors.T
    scores[:, ~collaborative.pairs.known] = -np.inf
    scores[~users.any(axis=1)] = -np.inf
    return scores


def neighbour_scores(pairs: SparsePairs, history: HistoryBatch, recency: Float64) -> Float32:
    """Recency-weighted sum of the pair scores of each history; `recency` is (events,)."""
    matrix = history_matrix(history, recency, len(pairs)) @ pairs.csr
    scores: Float32 = matrix.toarray()
    scores[scores <= 0.0] = -np.inf
    return scores


def text_scores(text: DensePairs, history: HistoryBatch, recency: Float64) -> Float32:
    """Cosine of each item to the recency-weighted mean of the history, plus that to its newest item."""
    embeddings = text.factors
    profile = np.asarray(history_matrix(history, recency, len(embeddings)) @ embeddings, np.float32)
    norms = np.linalg.norm(profile, axis=1, keepdims=True)
    profile = np.divide(profile, norms, out=np.zeros_like(profile), where=norms > 0)
    newest = np.zeros_like(profile)
    some = np.flatnonzero(history.lengths > 0)
    item = history.item_index[history.offsets[some + 1] - 1]
    newest[some[item >= 0]] = embeddings[item[item >= 0]]
    scores = (profile + newest) @ embeddings.T
    scores[:, ~text.known] = -np.inf
    scores[~profile.any(axis=1)] = -np.inf
    return scores


def cold_scores(text: Float32, popularity: Popularity, timestamp: Float64) -> Float32:
    """`text` (requests, items) of the items that nobody had touched by the last midnight, -inf elsewhere."""
    midnight = np.floor(timestamp / DAY_S) * DAY_S
    touched = popularity.first_touched < midnight[:, None]
    return np.where(touched, np.float32(-np.inf), text)


def popular_scores(popularity: Popularity, timestamp: Float64) -> Float32:
    """Decayed event counts of the last midnight."""
    day = np.floor(timestamp / DAY_S).astype(np.int64)
    days, inverse = np.unique(day, return_inverse=True)
    scores = popularity.scores(days).astype(np.float32)
    scores[scores <= 0.0] = -np.inf
    return scores[inverse]


def fresh_scores(popularity: Popularity, timestamp: Float64) -> Float32:
    """First-seen moment: the newest item scores highest; items not there yet score -inf."""
    day = np.floor(timestamp / DAY_S).astype(np.int64)
    days, inverse = np.unique(day, return_inverse=True)
    scores = (popularity.freshness(days) / DAY_S).astype(np.float32)
    return scores[inverse]


def history_matrix(history: HistoryBatch, recency: Float64, items: int) -> sparse.csr_matrix:
    """(requests, items) sparse matrix of recency weights; repeated items add up, unknown items drop out."""
    known = history.item_index >= 0
    owner = np.repeat(np.arange(len(history)), history.lengths)
    index = (owner[known], history.item_index[known])
    return sparse.csr_matrix((recency[known].astype(np.float32), index), shape=(len(history), items))
