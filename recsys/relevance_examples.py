"""Training rows of the relevance head: shown slates as they are, or events with sampled candidates.

Every row of a request is a function of what was logged before it (its label apart), so a longer log
leaves the rows of earlier requests as they were. Nothing here knows a model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from recsys.events import (
    Bool,
    Events,
    Float32,
    Float64,
    Int32,
    Int64,
    concatenated_ranges,
    lengths_to_offsets,
)
from recsys.requests import HistoryBatch, Requests


@dataclass(frozen=True)
class Examples:
    """Labelled requests in time order with a weight, shape (rows,), for each row's loss."""

    requests: Requests
    weight: Float32

    def __len__(self) -> int:
        return len(self.requests)

    def take(self, requests: Int64) -> Examples:
        """These requests with their rows, in the given order."""
        offsets = self.requests.offsets
        rows = concatenated_ranges(offsets[requests], offsets[requests + 1])
        return Examples(self.requests.take(requests), self.weight[rows])

    def keep(self, rows: Bool) -> Examples:
        """The same requests with only these rows; `rows` has shape (rows,)."""
        requests = self.requests
        lengths = np.bincount(requests.request_of_row()[rows], minlength=len(requests))
        columns = {
            name: getattr(requests, name)[rows] for name in ("item_index", "source", "label", "position")
        }
        kept = replace(requests, offsets=lengths_to_offsets(lengths), **columns)
        return Examples(kept, self.weight[rows])


@dataclass(frozen=True)
class SamplingConfig:
    """Candidates for logs that hold interactions only.

    Attributes:
        negatives: sampled candidates for each event.
        popular_share: share of them drawn in proportion to popularity so far, as in-batch negatives
            are; the others are drawn evenly from the catalogue.
        max_requests: the newest so many events become requests.
        seed: of the draws.
    """

    negatives: int = 15
    popular_share: float = 0.5
    max_requests: int = 20_000
    seed: int = 0


def slate_examples(
    requests: Requests, events: Events, type_weights: Float32, *, window_s: float = 86_400.0
) -> Examples:
    """Shown slates with their clicks as labels; a click counts as much as what followed it.

    A positive row weighs as much as the strongest event of that user with that item from the moment of
    the slate to `window_s` later, at least 1; a negative row weighs 1; a row without a label 0.

    Args:
        requests: labelled slates in time order (`Requests.from_slates`).
        events: the log, cut where the training window ends.
        type_weights: (types,) weight of each event type, in clicks.
        window_s: how long an event is counted as following the slate.
    """
    weight = np.where(np.isnan(requests.label), 0.0, 1.0).astype(np.float32)
    rows = np.flatnonzero(requests.label > 0)
    owner = requests.request_of_row()[rows]
    user, moment = requests.user_index[owner], requests.timestamp[owner]
    first, last = events.known_at(moment), events.known_at(moment + window_s)
    order = _by_pair(events.user_index, events.item_index)
    keys = _pair_keys(events.user_index, events.item_index)[order]
    pairs = _pair_keys(user, requests.item_index[rows])
    start, stop = np.searchsorted(keys, pairs), np.searchsorted(keys, pairs, side="right")
    for row, a, b, low, high in zip(rows, start, stop, first, last, strict=True):
        events_of_pair = order[a:b]
        following = events_of_pair[(events_of_pair >= low) & (events_of_pair < high)]
        if len(following):
            weight[row] = max(1.0, float(type_weights[events.type_index[following]].max()))
    return Examples(requests, weight)


def sampled_examples(
    events: Events,
    is_target: Bool,
    type_weights: Float32,
    created_at: Float64,
    config: SamplingConfig | None = None,
) -> Examples:
    """One request an event: the item of the event, and sampled items that the user had not touched.

    Only a user's first target event with an item counts, and it knows the log up to itself. Half of the
    negatives come evenly from the items that existed by then, half are the items of random earlier
    events. A model fitted on these rows tells the chosen item from `negatives` sampled ones: calibrated
    on held-out rows of the same kind, its probability means just that, not the rate of clicks.

    Args:
        events: the log, cut where the training window ends.
        is_target: (types,) whether events of that type are outcomes.
        type_weights: (types,) weight of a positive row by event type.
        created_at: (items,) epoch seconds from which an item may be drawn; NaN is always.
        config: how many and which.
    """
    config = config or SamplingConfig()
    targets = first_touches(events, is_target)[-config.max_requests :]
    targets = targets[targets > 0]
    negatives = _Negatives(events, np.nan_to_num(created_at, nan=-np.inf), config).draw(targets)
    items = np.concatenate([events.item_index[targets][:, None], negatives], axis=1)  # (n, 1 + negatives)
    kept = items >= 0
    requests = Requests.of(
        events.user_index[targets],
        events.timestamp[targets],
        targets,
        (lengths_to_offsets(kept.sum(1)), items[kept].astype(np.int32)),
    )
    label = np.zeros(items.shape, np.float32)
    label[:, 0] = 1.0
    weight = np.ones(items.shape, np.float32)
    weight[:, 0] = type_weights[events.type_index[targets]]
    return Examples(requests.labelled(label[kept]), weight[kept])


def sampled_rows(requests: Requests, limit: int, *, rng: np.random.Generator) -> Bool:
    """(rows,) a random choice in each request: up to limit // 2 clicks, the rest of `limit` unclicked."""
    owner, clicked = requests.request_of_row(), requests.label > 0.5
    order = np.lexsort((rng.random(requests.rows), ~clicked, owner))
    place = np.arange(requests.rows) - requests.offsets[owner]  # of row order[i] within its request
    clicks = np.bincount(owner[clicked], minlength=len(requests))[owner]
    spare = limit - np.minimum(clicks, limit // 2)
    chosen = np.where(clicked[order], place < limit // 2, place - clicks < spare)
    rows = np.zeros(requests.rows, np.bool_)
    rows[order[chosen]] = True
    return rows & ~np.isnan(requests.label)


def with_both_classes(requests: Requests) -> Int64:
    """Numbers of the requests that have a clicked row and an unclicked one."""
    owner = requests.request_of_row()
    clicks = np.bincount(owner[requests.label > 0.5], minlength=len(requests))
    others = np.bincount(owner[requests.label < 0.5], minlength=len(requests))
    return np.flatnonzero((clicks > 0) & (others > 0))


def requests_within(
    requests: Requests, history: HistoryBatch, *, items: int, rng: np.random.Generator
) -> Int64:
    """Ascending numbers of randomly chosen requests that together need at most so many different items."""
    needed: set[int] = set()
    chosen: list[int] = []
    for q in rng.permutation(len(requests)).tolist():
        own = set(requests.item_index[requests.offsets[q] : requests.offsets[q + 1]].tolist())
        own.update(history.item_index[history.offsets[q] : history.offsets[q + 1]].tolist())
        if len(needed | own) > items:
            break
        needed |= own
        chosen.append(q)
    return np.sort(np.array(chosen, np.int64))


class _Negatives:
    """Draws items a user has not touched, from what was known when each event happened."""

    def __init__(self, events: Events, created_at: Float64, config: SamplingConfig) -> None:
        self.events = events
        self.config = config
        self.by_age = np.argsort(created_at, kind="stable").astype(np.int32)
        self.created_at = created_at[self.by_age]
        order = _by_pair(events.user_index, events.item_index)
        keys = _pair_keys(events.user_index, events.item_index)[order]
        self.pairs, first = np.unique(keys, return_index=True)
        self.first_touch = order[first]

    def draw(self, targets: Int64) -> Int32:
        """(n, negatives) distinct items for each event, -1 where too few were left.

        Draws twice as many as needed, row by row, so earlier events get the same draws in a longer log.
        """
        tries = 2 * self.config.negatives
        draws = np.random.default_rng(self.config.seed).random((len(targets), tries, 2))
        available = np.searchsorted(self.created_at, self.events.timestamp[targets], side="right")
        even = self.by_age[(draws[:, :, 1] * np.maximum(available, 1)[:, None]).astype(np.int64)]
        popular = self.events.item_index[(draws[:, :, 1] * targets[:, None]).astype(np.int64)]
        items = np.where(draws[:, :, 0] < self.config.popular_share, popular, even)
        usable = ~self._touched(targets, items) & ~repeated(items) & (items >= 0)
        usable &= np.cumsum(usable, axis=1) <= self.config.negatives
        slot = np.cumsum(usable, axis=1) - 1
        out = np.full((len(targets), self.config.negatives), -1, np.int32)
        rows, columns = np.nonzero(usable)
        out[rows, slot[rows, columns]] = items[rows, columns]
        return out

    def _touched(self, targets: Int64, items: Int32) -> Bool:
        """Whether the event's user had an event with each item by then, the event's own item included."""
        keys = _pair_keys(np.repeat(self.events.user_index[targets], items.shape[1]), items.ravel())
        place = np.minimum(np.searchsorted(self.pairs, keys), len(self.pairs) - 1)
        touched = (self.pairs[place] == keys) & (
            self.first_touch[place] <= np.repeat(targets, items.shape[1])
        )
        return np.asarray(touched.reshape(items.shape), np.bool_)


def first_touches(events: Events, is_target: Bool) -> Int64:
    """Rows of each (user, item)'s first target event, ascending; unknown users and items left out."""
    kept = is_target[events.type_index] & (events.item_index >= 0) & (events.user_index >= 0)
    rows = np.flatnonzero(kept)
    _, first = np.unique(_pair_keys(events.user_index[rows], events.item_index[rows]), return_index=True)
    return np.sort(rows[first])


def repeated(items: Int32) -> Bool:
    """(n, k) whether the same item stands earlier in the row."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    again = np.zeros(items.shape, np.bool_)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeated = np.empty_like(again)
    np.put_along_axis(repeated, order, again, axis=1)
    return repeated


def _pair_keys(user_index: Int32, item_index: Int32) -> Int64:
    return (user_index.astype(np.int64) << 32) + item_index


def _by_pair(user_index: Int32, item_index: Int32) -> Int64:
    """Rows sorted by (user, item), in time order within a pair."""
    return np.argsort(_pair_keys(user_index, item_index), kind="stable")
