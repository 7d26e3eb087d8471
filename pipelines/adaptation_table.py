"""Ways to adapt the text encoder side by side: what each trains and costs, how good it is with few clicks.

Everything happens in the training part of a split by time; the test is not touched. The newest requests
of that part judge, and only judge: every mode takes a number of steps that its clicks decide, nothing is
stopped or chosen by what the judging requests say.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console

from pipelines.config import Config
from pipelines.encoding import click_behaviour, student_of
from pipelines.home import Home
from pipelines.terminal import Terminal, table
from recsys.calibration import fit_platt, log_loss
from recsys.dataset import Dataset
from recsys.errors import RecsysError
from recsys.events import Float32, Int64
from recsys.metrics.intervals import mean_interval, paired_interval
from recsys.metrics.slate import slate_metrics
from recsys.pairs import known_rows
from recsys.protocols import split
from recsys.relevance import RelevanceHead, newest_events
from recsys.relevance_examples import requests_within, with_both_classes
from recsys.relevance_training import MIN_JUDGED, fit_head
from recsys.relevance_weights import HeadConfig
from recsys.requests import HistoryBatch, Requests
from recsys.text.finetuning import Adapted, Behaviour, adapt, thinned
from recsys.text.item_text import catalogue_texts
from recsys.text.quantization import build_encoder
from recsys.text.settings import MODES, FinetuneConfig, Mode
from recsys.text.teacher import load_teacher
from recsys.text.text_in_training import EncodedTexts, TextInTraining
from recsys.text.tokenization import Tokenizer
from recsys.text.transformer import TextTransformer

LABELS = (0, 10, 100, 1000)
JUDGED_SHARE = 0.25
"""Newest share of the requests, which judges."""
JUDGED_TEXTS = 2_000
"""Different texts at most that the judging requests need: all of them are encoded anew for every row."""
PASSES = 8
LEAST_STEPS = 10


def compare_adaptation(
    data: Dataset, config: Config, home: Home, terminal: Terminal, *, labels: Sequence[int] = LABELS
) -> dict[str, Any]:
    """Every mode of `FinetuneConfig` with so many labelled clicks, and with all that there are.

    Clicks come with the unclicked rows of their requests (sampled where the log has no slates), the fewer
    are among the more, and all modes have the same. With 0 the encoder is the student: one row is the
    cosine to the mean of the history, one the untrained head. With more, the head is fitted to the
    student's embeddings first, as far as the clicks allow, then trained along, with `frozen` alone.

    Args:
        data: the log; only the training part of its split by time is read.
        config: the student, the head and the fine-tuning; its mode and objective are not read.
        home: where students are kept.
        terminal: shows the steps.
        labels: how many clicks; those that there are not are left out.

    Returns:
        `data`, `requests` and `users` that judge, `clicks` in all, and `rows`: `mode`, `labels`,
        `trained_parameters` of the encoder, `cpu_seconds` of training, `auc` within a request with its
        user-clustered 95 % interval, `over_frozen` (the paired gain in it over `frozen` with the same
        clicks; None without clicks) and `log_loss` in nats a row after Platt scaling on these very rows.

    Raises:
        RecsysError: `nothing_to_test` where there are too few requests with clicks.
    """
    trial = _trial(data, config, home, terminal)
    rows = trial.zero_shot() if 0 in labels else []
    every = int(clicks_of(trial.lesson.examples.requests).sum())
    for clicks in [*sorted(count for count in set(labels) if 0 < count < every), every]:
        rows += trial.rows(clicks, terminal)
    users = np.unique(trial.judging.examples.requests.user_index)
    return {
        "data": data.name,
        "requests": len(trial.judging.history),
        "users": len(users),
        "clicks": every,
        "rows": rows,
    }


def print_adaptation(document: dict[str, Any], out: Console) -> None:
    """One table, by clicks."""
    rows = []
    for row in document["rows"]:
        gain = row["over_frozen"]
        rows.append(
            [
                row["mode"],
                f"{'all ' if row['labels'] == document['clicks'] else ''}{row['labels']:,}",
                f"{row['trained_parameters']:,}",
                f"{row['cpu_seconds']:.1f}",
                f"{row['auc']['mean']:.4f} ±{(row['auc']['high'] - row['auc']['low']) / 2:.4f}",
                f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]" if gain else "",
                f"{row['log_loss']:.4f}",
            ]
        )
    told = f"{document['requests']:,} later requests of {document['users']:,} users"
    header = ["mode", "clicks", "trained weights", "CPU s", "AUC", "less frozen", "log loss"]
    out.print(table(f"{document['data']}: the text encoder adapted, judged on {told}", header, rows))


def few_steps(requests: int, config: FinetuneConfig) -> int:
    """Steps for so many requests: `PASSES` over them, no fewer than `LEAST_STEPS`, `max_steps` at most."""
    return min(config.max_steps, max(LEAST_STEPS, math.ceil(PASSES * requests / config.batch_size)))


@dataclass(frozen=True)
class _Trial:
    """One student, what there is to learn from, and what judges; `order` draws requests of `lesson`."""

    student: TextTransformer
    tokenizer: Tokenizer
    catalogue: EncodedTexts
    lesson: Behaviour
    judging: Behaviour
    order: Int64
    tuning: FinetuneConfig
    head: HeadConfig

    def zero_shot(self) -> list[dict[str, Any]]:
        """The student without a click: cosine to the mean of the history, and the untrained head."""
        requests, history = self.judging.examples.requests, self.judging.history
        embeddings = self.catalogue.embeddings
        head = RelevanceHead.untrained(embeddings, self.judging.type_weights, self.head)
        logits = head.logits(requests, history, head.project(embeddings))
        cosines = history_cosines(requests, history, embeddings)
        return [
            {"mode": name, "labels": 0, "trained_parameters": 0, "cpu_seconds": 0.0}
            | judged(requests, scores)
            for name, scores in (("cosine", cosines), ("untrained head", logits))
        ]

    def rows(self, clicks: int, terminal: Terminal) -> list[dict[str, Any]]:
        """Every mode with so many clicks; each is charged for the head that all start from."""
        lesson = self.lesson.take(self._drawn(clicks))
        tuning = replace(self.tuning, max_steps=few_steps(len(lesson.history), self.tuning))
        embeddings, began = self.catalogue.embeddings, time.process_time()
        with terminal.step(f"head, {clicks:,} clicks"):
            head, _ = fit_head(lesson.examples, lesson.history, embeddings, lesson.type_weights, self.head)
        head_seconds = time.process_time() - began
        made: dict[Mode, Adapted] = {}
        for mode in MODES:
            settings = replace(tuning, mode=mode)
            text = TextInTraining(self.student, self.tokenizer, self.catalogue, settings)
            with terminal.step(f"{mode}, {clicks:,} clicks") as progress:
                made[mode] = adapt(text, head, lesson, self.judging, progress=progress)
        return [
            {
                "mode": mode,
                "labels": clicks,
                "trained_parameters": adapted.parameters,
                "cpu_seconds": head_seconds + adapted.cpu_seconds,
            }
            | judged(self.judging.examples.requests, adapted.logits, made["frozen"].logits)
            for mode, adapted in made.items()
        ]

    def _drawn(self, clicks: int) -> Int64:
        """Ascending numbers of requests with so many clicked rows together."""
        hits = clicks_of(self.lesson.examples.requests)
        chosen, left = [], clicks
        for number in self.order.tolist():
            if hits[number] <= left:
                chosen.append(number)
                left -= int(hits[number])
        return np.sort(np.array(chosen, np.int64))


def _trial(data: Dataset, config: Config, home: Home, terminal: Terminal) -> _Trial:
    """The student, and the requests before and from the moment from which on they judge."""
    seed, tuning = config.seed, replace(config.finetuning, objective="click", seed=config.seed)
    rng = np.random.default_rng(seed)
    behaviour = click_behaviour(split(data, "time").train, config, seed=seed)
    first = len(behaviour.history) - round(len(behaviour.history) * JUDGED_SHARE)
    lesson = thinned(behaviour.take(np.arange(first)), tuning, rng)
    judging = _judging(behaviour.take(np.arange(first, len(behaviour.history))), tuning.history_limit, rng)
    if min(len(lesson.history), len(judging.history)) < MIN_JUDGED:
        raise RecsysError("nothing_to_test", "too few requests with clicks to compare by", data.name)
    texts = catalogue_texts(data.catalogue, max_chars=config.text.max_chars)
    with terminal.step("teacher"):
        teacher = load_teacher(config.text.teacher)
    student, _ = student_of(teacher, texts, config, home, terminal.step, seed=seed)
    with terminal.step("student embeddings"):
        embeddings = build_encoder(student, teacher.tokenizer, [], precision="fp32").encode(texts)
    order = rng.permutation(len(lesson.history))
    head = replace(tuning.head, history_limit=tuning.history_limit, seed=seed)
    catalogue = EncodedTexts(texts, embeddings)
    return _Trial(student, teacher.tokenizer, catalogue, lesson, judging, order, tuning, head)


def _judging(behaviour: Behaviour, history_limit: int, rng: np.random.Generator) -> Behaviour:
    """Requests with both classes and all their labelled rows, as many as their texts can be paid for."""
    examples = behaviour.examples.keep(~np.isnan(behaviour.examples.requests.label))
    history = newest_events(behaviour.history, history_limit)
    told = Behaviour(examples, history, behaviour.type_weights).take(with_both_classes(examples.requests))
    return told.take(requests_within(told.examples.requests, told.history, items=JUDGED_TEXTS, rng=rng))


def clicks_of(requests: Requests) -> Int64:
    """(requests,) clicked rows of each."""
    return np.bincount(requests.request_of_row()[requests.label > 0.5], minlength=len(requests))


def history_cosines(requests: Requests, history: HistoryBatch, embeddings: Float32) -> Float32:
    """(rows,) cosine of each candidate to the mean of its request's history; 0 without a word on a side."""
    known = np.append(known_rows(embeddings), False)[history.item_index]
    owner = np.repeat(np.arange(len(history)), np.diff(history.offsets))[known]
    profiles = np.zeros((len(history), embeddings.shape[1]), np.float32)
    np.add.at(profiles, owner, embeddings[history.item_index[known]])
    profiles /= np.maximum(np.linalg.norm(profiles, axis=1, keepdims=True), 1e-12)
    padded = np.pad(embeddings, ((0, 1), (0, 0)))  # an unknown item, -1, is the row of zeros
    rows: Float32 = np.einsum("rd,rd->r", profiles[requests.request_of_row()], padded[requests.item_index])
    return rows


def judged(requests: Requests, logits: Float32, frozen: Float32 | None = None) -> dict[str, Any]:
    """`auc`, `over_frozen` and `log_loss` of a row (see `compare_adaptation`), from (rows,) logits."""
    auc = slate_metrics(logits, requests.label, requests.offsets)["auc"]
    gain = None
    if frozen is not None:
        reference = slate_metrics(frozen, requests.label, requests.offsets)["auc"]
        gain = asdict(paired_interval(auc, reference, requests.user_index))
    probabilities = fit_platt(logits, requests.label).probability(logits)
    return {
        "auc": asdict(mean_interval(auc, requests.user_index)),
        "over_frozen": gain,
        "log_loss": log_loss(probabilities, requests.label),
    }
