"""Fine-tunes the encoder on clicks: their likelihood through encoder and relevance head together.

How the encoder is trained and judged stands in `adaptation`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.calibration import Calibration
from recsys.events import Float32, Float64, Int32, Int64
from recsys.relevance import HistorySlots, RelevanceHead, newest_events
from recsys.relevance_examples import Examples, requests_within, sampled_rows, with_both_classes
from recsys.relevance_network import BatchSource, HeadNetwork, parameter_groups, popularity_effects
from recsys.relevance_training import MIN_JUDGED, Judged, fit_head
from recsys.requests import HistoryBatch
from recsys.text.adaptation import (
    FinetuneReport,
    Progress,
    Training,
    descend,
    unchanged,
)
from recsys.text.settings import FinetuneConfig
from recsys.text.text_in_training import EncodedTexts, TextInTraining
from recsys.text.tokenization import Tokenizer
from recsys.text.transformer import TextTransformer


@dataclass(frozen=True)
class Behaviour:
    """What there is to learn: labelled requests in time order, a history each, weights of event types."""

    examples: Examples
    history: HistoryBatch
    type_weights: Float32

    def take(self, requests: Int64) -> Behaviour:
        """These requests, in the given order."""
        return Behaviour(self.examples.take(requests), self.history.take(requests), self.type_weights)


def finetune(
    student: TextTransformer,
    tokenizer: Tokenizer,
    catalogue: EncodedTexts,
    behaviour: Behaviour,
    config: FinetuneConfig | None = None,
    *,
    progress: Progress | None = None,
) -> tuple[TextTransformer, FinetuneReport]:
    """Fine-tune a copy of the student; the student itself is never changed.

    A head is fitted to the student's embeddings first, so a gain on the held-out requests is the
    encoder's. Embed the catalogue anew and fit the final head afterwards.

    Args:
        student: the encoder to start from.
        tokenizer: its tokenizer.
        catalogue: texts and embeddings of all items.
        behaviour: what to learn from; only requests with a clicked and an unclicked row count.
        config: what is trained, how long, on how much.
        progress: called with (step, max_steps) after every step.

    Returns:
        The tuned encoder in evaluation mode, LoRA or IA3 merged into its weights; or `student` itself
        where the mode is `frozen`, there is too little to judge by, or nothing got better. The report's
        losses are per row after Platt scaling; its AUC is within a request.

    Raises:
        RecsysError: `config_invalid` for the modes `prompt` and `prefix`, which `adapt` only compares.
    """
    config = config or FinetuneConfig()
    config.check_mergeable()
    first = len(behaviour.history) - round(len(behaviour.history) * config.holdout)
    rng = np.random.default_rng(config.seed)
    lesson = thinned(behaviour.take(np.arange(first)), config, rng)
    later = thinned(behaviour.take(np.arange(first, len(behaviour.history))), config, rng)
    holdout = _affordable(later, config.holdout_texts, rng)
    if config.mode == "frozen":
        return student, unchanged(config, "the encoder is frozen")
    if min(len(holdout.history), len(lesson.history)) < MIN_JUDGED:
        return student, unchanged(config, "too few requests with clicks")
    head_config = replace(config.head, history_limit=config.history_limit)
    head, _ = fit_head(
        lesson.examples, lesson.history, catalogue.embeddings, lesson.type_weights, head_config
    )
    text = TextInTraining(student, tokenizer, catalogue, config)
    return descend(student, text, lambda: _Clicks(text, head, lesson, holdout), rng, progress)


@dataclass(frozen=True)
class Adapted:
    """An encoder and a head after their training, seen through requests that they were not trained on.

    Attributes:
        logits: (rows,) of the judging requests, uncalibrated.
        parameters: encoder weights trained; the head is as large in every mode.
        cpu_seconds: of training, of all threads of this process.
    """

    logits: Float32
    parameters: int
    cpu_seconds: float


def adapt(
    text: TextInTraining,
    head: RelevanceHead,
    lesson: Behaviour,
    judging: Behaviour,
    *,
    progress: Progress | None = None,
) -> Adapted:
    """Train encoder and head for exactly `max_steps`, in any mode; with `frozen` the head alone learns.

    Nothing is stopped or chosen by `judging`, and nothing is handed out but its logits.

    Args:
        text: the encoder to start from and what is trained of it; for this one run.
        head: the head to start from, which reads histories of `history_limit`; not changed.
        lesson: what to learn from (see `thinned`), one request at least.
        judging: the requests to look at.
        progress: called with (step, max_steps) after every step.

    Raises:
        ValueError: there is nothing to learn from.
    """
    if not len(lesson.history):
        raise ValueError("there is no request to learn from")
    config, began = text.config, time.process_time()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        clicks = _Clicks(text, head, lesson, judging)
        training = Training(text, clicks)
        for step in training.steps(np.random.default_rng(config.seed)):
            if progress is not None:
                progress(step, config.max_steps)
    spent = time.process_time() - began
    return Adapted(clicks.logits(text.embed(clicks.items), training.step), training.parameters, spent)


def thinned(behaviour: Behaviour, config: FinetuneConfig, rng: np.random.Generator) -> Behaviour:
    """Requests with both classes, at most `config.candidates` rows each, and short histories."""
    kept = behaviour.examples.keep(sampled_rows(behaviour.examples.requests, config.candidates, rng=rng))
    history = newest_events(behaviour.history, config.history_limit)
    return Behaviour(kept, history, behaviour.type_weights).take(with_both_classes(kept.requests))


def _affordable(behaviour: Behaviour, texts: int, rng: np.random.Generator) -> Behaviour:
    """A random choice of requests that need at most so many different items, in time order."""
    return behaviour.take(
        requests_within(behaviour.examples.requests, behaviour.history, items=texts, rng=rng)
    )


class _Clicks:
    """Click likelihood through encoder and head, the held-out requests over the few items they need."""

    def __init__(
        self, text: TextInTraining, head: RelevanceHead, lesson: Behaviour, holdout: Behaviour
    ) -> None:
        self.text, self.head = text, head
        config = text.config
        slots = HistorySlots.of(lesson.history, config.history_limit, len(head.weights.event_type))
        self.batch_size = config.batch_size
        self.source = BatchSource(lesson.examples, slots)
        effects = popularity_effects(lesson.examples, len(text.catalogue.embeddings))
        self.network = HeadNetwork(head.weights, effects, head.config.dropout)
        requests, history = holdout.examples.requests, holdout.history
        self.items = np.unique(np.concatenate([requests.item_index, history.item_index])).astype(np.int64)
        examples = replace(
            holdout.examples, requests=replace(requests, item_index=self._place(requests.item_index))
        )
        self.judged = Judged(examples, replace(history, item_index=self._place(history.item_index)))
        self.rows = requests.rows

    def __len__(self) -> int:
        return len(self.source)

    def _place(self, items: Int32) -> Int32:
        return np.searchsorted(self.items, items).astype(np.int32)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The head's, at a third of its learning rate."""
        config = self.head.config
        return parameter_groups(self.network, replace(config, learning_rate=config.learning_rate / 3))

    def loss(self, examples: Int64, rng: np.random.Generator) -> Tensor:
        """Weighted cross-entropy a row; candidates are encoded before histories."""
        batch = self.source.batch(examples)
        wanted = torch.zeros(len(batch.items), dtype=torch.int64)
        wanted[batch.candidate[batch.weight > 0]] = 1
        vectors, anchor = self.text.refreshed(batch.items, wanted.numpy(), rng)
        return self.network.loss(vectors, batch) + anchor

    def judge(self, embeddings: Float32, step: int) -> tuple[Float64, float]:
        """Platt-scaled log-losses by request, and AUC; before the first step of the head as fitted."""
        head = self._head(step)
        return self.judged.losses(head, embeddings), self.judged.auc(head, embeddings)

    def logits(self, embeddings: Float32, step: int) -> Float32:
        """(rows,) of the held-out requests, uncalibrated."""
        return self.judged.logits(self._head(step), embeddings)

    def _head(self, step: int) -> RelevanceHead:
        if not step:
            return self.head
        return RelevanceHead(self.head.config, self.network.weights(), Calibration.identity())
