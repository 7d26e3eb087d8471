"""Distillation: a shallower copy of the teacher learns to give the teacher's embeddings.

The catalogue's own text and altered copies of it are the training set. The teacher embeds each text
once; the student then repeats its steps on them. Only steps decide the result, never the clock, unless
the clock's guard ends training.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from recsys.events import Float32, Int64
from recsys.text.augmentation import augment
from recsys.text.quantization import build_encoder
from recsys.text.runtime import plan_batches
from recsys.text.settings import DistillationConfig
from recsys.text.teacher import Teacher
from recsys.text.tokenization import Tokenizer, pad_batch
from recsys.text.transformer import TextTransformer

ALGORITHM = 2  # part of the fingerprint: raise it when the same inputs give another student
NEIGHBOURS = 10
LEARNED = ("layers.", "word_map.", "projection.")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DistillationReport:
    """What distillation did, and how close the student came on texts that it never trained on.

    Attributes:
        layers: of the student.
        parameters: of the student.
        texts: different texts trained on, altered copies counted.
        steps: optimiser steps.
        epochs: passes over the texts, the last perhaps in part.
        seconds: wall clock; of `distil` with the teacher's embeddings.
        initial_cosine: mean held-out cosine to the teacher before training.
        holdout_cosine: the same after it; NaN where there was too little text to hold any out.
        neighbour_overlap: share of the teacher's ten nearest held-out texts that are the student's too.
        stopped_early: patience or the clock ended it.
    """

    layers: int
    parameters: int
    texts: int
    steps: int
    epochs: int
    seconds: float
    initial_cosine: float
    holdout_cosine: float
    neighbour_overlap: float
    stopped_early: bool


@dataclass(frozen=True)
class Lessons:
    """What the teacher makes of texts to learn from, and of texts that only measure.

    `targets` and `holdout_targets` are (texts, dim), row by row. One set serves any number of students.
    """

    texts: list[str]
    targets: Float32
    holdout: list[str]
    holdout_targets: Float32

    @classmethod
    def of(cls, teacher: Teacher, texts: Sequence[str], config: DistillationConfig) -> Lessons:
        """Different texts of the catalogue with altered copies, as many as training reads once."""
        rng = np.random.default_rng(config.seed)
        unique = sorted({text for text in texts if text.strip()})
        chosen = [unique[row] for row in rng.permutation(len(unique))[: config.max_texts]]
        held = min(500, int(len(chosen) * config.holdout_share))
        holdout, train = chosen[:held], chosen[held:]
        copies = augment(train, rng=rng)
        train = sorted({*train, *copies} - set(holdout))
        train = _affordable([train[row] for row in rng.permutation(len(train))], teacher.tokenizer, config)
        # bf16 is exact enough for a target (cosine .99998) and needs no calibration.
        encoder = build_encoder(teacher.transformer, teacher.tokenizer, [], precision="bf16")
        return cls(train, encoder.encode(train), holdout, encoder.encode(holdout))


@dataclass(frozen=True)
class _Lesson:
    """Token lists and what the teacher makes of them, row by row."""

    tokens: list[list[int]]
    targets: Float32  # (texts, dim)

    def __len__(self) -> int:
        return len(self.tokens)


def distil(
    teacher: Teacher,
    texts: Sequence[str],
    config: DistillationConfig | None = None,
    *,
    progress: Progress | None = None,
) -> tuple[TextTransformer, DistillationReport]:
    """Make a student.

    Args:
        teacher: what to imitate.
        texts: the catalogue's texts (`item_text`), blank ones and repetitions allowed.
        config: the defaults where None.
        progress: called with steps done and steps planned.

    Returns:
        The student in evaluation mode (with no text at all: the teacher's kept layers, untrained) and
        the report.
    """
    config = config or DistillationConfig()
    started = time.monotonic()
    student = TextTransformer.from_teacher(teacher.transformer, config.layers)
    lessons = Lessons.of(teacher, texts, config)
    report = imitate(student, teacher.tokenizer, lessons, config, progress=progress)
    return student, replace(report, seconds=time.monotonic() - started)


def imitate(
    student: TextTransformer,
    tokenizer: Tokenizer,
    lessons: Lessons,
    config: DistillationConfig,
    *,
    progress: Progress | None = None,
) -> DistillationReport:
    """Train a student of any shape, in place, to give the teacher's embeddings; evaluation mode afterwards.

    Its layers learn, the map of a factorised word table and the projection; word table and positions stay.

    Args:
        student: what to train; its embeddings are as wide as the teacher's.
        tokenizer: the student's own.
        lessons: what to imitate.
        config: `layers` is not read.
        progress: called with steps done and steps planned.
    """
    started = time.monotonic()
    train = _lesson(tokenizer, lessons.targets, lessons.texts)
    holdout = _lesson(tokenizer, lessons.holdout_targets, lessons.holdout)
    run = _Training(student, train, holdout, config, progress or (lambda done, planned: None))
    initial = run.best_cosine
    run.fit(started + config.seconds)
    return DistillationReport(
        layers=student.architecture.depth,
        parameters=student.parameter_count,
        texts=len(train),
        steps=run.step,
        epochs=run.epoch,
        seconds=time.monotonic() - started,
        initial_cosine=initial,
        holdout_cosine=run.best_cosine,
        neighbour_overlap=neighbour_overlap(_embed(student, holdout), holdout.targets),
        stopped_early=run.stopped_early,
    )


def fingerprint(teacher: Teacher, texts: Sequence[str], config: DistillationConfig) -> str:
    """Digest of everything that decides the student, to find it again in a cache.

    The order and repetition of the texts do not.
    """
    digest = hashlib.blake2b(digest_size=16)
    decisive = asdict(config) | {"algorithm": ALGORITHM, "teacher": teacher.sha256}
    digest.update(json.dumps([decisive, asdict(teacher.tokenizer.limits)], sort_keys=True).encode())
    digest.update(hashlib.sha256(teacher.tokenizer.definition).digest())
    for text in sorted(set(texts)):
        digest.update(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())
    return digest.hexdigest()


def neighbour_overlap(ours: Float32, theirs: Float32, *, k: int = NEIGHBOURS) -> float:
    """Mean share of a row's k nearest other rows (cosine) that both matrices agree on.

    Both have the same number of rows, of length 1; NaN for k rows or fewer.
    """
    if len(ours) <= k:
        return float("nan")
    shared = [
        len(np.intersect1d(mine, other))
        for mine, other in zip(_nearest(ours, k), _nearest(theirs, k), strict=True)
    ]
    return float(np.mean(shared)) / k


def _nearest(matrix: Float32, k: int) -> Int64:
    similarity = matrix @ matrix.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argpartition(-similarity, k - 1, axis=1)[:, :k]


def _affordable(texts: list[str], tokenizer: Tokenizer, config: DistillationConfig) -> list[str]:
    """The first texts, as many as training will read once: the teacher embeds no others."""
    lengths = np.array([len(ids) for ids in tokenizer.encode(texts)], np.int64)
    before = np.cumsum(lengths) - lengths
    return [text for text, tokens in zip(texts, before, strict=True) if tokens < config.max_tokens_seen]


def _lesson(tokenizer: Tokenizer, targets: Float32, texts: list[str]) -> _Lesson:
    """Texts without a token of their own teach nothing and are left out."""
    tokens = tokenizer.encode(texts)
    rows = [row for row, ids in enumerate(tokens) if ids]
    return _Lesson([tokens[row] for row in rows], targets[rows])


def _embed(student: TextTransformer, lesson: _Lesson) -> Float32:
    embeddings = np.zeros(lesson.targets.shape, np.float32)
    student.eval()
    with torch.inference_mode():
        for rows, input_ids, attention_mask in plan_batches(lesson.tokens):
            output = student(torch.from_numpy(input_ids), torch.from_numpy(attention_mask))
            embeddings[rows] = output.numpy()
    return embeddings


class _Training:
    """One run of gradient descent; afterwards the student holds its best weights.

    The word table and positions stay the teacher's: they feed the same first layer, and are two
    thirds of the weights.
    """

    def __init__(
        self,
        student: TextTransformer,
        train: _Lesson,
        holdout: _Lesson,
        config: DistillationConfig,
        progress: Progress,
    ) -> None:
        self.student, self.train, self.holdout = student, train, holdout
        self.config, self.progress = config, progress
        self.planned = _planned_steps(train, config)
        self.step = self.epoch = 0
        self.stopped_early = False
        self.best_cosine = self._holdout_cosine()
        self._rng = np.random.default_rng([config.seed, 1])
        self._learned = [weight for name, weight in student.named_parameters() if name.startswith(LEARNED)]
        self._optimizer = torch.optim.AdamW(
            self._learned, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )

    def fit(self, deadline: float) -> None:
        """Train until the planned steps, the patience or the deadline are used up."""
        best, waited = self._weights(), 0
        while self.step < self.planned and waited < self.config.patience and time.monotonic() < deadline:
            self._pass_over_texts(deadline)
            cosine = self._holdout_cosine()
            if cosine > self.best_cosine or not len(self.holdout):  # a diverged student has NaN
                best, self.best_cosine, waited = self._weights(), cosine, 0
            else:
                waited += 1
        self.stopped_early = self.step < self.planned
        self.student.load_state_dict(best, strict=False)
        self.student.eval()

    def _pass_over_texts(self, deadline: float) -> None:
        self.epoch += 1
        self.student.train()
        for rows in _batches_by_length(self.train.tokens, self.config.batch_size, rng=self._rng):
            if self.step >= self.planned or time.monotonic() >= deadline:
                return
            self._descend(rows)
            self.step += 1
            self.progress(self.step, self.planned)

    def _descend(self, rows: Int64) -> None:
        tokens = [self.train.tokens[row] for row in rows]
        input_ids, attention_mask = map(torch.from_numpy, pad_batch(tokens, max(map(len, tokens))))
        with torch.autocast("cpu", torch.bfloat16):
            embedding = self.student(input_ids, attention_mask)
        target = torch.from_numpy(self.train.targets[rows])
        loss = (embedding - target).square().sum(1).mean()  # (B, dim) to a number: 2 - 2 cosine
        if self.config.similarity_weight:
            apart = embedding @ embedding.T - target @ target.T  # (B, B) cosines between texts
            loss = loss + self.config.similarity_weight * apart.square().sum(1).mean()
        for group in self._optimizer.param_groups:
            group["lr"] = _learning_rate(self.step, self.planned, self.config)
        gradients = torch.autograd.grad(loss, self._learned)
        for parameter, gradient in zip(self._learned, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _holdout_cosine(self) -> float:
        """Mean cosine to the teacher on the held-out texts, NaN where there are none."""
        if not len(self.holdout):
            return float("nan")
        embeddings = _embed(self.student, self.holdout)
        return float(np.einsum("td,td->t", embeddings, self.holdout.targets).mean())

    def _weights(self) -> dict[str, torch.Tensor]:
        weights = self.student.state_dict().items()
        return {name: tensor.clone() for name, tensor in weights if name.startswith(LEARNED)}


def _planned_steps(train: _Lesson, config: DistillationConfig) -> int:
    """As many steps as the cap on tokens and the cap on epochs allow."""
    if not len(train):
        return 0
    tokens = sum(map(len, train.tokens))
    epochs = min(config.max_epochs, config.max_tokens_seen / tokens)
    return math.ceil(epochs * math.ceil(len(train) / config.batch_size))


def _learning_rate(step: int, planned: int, config: DistillationConfig) -> float:
    warmup = min(1.0, (step + 1) / config.warmup_steps)
    return config.learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * step / planned))


def _batches_by_length(
    tokens: Sequence[Sequence[int]], batch_size: int, *, rng: np.random.Generator
) -> Iterator[Int64]:
    """Row numbers of texts of about the same length, batches in random order; every row once."""
    lengths = np.array([len(ids) for ids in tokens]) + rng.uniform(-1.0, 1.0, len(tokens))
    order = np.argsort(lengths, kind="stable")
    starts = np.arange(0, len(order), batch_size)
    for start in rng.permutation(starts):
        yield order[start : start + batch_size]
