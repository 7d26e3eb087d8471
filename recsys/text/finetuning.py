"""Fine-tunes the encoder on behaviour: click likelihood through encoder and relevance head together.

A step encodes a bounded number of texts anew, candidates first; the others come from a bank of vectors
that is written back as it goes. An anchor keeps every embedding near the distilled one, so items that
nobody clicked stay where their text puts them. What does not help on later requests is not kept.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from recsys.calibration import Calibration
from recsys.events import Bool, Float32, Float64, Int32, Int64
from recsys.relevance import HistorySlots, RelevanceHead, newest_events
from recsys.relevance_examples import Examples, requests_within, sampled_rows, with_both_classes
from recsys.relevance_network import BatchSource, HeadNetwork, parameter_groups, popularity_effects
from recsys.relevance_training import MIN_JUDGED, Judged, clearly_lower, fit_head
from recsys.requests import HistoryBatch
from recsys.text.runtime import plan_batches
from recsys.text.settings import FinetuneConfig
from recsys.text.tokenization import Tokenizer, pad_batch
from recsys.text.transformer import TextTransformer

WARMUP_SHARE = 0.1
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class EncodedTexts:
    """The catalogue's texts and the student's (items, D) embeddings of them, zeros where there is no word."""

    texts: Sequence[str]
    embeddings: Float32


@dataclass(frozen=True)
class Behaviour:
    """What there is to learn: labelled requests in time order, a history each, weights of event types."""

    examples: Examples
    history: HistoryBatch
    type_weights: Float32

    def take(self, requests: Int64) -> Behaviour:
        """These requests, in the given order."""
        return Behaviour(self.examples.take(requests), self.history.take(requests), self.type_weights)


@dataclass(frozen=True)
class FinetuneReport:
    """What fine-tuning did. Losses are held-out nats a row after Platt scaling, NaN where nothing was judged.

    Attributes:
        mode: as configured.
        steps: optimiser steps taken.
        improved: whether the new encoder was kept; else the student came back unchanged.
        reason: why, in words.
        parameters: encoder weights trained.
        holdout_rows: rows that judged.
        loss_before: of the distilled encoder with a head fitted to it.
        loss: of the best encoder with its head, `loss_before` where none was better.
        auc_before: mean AUC within a held-out request, likewise.
        auc: likewise.
        drift: mean of 1 - cosine between old and new embeddings of the judged texts, as returned.
        seconds: wall time.
    """

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


def finetune(
    student: TextTransformer,
    tokenizer: Tokenizer,
    catalogue: EncodedTexts,
    behaviour: Behaviour,
    config: FinetuneConfig | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
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
        The tuned encoder in evaluation mode, LoRA merged into its weights; or `student` itself where
        the mode is `frozen`, there is too little to judge by, or nothing got better.
    """
    config = config or FinetuneConfig()
    began = time.perf_counter()
    first = len(behaviour.history) - round(len(behaviour.history) * config.holdout)
    rng = np.random.default_rng(config.seed)
    lesson = _thinned(behaviour.take(np.arange(first)), config, rng)
    later = _thinned(behaviour.take(np.arange(first, len(behaviour.history))), config, rng)
    holdout = _affordable(later, config.holdout_texts, rng)
    if config.mode == "frozen" or min(len(holdout.history), len(lesson.history)) < MIN_JUDGED:
        reason = "the encoder is frozen" if config.mode == "frozen" else "too few requests with clicks"
        return student, _unchanged(config, reason, time.perf_counter() - began)
    head_config = replace(config.head, history_limit=config.history_limit)
    head, _ = fit_head(
        lesson.examples, lesson.history, catalogue.embeddings, lesson.type_weights, head_config
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        tuning = _Tuning(_Text(student, tokenizer, catalogue), head, lesson, holdout, config)
        tuning.fit(rng, progress)
    return tuning.result(student, time.perf_counter() - began)


def _unchanged(config: FinetuneConfig, reason: str, seconds: float) -> FinetuneReport:
    nan = float("nan")
    return FinetuneReport(config.mode, 0, False, reason, 0, 0, nan, nan, nan, nan, 0.0, seconds)


def _thinned(behaviour: Behaviour, config: FinetuneConfig, rng: np.random.Generator) -> Behaviour:
    """Requests with both classes, at most `config.candidates` rows each, and short histories."""
    kept = behaviour.examples.keep(sampled_rows(behaviour.examples.requests, config.candidates, rng=rng))
    history = newest_events(behaviour.history, config.history_limit)
    return Behaviour(kept, history, behaviour.type_weights).take(with_both_classes(kept.requests))


def _affordable(behaviour: Behaviour, texts: int, rng: np.random.Generator) -> Behaviour:
    """A random choice of requests that need at most so many different items, in time order."""
    return behaviour.take(
        requests_within(behaviour.examples.requests, behaviour.history, items=texts, rng=rng)
    )


class _Text:
    """The encoder in training over the catalogue's tokens."""

    def __init__(self, student: TextTransformer, tokenizer: Tokenizer, catalogue: EncodedTexts) -> None:
        self.model = copy.deepcopy(student)
        self.catalogue = catalogue
        self.tokenizer = tokenizer
        self.original = torch.from_numpy(_with_unknown(catalogue.embeddings))
        self.bank = self.original.clone()
        self._tokens: dict[int, list[int]] = {}

    def tokens(self, item: int) -> list[int]:
        """Token ids of an item; empty for -1 and for a text without a word."""
        if item < 0:
            return []
        if item not in self._tokens:
            self._tokens[item] = self.tokenizer.encode([self.catalogue.texts[item]])[0]
        return self._tokens[item]

    def encode(self, items: Int64, max_tokens: int) -> Tensor:
        """(n, D) with gradients; every item has a token."""
        ids = [self.tokens(item) for item in items.tolist()]
        cut = [
            tokens if len(tokens) <= max_tokens else [*tokens[: max_tokens - 1], tokens[-1]] for tokens in ids
        ]
        input_ids, attention_mask = map(torch.from_numpy, pad_batch(cut, max(map(len, cut))))
        with torch.autocast("cpu", torch.bfloat16):
            embedding: Tensor = self.model(input_ids, attention_mask)
        return embedding

    def embed(self, items: Int64) -> Float32:
        """(n, D) of whole texts, without gradients; zeros for a text without a word."""
        out = np.zeros((len(items), self.original.shape[1]), np.float32)
        self.model.eval()
        with torch.inference_mode():
            for rows, input_ids, attention_mask in plan_batches(
                [self.tokens(item) for item in items.tolist()]
            ):
                out[rows] = self.model(torch.from_numpy(input_ids), torch.from_numpy(attention_mask)).numpy()
        return out


class _Jury:
    """The held-out requests over the few items that they need, and the verdicts so far."""

    def __init__(self, behaviour: Behaviour) -> None:
        requests, history = behaviour.examples.requests, behaviour.history
        self.items = np.unique(np.concatenate([requests.item_index, history.item_index])).astype(np.int64)
        examples = replace(
            behaviour.examples, requests=replace(requests, item_index=self._place(requests.item_index))
        )
        self.judged = Judged(examples, replace(history, item_index=self._place(history.item_index)))
        self.rows = requests.rows
        self.losses: list[Float64] = []
        self.aucs: list[float] = []
        self.best = 0

    def _place(self, items: Int32) -> Int32:
        return np.searchsorted(self.items, items).astype(np.int32)

    def judge(self, head: RelevanceHead, embeddings: Float32) -> bool:
        """Whether this head over these embeddings of `items` is the best so far."""
        self.losses.append(self.judged.losses(head, embeddings))
        self.aucs.append(self.judged.auc(head, embeddings))
        better = bool(self.losses[-1].sum() < self.losses[self.best].sum())
        if better:
            self.best = len(self.losses) - 1
        return better

    def waited(self) -> int:
        """Verdicts since the best one."""
        return len(self.losses) - 1 - self.best

    def loss(self, verdict: int) -> float:
        """Nats a row."""
        return float(self.losses[verdict].sum() / self.rows)


class _Tuning:
    """One run of gradient descent on encoder and head; afterwards `result` gives its best encoder."""

    def __init__(
        self, text: _Text, head: RelevanceHead, lesson: Behaviour, holdout: Behaviour, config: FinetuneConfig
    ) -> None:
        self.text, self.config, self.head_config = text, config, head.config
        slots = HistorySlots.of(lesson.history, config.history_limit, len(head.weights.event_type))
        self.source = BatchSource(lesson.examples, slots)
        self.jury = _Jury(holdout)
        effects = popularity_effects(lesson.examples, len(text.catalogue.embeddings))
        self.network = HeadNetwork(head.weights, effects, head.config.dropout)
        self.trained = trainable(text.model, config)
        self.optimizer, self.schedule = self._optimizer()
        self.before = text.embed(self.jury.items)
        self.jury.judge(head, self.before)
        self.best_state = self._state()
        self.step = 0

    def _optimizer(self) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
        config = self.config
        rate = config.lora_learning_rate if config.mode == "lora" else config.learning_rate
        head = replace(self.head_config, learning_rate=self.head_config.learning_rate / 3)
        groups = [{"params": self.trained, "lr": rate}, *parameter_groups(self.network, head)]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
        warmup = max(1, round(WARMUP_SHARE * config.max_steps))
        return optimizer, torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warmup, 1.0) * (1.0 - step / (config.max_steps + 1))
        )

    def fit(self, rng: np.random.Generator, progress: Callable[[int, int], None] | None) -> None:
        """Train until the steps or the patience are used up."""
        while self.step < self.config.max_steps:
            order = rng.permutation(len(self.source))
            for first in range(0, len(order), self.config.batch_size):
                self._descend(order[first : first + self.config.batch_size], rng)
                self.step += 1
                if progress is not None:
                    progress(self.step, self.config.max_steps)
                if self.step == self.config.max_steps or self.step % self.config.evaluate_every == 0:
                    self._judge()
                if self.step == self.config.max_steps or self.jury.waited() >= self.config.patience:
                    return

    def _descend(self, pieces: Int64, rng: np.random.Generator) -> None:
        batch = self.source.batch(pieces)
        self.text.model.train()
        wanted = torch.zeros(len(batch.items), dtype=torch.bool)
        wanted[batch.candidate[batch.weight > 0]] = True
        fresh = self._fresh(batch.items, wanted.numpy(), rng)
        vectors = self.text.bank[torch.from_numpy(batch.items)]
        anchor = torch.zeros(())
        if len(fresh):
            items = torch.from_numpy(batch.items[fresh])
            encoded = self.text.encode(batch.items[fresh], self.config.max_tokens)
            vectors = vectors.index_copy(0, torch.from_numpy(fresh), encoded)
            anchor = (1.0 - (encoded * self.text.original[items]).sum(1)).mean()
        loss = self.network.loss(vectors, batch) + self.config.anchor * anchor
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.trained, MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.schedule.step()
        if len(fresh):
            self.text.bank[items] = encoded.detach()

    def _fresh(self, items: Int64, wanted: Bool, rng: np.random.Generator) -> Int64:
        """Places in `items` of the texts to encode: candidates first, then history at random."""
        order = np.lexsort((rng.random(len(items)), ~wanted))
        worded = [place for place in order.tolist() if self.text.tokens(int(items[place]))]
        return np.array(worded[: self.config.max_texts], np.int64)

    def _judge(self) -> None:
        weights = self.network.weights()
        head = RelevanceHead(self.head_config, weights, Calibration.identity())
        if self.jury.judge(head, self.text.embed(self.jury.items)):
            self.best_state = self._state()

    def _state(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.trained]

    def result(self, student: TextTransformer, seconds: float) -> tuple[TextTransformer, FinetuneReport]:
        """The best encoder, or `student` where the gain is too small, and the report."""
        jury, best = self.jury, self.jury.best
        gain = jury.loss(0) - jury.loss(best)
        improved = gain >= self.config.min_gain and clearly_lower(jury.losses[best], jury.losses[0])
        tuned, after = student, self.before
        if improved:
            with torch.no_grad():
                for parameter, value in zip(self.trained, self.best_state, strict=True):
                    parameter.copy_(value)
            after = self.text.embed(jury.items)
            tuned = merged(self.text.model)
        worded = np.linalg.norm(self.before, axis=1) > 0
        kept = best if improved else 0
        return tuned, FinetuneReport(
            mode=self.config.mode,
            steps=self.step,
            improved=improved,
            reason=f"held-out loss fell by {gain:.5f}{'' if improved else ', too little'}",
            parameters=sum(parameter.numel() for parameter in self.trained),
            holdout_rows=jury.rows,
            loss_before=jury.loss(0),
            loss=jury.loss(kept),
            auc_before=jury.aucs[0],
            auc=jury.aucs[kept],
            drift=float(1.0 - (self.before * after).sum(1)[worded].mean()) if worded.any() else 0.0,
            seconds=seconds,
        )


def trainable(model: TextTransformer, config: FinetuneConfig) -> list[nn.Parameter]:
    """The weights that are to be trained, all others frozen; in `lora` mode adapters are put in first."""
    if config.mode == "lora":
        adapters = LoraConfig(
            r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules=["query", "value"]
        )
        inject_adapter_in_model(adapters, model)
        return [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    model.layers.requires_grad_(True)
    return list(model.layers.parameters())


def merged(model: TextTransformer) -> TextTransformer:
    """A plain copy in evaluation mode, any LoRA adapters added into the weights that they adapt."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    state = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in model.state_dict().items()
        if "lora_" not in name
    }
    plain = TextTransformer(model.architecture)
    plain.load_state_dict(state)
    return plain.eval()


def _with_unknown(embeddings: Float32) -> Float32:
    """One more row, of zeros, for item -1."""
    return np.concatenate([embeddings, np.zeros_like(embeddings[:1])])
