"""Fits ALS and item-item with `implicit`, which is used for nothing else, and EASE in closed form."""

from __future__ import annotations

import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import ItemItemRecommender, normalize
from scipy import linalg, sparse
from threadpoolctl import threadpool_limits

from recsys.collaborative import Collaborative, CollaborativeConfig
from recsys.dataset import Dataset
from recsys.events import Float32
from recsys.pairs import SparsePairs, keep_strongest
from recsys.requests import DAY_S


def fit_collaborative(data: Dataset, config: CollaborativeConfig, *, seed: int = 0) -> Collaborative:
    """Fit on every target event of `data`; an empty log gives zero factors and no neighbours."""
    interactions = interaction_matrix(data, config.half_life_days)
    if not interactions.nnz:
        items = len(data.catalogue)
        empty = SparsePairs.empty(items)
        zeros = np.zeros((items, config.embedding_dim), np.float32)
        return Collaborative(zeros, empty, empty, config.regularization, config.confidence)
    factors = _als_factors(interactions, config, seed)
    neighbours = item_item_pairs(interactions, config)
    ease = ease_pairs(interactions, config)
    return Collaborative(factors, neighbours, ease, config.regularization, config.confidence)


def interaction_matrix(data: Dataset, half_life_days: float | None = None) -> sparse.csr_matrix:
    """Users x items, the summed weight of target events, each decayed to the end of the log."""
    events = data.events
    rows = np.flatnonzero(data.is_target[events.type_index]) if len(events) else np.zeros(0, np.int64)
    value = data.weights[events.type_index[rows]].astype(np.float64)
    if half_life_days is not None and len(rows):
        value *= np.exp2(-(events.timestamp[-1] - events.timestamp[rows]) / (half_life_days * DAY_S))
    shape = (len(data.users), len(data.catalogue))
    index = (events.user_index[rows], events.item_index[rows])
    matrix = sparse.coo_matrix((value.astype(np.float32), index), shape=shape).tocsr()
    matrix.eliminate_zeros()
    return matrix


def _als_factors(interactions: sparse.csr_matrix, config: CollaborativeConfig, seed: int) -> Float32:
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=config.embedding_dim,
            regularization=config.regularization,
            alpha=config.confidence,
            iterations=config.epochs,
            use_gpu=False,
            random_state=seed,
            num_threads=0,
        )
        model.fit(interactions, show_progress=False)
    factors = np.array(model.item_factors, np.float32)
    factors[np.diff(interactions.tocsc().indptr) == 0] = 0.0
    return factors


def item_item_pairs(interactions: sparse.csr_matrix, config: CollaborativeConfig) -> SparsePairs:
    """Cosine of the items' columns of users, the strongest of each row."""
    unit = normalize(interactions.T).T.tocsr()  # CosineRecommender without its warning about CSR
    model = ItemItemRecommender(K=config.neighbours + 1, num_threads=0)
    model.fit(unit, show_progress=False)
    similarity = model.similarity.tocsr().astype(np.float32)
    similarity.setdiag(0)
    return SparsePairs.from_csr(similarity)


def ease_pairs(interactions: sparse.csr_matrix, config: CollaborativeConfig) -> SparsePairs:
    """Weights of the shallow linear autoencoder (Steck 2019, eq. 8), the largest positive ones a row.

    Interactions count 1 each, whatever their strength. No weights for a catalogue with more items with
    events than `ease_items_max`.
    """
    items = interactions.shape[1]
    known = np.flatnonzero(np.diff(interactions.tocsc().indptr))
    if len(known) > config.ease_items_max:
        return SparsePairs.empty(items)
    seen = interactions[:, known].astype(np.float64)
    seen.data[:] = 1.0
    gram = (seen.T @ seen).toarray()
    gram[np.diag_indices_from(gram)] += config.ease_regularization
    factor, _ = linalg.lapack.dpotrf(gram, lower=1, overwrite_a=1)
    precision, _ = linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
    precision = np.tril(precision) + np.tril(precision, -1).T
    weights = precision / -np.diag(precision)
    np.fill_diagonal(weights, 0.0)
    weights[weights <= 0.0] = 0.0
    strongest = keep_strongest(sparse.csr_matrix(weights.astype(np.float32)), config.neighbours).tocoo()
    index = (known[strongest.row], known[strongest.col])
    return SparsePairs.from_csr(sparse.csr_matrix((strongest.data, index), shape=(items, items)))
