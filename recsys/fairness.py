"""How unlike groups of users are served: the largest relative difference of a group's mean from the whole."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from recsys.dataset import Dataset
from recsys.evaluation import BANDS
from recsys.events import Bool, Float64, Int32, Int64
from recsys.metrics.intervals import LEVEL, Interval

SMALLEST_GROUP = 100
MOST_VALUES = 20
"""An attribute with more different values names no groups."""


def user_groups(data: Dataset, users: Int32, activity: Int64) -> dict[str, Bool]:
    """Masks over requests by group: bands of activity, and each value of each attribute of the users table.

    Args:
        data: its `attributes` may be None.
        users: (requests,) user_index.
        activity: (requests,) events that the user had at that moment.

    Returns:
        Groups of at least 100 different users, as (requests,) masks; others are left out, because a small
        group's mean is far from the whole by chance. A missing attribute value names no group.
    """
    found: dict[str, Bool] = {}
    for low, high in BANDS:
        name = (
            f"activity {low}+"
            if high is None
            else f"activity {low}"
            if low == high
            else f"activity {low}-{high}"
        )
        found[name] = (activity >= low) & (activity <= (np.inf if high is None else high))
    found |= _attribute_groups(data, users)
    return {name: mask for name, mask in found.items() if len(np.unique(users[mask])) >= SMALLEST_GROUP}


def _attribute_groups(data: Dataset, users: Int32) -> dict[str, Bool]:
    if data.attributes is None:
        return {}
    rows = data.users.index(data.attributes["user_id"])
    found = {}
    for column in data.attributes.drop("user_id"):
        values = column.drop_nulls().unique()
        if column.dtype.is_nested() or len(values) > MOST_VALUES:
            continue
        for value in sorted(values.to_list(), key=str):
            member = np.zeros(len(data.users), np.bool_)
            chosen = rows[(column == value).fill_null(value=False).to_numpy()]
            member[chosen[chosen >= 0]] = True
            found[f"{column.name} {value}"] = member[users]
    return found


def fairness_gap(
    values: Float64,
    clusters: NDArray[np.generic],
    groups: Mapping[str, Bool],
    *,
    chance: float = 0.0,
    seed: int = 0,
    resamples: int = 500,
) -> Interval:
    """Max over groups of |mean of the group - mean of all| / mean of all, means above `chance`.

    Args:
        values: (units,) headline of each request; NaN is left out.
        clusters: (units,) user of each; whole users are drawn for the interval (percentile bootstrap), whose
            bounds lie above the estimate where groups are small, because a largest value is.
        groups: masks (units,), as `user_groups` gives them.
        chance: what a random order gets.
        seed: of the draws.
        resamples: draws.

    Returns:
        NaN three times without a group or where the mean of all is at chance.
    """
    known = ~np.isnan(values)
    if not groups or not known.any():
        return Interval(np.nan, np.nan, np.nan)
    names, cluster = np.unique(clusters[known], return_inverse=True)
    above = values[known] - chance
    columns = [np.ones(len(above)), above]
    for mask in groups.values():
        columns += [mask[known].astype(np.float64), np.where(mask[known], above, 0.0)]
    sums = np.stack([np.bincount(cluster, column, len(names)) for column in columns], axis=1)
    rng = np.random.default_rng(seed)
    draws = np.empty(resamples)
    for draw in range(resamples):
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        draws[draw] = _gap(times.astype(np.float64) @ sums)
    gap = _gap(sums.sum(axis=0))
    if np.isnan(gap):
        return Interval(gap, np.nan, np.nan)
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(gap, float(low), float(high))


def _gap(totals: Float64) -> float:
    """Counts and sums side by side, the whole first."""
    with np.errstate(divide="ignore", invalid="ignore"):
        means = totals[1::2] / totals[::2]
        gaps = np.abs(means[1:] - means[0]) / means[0]
    return float(np.nanmax(gaps)) if np.isfinite(gaps).any() else float("nan")
