"""Collaborative filtering: ALS item factors, item-item similarity and EASE weights as learned arrays.

Item factors are all that is kept of ALS: every user, known or new, is folded in from the history that
the request may see, so training rows, the night and a live call get their user vector in the same way.
`collaborative_training` fits them. Row numbers in, row numbers out; `dataset` holds the ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numba import njit
from safetensors.numpy import save

from recsys import numeric_storage
from recsys.errors import RecsysError
from recsys.events import Float32, Float64, Int32, Int64
from recsys.numeric_storage import Storage, load_arrays
from recsys.pairs import DensePairs, SparsePairs
from recsys.requests import HistoryBatch
from recsys.user_memo import UserMemo

_FILE = "collaborative.safetensors"


@dataclass(frozen=True)
class CollaborativeConfig:
    """Hyper-parameters of ALS, of the item-item model and of EASE.

    Attributes:
        embedding_dim: length of an ALS factor.
        epochs: ALS sweeps.
        regularization: ridge term of each ALS solve.
        confidence: weight of one click-strength event against an unseen item (alpha, Hu et al. 2008).
        half_life_days: age at which an event counts half; None keeps every event whole.
        neighbours: item-item neighbours and EASE weights kept per item.
        ease_regularization: ridge term of EASE.
        ease_items_max: most items with events for which EASE is solved, in time cubic in their number;
            a larger catalogue gets no EASE weights.
    """

    embedding_dim: int = 64
    epochs: int = 12
    regularization: float = 0.02
    confidence: float = 8.0
    half_life_days: float | None = None
    neighbours: int = 200
    ease_regularization: float = 3000.0
    ease_items_max: int = 5000


@dataclass(frozen=True)
class Collaborative:
    """Learned arrays: `factors` (items, dim), zero rows for items without events, and two pair scores."""

    factors: Float32
    item_item: SparsePairs
    ease: SparsePairs
    regularization: float
    confidence: float

    @cached_property
    def pairs(self) -> DensePairs:
        """ALS cosine as a pairwise score."""
        norms = np.linalg.norm(self.factors, axis=1, keepdims=True)
        return DensePairs(np.divide(self.factors, norms, out=np.zeros_like(self.factors), where=norms > 0))

    def fold_in(self, history: HistoryBatch, weights: Float32) -> Float32:
        """User factors (requests, dim) solved from each history; zeros where it holds no known item.

        One ridge solve a request with the item factors fixed (Hu, Koren & Volinsky 2008, eq. 4); the
        confidences of a repeated item add up. `weights` is (types,), the strength of each event type.
        """
        return self._memo.get(history, lambda: self._solve(history, weights), weights.tobytes())

    def _solve(self, history: HistoryBatch, weights: Float32) -> Float32:
        confidence = self.confidence * weights.astype(np.float64)[history.type_index]
        solved = _fold_in(self.factors, self._gram, history.offsets, history.item_index, confidence)
        return solved.astype(np.float32)

    @cached_property
    def _memo(self) -> UserMemo:
        return UserMemo()

    @cached_property
    def _gram(self) -> Float64:
        """(dim, dim) what every ridge solve starts from."""
        items = self.factors.astype(np.float64)
        return items.T @ items + self.regularization * np.eye(items.shape[1])

    def rounded(self, *, factors: Storage = "float32", pairs: Storage = "float32") -> Collaborative:
        """The same model with numbers that these kinds can hold; `to_files` then writes so few bytes.

        Raises:
            ValueError: what `numeric_storage.rounded` and `SparsePairs.rounded` refuse.
        """
        return replace(
            self,
            factors=numeric_storage.rounded(self.factors, factors),
            item_item=self.item_item.rounded(pairs),
            ease=self.ease.rounded(pairs),
        )

    def to_files(self) -> dict[str, bytes]:
        """Arrays for the bundle."""
        arrays = {
            **numeric_storage.to_arrays(self.factors, "factors"),
            **self.item_item.to_arrays("item_item"),
            **self.ease.to_arrays("ease"),
            "constants": np.array([self.regularization, self.confidence]),
        }
        return {_FILE: save(arrays)}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Collaborative:
        """Read what `to_files` wrote, its tables of any kind.

        Raises:
            RecsysError: the file is missing or damaged, or its arrays contradict each other.
        """
        arrays = load_arrays(files, _FILE, "collaborative_invalid")
        factors = numeric_storage.from_arrays(arrays, "factors")
        item_item, ease = (SparsePairs.from_arrays(arrays, name) for name in ("item_item", "ease"))
        constants = arrays.get("constants", np.zeros(0))
        if factors.ndim != 2 or not len(factors) == len(item_item) == len(ease) or constants.shape != (2,):
            raise RecsysError("collaborative_invalid", "its arrays contradict each other", _FILE)
        regularization, confidence = (float(x) for x in constants)
        return cls(factors, item_item, ease, regularization, confidence)


@njit(cache=True, nogil=True)
def _fold_in(
    items: Float32, gram: Float64, offsets: Int64, item_index: Int32, confidence: Float64
) -> Float64:
    dim = items.shape[1]
    out = np.zeros((len(offsets) - 1, dim))
    for q in range(len(offsets) - 1):
        system = gram.copy()
        target = np.zeros(dim)
        known = False
        for row in range(offsets[q], offsets[q + 1]):
            if item_index[row] < 0:
                continue
            y = items[item_index[row]].astype(np.float64)
            known = True
            unseen = 1.0  # the confidence that the Gram matrix holds already, once an item
            for earlier in range(offsets[q], row):
                if item_index[earlier] == item_index[row]:
                    unseen = 0.0
            for i in range(dim):
                target[i] += confidence[row] * y[i]
                scale = (confidence[row] - unseen) * y[i]
                for j in range(dim):
                    system[i, j] += scale * y[j]
        if known:
            out[q] = np.linalg.solve(system, target)
    return out
