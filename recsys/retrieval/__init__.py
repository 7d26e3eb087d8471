"""Candidates: the union of what the retrievers propose, each candidate with its sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from recsys.collaborative import Collaborative
from recsys.events import Bool, Float32, Histories, Int32, Int64, concatenated_ranges, lengths_to_offsets
from recsys.pairs import DensePairs, SparsePairs
from recsys.popularity import Popularity
from recsys.requests import SOURCES, HistoryBatch, Requests
from recsys.retrieval import sources
from recsys.retrieval.top import top_items
from recsys.sequence import SequenceModel
from recsys.transitions import Covisitation

__all__ = ["RetrievalConfig", "Retriever", "Seen", "seen_items", "top_items"]


@dataclass(frozen=True)
class RetrievalConfig:
    """How many candidates each source may propose, and how histories are weighted.

    Attributes:
        als, item_item, ease, transition, covisitation, sequence, text, cold, fresh, popular: most candidates
            of that source.
        exclude_seen: leave out items that the user has already interacted with.
        half_life_days: age at which a history event counts half.
        position_decay: factor per place from the end of the history.
    """

    als: int = 60
    item_item: int = 60
    ease: int = 50
    transition: int = 50
    covisitation: int = 40
    sequence: int = 60
    text: int = 50
    cold: int = 15
    fresh: int = 10
    popular: int = 20
    exclude_seen: bool = True
    half_life_days: float = 365.0
    position_decay: float = 0.9


@dataclass(frozen=True)
class Seen:
    """Items to leave out: request q owns offsets[q]:offsets[q + 1] of `item_index`."""

    offsets: Int64
    item_index: Int32

    def owner(self) -> Int64:
        """(rows,) request of each row."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def seen_items(histories: Histories, requests: Requests) -> Seen:
    """Everything in each request's known history, however old."""
    start, stop = histories.until(requests.user_index, requests.known)
    rows = concatenated_ranges(start, stop)
    return Seen(lengths_to_offsets(stop - start), histories.item_index[rows])


@dataclass(frozen=True)
class Retriever:
    """All retrievers over one set of fitted models; `embeddings` is (items, dim), rows normalised."""

    collaborative: Collaborative
    transitions: SparsePairs
    covisitation: Covisitation
    sequence: SequenceModel
    embeddings: Float32
    popularity: Popularity
    weights: Float32
    config: RetrievalConfig

    @cached_property
    def text(self) -> DensePairs:
        """The embeddings as item-to-item scores (cosine)."""
        return DensePairs(self.embeddings)

    def settle(self, row: int, embedding: Float32, first_seen: float) -> None:
        """Let a new item move into a free row, in place; see `Recommender.settle`."""
        self.embeddings[row] = embedding
        self.text.known[row] = embedding.any()
        self.popularity.first_seen[row] = first_seen
        self.sequence.settle(row)

    def retrieve(
        self, requests: Requests, history: HistoryBatch, seen: Seen, *, allowed: Bool | None = None
    ) -> Requests:
        """The requests with candidates in item order and their source bits; labels are unknown.

        `allowed` is (items,), whether an item may come; None lets all.
        """
        parts: list[tuple[Int64, Int32, Int32]] = []
        for bit, (limit, scores) in enumerate(self._blocks(requests, history)):
            if limit == 0:
                continue
            block = scores()
            if self.config.exclude_seen:
                block[seen.owner(), seen.item_index] = -np.inf
            if allowed is not None:
                block[:, ~allowed] = -np.inf
            owner, item, _ = top_items(block, limit)
            parts.append((owner, item, np.full(len(item), 1 << bit, np.int32)))
        offsets, item_index, source = _merge(parts, len(requests), len(self.embeddings))
        return Requests.of(
            requests.user_index, requests.timestamp, requests.known, (offsets, item_index), source
        )

    def _blocks(
        self, requests: Requests, history: HistoryBatch
    ) -> Iterator[tuple[int, Callable[[], Float32]]]:
        """Limit and score block of each source, in the bit order of SOURCES."""
        config = self.config
        recency = history.recency_weights(
            self.weights, half_life_days=config.half_life_days, position_decay=config.position_decay
        )
        text = cache(lambda: sources.text_scores(self.text, history, recency))
        blocks: dict[str, Callable[[], Float32]] = {
            "als": lambda: sources.als_scores(self.collaborative, history, self.weights),
            "item_item": lambda: sources.neighbour_scores(self.collaborative.item_item, history, recency),
            "ease": lambda: sources.neighbour_scores(self.collaborative.ease, history, recency),
            "transition": lambda: sources.neighbour_scores(self.transitions, history, recency),
            "covisitation": lambda: sources.neighbour_scores(self.covisitation.to_outcome, history, recency),
            "sequence": lambda: self.sequence.block_scores(history),
            "text": lambda: text().copy(),
            "cold": lambda: sources.cold_scores(text(), self.popularity, requests.timestamp),
            "fresh": lambda: sources.fresh_scores(self.popularity, requests.timestamp),
            "popular": lambda: sources.popular_scores(self.popularity, requests.timestamp),
        }
        for name in SOURCES:
            yield getattr(config, name), blocks[name]


def _merge(parts: list[tuple[Int64, Int32, Int32]], requests: int, items: int) -> tuple[Int64, Int32, Int32]:
    """Union of (request, item, bit) triples in request, item order, bits of one candidate joined."""
    if not parts:
        return np.zeros(requests + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32)
    owner, item, bit = (np.concatenate(column) for column in zip(*parts, strict=True))
    key = owner * items + item
    order = np.argsort(key, kind="stable")
    key, first = np.unique(key[order], return_index=True)
    source = np.bitwise_or.reduceat(bit[order], first) if len(key) else np.zeros(0, np.int32)
    counts = np.bincount(key // items, minlength=requests)
    return lengths_to_offsets(counts), (key % items).astype(np.int32), source.astype(np.int32)
