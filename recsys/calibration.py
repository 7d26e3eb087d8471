"""Maps a model's logit to a probability that can be believed: Platt scaling and isotonic regression.

Both are a handful of floats, fitted on rows that the model was not fitted on, and strictly increasing,
so that calibration never changes an order. How well a probability is calibrated is measured elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numba import njit

from recsys.errors import RecsysError
from recsys.events import Float32, Float64

ISOTONIC_ROWS = 5_000
"""Below so many rows isotonic regression over-fits, and Platt scaling is not even compared with it."""

_MIN_SLOPE = 1e-3
_NEWTON_STEPS = 50
_LINEAR_SHARE = 0.02  # share of Platt's line in an isotonic curve: keeps flat steps strictly increasing


@dataclass(frozen=True)
class Calibration:
    """probability = sigmoid(slope · logit + intercept), optionally bent to a curve of knots.

    Attributes:
        slope: positive.
        intercept: log-odds at logit 0.
        knots: (k,) ascending logits of the isotonic curve; empty for plain Platt scaling.
        values: (k,) non-decreasing probabilities at the knots.
    """

    slope: float
    intercept: float
    knots: Float64
    values: Float64

    @property
    def kind(self) -> str:
        """`isotonic` where there are knots, else `platt`."""
        return "isotonic" if len(self.knots) else "platt"

    @classmethod
    def identity(cls) -> Calibration:
        """The plain sigmoid."""
        return cls(1.0, 0.0, np.zeros(0), np.zeros(0))

    def probability(self, logits: Float32) -> Float32:
        """Probabilities in (0, 1), float32, shape of `logits`; NaN stays NaN."""
        flat = np.ascontiguousarray(logits, np.float32).reshape(-1)
        out = np.empty(flat.shape, np.float32)
        _write_probabilities(flat, self.slope, self.intercept, self.knots, self.values, out)
        return out.reshape(np.shape(logits))

    def to_arrays(self) -> dict[str, Float64]:
        """`platt` (2,), `knots` (k,) and `values` (k,), for a safetensors file."""
        return {
            "platt": np.array([self.slope, self.intercept]),
            "knots": self.knots,
            "values": self.values,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Float64]) -> Calibration:
        """Read `to_arrays` back; raises RecsysError where the curve is not increasing and finite."""
        platt, knots, values = (np.array(arrays[name], np.float64) for name in ("platt", "knots", "values"))
        finite = all(np.isfinite(array).all() for array in (platt, knots, values))
        ordered = bool((np.diff(knots) > 0).all() and (np.diff(values) >= 0).all())
        if platt.shape != (2,) or knots.shape != values.shape or not finite or not ordered or platt[0] <= 0:
            raise RecsysError("calibration_invalid", "the calibration curve must be finite and increasing")
        return cls(float(platt[0]), float(platt[1]), knots, values)


@njit(cache=True, nogil=True, error_model="numpy")
def _write_probabilities(
    logits: Float32, slope: float, intercept: float, knots: Float64, values: Float64, out: Float32
) -> None:
    """Write the line, or the line's share of the curve; outside of the knots the curve is level."""
    last = len(knots) - 1
    for row in range(len(logits)):
        logit = np.float64(logits[row])
        line = 0.5 * (1.0 + math.tanh(0.5 * (slope * logit + intercept)))
        if last < 0 or math.isnan(logit):
            out[row] = line
            continue
        above = np.searchsorted(knots, logit, side="right")
        if above == 0 or above > last:
            curve = values[0] if above == 0 else values[last]
        else:
            rise = (values[above] - values[above - 1]) / (knots[above] - knots[above - 1])
            curve = rise * (logit - knots[above - 1]) + values[above - 1]
        out[row] = (1.0 - _LINEAR_SHARE) * curve + _LINEAR_SHARE * line


def sigmoid(logits: Float64) -> Float64:
    """1 / (1 + exp(-x)), without overflow at any float."""
    return 0.5 * (1.0 + np.tanh(0.5 * logits))


def log_losses(probabilities: Float32 | Float64, labels: Float32) -> Float64:
    """(rows,) negative log-likelihood in nats; probabilities are clipped to 1e-7."""
    clipped = np.clip(np.asarray(probabilities, np.float64), 1e-7, 1 - 1e-7)
    target = np.asarray(labels, np.float64)
    return -(target * np.log(clipped) + (1 - target) * np.log1p(-clipped))


def log_loss(probabilities: Float32 | Float64, labels: Float32) -> float:
    """Mean of `log_losses`; NaN for no rows."""
    return float(log_losses(probabilities, labels).mean()) if len(labels) else float("nan")


def fit_platt(logits: Float32, labels: Float32) -> Calibration:
    """Logistic regression of the label on the logit (Platt 1999), by Newton's method.

    Targets are smoothed as in Platt's paper, so separable rows stay finite. With one class only the
    slope stays 1 and the intercept matches the smoothed rate; without rows this is the identity. A
    logit that orders rows the wrong way gets a slope of almost 0, never a negative one.
    """
    if not len(labels):
        return Calibration.identity()
    x = np.asarray(logits, np.float64)
    positives = float(np.sum(labels > 0.5))
    negatives = len(labels) - positives
    target = np.where(labels > 0.5, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    free_slope = positives > 0 and negatives > 0
    slope, intercept = _newton(x, target, 1.0, free_slope)
    if slope < _MIN_SLOPE:
        slope, intercept = _newton(x, target, _MIN_SLOPE, False)
    return Calibration(slope, intercept, np.zeros(0), np.zeros(0))


def _newton(x: Float64, target: Float64, slope: float, free_slope: bool) -> tuple[float, float]:
    """Slope and intercept of least log-loss; the slope stays as given unless it is free.

    Works on centred logits, where the two parameters hardly interact, and halves a step that does not help.
    """
    centre = float(x.mean())
    design = np.stack([x - centre, np.ones_like(x)])  # (2, rows)
    beta = np.array([slope, 0.0])
    free = np.array([free_slope, True])
    loss = _smooth_loss(beta @ design, target)
    for _ in range(_NEWTON_STEPS):
        probability = sigmoid(beta @ design)
        gradient = design @ (probability - target)
        hessian = (design * (probability * (1 - probability))) @ design.T + 1e-9 * len(x) * np.eye(2)
        step = np.zeros(2)
        step[free] = np.linalg.solve(hessian[np.ix_(free, free)], gradient[free])
        while (trial := _smooth_loss((beta - step) @ design, target)) > loss and np.abs(step).max() > 1e-10:
            step *= 0.5
        beta, gain, loss = beta - step, loss - trial, trial
        if gain <= 1e-12 * len(x):
            break
    return float(beta[0]), float(beta[1] - beta[0] * centre)


def _smooth_loss(logits: Float64, target: Float64) -> float:
    return float(np.sum(np.logaddexp(0.0, logits) - target * logits))


def fit_isotonic(logits: Float32, labels: Float32) -> Calibration:
    """Non-decreasing step means by pool-adjacent-violators (Ayer et al. 1955), joined by straight lines.

    A knot is the mean logit of a pool. A small share of Platt's line is mixed in when probabilities are
    made, so two logits in one pool, or beyond the last one, still differ.
    """
    line = fit_platt(logits, labels)
    if not len(labels):
        return line
    order = np.argsort(logits, kind="stable")
    x, first = np.unique(np.asarray(logits, np.float64)[order], return_index=True)
    count = np.diff(np.append(first, len(order))).astype(np.float64)
    mean = np.add.reduceat(np.asarray(labels, np.float64)[order], first) / count
    pools = _pool_adjacent_violators(mean, count)
    weight = np.add.reduceat(count, pools)
    knots = np.add.reduceat(x * count, pools) / weight
    values = np.add.reduceat(mean * count, pools) / weight
    return Calibration(line.slope, line.intercept, knots, values)


def _pool_adjacent_violators(mean: Float64, count: Float64) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """First row of every pool of equal fitted value."""
    starts: list[int] = []
    sums: list[float] = []
    weights: list[float] = []
    for row, (value, weight) in enumerate(zip(mean.tolist(), count.tolist(), strict=True)):
        start, total = row, value * weight
        while starts and sums[-1] * weight >= total * weights[-1]:
            start, total, weight = starts.pop(), total + sums.pop(), weight + weights.pop()
        starts.append(start)
        sums.append(total)
        weights.append(weight)
    return np.array(starts, np.int64)


def fit_calibration(logits: Float32, labels: Float32) -> Calibration:
    """Platt scaling, or isotonic regression where it is better on rows that it has not seen.

    Rows are in time order. From `ISOTONIC_ROWS` on, both are fitted on the first half and the one with
    the lower log-loss on the second half is refitted on everything.
    """
    half = len(labels) // 2
    if len(labels) < ISOTONIC_ROWS:
        return fit_platt(logits, labels)
    losses = [
        log_loss(fit(logits[:half], labels[:half]).probability(logits[half:]), labels[half:])
        for fit in (fit_platt, fit_isotonic)
    ]
    return (fit_isotonic if losses[1] < losses[0] else fit_platt)(logits, labels)
