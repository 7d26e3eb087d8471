"""A split as the benchmark sees it: what peers may look at, how they are ranked and measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from peers import Asked, popularity_of

from recsys.baselines import BlockScorer, among, slate_scores, top_lists
from recsys.dataset import Dataset
from recsys.evaluation import (
    CUTOFFS,
    HEADLINE,
    Evaluation,
    evaluate_lists,
    evaluate_slates,
    training_counts,
)
from recsys.events import Float32, Int32
from recsys.metrics import slate_metrics, topk_metrics
from recsys.protocols import Protocol, Split, positives_of, split
from recsys.requests import HistoryBatch, Requests
from recsys.retrieval import seen_items

WHOLE_HISTORY = 1 << 30
TUNING_REQUESTS = 5_000
"""Requests of the inner split that a point is judged on, drawn at random where there are more."""
LIST_LENGTH = max(CUTOFFS)


@dataclass(frozen=True)
class Window:
    """A split with what peers may look at, ready to be ranked and measured."""

    split: Split
    protocol: Protocol
    asked: Asked
    popularity: Float32

    @classmethod
    def of(cls, data: Dataset, protocol: Protocol, texts: list[str], embeddings: Float32) -> Window:
        """Split `data` by `protocol`."""
        return cls.over(split(data, protocol), protocol, texts, embeddings)

    @classmethod
    def over(cls, parts: Split, protocol: Protocol, texts: list[str], embeddings: Float32) -> Window:
        """What peers may look at of a split."""
        history = HistoryBatch.of(parts.visible.histories, parts.requests, limit=WHOLE_HISTORY)
        unlabelled = parts.requests.labelled(np.full(parts.requests.rows, np.nan, np.float32))
        asked = Asked(parts.train, unlabelled, history, texts, embeddings)
        return cls(parts, protocol, asked, popularity_of(parts.train))

    def inner(self) -> Window:
        """The same protocol on the train part, where points are chosen, on TUNING_REQUESTS at most."""
        parts = split(self.split.train, self.protocol)
        count = len(parts.requests)
        some = np.random.default_rng(0).permutation(count)[:TUNING_REQUESTS]
        some = np.sort(some).astype(np.int64)
        asked, positives = parts.requests.take(some), positives_of(parts.positives, some)
        parts = replace(parts, requests=asked, positives=positives)
        return Window.over(parts, self.protocol, self.asked.texts, self.asked.embeddings)

    def ranked(self, scorer: BlockScorer, *, fallback: bool = True) -> Int32 | Float32:
        """Top lists (requests, 20), or with slates the scores (rows,)."""
        if fallback:
            scorer = with_fallback(scorer, self.popularity)
        if self.protocol == "slate":
            return slate_scores(scorer, self.asked.requests, self.asked.history)
        seen = seen_items(self.split.visible.histories, self.asked.requests)
        return top_lists(scorer, self.asked.requests, self.asked.history, seen, LIST_LENGTH)

    def measured(self, scorer: BlockScorer) -> Evaluation:
        """All metrics of a scorer, under the name "full", new items also ranked among themselves."""
        lengths, output = np.diff(self.asked.history.offsets), {"full": self.ranked(scorer)}
        if self.protocol == "slate":
            return evaluate_slates(self.split, output, lengths)
        new = {"full": self.ranked(among(scorer, training_counts(self.split.train) == 0), fallback=False)}
        return evaluate_lists(self.split, output, lengths, self.protocol, new)

    def headline(self, scorer: BlockScorer) -> float:
        """The mean that points are chosen by."""
        output, requests, name = self.ranked(scorer), self.split.requests, HEADLINE[self.protocol]
        if self.protocol == "slate":
            return float(np.nanmean(slate_metrics(output, requests.label, requests.offsets)[name]))
        return float(np.nanmean(topk_metrics(output, *self.split.positives, (10,))[name]))


def with_fallback(scorer: BlockScorer, popularity: Float32) -> BlockScorer:
    """The same scores, and below them all, where the scorer knows nothing, the order of popularity."""
    order = (popularity / (popularity.max(initial=0.0) + 1.0)).astype(np.float32)

    def scores(requests: Requests, history: HistoryBatch) -> Float32:
        block = np.ascontiguousarray(scorer(requests, history), np.float32)
        _fill(block, order)
        return block

    return scores


@njit(cache=True, nogil=True)
def _fill(block: Float32, order: Float32) -> None:
    """Write `order`, which is in [0, 1), below the lowest finite score of each row where there is none."""
    for line in block:
        floor = np.float32(np.inf)
        for score in line:
            if np.isfinite(score) and score < floor:
                floor = score
        if not np.isfinite(floor):
            floor = np.float32(0.0)
        for item in range(len(line)):
            if not np.isfinite(line[item]):
                line[item] = floor - np.float32(2.0) + order[item]
