"""Metrics of logged slates as the MIND evaluator has them, one value a slate, with ties made fair.

Every shown item has a score and a label. Metrics of lists that we produce ourselves are in `topk`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.events import Bool, Float64, Int64, lengths_to_offsets

NDCG_CUTOFFS = (5, 10)


def slate_metrics(
    scores: NDArray[np.floating], labels: NDArray[np.generic], offsets: Int64
) -> dict[str, Float64]:
    """AUC, MRR, nDCG@5 and nDCG@10 of every slate.

    Without ties these are the MIND evaluator's figures (Wu et al. 2020, section 5.1): `mrr` is the sum
    of 1 / rank over *all* clicks divided by the number of clicks, `ndcg_at_k` discounts by
    log2(1 + rank) and its ideal holds min(k, clicks) items. Tied items share their fate, so the order
    of the rows never matters:

    - `auc` and `mrr` use the average of the ranks that the tied items occupy, which makes a constant
      scorer's AUC exactly .5 and its reciprocal rank 2 / (rows + 1);
    - `ndcg_at_k` uses the average of those ranks' discounts, 0 behind k: the expectation over random
      orders of the tied items (McSherry & Najork 2008). The discount *at* the average rank would put a
      whole tied group before or behind the cutoff and could exceed 1.

    Args:
        scores: (rows,) higher is better; infinite allowed, NaN not.
        labels: (rows,) 0 or 1, of any numeric or boolean type.
        offsets: (slates + 1,) slate s owns rows offsets[s]:offsets[s + 1].

    Returns:
        `auc`, `mrr`, `ndcg_at_5`, `ndcg_at_10`, each float64 of shape (slates,). A slate with one class
        only, or empty, is NaN in all of them: leave it out and count it.

    Raises:
        ValueError: shapes disagree, a score is NaN, or a label is neither 0 nor 1.
    """
    _check(scores, labels, offsets)
    clicked = np.asarray(labels) == 1
    lengths = np.diff(offsets)
    slate = np.repeat(np.arange(len(lengths)), lengths)
    clicks = _sum_by_slate(clicked, slate, len(lengths))
    judged = (clicks > 0) & (clicks < lengths)
    ranks = _ranks(scores, slate, offsets)
    metrics = {
        "auc": _auc(ranks, clicked, slate, lengths),
        "mrr": _ratio(_sum_by_slate(clicked / ranks.average, slate, len(lengths)), clicks),
    }
    for k in NDCG_CUTOFFS:
        metrics[f"ndcg_at_{k}"] = _ndcg(ranks, clicked, slate, clicks, k)
    return {name: np.where(judged, values, np.nan) for name, values in metrics.items()}


@dataclass(frozen=True)
class _Ranks:
    """The 1-based ranks, within its slate, that each row's tied group occupies; all (rows,)."""

    first: Int64
    last: Int64

    @property
    def average(self) -> Float64:
        return (self.first + self.last) / 2


def _ranks(scores: NDArray[np.floating], slate: Int64, offsets: Int64) -> _Ranks:
    order = np.lexsort((-scores, slate))
    sorted_scores, sorted_slate = scores[order], slate[order]
    starts = np.ones(len(order), np.bool_)
    starts[1:] = (sorted_slate[1:] != sorted_slate[:-1]) | (sorted_scores[1:] != sorted_scores[:-1])
    group = np.cumsum(starts) - 1
    begin = np.flatnonzero(starts)
    end = np.append(begin[1:], len(order))
    before = offsets[sorted_slate]
    first, last = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    first[order] = begin[group] - before + 1
    last[order] = end[group] - before
    return _Ranks(first, last)


def _auc(ranks: _Ranks, clicked: Bool, slate: Int64, lengths: Int64) -> Float64:
    """Mann & Whitney 1947: the share of (clicked, other) pairs in the right order, ties counting half."""
    clicks = _sum_by_slate(clicked, slate, len(lengths))
    rank_sum = _sum_by_slate(clicked * ranks.average, slate, len(lengths))
    others = lengths - clicks
    wrong = rank_sum - clicks * (clicks + 1) / 2
    return _ratio(clicks * others - wrong, clicks * others)


def _ndcg(ranks: _Ranks, clicked: Bool, slate: Int64, clicks: Float64, k: int) -> Float64:
    discount_sum = np.append(
        0.0, np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))
    )  # of ranks 1..0, 1..1, … 1..k
    held = discount_sum[np.minimum(ranks.last, k)] - discount_sum[np.minimum(ranks.first - 1, k)]
    gain = clicked * held / (ranks.last - ranks.first + 1)
    ideal = discount_sum[np.minimum(clicks, k).astype(np.int64)]
    return _ratio(_sum_by_slate(gain, slate, len(clicks)), ideal)


def _sum_by_slate(values: Float64 | Bool, slate: Int64, slates: int) -> Float64:
    return np.bincount(slate, weights=values, minlength=slates).astype(np.float64)


def _ratio(numerator: Float64, denominator: Float64) -> Float64:
    """Quotient, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator != 0)


def _check(scores: NDArray[np.floating], labels: NDArray[np.generic], offsets: Int64) -> None:
    if scores.ndim != 1 or scores.shape != labels.shape or offsets[-1] != len(scores):
        raise ValueError(
            f"scores {scores.shape}, labels {labels.shape} and offsets[-1] {offsets[-1]} disagree"
        )
    if not np.array_equal(offsets, lengths_to_offsets(np.diff(offsets))) or (np.diff(offsets) < 0).any():
        raise ValueError("offsets must rise from 0")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} scores are NaN; a row without a score has no rank")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
