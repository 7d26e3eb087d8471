"""What came next: pairs of a history and the item that its user took then, with hard negatives.

A pair knows what was logged before its event and nothing later. What is learned from pairs is the
business of `text.contrastive`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from recsys.dataset import Dataset
from recsys.events import Float32, Float64, Int32, Int64, concatenated_ranges
from recsys.relevance_examples import first_touches, repeated
from recsys.requests import HistoryBatch, Requests
from recsys.retrieval import seen_items, top_items

BLOCK = 256


@dataclass(frozen=True)
class NextItems:
    """Pairs in time order, each a request with one candidate row: the item that came next.

    Attributes:
        requests: (n,) who, when, and the positive.
        history: what each had done before, never empty.
        recency: (events,) weight of each history event.
        negatives: (n, m) items that look right but were not taken, -1 past the end; m may be 0.
    """

    requests: Requests
    history: HistoryBatch
    recency: Float64
    negatives: Int32

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def item_index(self) -> Int32:
        """(n,) the positives."""
        return self.requests.item_index

    def take(self, pairs: Int64) -> NextItems:
        """These pairs, in the given order."""
        events = concatenated_ranges(self.history.offsets[pairs], self.history.offsets[pairs + 1])
        return NextItems(
            self.requests.take(pairs), self.history.take(pairs), self.recency[events], self.negatives[pairs]
        )


Source = Callable[[NextItems], Float32]
"""A candidate source: (n, items) scores that read the histories only, -inf where it knows nothing."""


def next_items(
    data: Dataset, *, most: int, history_limit: int, half_life_days: float, position_decay: float
) -> NextItems:
    """The newest `most` first touches of a user and an item that have a history; without negatives.

    Histories are cut to their newest `history_limit` events and weighted as the text retriever does.
    """
    events = data.events
    rows = first_touches(events, data.is_target)
    requests = Requests.of(
        events.user_index[rows],
        events.timestamp[rows],
        rows,
        (np.arange(len(rows) + 1, dtype=np.int64), events.item_index[rows]),
    )
    start, stop = data.histories.until(requests.user_index, requests.known)
    requests = requests.take(np.flatnonzero(stop > start)[-most:])
    history = HistoryBatch.of(data.histories, requests, limit=history_limit)
    recency = history.recency_weights(
        data.weights, half_life_days=half_life_days, position_decay=position_decay
    )
    return NextItems(requests, history, recency, np.zeros((len(requests), 0), np.int32))


def with_hard_negatives(pairs: NextItems, sources: Sequence[Source], data: Dataset, each: int) -> NextItems:
    """The pairs with the `each` best items of every source that the user had not touched by then.

    Neither the positive nor anything in the whole known history is among them, and no item twice. The
    sources must be fitted on what lies before the first pair.
    """
    found = np.full((len(pairs), len(sources), each), -1, np.int32)
    for first in range(0, len(pairs), BLOCK):
        part = pairs.take(np.arange(first, min(first + BLOCK, len(pairs))))
        seen = seen_items(data.histories, part.requests)
        for place, source in enumerate(sources):
            scores = source(part)
            scores[seen.owner(), seen.item_index] = -np.inf
            scores[np.arange(len(part)), part.item_index] = -np.inf
            owner, item, _ = top_items(scores, each)
            rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
            found[first + owner, place, rank] = item
    flat = found.reshape(len(pairs), len(sources) * each)
    return replace(pairs, negatives=np.where(repeated(flat), np.int32(-1), flat))
