"""Fits the collaborative models with `implicit`; this is all that the package is used for."""

from __future__ import annotations

import numpy as np
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import ItemItemRecommender, normalize
from scipy import sparse
from threadpoolctl import threadpool_limits

from recsys.collaborative import Collaborative, CollaborativeConfig
from recsys.dataset import Dataset
from recsys.events import Float32
from recsys.pairs import SparsePairs
from recsys.requests import DAY_S


def fit_collaborative(data: Dataset, config: CollaborativeConfig, *, seed: int = 0) -> Collaborative:
    """Fit on every target event of `data`; an empty log gives zero factors and no neighbours."""
    interactions = interaction_matrix(data, config.half_life_days)
    if not interactions.nnz:
        items = len(data.catalogue)
        empty = SparsePairs.from_csr(sparse.csr_matrix((items, items), dtype=np.float32))
        zeros = np.zeros((items, config.embedding_dim), np.float32)
        return Collaborative(zeros, empty, config.regularization, config.confidence)
    factors = _als_factors(interactions, config, seed)
    neighbours = _item_item(interactions, config)
    return Collaborative(factors, neighbours, config.regularization, config.confidence)


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


def _item_item(interactions: sparse.csr_matrix, config: CollaborativeConfig) -> SparsePairs:
    unit = normalize(interactions.T).T.tocsr()  # CosineRecommender without its warning about CSR
    model = ItemItemRecommender(K=config.neighbours + 1, num_threads=0)
    model.fit(unit, show_progress=False)
    similarity = model.similarity.tocsr().astype(np.float32)
    similarity.setdiag(0)
    return SparsePairs.from_csr(similarity)
