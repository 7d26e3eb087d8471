"""What we are measured against: each peer is a fit that gives block scores, and the grid it is tuned on.

Nothing here sees an answer: a peer gets the log to fit on, the catalogue's text, and what each request may
know of its user's past. Tuning, metrics and tables are in `quality`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking
from implicit.nearest_neighbours import ItemItemRecommender, bm25_weight, normalize
from scipy import sparse
from scipy.linalg import blas, lapack
from sklearn.feature_extraction.text import TfidfVectorizer
from threadpoolctl import threadpool_limits

from recsys.baselines import BlockScorer
from recsys.collaborative_training import interaction_matrix
from recsys.dataset import Dataset
from recsys.events import Float32
from recsys.requests import HistoryBatch, Requests
from recsys.retrieval.sources import history_matrix

GRID_POINTS = 6
EASE_ITEMS = 20_000
"""EASE inverts a matrix of items by items: beyond this many items the least popular are left out."""

Params = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """What a peer may look at.

    Attributes:
        train: the log to fit on.
        requests: who will be asked, without what they did next.
        history: all that each request may know of its user's past, oldest first.
        texts: the text of every item.
        embeddings: (items, dim) of the frozen MiniLM, zeros where an item has no text.
    """

    train: Dataset
    requests: Requests
    history: HistoryBatch
    texts: list[str]
    embeddings: Float32


Fit = Callable[[Asked, Params, int], BlockScorer]


class UnavailableError(Exception):
    """A peer cannot run here; the message says why."""


@dataclass(frozen=True)
class Peer:
    """One peer.

    Attributes:
        name: in tables.
        fit: (asked, point, seed) to a scorer; what it knows nothing of scores -inf.
        grid: points to choose from, the likely best first.
        seeded: whether its fit is random, so that it is refitted once a seed.
        parts: peers whose chosen points its own points are joined with, under their names.
    """

    name: str
    fit: Fit
    grid: tuple[Params, ...]
    seeded: bool = False
    parts: tuple[str, ...] = ()


def fit_popularity(asked: Asked, params: Params, seed: int) -> BlockScorer:
    """Event counts, decayed by age where `half_life_days` is given."""
    counts = popularity_of(asked.train, params["half_life_days"])
    return lambda requests, history: np.tile(counts, (len(requests), 1))


def popularity_of(train: Dataset, half_life_days: float | None = None) -> Float32:
    """(items,) decayed event counts."""
    counts = interaction_matrix(train, half_life_days).sum(axis=0)
    return np.asarray(counts, np.float32).ravel()


def fit_cosine(asked: Asked, params: Params, seed: int) -> BlockScorer:
    """Item-item cosine (Sarwar et al. 2001): implicit's neighbours."""
    unit = normalize(interaction_matrix(asked.train).T).T.tocsr()
    model = ItemItemRecommender(K=params["neighbours"], num_threads=2)
    model.fit(unit, show_progress=False)
    return neighbour_scorer(model.similarity)


def fit_bm25(asked: Asked, params: Params, seed: int) -> BlockScorer:
    """Item-item with BM25 weights: implicit's neighbours."""
    weighted = bm25_weight(interaction_matrix(asked.train).T, params["k1"], params["b"]).T.tocsr()
    model = ItemItemRecommender(K=params["neighbours"], num_threads=2)
    model.fit(weighted, show_progress=False)
    return neighbour_scorer(model.similarity)


def neighbour_scorer(similarity: sparse.csr_matrix, position_decay: float = 1.0) -> BlockScorer:
    """Sum of the similarities to the items of the history; only what is above zero counts as known."""
    similarity = similarity.tocsr().astype(np.float32)

    def scores(requests: Requests, history: HistoryBatch) -> Float32:
        block: Float32 = (profile(history, similarity.shape[0], position_decay) @ similarity).toarray()
        block[block <= 0.0] = -np.inf
        return block

    return scores


def profile(history: HistoryBatch, items: int, position_decay: float = 1.0) -> sparse.csr_matrix:
    """(requests, items) history as weights that fall by `position_decay` a place from its end."""
    lengths = np.diff(history.offsets)
    place = np.repeat(history.offsets[1:], lengths) - 1 - np.arange(len(history.item_index))
    return history_matrix(history, position_decay ** place.astype(np.float64), items)


def fit_ease(asked: Asked, params: Params, seed: int) -> BlockScorer:
    """EASE on the items that have events."""
    seen = interaction_matrix(asked.train)
    counts = np.diff(seen.tocsc().indptr)
    chosen = np.sort(np.argsort(-counts, kind="stable")[: min(EASE_ITEMS, int((counts > 0).sum()))])
    weights = ease_weights(seen[:, chosen], params["regularization"])

    def scores(requests: Requests, history: HistoryBatch) -> Float32:
        known = profile(history, seen.shape[1])[:, chosen]
        known.data[:] = 1.0
        block = np.full((len(requests), seen.shape[1]), -np.inf, np.float32)
        block[:, chosen] = known @ weights
        block[np.diff(known.indptr) == 0] = -np.inf
        return block

    return scores


def ease_weights(interactions: sparse.csr_matrix, regularization: float) -> Float32:
    """(items, items) weights of EASE (Steck 2019, eq. 8): B = -P / diag(P) by columns, zero on the diagonal.

    P is the inverse of the Gram matrix of the binary interactions plus `regularization` times the identity,
    in single precision by its Cholesky factor: a third of the time of `potri`, and of `inv` in double.
    """
    binary = (interactions > 0).astype(np.float32)
    gram = (binary.T @ binary).toarray(order="F")
    diagonal = np.diag_indices_from(gram)
    gram[diagonal] += np.float32(regularization)
    factor, _ = lapack.spotrf(gram, lower=1, overwrite_a=1, clean=0)
    identity = np.eye(len(gram), dtype=np.float32, order="F")
    inverse_factor = blas.strsm(1.0, factor, identity, lower=1, overwrite_b=1)
    inverse: Float32 = inverse_factor.T @ inverse_factor
    inverse /= -np.diag(inverse).copy()
    inverse[diagonal] = 0.0
    return inverse


def fit_als(asked: Asked, params: Params, seed: int) -> BlockScorer:
    """Implicit ALS (Hu, Koren & Volinsky 2008); users are folded in from the history of their request."""
    interactions = interaction_matrix(asked.train)
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(**params, iterations=15, random_state=seed, num_threads=2)
        model.fit(interactions, show_progress=False)
    unknown = np.diff(interactions.tocsc().indptr) == 0

    def scores(requests: Requests, history: HistoryBatch) -> Float32:
        known = profile(history, interactions.shape[1])
        with threadpool_limits(1, "blas"):
            users = model.recalculate_user(np.arange(len(requests)), known)
        block: Float32 = users @ model.item_factors.T
        block[:, unknown] = -np.inf
        block[np.diff(known.indptr) == 0] = -np.inf
        return block

    return scores


def fit_bpr(asked: Asked, params: Params, seed: int) -> BlockScorer:
    """Bayesian personalised ranking (Rendle et al. 2009); one thread, so that a seed gives one model."""
    interactions = interaction_matrix(asked.train)
    model = BayesianPersonalizedRanking(**params, random_state=seed, num_threads=1)
    model.fit(interactions, show_progress=False)
    return trained_users_scorer(interactions, model.user_factors, model.item_factors)


def trained_users_scorer(
    interactions: sparse.csr_matrix, users: Float32, items: Float32, new_items: bool = False
) -> BlockScorer:
    """Dot products for users, and unless `new_items` for items, that have an event in `interactions`."""
    known_users = np.diff(interactions.tocsr().indptr) > 0
    unknown = np.diff(interactions.tocsc().indptr) == 0

    def scores(requests: Requests, history: HistoryBatch) -> Float32:
        block = (users[requests.user_index] @ items.T).astype(np.float32)
        if not new_items:
            block[:, unknown] = -np.inf
        block[(requests.user_index < 0) | ~known_users[requests.user_index]] = -np.inf
        return block

    return scores


def fit_lightfm(asked: Asked, params: Params, seed: int) -> BlockScorer:
    """LightFM (Kula 2015) with the WARP loss; items by identity, and by category where `metadata`."""
    try:
        from lightfm import LightFM
    except ImportError as error:
        raise UnavailableError(f"needs lightfm-next: {error}") from error
    interactions = interaction_matrix(asked.train)
    features = item_features(asked.train) if params["metadata"] else None
    model = LightFM(
        no_components=params["components"],
        learning_rate=params["learning_rate"],
        loss="warp",
        random_state=seed,
    )
    model.fit(interactions, item_features=features, epochs=params["epochs"], num_threads=2)
    item_bias, items = model.get_item_representations(features)
    _, users = model.get_user_representations()
    users = np.column_stack([users, np.ones(len(users), np.float32)])
    items = np.column_stack([items, item_bias])
    return trained_users_scorer(interactions, users, items, new_items=params["metadata"])


def item_features(train: Dataset) -> sparse.csr_matrix:
    """(items, features) identity, category and sub-category of each item as indicators, rows summing to 1."""
    items = len(train.catalogue)
    blocks = [sparse.identity(items, np.float32, "csr")]
    for codes in (train.catalogue.category, train.catalogue.subcategory):
        known = np.flatnonzero(codes >= 0)
        ones = (np.ones(len(known), np.float32), (known, codes[known]))
        blocks.append(sparse.csr_matrix(ones, shape=(items, int(codes.max(initial=0)) + 1)))
    stacked = sparse.hstack(blocks).tocsr()
    return (sparse.diags(1.0 / stacked.sum(axis=1).A1) @ stacked).tocsr().astype(np.float32)


def fit_tfidf(asked: Asked, params: Params, seed: int) -> BlockScorer:
    """Cosine of TF-IDF vectors to the summed vectors of the history."""
    vectorizer = TfidfVectorizer(
        ngram_range=(1, params["ngrams"]), sublinear_tf=True, stop_words="english", dtype=np.float32
    )
    vectors = vectorizer.fit_transform([*asked.texts, "a text so that there is a word"])[:-1].tocsr()
    terms = vectors.T.tocsr()

    def scores(requests: Requests, history: HistoryBatch) -> Float32:
        wanted = profile(history, len(asked.texts), params["position_decay"]) @ vectors
        block: Float32 = (wanted @ terms).toarray()
        block[block <= 0.0] = -np.inf
        return block

    return scores


def fit_minilm(asked: Asked, params: Params, seed: int) -> BlockScorer:
    """Cosine of frozen MiniLM embeddings to the summed embeddings of the history."""
    embeddings = asked.embeddings
    unknown = ~embeddings.any(axis=1)

    def scores(requests: Requests, history: HistoryBatch) -> Float32:
        wanted = profile(history, len(embeddings), params["position_decay"]) @ embeddings
        block = np.asarray(wanted @ embeddings.T, np.float32)
        block[:, unknown] = -np.inf
        block[~wanted.any(axis=1)] = -np.inf
        return block

    return scores


def fit_both(asked: Asked, params: Params, seed: int) -> BlockScorer:
    """Weighted sum of the item-kNN and the TF-IDF scores, each divided by its largest of the request."""
    neighbours = fit_bm25(asked, params["item_knn_bm25"], seed)
    text = fit_tfidf(asked, params["tfidf"], seed)
    share = params["text_share"]

    def scores(requests: Requests, history: HistoryBatch) -> Float32:
        parts = (neighbours(requests, history), text(requests, history))
        block = (1.0 - share) * normalised(parts[0]) + share * normalised(parts[1])
        block[block <= 0.0] = -np.inf
        return block

    return scores


def normalised(block: Float32) -> Float32:
    """Scores divided by the largest of their row, unknown ones 0."""
    known = np.where(np.isfinite(block), block, 0.0).astype(np.float32)
    largest = known.max(axis=1, keepdims=True, initial=0.0)
    return np.divide(known, largest, out=known, where=largest > 0)


def _points(names: tuple[str, ...], *rows: tuple[Any, ...]) -> tuple[Params, ...]:
    return tuple(dict(zip(names, row, strict=True)) for row in rows)


def _one(name: str, *values: Any) -> tuple[Params, ...]:
    return tuple({name: value} for value in values)


PEERS = (
    Peer("popularity", fit_popularity, _one("half_life_days", None, 365.0, 90.0, 30.0, 14.0, 7.0)),
    Peer("item_knn_cosine", fit_cosine, _one("neighbours", 200, 100, 50, 20, 500, 1000)),
    Peer(
        "item_knn_bm25",
        fit_bm25,
        _points(
            ("neighbours", "k1", "b"),
            *((200, 1.2, 0.75), (200, 1.2, 0.25), (200, 10.0, 0.5)),
            *((1000, 1.2, 0.75), (1000, 1.2, 0.25), (50, 1.2, 0.75)),
        ),
    ),
    Peer("ease", fit_ease, _one("regularization", 250.0, 100.0, 500.0, 50.0, 1000.0, 20.0)),
    Peer(
        "als",
        fit_als,
        _points(
            ("factors", "alpha", "regularization"),
            *((64, 8.0, 0.05), (128, 8.0, 0.05), (64, 2.0, 0.05)),
            *((128, 2.0, 1.0), (64, 32.0, 0.05), (128, 32.0, 1.0)),
        ),
        seeded=True,
    ),
    Peer(
        "bpr",
        fit_bpr,
        _points(
            ("factors", "learning_rate", "regularization", "iterations"),
            *((64, 0.05, 0.01, 100), (64, 0.1, 0.01, 50), (128, 0.05, 0.01, 100)),
            *((64, 0.02, 0.001, 100), (64, 0.05, 0.05, 100), (128, 0.05, 0.001, 50)),
        ),
        seeded=True,
    ),
    Peer(
        "lightfm",
        fit_lightfm,
        _points(
            ("components", "epochs", "learning_rate", "metadata"),
            *((64, 20, 0.05, False), (64, 20, 0.05, True), (64, 50, 0.02, False)),
            *((128, 20, 0.05, False), (32, 20, 0.05, False), (128, 50, 0.05, True)),
        ),
        seeded=True,
    ),
    Peer(
        "tfidf",
        fit_tfidf,
        _points(("ngrams", "position_decay"), (1, 1.0), (1, 0.8), (1, 0.5), (2, 1.0), (2, 0.8), (2, 0.5)),
    ),
    Peer("minilm", fit_minilm, _one("position_decay", 1.0, 0.9, 0.8, 0.6, 0.4, 0.2)),
    Peer(
        "item_knn_tfidf",
        fit_both,
        _one("text_share", 0.5, 0.3, 0.7, 0.2, 0.8, 0.1),
        parts=("item_knn_bm25", "tfidf"),
    ),
)
