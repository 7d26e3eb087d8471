"""Metrics of a top-k list against the items that the user really took, one value a user.

Relevance is binary. Metrics of logged slates, where every shown item has a label, are in `slate`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recsys.events import Bool, Float64, Int32, Int64


def topk_metrics(
    ranked: Int32, offsets: Int64, items: Int32, cutoffs: Sequence[int] = (5, 10, 20)
) -> dict[str, Float64]:
    """Hit rate, recall, NDCG and reciprocal rank of every user's list at each cutoff.

    At cutoff k, with P the user's distinct positives and hits counted among the first k places:
    `hr` is 1 where there is a hit; `recall` is hits / |P|; `mrr` is 1 / rank of the first hit, 0 without
    one; `ndcg` is the sum of 1 / log2(1 + rank) over the hits, divided by the same sum over the ranks
    1..min(k, |P|) (Järvelin & Kekäläinen 2002, binary gains with the discount log2(1 + rank)).

    Args:
        ranked: (users, K) item_index, best first, -1 where the list has ended. A list shorter than a
            cutoff counts as padded.
        offsets: (users + 1,) user u's positives are items[offsets[u]:offsets[u + 1]].
        items: (positives,) item_index in any order; an item named twice counts once.
        cutoffs: list lengths to look at, each at least 1.

    Returns:
        `hr_at_5`, `recall_at_5`, `ndcg_at_5`, `mrr_at_5`, … each float64 of shape (users,). A user
        without positives is NaN in all of them: leave it out of the means. No users gives empty arrays.

    Raises:
        ValueError: shapes disagree, a cutoff is below 1, a positive is -1, or a list names an item twice.
    """
    _check(ranked, offsets, items, cutoffs)
    hits, positives = _hits(ranked, offsets, items)
    discount = 1.0 / np.log2(np.arange(2, max(cutoffs, default=1) + 2))
    ideal = np.concatenate([[np.nan], np.cumsum(discount)])
    places = ranked.shape[1]
    hit_count = _running_sum(hits)
    gain = _running_sum(hits * _padded(discount, places))
    reciprocal = (hits / np.arange(1, places + 1)).max(axis=1, initial=0.0)  # of the first hit's rank
    known = np.where(positives > 0, 1.0, np.nan)
    metrics: dict[str, Float64] = {}
    for k in cutoffs:
        last = min(k, places)
        metrics[f"hr_at_{k}"] = np.minimum(hit_count[:, last], 1.0) * known
        metrics[f"recall_at_{k}"] = hit_count[:, last] / (positives * known)
        metrics[f"ndcg_at_{k}"] = gain[:, last] / ideal[np.minimum(k, positives)]
        metrics[f"mrr_at_{k}"] = np.where(reciprocal >= 1.0 / k, reciprocal, 0.0) * known
    return metrics


def _hits(ranked: Int32, offsets: Int64, items: Int32) -> tuple[Bool, Int64]:
    """(users, K) whether each place holds a positive, and (users,) how many distinct positives there are."""
    users = len(ranked)
    span = np.int64(max(ranked.max(initial=-1), items.max(initial=-1)) + 2)
    owner = np.repeat(np.arange(users, dtype=np.int64), np.diff(offsets))
    wanted = np.unique(owner * span + items + 1)
    positives = np.bincount(wanted // span, minlength=users) if users else np.zeros(0, np.int64)
    keys = np.arange(users, dtype=np.int64)[:, None] * span + ranked + 1
    if not len(wanted):
        return np.zeros(ranked.shape, np.bool_), positives
    place = np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)
    return (wanted[place] == keys) & (ranked >= 0), positives


def _running_sum(values: Float64 | Bool) -> Float64:
    """(users, K + 1) sums of the first 0, 1, … K columns."""
    sums = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def _padded(discount: Float64, places: int) -> Float64:
    """The discounts of `places` places, 0 behind the largest cutoff."""
    return np.pad(discount[:places], (0, max(0, places - len(discount))))


def _check(ranked: Int32, offsets: Int64, items: Int32, cutoffs: Sequence[int]) -> None:
    if ranked.ndim != 2 or len(offsets) != len(ranked) + 1:
        raise ValueError(f"ranked {ranked.shape} needs offsets of shape (users + 1,), got {offsets.shape}")
    if offsets[0] != 0 or offsets[-1] != len(items) or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets must rise from 0 to the number of positives, {len(items)}")
    if items.min(initial=0) < 0:
        raise ValueError("items holds a negative item_index: leave unknown items out")
    if any(k < 1 for k in cutoffs):
        raise ValueError(f"cutoffs must be at least 1, got {list(cutoffs)}")
    ordered = np.sort(ranked, axis=1)
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    if twice.any():
        raise ValueError(
            f"{int(twice.sum())} lists name an item twice, the first is row {int(twice.argmax())}"
        )
