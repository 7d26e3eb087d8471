"""Whether a predicted probability means what it says. Fitting a calibration is not done here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.events import Float64, Int64


@dataclass(frozen=True)
class Reliability:
    """Predicted probability against what happened, in bins of equal size; all (bins,), lowest first.

    Attributes:
        rows: predictions in the bin; never 0.
        predicted: their mean probability.
        observed: the share of them that came true.
    """

    rows: Int64
    predicted: Float64
    observed: Float64


def reliability(
    probability: NDArray[np.floating], labels: NDArray[np.generic], *, bins: int = 15
) -> Reliability:
    """Cut the predictions at their quantiles, so that rare clicks do not all fall into one bin.

    Equal predictions always share a bin, so there may be fewer bins than asked for, and the order of
    the rows never matters.

    Args:
        probability: (rows,) in 0..1.
        labels: (rows,) 0 or 1, of any numeric or boolean type.
        bins: number of bins at most.

    Returns:
        No bins for no rows.

    Raises:
        ValueError: shapes disagree, a probability is NaN or outside 0..1, or a label is neither 0 nor 1.
    """
    _check(probability, labels)
    if not len(probability):
        return Reliability(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    edges = np.quantile(probability, np.arange(1, bins) / bins, method="inverted_cdf")
    _, place = np.unique(np.searchsorted(edges, probability, side="left"), return_inverse=True)
    rows = np.bincount(place)
    predicted = np.bincount(place, weights=probability) / rows
    observed = np.bincount(place, weights=np.asarray(labels, np.float64)) / rows
    return Reliability(rows, predicted, observed)


def expected_calibration_error(
    probability: NDArray[np.floating], labels: NDArray[np.generic], *, bins: int = 15
) -> float:
    """Mean distance between predicted and observed probability over the bins, weighted by their rows.

    Naeini, Cooper & Hauskrecht 2015, with the bins of equal size of Nguyen & O'Connor 2015. Arguments and
    errors are those of `reliability`. A constant prediction errs by its distance to the base rate. With r
    rows a perfect model still shows about .8 * sqrt(bins * p * (1 - p) / r) by chance. No rows give NaN.
    """
    found = reliability(probability, labels, bins=bins)
    if not len(found.rows):
        return float("nan")
    return float(np.average(np.abs(found.predicted - found.observed), weights=found.rows))


def _check(probability: NDArray[np.floating], labels: NDArray[np.generic]) -> None:
    if probability.ndim != 1 or probability.shape != labels.shape:
        raise ValueError(f"probability {probability.shape} and labels {labels.shape} must be the same rows")
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("a probability is NaN or outside 0..1")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
