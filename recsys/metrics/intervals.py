"""Means of per-user or per-slate values with bootstrap intervals that respect who they belong to.

Slates of one user are alike, so whole users are drawn, not slates (clustered bootstrap: Field & Welsh
2007). Percentile intervals (Efron & Tibshirani 1993, section 13.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.events import Float64

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float


def mean_interval(
    values: Float64, clusters: NDArray[np.generic] | None = None, *, seed: int = 0, resamples: int = 1000
) -> Interval:
    """Mean over units with its user-clustered bootstrap interval.

    Args:
        values: (units,) one value a user or slate; NaN units are left out.
        clusters: (units,) id of the user that each unit belongs to; None makes each unit its own.
        seed: the same seed gives the same bounds.
        resamples: bootstrap draws. Memory does not grow with them.

    Returns:
        The mean of the units (every unit weighs the same) and its bounds. No unit gives NaN three
        times; one cluster alone says nothing about its like, so its bounds are NaN.

    Raises:
        ValueError: `clusters` has another shape than `values`.
    """
    values = np.asarray(values, np.float64)
    if clusters is not None and clusters.shape != values.shape:
        raise ValueError(f"clusters {clusters.shape} must have the shape of values {values.shape}")
    known = ~np.isnan(values)
    sums, counts = _per_cluster(values[known], None if clusters is None else clusters[known])
    if not len(sums):
        return Interval(np.nan, np.nan, np.nan)
    mean = float(sums.sum() / counts.sum())
    if len(sums) == 1:
        return Interval(mean, np.nan, np.nan)
    means = _resampled_means(sums, counts, np.random.default_rng(seed), resamples)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high))


def paired_interval(
    a: Float64,
    b: Float64,
    clusters: NDArray[np.generic] | None = None,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Interval:
    """Mean of a - b over the units where both are known, with its interval; see `mean_interval`.

    Raises:
        ValueError: the arrays differ in shape.
    """
    if a.shape != b.shape:
        raise ValueError(f"a {a.shape} and b {b.shape} must hold the same units")
    return mean_interval(a - b, clusters, seed=seed, resamples=resamples)


def ratio_interval(
    a: Float64,
    b: Float64,
    clusters: NDArray[np.generic] | None = None,
    *,
    chance: float = 0.0,
    seed: int = 0,
    resamples: int = 1000,
) -> Interval:
    """Mean of a over mean of b, both above `chance`, over the units where both are known.

    Both are drawn together, so that what moves both does not widen the interval (see `mean_interval`). NaN
    where the mean of b is at chance.

    Raises:
        ValueError: the arrays differ in shape.
    """
    if a.shape != b.shape:
        raise ValueError(f"a {a.shape} and b {b.shape} must hold the same units")
    known = ~(np.isnan(a) | np.isnan(b))
    own = None if clusters is None else clusters[known]
    above, counts = _per_cluster(a[known] - chance, own)
    below, _ = _per_cluster(b[known] - chance, own)
    if not len(counts) or not below.sum():
        return Interval(np.nan, np.nan, np.nan)
    ratio = float(above.sum() / below.sum())
    if len(counts) == 1:
        return Interval(ratio, np.nan, np.nan)
    ratios = _resampled_means(above, below, np.random.default_rng(seed), resamples)
    low, high = np.quantile(ratios[np.isfinite(ratios)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(ratio, float(low), float(high))


def _per_cluster(values: Float64, clusters: NDArray[np.generic] | None) -> tuple[Float64, Float64]:
    """Sum and number of the values of each cluster, both (clusters,)."""
    if clusters is None:
        return values, np.ones(len(values))
    names, cluster = np.unique(clusters, return_inverse=True)
    sums = np.bincount(cluster, weights=values, minlength=len(names)).astype(np.float64)
    return sums, np.bincount(cluster, minlength=len(names)).astype(np.float64)


def _resampled_means(sums: Float64, counts: Float64, rng: np.random.Generator, resamples: int) -> Float64:
    """(resamples,) the mean after drawing as many clusters as there are, with replacement."""
    clusters = len(sums)
    columns = np.stack([sums, counts], axis=1)
    totals = np.empty((resamples, 2))
    for draw in range(resamples):
        times = np.bincount(rng.integers(clusters, size=clusters), minlength=clusters)
        totals[draw] = times.astype(np.float64) @ columns
    with np.errstate(divide="ignore", invalid="ignore"):
        return totals[:, 0] / totals[:, 1]
