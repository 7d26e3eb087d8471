"""Fits the relevance head in torch by binary cross-entropy, on item embeddings that stay as they are.

Fine-tuning the encoder together with the head is `text.finetuning`, which shares this module's network.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from recsys.calibration import fit_calibration, fit_platt, log_losses, sigmoid
from recsys.events import Float32, Float64, Int64
from recsys.metrics.calibration import expected_calibration_error
from recsys.metrics.slate import slate_metrics
from recsys.relevance import HistorySlots, RelevanceHead
from recsys.relevance_examples import Examples
from recsys.relevance_network import BatchSource, HeadBatch, HeadNetwork, parameter_groups, popularity_effects
from recsys.relevance_weights import HeadConfig, HeadWeights
from recsys.requests import HistoryBatch

MIN_JUDGED = 20
"""Clicks, and rows without one, that it takes to tell a better head from a worse one."""


@dataclass(frozen=True)
class HeadReport:
    """How a fit went; losses are nats a row, ECE is over 15 bins of equal mass.

    Attributes:
        requests: training requests.
        rows: training rows.
        holdout_rows: rows that stopped and calibrated the fit, all later than the training rows.
        train_loss: (epochs,) weighted cross-entropy.
        holdout_loss: (epochs + 1,) log-loss after Platt scaling, that of the untrained head first.
        best_epoch: whose weights were kept, 0 for the untrained head.
        auc_untrained: mean held-out AUC within a request by text similarity alone.
        auc: the same of the fitted head.
        ece_raw: calibration error of the plain sigmoid, on the later half of the held-out rows.
        ece: the same after calibration on the earlier half (the head that is returned is calibrated on both).
        calibration: `platt` or `isotonic`.
        seconds: wall time.
    """

    requests: int
    rows: int
    holdout_rows: int
    train_loss: tuple[float, ...]
    holdout_loss: tuple[float, ...]
    best_epoch: int
    auc_untrained: float
    auc: float
    ece_raw: float
    ece: float
    calibration: str
    seconds: float

    def metrics(self) -> dict[str, float]:
        """The finite numbers by name, for the registry."""
        named = {
            field.name: float(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), (int, float))
        }
        return {name: value for name, value in named.items() if np.isfinite(value)}


def fit_head(
    examples: Examples,
    history: HistoryBatch,
    embeddings: Float32,
    type_weights: Float32,
    config: HeadConfig | None = None,
    *,
    on_epoch: Callable[[int, float], None] | None = None,
) -> tuple[RelevanceHead, HeadReport]:
    """Fit a head on the earlier requests, stop and calibrate it on the newest `config.holdout` of them.

    The weights kept are those of the lowest held-out loss, or the untrained ones where that gains less
    than a standard error over them: a log that teaches nothing leaves the ranking by text similarity.
    With fewer than `MIN_JUDGED` held-out clicks (or non-clicks) nothing is fitted but the calibration,
    on all rows.

    Args:
        examples: labelled requests in time order.
        history: one range a request.
        embeddings: (items, D) rows unit or zero; not changed.
        type_weights: (types,) preference weight of each event type.
        config: shape and training.
        on_epoch: called with the epoch, from 1, and its held-out loss.
    """
    config = config or HeadConfig()
    began = time.perf_counter()
    first = len(examples) - round(len(examples) * config.holdout)
    everything = Judged(examples, history)
    training = everything.take(np.arange(first))
    holdout = everything.take(np.arange(first, len(examples)))
    untrained = RelevanceHead.untrained(embeddings, type_weights, config)
    can_judge = holdout.enough() and training.enough()
    holdout = holdout if can_judge else everything
    best = _Best(untrained, holdout, embeddings)
    train_loss = _descend(best, training, on_epoch) if can_judge else []
    head, calibration_figures = calibrate(best.head, holdout.logits(best.head, embeddings), holdout.labels)
    report = HeadReport(
        requests=len(training.examples),
        rows=training.examples.requests.rows,
        holdout_rows=holdout.examples.requests.rows,
        train_loss=tuple(train_loss),
        holdout_loss=tuple(best.losses),
        best_epoch=best.epoch,
        auc_untrained=holdout.auc(untrained, embeddings),
        auc=holdout.auc(head, embeddings),
        ece_raw=calibration_figures[0],
        ece=calibration_figures[1],
        calibration=head.calibration.kind,
        seconds=time.perf_counter() - began,
    )
    return head, report


def calibrate(
    head: RelevanceHead, logits: Float32, labels: Float32
) -> tuple[RelevanceHead, tuple[float, float]]:
    """Calibrate a head on rows in time order that it was not fitted on.

    Returns:
        The head calibrated on all rows, and the expected calibration error on the later half of the
        rows: of the plain sigmoid, and of a calibration fitted on the earlier half. NaN without rows.
    """
    known = ~np.isnan(labels)
    logits, labels = logits[known], labels[known]
    half = len(labels) // 2
    if not half:
        return head.calibrated(fit_platt(logits, labels)), (float("nan"), float("nan"))
    trial = fit_calibration(logits[:half], labels[:half])
    raw = sigmoid(logits[half:].astype(np.float64)).astype(np.float32)
    errors = (
        expected_calibration_error(raw, labels[half:]),
        expected_calibration_error(trial.probability(logits[half:]), labels[half:]),
    )
    return head.calibrated(fit_calibration(logits, labels)), errors


class Judged:
    """Labelled requests with their histories, and how good a head is on them."""

    def __init__(self, examples: Examples, history: HistoryBatch) -> None:
        self.examples = examples
        self.history = history
        self.labels = examples.requests.label

    def take(self, requests: Int64) -> Judged:
        """These requests, in the given order."""
        return Judged(self.examples.take(requests), self.history.take(requests))

    def enough(self) -> bool:
        """Whether there are clicks and other rows enough to tell heads apart."""
        return min((self.labels > 0.5).sum(), (self.labels < 0.5).sum()) >= MIN_JUDGED

    def logits(self, head: RelevanceHead, embeddings: Float32) -> Float32:
        """(rows,) uncalibrated."""
        return head.logits(self.examples.requests, self.history, head.project(embeddings))

    def losses(self, head: RelevanceHead, embeddings: Float32) -> Float64:
        """(requests,) summed log-loss after Platt scaling on these very rows: blind to scale and offset."""
        known = ~np.isnan(self.labels)
        logits, labels = self.logits(head, embeddings)[known], self.labels[known]
        rows = log_losses(fit_platt(logits, labels).probability(logits), labels)
        owner = self.examples.requests.request_of_row()[known]
        return np.bincount(owner, weights=rows, minlength=len(self.examples)).astype(np.float64)

    def auc(self, head: RelevanceHead, embeddings: Float32) -> float:
        """Mean AUC of the requests with both classes, NaN without one."""
        requests = self.examples.requests
        labels = np.nan_to_num(requests.label)
        values = slate_metrics(self.logits(head, embeddings), labels, requests.offsets)["auc"]
        judged = values[~np.isnan(values)]
        return float(judged.mean()) if len(judged) else float("nan")


def clearly_lower(losses: Float64, reference: Float64) -> bool:
    """Whether the sum of paired losses is lower than that of the reference by more than a standard error."""
    gain = reference - losses
    return bool(gain.sum() > gain.std() * len(gain) ** 0.5)


class _Best:
    """The head with the lowest held-out loss so far."""

    def __init__(self, head: RelevanceHead, holdout: Judged, embeddings: Float32) -> None:
        self.head = self.untrained = head
        self.holdout = holdout
        self.embeddings = embeddings
        self.epoch = 0
        self.by_request = [holdout.losses(head, embeddings)]

    @property
    def losses(self) -> list[float]:
        """Held-out nats a row by epoch, the untrained head first; NaN without rows."""
        rows = np.count_nonzero(~np.isnan(self.holdout.labels))
        return [float(loss.sum() / rows) if rows else float("nan") for loss in self.by_request]

    def offer(self, weights: HeadWeights) -> None:
        """Judge one more epoch's weights."""
        head = RelevanceHead(self.head.config, weights, self.head.calibration)
        losses = self.holdout.losses(head, self.embeddings)
        if losses.sum() < self.by_request[self.epoch].sum():
            self.head, self.epoch = head, len(self.by_request)
        self.by_request.append(losses)

    def stale(self) -> int:
        """Epochs since the best one."""
        return len(self.by_request) - 1 - self.epoch

    def settle(self) -> None:
        """Go back to the untrained head unless the gain over it exceeds one standard error."""
        if not clearly_lower(self.by_request[self.epoch], self.by_request[0]):
            self.head, self.epoch = self.untrained, 0


def _descend(best: _Best, training: Judged, on_epoch: Callable[[int, float], None] | None) -> list[float]:
    """Train until the held-out loss stops falling; returns the training loss of each epoch."""
    config = best.head.config
    slots = HistorySlots.of(training.history, config.history_limit, len(best.head.weights.event_type))
    source = BatchSource(training.examples, slots)
    table = torch.from_numpy(np.concatenate([best.embeddings, np.zeros_like(best.embeddings[:1])]))
    rng = np.random.default_rng(config.seed)
    losses: list[float] = []
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        effects = popularity_effects(training.examples, len(best.embeddings))
        network = HeadNetwork(best.head.weights, effects, config.dropout)
        optimizer = torch.optim.AdamW(parameter_groups(network, config))
        for epoch in range(1, config.epochs + 1):
            steps = [
                _step(network, optimizer, table, batch) for batch in source.epoch(config.batch_size, rng)
            ]
            losses.append(float(np.mean(steps)))
            best.offer(network.weights())
            if on_epoch is not None:
                on_epoch(epoch, best.losses[-1])
            if best.stale() >= config.patience:
                break
    best.settle()
    return losses


def _step(network: HeadNetwork, optimizer: torch.optim.Optimizer, table: Tensor, batch: HeadBatch) -> float:
    loss = network.loss(table[torch.from_numpy(batch.items)], batch)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return float(loss.detach())
