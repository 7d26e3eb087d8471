"""Gradient descent on the encoder for any objective, judged on examples held out.

What does not help on later examples is not kept. What is learned from them is up to the objective
(`finetuning`: clicks; `contrastive`: the next item), how texts are encoded meanwhile to `text_in_training`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from recsys.events import Float32, Float64, Int64
from recsys.relevance_training import clearly_lower
from recsys.text.adapters import learning_rate, merged, weight_decay
from recsys.text.settings import FinetuneConfig
from recsys.text.text_in_training import TextInTraining
from recsys.text.transformer import TextTransformer

WARMUP_SHARE = 0.1
MAX_GRADIENT_NORM = 1.0
Progress = Callable[[int, int], None]
"""Called with (step, max_steps) after every step."""


@dataclass(frozen=True)
class FinetuneReport:
    """What fine-tuning did. Losses are held-out nats, blind to scale, NaN where nothing was judged.

    Attributes:
        objective: as configured, likewise `mode`.
        steps: optimiser steps taken.
        improved: whether the new encoder was kept; else the student came back unchanged.
        reason: why, in words.
        parameters: encoder weights trained.
        holdout_rows: rows that judged; a loss is a mean over them.
        loss_before: of the distilled encoder.
        loss: of the best encoder, `loss_before` where none was better.
        auc_before: mean AUC within a held-out example, likewise.
        auc: likewise.
        drift: mean of 1 - cosine between old and new embeddings of the judged texts, as returned.
        seconds: wall time.
        cpu_seconds: of all threads of this process, judging included.
    """

    objective: str
    mode: str
    steps: int
    improved: bool
    reason: str
    parameters: int
    holdout_rows: int
    loss_before: float
    loss: float
    auc_before: float
    auc: float
    drift: float
    seconds: float
    cpu_seconds: float


class Objective(Protocol):
    """What is learned, and by what it is judged.

    Attributes:
        batch_size: examples a step.
        items: (n,) the different items that the held-out examples need.
        rows: of the held-out examples.
    """

    batch_size: int
    items: Int64
    rows: int

    def __len__(self) -> int:
        """Training examples."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained along with the encoder, for the optimiser."""
        ...

    def loss(self, examples: Int64, rng: np.random.Generator) -> Tensor:
        """Of these examples, anchor included."""
        ...

    def judge(self, embeddings: Float32, step: int) -> tuple[Float64, float]:
        """Held-out losses, one a request, and AUC, given the embeddings of `items` after so many steps."""
        ...


class _Verdicts:
    """The held-out losses and AUC of every encoder so far, the student's first."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.losses: list[Float64] = []
        self.aucs: list[float] = []
        self.best = 0

    def add(self, losses: Float64, auc: float) -> bool:
        """Whether this is the best so far."""
        self.losses.append(losses)
        self.aucs.append(auc)
        better = bool(losses.sum() < self.losses[self.best].sum())
        if better:
            self.best = len(self.losses) - 1
        return better

    def waited(self) -> int:
        """Verdicts since the best one."""
        return len(self.losses) - 1 - self.best

    def loss(self, verdict: int) -> float:
        """Nats a row."""
        return float(self.losses[verdict].sum() / self.rows)


class Training:
    """Steps of gradient descent on the encoder that is in `text` and on what the objective trains along."""

    def __init__(self, text: TextInTraining, objective: Objective) -> None:
        self.objective, self.config = objective, text.config
        self.trained = text.equip()
        self.step = 0
        rate, decay, most = learning_rate(self.config), weight_decay(self.config), self.config.max_steps
        encoder = [{"params": self.trained, "lr": rate, "weight_decay": decay}] if self.trained else []
        self.optimizer = torch.optim.AdamW([*encoder, *objective.parameter_groups()], fused=True)
        warmup = max(1, round(WARMUP_SHARE * most))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min((step + 1) / warmup, 1.0) * (1.0 - step / (most + 1))
        )

    @property
    def parameters(self) -> int:
        """Weights of the encoder that are trained."""
        return sum(parameter.numel() for parameter in self.trained)

    def steps(self, rng: np.random.Generator) -> Iterator[int]:
        """Take one step after the other, up to `max_steps`; gives the number of each once it is done."""
        size = self.objective.batch_size
        while self.step < self.config.max_steps:
            order = rng.permutation(len(self.objective))
            for first in range(0, len(order), size):
                self._descend(order[first : first + size], rng)
                self.step += 1
                yield self.step
                if self.step == self.config.max_steps:
                    return

    def _descend(self, examples: Int64, rng: np.random.Generator) -> None:
        loss = self.objective.loss(examples, rng)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.trained, MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.schedule.step()


class _Descent:
    """One run of gradient descent, judged as it goes; afterwards `result` gives its best encoder."""

    def __init__(self, text: TextInTraining, objective: Objective) -> None:
        self.text, self.objective, self.config = text, objective, text.config
        self.verdicts = _Verdicts(objective.rows)
        self.before = text.embed(objective.items)
        self.verdicts.add(*objective.judge(self.before, 0))
        self.training = Training(text, objective)
        self.best_state = self._state()

    def run(self, rng: np.random.Generator, progress: Progress | None) -> None:
        """Train until the steps or the patience are used up."""
        most = self.config.max_steps
        for step in self.training.steps(rng):
            if progress is not None:
                progress(step, most)
            if step == most or step % self.config.evaluate_every == 0:
                self._judge(step)
            if self.verdicts.waited() >= self.config.patience:
                return

    def _judge(self, step: int) -> None:
        embeddings = self.text.embed(self.objective.items)
        if self.verdicts.add(*self.objective.judge(embeddings, step)):
            self.best_state = self._state()

    def _state(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.training.trained]

    def result(
        self, student: TextTransformer, began: float, cpu_began: float
    ) -> tuple[TextTransformer, FinetuneReport]:
        """The best encoder, or `student` where the gain is too small, and the report."""
        verdicts, best = self.verdicts, self.verdicts.best
        gain = verdicts.loss(0) - verdicts.loss(best)
        improved = gain >= self.config.min_gain and clearly_lower(verdicts.losses[best], verdicts.losses[0])
        tuned, after = student, self.before
        if improved:
            with torch.no_grad():
                for parameter, value in zip(self.training.trained, self.best_state, strict=True):
                    parameter.copy_(value)
            after = self.text.embed(self.objective.items)
            tuned = merged(self.text.model)
        worded = np.linalg.norm(self.before, axis=1) > 0
        kept = best if improved else 0
        return tuned, FinetuneReport(
            objective=self.config.objective,
            mode=self.config.mode,
            steps=self.training.step,
            improved=improved,
            reason=f"held-out loss fell by {gain:.5f}{'' if improved else ', too little'}",
            parameters=self.training.parameters,
            holdout_rows=verdicts.rows,
            loss_before=verdicts.loss(0),
            loss=verdicts.loss(kept),
            auc_before=verdicts.aucs[0],
            auc=verdicts.aucs[kept],
            drift=float(1.0 - (self.before * after).sum(1)[worded].mean()) if worded.any() else 0.0,
            seconds=time.perf_counter() - began,
            cpu_seconds=time.process_time() - cpu_began,
        )


def descend(
    student: TextTransformer,
    text: TextInTraining,
    objective: Callable[[], Objective],
    rng: np.random.Generator,
    progress: Progress | None,
) -> tuple[TextTransformer, FinetuneReport]:
    """Train the copy of the student that is in `text`; `objective` is made under the seed."""
    began, cpu_began = time.perf_counter(), time.process_time()
    with torch.random.fork_rng():
        torch.manual_seed(text.config.seed)
        descent = _Descent(text, objective())
        descent.run(rng, progress)
    return descent.result(student, began, cpu_began)


def unchanged(config: FinetuneConfig, reason: str) -> FinetuneReport:
    """The report of a student that nothing was done to."""
    nan = float("nan")
    return FinetuneReport(
        config.objective, config.mode, 0, False, reason, 0, 0, nan, nan, nan, nan, 0.0, 0.0, 0.0
    )
