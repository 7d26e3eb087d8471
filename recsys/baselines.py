"""What the full model is compared with: one simple scorer each, over the same log and the same requests.

Each scorer gives a block of scores (requests, items) that sees only the fitted past; items that it
knows nothing of score -inf.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recsys.events import Bool, Float32, Int32
from recsys.pairs import known_rows
from recsys.protocols import Split
from recsys.recommender import request_blocks
from recsys.requests import HistoryBatch, Requests
from recsys.retrieval import Retriever, Seen, top_items
from recsys.retrieval.sources import als_scores, history_matrix, neighbour_scores

BASELINES = ("random", "popularity", "item_knn", "als", "text_neighbours")
"""Baselines that score whole blocks; the head alone orders the full model's candidates."""

BlockScorer = Callable[[Requests, HistoryBatch], Float32]


def baseline_scorers(split: Split, retriever: Retriever, *, seed: int = 0) -> dict[str, BlockScorer]:
    """The scorers by name, fitted on `split.train` (the retriever's models are)."""
    items = len(retriever.embeddings)
    train = split.train
    counted = train.events.take(train.is_target[train.events.type_index])
    popularity = np.bincount(counted.item_index, minlength=items).astype(np.float32)

    def random(requests: Requests, history: HistoryBatch) -> Float32:
        """Uniform scores, drawn per user, so that they do not depend on the block."""
        draws = [np.random.default_rng((seed, int(user) + 1)) for user in requests.user_index]
        return np.stack([rng.random(items, np.float32) for rng in draws])

    def popular(requests: Requests, history: HistoryBatch) -> Float32:
        return np.tile(popularity, (len(requests), 1))

    def item_knn(requests: Requests, history: HistoryBatch) -> Float32:
        whole = np.ones(len(history.item_index))
        return neighbour_scores(retriever.collaborative.item_item, history, whole)

    def als(requests: Requests, history: HistoryBatch) -> Float32:
        return als_scores(retriever.collaborative, history, retriever.weights)

    def text(requests: Requests, history: HistoryBatch) -> Float32:
        profile = history_matrix(history, np.ones(len(history.item_index)), items) @ retriever.embeddings
        scores: Float32 = (profile @ retriever.embeddings.T).astype(np.float32)
        scores[:, ~known_rows(retriever.embeddings)] = -np.inf
        scores[~profile.any(axis=1)] = -np.inf
        return scores

    return dict(zip(BASELINES, (random, popular, item_knn, als, text), strict=True))


def among(scorer: BlockScorer, allowed: Bool) -> BlockScorer:
    """The scorer over these items only; `allowed` is (items,)."""

    def scores(requests: Requests, history: HistoryBatch) -> Float32:
        block = scorer(requests, history)
        block[:, ~allowed] = -np.inf
        return block

    return scores


def top_lists(scorer: BlockScorer, requests: Requests, history: HistoryBatch, seen: Seen, k: int) -> Int32:
    """(requests, k) best unseen items of the full catalogue, -1 past the end of a list."""
    out = np.full((len(requests), k), -1, np.int32)
    for chosen in request_blocks(len(requests)):
        block = scorer(requests.take(chosen), history.take(chosen))
        rows = np.repeat(np.arange(len(chosen)), np.diff(seen.offsets)[chosen])
        first, last = seen.offsets[chosen[0]], seen.offsets[chosen[-1] + 1]
        block[rows, seen.item_index[first:last]] = -np.inf
        owner, item, _ = top_items(block, k)
        place = np.arange(len(owner)) - np.searchsorted(owner, owner)
        out[chosen[owner], place] = item
    return out


def slate_scores(scorer: BlockScorer, requests: Requests, history: HistoryBatch) -> Float32:
    """(rows,) score of every shown item; what the scorer knows nothing of shares a score below all."""
    out = np.empty(requests.rows, np.float32)
    for chosen in request_blocks(len(requests), 256):
        part = requests.take(chosen)
        block = scorer(part, history.take(chosen))
        scores = block[part.request_of_row(), np.maximum(part.item_index, 0)]
        finite = np.isfinite(scores) & (part.item_index >= 0)
        floor = scores[finite].min() - 1.0 if finite.any() else 0.0
        first = requests.offsets[chosen[0]]
        out[first : first + part.rows] = np.where(finite, scores, floor)
    return out
