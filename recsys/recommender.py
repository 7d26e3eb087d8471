"""The scoring core: batch, online, evaluation and explanation all rank through this one class.

It holds fitted models only. What a request may know of the past comes in as a `Reading`, from a replay
of the log or from live state; which columns the ranker sees is up to the `FeatureBuilder`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from recsys.cold_start import rungs
from recsys.dense_products import DenseProducts
from recsys.events import Bool, Float32, Float64, Int32, Int64
from recsys.newcomers import with_newcomers
from recsys.pairs import DensePairs, SparsePairs
from recsys.ranked import Ranked, top_ranked
from recsys.ranking import Ranker
from recsys.relevance import ProjectedItems, RelevanceHead
from recsys.requests import HistoryBatch, Requests, blocks
from recsys.reranking import Reranker
from recsys.retrieval import Retriever, Seen
from recsys.row_scores import row_scores

Progress = Callable[[int, int], None]
Pairs = Mapping[str, DensePairs | DenseProducts | SparsePairs]


class Reading(Protocol):
    """What a batch of requests may know: histories and counter values."""

    @property
    def history(self) -> HistoryBatch:
        """Recent history of each request."""


class State(Protocol):
    """Where readings come from."""

    def read(self, requests: Requests) -> Reading:
        """What these requests may know, each at its own moment."""


class Schema(Protocol):
    """Names the matrix columns."""

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in order."""

    @property
    def digest(self) -> str:
        """Stable digest of names, order and declarations."""


class FeatureBuilder(Protocol):
    """Turns readings and model scores into the ranker's matrix."""

    @property
    def schema(self) -> Schema:
        """The columns that `build` gives."""

    @property
    def compared_events(self) -> int:
        """Of how many of the newest events of a history the pair scores are looked at."""

    def build(
        self,
        requests: Requests,
        reading: Any,
        pairs: Pairs,
        scores: Mapping[str, Float32],
        event_weights: Float32,
    ) -> Float32:
        """Matrix (rows, features) in schema order; `reading` is what the matching `State` gave."""


@dataclass(frozen=True)
class Recommender:
    """Fitted models and the feature builder that feeds the ranker.

    Attributes:
        retriever: candidate sources with the collaborative and text models they use.
        head: the relevance head.
        ranker: None before it is fitted; then only candidates and matrices can be had.
        features: column definitions.
        known_users: (users,) who was in the collaborative training data.
        category: (items,) category codes, for the cold-start ladder.
        newcomers: share of untouched items that lists of retrieved candidates are calibrated to.
    """

    retriever: Retriever
    head: RelevanceHead
    ranker: Ranker | None
    features: FeatureBuilder
    known_users: Bool
    category: Int32
    newcomers: float = 0.0

    @cached_property
    def pairs(self) -> Pairs:
        """The pairwise scores that features aggregate over a history, without those that know no pair."""
        retriever = self.retriever
        sparse = {
            "item_item": retriever.collaborative.item_item,
            "ease": retriever.collaborative.ease,
            "transition": retriever.transitions,
            "to_outcome": retriever.covisitation.to_outcome,
            "between_outcomes": retriever.covisitation.between_outcomes,
        }
        known = {name: pairs for name, pairs in sparse.items() if len(pairs.values)}
        return {"text": retriever.text, "als": retriever.collaborative.pairs, **known}

    def with_ranker(self, ranker: Ranker, newcomers: float = 0.0) -> Recommender:
        """The same models with this ranker and this share of untouched items."""
        return replace(self, ranker=ranker, newcomers=newcomers)

    def head_scores(
        self, requests: Requests, reading: Reading, products: DenseProducts | None = None
    ) -> Float32:
        """(rows,) click probability of every candidate row; `products` of the texts, where they are there."""
        return self.head.score(requests, reading.history, self._projected, products)

    @cached_property
    def _projected(self) -> ProjectedItems:
        return self.head.project(self.retriever.embeddings)

    def als_scores(self, requests: Requests, history: HistoryBatch) -> Float32:
        """(rows,) folded-in user vector times item factors; NaN where either is unknown."""
        collaborative = self.retriever.collaborative
        users = collaborative.fold_in(history, self.retriever.weights)
        known = collaborative.pairs.known
        return row_scores(requests, users, collaborative.factors, known, self._no_bias)

    @cached_property
    def _no_bias(self) -> Float32:
        return np.zeros(len(self.retriever.collaborative.factors), np.float32)

    def matrix(self, requests: Requests, reading: Reading, *, text: bool = True) -> Float32:
        """Feature matrix (rows, features) of the requests' candidates.

        Without `text`, what rests on item texts alone is missing: a cheaper matrix for a busy server.
        """
        scores = {
            "als_user": self.als_scores(requests, reading.history),
            "sequence": self.retriever.sequence.scores(requests, reading.history),
        }
        pairs = {name: table for name, table in self.pairs.items() if name != "text"}
        if text:
            limit = max(self.features.compared_events, self.head.config.history_limit)
            products = DenseProducts.of(self.retriever.text, requests, reading.history, limit)
            scores["head"] = self.head_scores(requests, reading, products)
            pairs["text"] = products
        return self.features.build(requests, reading, pairs, scores, self.retriever.weights)

    def matrix_in_blocks(self, requests: Requests, state: State, progress: Progress | None = None) -> Float32:
        """`matrix` over any number of requests, built block by block into one array."""
        out = np.empty((requests.rows, len(self.features.schema.names)), np.float32)
        for chosen in blocks(requests.offsets):
            rows = slice(requests.offsets[chosen[0]], requests.offsets[chosen[-1] + 1])
            block = requests.take(chosen)
            out[rows] = self.matrix(block, state.read(block))
            if progress:
                progress(int(chosen[-1]) + 1, len(requests))
        return out

    def score(self, requests: Requests, state: State, *, threads: int = 1) -> Float64:
        """(rows,) ranking score of every candidate row, comparable within a request."""
        out = np.empty(requests.rows)
        for chosen in blocks(requests.offsets):
            rows = slice(requests.offsets[chosen[0]], requests.offsets[chosen[-1] + 1])
            block = requests.take(chosen)
            out[rows] = self.score_matrix(block, self.matrix(block, state.read(block)), threads=threads)
        return out

    def score_matrix(self, requests: Requests, matrix: Float32, *, threads: int = 1) -> Float64:
        """(rows,) likewise, from the matrix of these requests.

        Raises:
            ValueError: there is no ranker.
        """
        if self.ranker is None:
            raise ValueError("the recommender has no ranker yet: fit one and use with_ranker")
        scores = self.ranker.score(matrix, self.features.schema.digest, threads=threads)
        return with_newcomers(requests, scores, self.newcomers)

    def candidates(self, requests: Requests, state: State, seen: Seen) -> Requests:
        """The requests with candidates from every source; their own candidates are replaced."""
        return self.retriever.retrieve(requests, state.read(requests).history, seen)

    def recommend(
        self,
        requests: Requests,
        state: State,
        k: int,
        *,
        threads: int = 1,
        reranker: Reranker | None = None,
    ) -> Ranked:
        """Score the requests' candidates and keep the best k of each, ties by item number.

        A reranker makes the lists its own way; without one, or with everything off, the score decides.
        """
        scores = self.score(requests, state, threads=threads)
        history = state.read(requests).history
        rerank = top_ranked if reranker is None else reranker.rerank
        return rerank(requests, scores, k, self.rungs(requests, history))

    def settle(self, row: int, embedding: Float32, category: int, first_seen: float) -> None:
        """Let an item move into a row that nothing was known of (`model.with_room`), in place.

        Args:
            row: of the item.
            embedding: (dim,) of its text, zeros where there is none.
            category: code, -1 where missing.
            first_seen: epoch seconds.
        """
        self.category[row] = category
        self.retriever.settle(row, embedding, first_seen)
        one = self.head.project(embedding[None])
        for table, value in zip(self._projected.tables(), one.tables(), strict=True):
            table[row] = value[0]

    def rungs(self, requests: Requests, history: HistoryBatch) -> NDArray[np.int8]:
        """(requests,) cold-start rung of each request."""
        return rungs(
            requests.user_index,
            history,
            self.known_users,
            self.retriever.collaborative.pairs.known,
            self.retriever.text.known,
            self.category,
        )


def request_blocks(count: int, size: int = 512) -> Iterator[Int64]:
    """Consecutive request numbers, `size` at a time, for requests that have no candidates yet."""
    for first in range(0, count, size):
        yield np.arange(first, min(first + size, count), dtype=np.int64)
