"""Fine-tuning the encoder side by side: frozen, LoRA and full; clicks and what comes next; what each costs.

Everything is fitted on the past of the protocol's validation window (the one that the ranker learns on) and
measured on that window; the test part is cut off before anything else. The encoder is measured alone: the
text retriever over the full catalogue, seen items left out, or over the slates as they were shown. A variant
that the held-out examples refuse ("not kept") gives the student back, as in the program.

    python tests/benchmarks/finetuning.py DATA --protocol time --minutes 12 --out finetuning.json

Writes the JSON and, beside it, the table as Markdown, after every variant; prints the table. `--minutes` are
of this process's CPU time: no further variant is begun after them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.config import Config, load_config
from pipelines.encoding import click_behaviour, contrastive_pairs, student_of
from pipelines.fitting import stacking_split
from pipelines.home import Home
from pipelines.terminal import Terminal, plain
from recsys.baselines import among, slate_scores, top_lists
from recsys.dataset import Dataset
from recsys.dataset_folder import load
from recsys.evaluation import training_counts
from recsys.events import Float32, Float64, lengths_to_offsets
from recsys.metrics import slate_metrics, topk_metrics
from recsys.metrics.intervals import paired_interval
from recsys.pairs import DensePairs
from recsys.protocols import PROTOCOLS, Protocol, Split, positives_of, split
from recsys.requests import HistoryBatch, Requests
from recsys.retrieval import seen_items
from recsys.retrieval.sources import text_scores
from recsys.storage import json_bytes, write_atomic
from recsys.text.adaptation import FinetuneReport
from recsys.text.contrastive import contrast
from recsys.text.finetuning import finetune
from recsys.text.item_text import catalogue_texts
from recsys.text.quantization import build_encoder
from recsys.text.settings import FinetuneConfig
from recsys.text.teacher import load_teacher
from recsys.text.text_in_training import EncodedTexts
from recsys.text.transformer import TextTransformer

JUDGED_REQUESTS = 5_000
HARD_NEGATIVES = 4


def variants(config: Config) -> dict[str, FinetuneConfig]:
    """What is compared, the most telling first."""
    settings = replace(config.finetuning, seed=config.seed)
    contrastive = replace(settings, objective="contrastive")
    named = {"frozen": replace(settings, mode="frozen")}
    for mode in ("full", "lora"):
        for name, objective in (("click", settings), ("contrastive", contrastive)):
            named[f"{name}, {mode}"] = replace(objective, objective=name, mode=mode)
    full = replace(contrastive, mode="full")
    named["contrastive, full, no log-Q"] = replace(full, contrast=replace(full.contrast, log_q=False))
    named["contrastive, full, hard negatives"] = replace(
        full, contrast=replace(full.contrast, hard_negatives=HARD_NEGATIVES)
    )
    return named


def mining(config: Config) -> Config:
    """The configuration with hard negatives."""
    tuning = config.finetuning
    contrast = replace(tuning.contrast, hard_negatives=HARD_NEGATIVES)
    return replace(config, finetuning=replace(tuning, contrast=contrast))


@dataclass(frozen=True)
class Measures:
    """One value a request, NaN where it has none; new items are those without a fitted event."""

    values: Mapping[str, Float64]

    def means(self) -> dict[str, float]:
        """By metric."""
        return {name: float(np.nanmean(value)) for name, value in self.values.items()}


class Trial:
    """One log, one student: every variant starts from the same."""

    def __init__(self, data: Dataset, protocol: Protocol, config: Config, home: Home, step: Any) -> None:
        self.protocol, self.config = protocol, config
        self.window = judged(stacking_split(split(data, protocol).train, protocol, config))
        self.texts = catalogue_texts(data.catalogue, max_chars=config.text.max_chars)
        self.teacher = load_teacher(config.text.teacher)
        self.student, _ = student_of(self.teacher, self.texts, config, home, step, seed=config.seed)
        with step("student embeddings"):
            self.embeddings = self.embed(self.student)
        with step("pairs and hard negatives"):
            train = self.window.train
            self.behaviour = click_behaviour(train, config, seed=config.seed)
            began = time.process_time()
            self.pairs = contrastive_pairs(train, self.embeddings, mining(config))
            self.mining_s = time.process_time() - began

    def embed(self, encoder: TextTransformer) -> Float32:
        """(items, D) as the product has them, in bf16."""
        return build_encoder(encoder, self.teacher.tokenizer, [], precision="bf16").encode(self.texts)

    def tuned(self, settings: FinetuneConfig) -> tuple[TextTransformer, FinetuneReport, float]:
        """The encoder that the program would use, its report, and CPU seconds, mining included."""
        catalogue = EncodedTexts(self.texts, self.embeddings)
        began = time.process_time()
        if settings.objective == "contrastive":
            made = contrast(self.student, self.teacher.tokenizer, catalogue, self.pairs, settings)
            mining = self.mining_s if settings.contrast.hard_negatives else 0.0
        else:
            made = finetune(self.student, self.teacher.tokenizer, catalogue, self.behaviour, settings)
            mining = 0.0
        return *made, time.process_time() - began + mining

    def measured(self, embeddings: Float32) -> Measures:
        """The text retriever over these embeddings, on the window."""
        window, retrieval = self.window, self.config.retrieval
        requests = window.requests
        history = HistoryBatch.of(window.visible.histories, requests, limit=self.config.scoring.history_limit)

        def scorer(requests: Requests, history: HistoryBatch) -> Float32:
            recency = history.recency_weights(
                window.train.weights,
                half_life_days=retrieval.half_life_days,
                position_decay=retrieval.position_decay,
            )
            return text_scores(DensePairs(embeddings), history, recency)

        if self.protocol == "slate":
            values = slate_metrics(slate_scores(scorer, requests, history), requests.label, requests.offsets)
            return Measures({"auc": values["auc"], "ndcg_at_10": values["ndcg_at_10"]})
        seen = seen_items(window.visible.histories, requests)
        new = training_counts(window.train) == 0
        offsets, items = window.positives
        owner = np.repeat(np.arange(len(requests)), np.diff(offsets))[new[items]]
        new_positives = lengths_to_offsets(np.bincount(owner, minlength=len(requests))), items[new[items]]
        ranked = top_lists(scorer, requests, history, seen, 10)
        ranked_new = top_lists(among(scorer, new), requests, history, seen, 10)
        return Measures(
            {
                "ndcg_at_10": topk_metrics(ranked, *window.positives, (10,))["ndcg_at_10"],
                "recall_at_10_new": topk_metrics(ranked_new, *new_positives, (10,))["recall_at_10"],
            }
        )


def judged(window: Split) -> Split:
    """The window with JUDGED_REQUESTS at most, drawn at random."""
    count = len(window.requests)
    some = np.sort(np.random.default_rng(0).permutation(count)[:JUDGED_REQUESTS]).astype(np.int64)
    positives = positives_of(window.positives, some)
    return replace(window, requests=window.requests.take(some), positives=positives)


def row(trial: Trial, name: str, settings: FinetuneConfig, frozen: Measures) -> dict[str, Any]:
    """One variant: cost, held-out loss, measures and their paired differences to the frozen student."""
    encoder, report, cpu_s = trial.tuned(settings)
    measures = frozen if encoder is trial.student else trial.measured(trial.embed(encoder))
    gains = {
        metric: asdict(paired_interval(value, frozen.values[metric], trial.window.requests.user_index))
        for metric, value in measures.values.items()
    }
    return {
        "variant": name,
        "cpu_s": cpu_s,
        "measures": measures.means(),
        "gains": gains,
        "report": asdict(report),
    }


def markdown(document: Mapping[str, Any]) -> str:
    """The table; a line that says so where no variant was begun."""
    if not document["rows"]:
        return "no variant was begun: give it more --minutes\n"
    metrics = list(document["rows"][0]["measures"])
    heads = ["variant", "trained weights", "CPU s", "held-out loss", "kept", "cosine drift"]
    heads += [text for name in metrics for text in (name, "less frozen")]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for entry in document["rows"]:
        report = entry["report"]
        trained = [f"{report['parameters']:,}", f"{entry['cpu_s']:.0f}", *losses(report)]
        cells = [entry["variant"], *(trained if report["steps"] else ["0", "0", "", "", ""])]
        for name in metrics:
            gain = entry["gains"][name]
            told = f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]"
            cells += [f"{entry['measures'][name]:.4f}", told if report["improved"] else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def losses(report: Mapping[str, Any]) -> list[str]:
    """Held-out loss before and after, whether the encoder was kept, and the drift."""
    kept = "yes" if report["improved"] else "no"
    return [f"{report['loss_before']:.4f} → {report['loss']:.4f}", kept, f"{report['drift']:.3f}"]


def main() -> None:
    """Read the options, run, write both files after every variant and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a dataset folder")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="time")
    parser.add_argument("--minutes", type=float, default=30.0, help="of CPU time")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="as of recsys")
    parser.add_argument("--home", type=Path, help="as of recsys")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    given = parser.parse_args()
    config, terminal = load_config(None, given.overrides), Terminal()
    data = load(given.data, roles=config.roles)[0]
    trial = Trial(data, given.protocol, config, Home.at(given.home), terminal.step)
    frozen = trial.measured(trial.embeddings)
    document: dict[str, Any] = {"data": data.name, "protocol": given.protocol, "rows": []}
    for name, settings in variants(config).items():
        if time.process_time() > given.minutes * 60:
            terminal.note(f"out of time before: {name}")
            break
        with terminal.step(name):
            document["rows"].append(row(trial, name, settings, frozen))
        write_atomic(given.out, json_bytes(plain(document)))
        write_atomic(given.out.with_suffix(".md"), markdown(document).encode())
    terminal.out.print(markdown(document), markup=False)


if __name__ == "__main__":
    main()
