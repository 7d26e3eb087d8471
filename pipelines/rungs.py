"""One rung of the ladder: a variant is built, measured in every respect, registered and written down."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.downstream import Downstream, Verdict, verdict, with_embeddings
from pipelines.fitting import Step
from pipelines.registered_encoder import RECEIPT_FILE
from pipelines.terminal import plain
from recsys.bundle import ENCODER, write_bundle
from recsys.compression.build import Built, Source, build
from recsys.compression.bundle_parts import compress_parts, part_bytes
from recsys.compression.choice import Measured
from recsys.compression.receipt import Receipt, receipt_of
from recsys.compression.recipe import Recipe
from recsys.compression.settings import CompressionConfig
from recsys.compression.speed import Timing, measure_speed, texts_of_tokens
from recsys.events import Float32
from recsys.metrics.intervals import Interval
from recsys.storage import json_bytes, parse_json, write_atomic
from recsys.text.runtime import Encoder, SavedEncoder
from recsys.tracking import Registry
from recsys.versions import Version

MEASURES = {
    "quality_ratio": "quality_ratio",
    "throughput_ratio": "throughput_interval",
    "latency_p99_ms": "latency_interval",
    "explanation_fidelity": "explanation_fidelity",
    "fairness_gap": "fairness_gap",
}
"""Measures that a limit may bind, to the interval in a rung's document."""
SEARCH_FILE = "search.db"
THREADS = 2


@dataclass(frozen=True)
class Workbench:
    """All that measuring a variant takes, the same for all of them.

    Attributes:
        name: registered name of the encoders.
        as_of: epoch seconds; nothing later was known when they were made.
        source: what they are made from.
        windows: the requests that they are judged on.
        reference: name and encoder that speeds are told against.
        titles, long_texts: texts of a speed measurement.
        held_out: (texts, dim) the root's embeddings of `source.lessons.holdout`, in fp32.
        config: how much is measured.
        folder: where results are written down.
        registry: where variants are registered.
        step: progress.
    """

    name: str
    as_of: float
    source: Source
    windows: Sequence[Downstream]
    reference: tuple[str, Encoder]
    titles: Sequence[str]
    long_texts: Sequence[str]
    held_out: Float32
    config: CompressionConfig
    folder: Path
    registry: Registry
    step: Step

    def known(self, recipe: Recipe) -> dict[str, Any] | None:
        """The rung of this recipe as it was written down, None where it was not measured."""
        return self.known_as(str(recipe))

    def measured(self, recipe: Recipe) -> dict[str, Any]:
        """The rung of this recipe: as it was written down, or built and measured now.

        Raises:
            ValueError, RecsysError: what `build` raises.
        """
        if found := self.known(recipe):
            return found
        with self.step(f"build {recipe}") as progress:
            built = build(recipe, self.source, progress)
        with self.step("speed and size"):
            receipt = self._receipt(built)
        embeddings = self.source.embeddings
        if recipe.parent:
            with self.step("catalogue embeddings"):
                embeddings = built.encoder.encode(list(self.source.texts))
        judged = self.judged_on(self.windows, embeddings)
        document: dict[str, Any] = {"name": str(recipe), "parent": recipe.parent or None, "kind": "encoder"}
        document |= figures(receipt, judged, built.seconds)
        with self.step("registry"):
            document["version"] = self._register(recipe, built.encoder, document).number
        return self._write_down(document)

    def known_as(self, name: str) -> dict[str, Any] | None:
        """The rung of this name, likewise."""
        path = self._path(name)
        return parse_json(path.read_bytes(), path.name) if path.exists() else None

    def measured_part(self, part: str) -> dict[str, Any]:
        """The rung of a compressed part of the rest of the bundle; its bytes are those of all these parts."""
        if found := self.known_as(part):
            return found
        with self.step(f"bundle with {part}"):
            smaller = [compress_parts(window.models, [part]) for window in self.windows]
            judged = [
                window.judge(models, self.step) for window, models in zip(self.windows, smaller, strict=True)
            ]
        measured = verdict(self.windows, judged)
        return self._write_down(
            {
                "name": part,
                "version": None,
                "parent": None,
                "kind": "bundle part",
                "bytes": sum(part_bytes(smaller[0]).values()),
                "whole_bytes": sum(part_bytes(self.windows[0].models).values()),
                **{name: asdict(value) for name, value in vars(measured).items()},
            }
        )

    def judged_on(self, windows: Sequence[Downstream], embeddings: Float32) -> Verdict:
        """What these embeddings do on windows of requests."""
        judged = [window.judge(with_embeddings(window.models, embeddings), self.step) for window in windows]
        return verdict(windows, judged)

    def forget(self) -> None:
        """Drop what was written down and searched; networks and versions stay."""
        for path in (*self.folder.glob("rung-*.json"), self.folder / SEARCH_FILE):
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        decisive = [name, asdict(self.config.recovery), self.config.requests, self.name]
        digest = hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=12)
        return self.folder / f"rung-{digest.hexdigest()}.json"

    def _write_down(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a rung under its name; gives it as plain values."""
        rung: dict[str, Any] = plain(document)
        write_atomic(self._path(rung["name"]), json_bytes(rung))
        return rung

    def _receipt(self, built: Built) -> Receipt:
        name, reference = self.reference
        encoders = {name: reference, "variant": built.encoder}
        timings = [
            measure_speed(encoders, texts, rounds=self.config.speed_rounds)
            for texts in (self.titles, self.long_texts)
        ]
        holdout = self.source.lessons.holdout
        return receipt_of(
            built.encoder.to_files(),
            built.variant,
            (timings[0]["variant"], timings[1]["variant"]),
            (timings[0][name], timings[1][name]),
            (built.encoder.encode(holdout), self.held_out),
            self.titles,
        )

    def _register(self, recipe: Recipe, encoder: SavedEncoder, document: Mapping[str, Any]) -> Version:
        """A version with the recipe as tags and the receipt as metrics; a bundle of the encoder alone."""
        receipt = plain(dict(document))
        files = {**encoder.to_files(), RECEIPT_FILE: json_bytes(receipt)}
        metadata = {"name": self.name, "as_of": self.as_of, "feature_schema": "", "kind": ENCODER}
        staging = Path(tempfile.mkdtemp(prefix="encoder-", dir=self.folder))
        try:
            write_bundle(staging / "bundle", files, metadata)
            return self.registry.log_training(
                self.name,
                staging / "bundle",
                {"recipe": str(recipe), **{str(step.method): step.value for step in recipe.steps}},
                flat_figures(receipt),
                tags={"recipe": str(recipe), "parent": recipe.parent},
            )
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def long_texts_of(source: Source, count: int, tokens: int) -> list[str]:
    """Texts of so many tokens from the catalogue's words; its own texts where it has too few."""
    return texts_of_tokens(source.root.tokenizer, source.texts, count, tokens) or list(source.texts[:count])


def figures(receipt: Receipt, judged: Verdict, seconds: float) -> dict[str, Any]:
    """A rung's figures as plain values, under the names that people and machines read."""
    titles, long_texts = receipt.titles, receipt.long_texts
    throughput = titles.ratio_to(receipt.reference_titles)
    long_throughput = long_texts.ratio_to(receipt.reference_long_texts)
    latency = long_texts.p99_ms
    return {
        "bytes": receipt.bytes,
        "parameters": receipt.parameters,
        "operations": receipt.operations,
        "peak_memory_bytes": receipt.peak_memory_bytes,
        "titles_per_second": titles.texts_per_second,
        "long_texts_per_second": long_texts.texts_per_second,
        "throughput_ratio": throughput.mean,
        "throughput_interval": asdict(throughput),
        "long_throughput_ratio": long_throughput.mean,
        "long_throughput_interval": asdict(long_throughput),
        "latency_p50_ms": long_texts.p50_ms,
        "latency_p99_ms": latency.mean,
        "latency_interval": asdict(latency),
        **asdict(receipt.closeness),
        **{name: asdict(value) for name, value in vars(judged).items()},
        "cpu_seconds": cpu_seconds(long_texts),
        "build_seconds": seconds,
    }


def cpu_seconds(timing: Timing) -> float:
    """Of one core, for one of the texts: wall time of the median round on all cores that the encoder uses."""
    return float(np.median(timing.rounds)) / timing.texts * THREADS


def flat_figures(document: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a rung as metrics: intervals become `<name>_mean`, `_low` and `_high`."""
    found: dict[str, float] = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            found |= {f"{name}_{part}": inner for part, inner in value.items() if inner is not None}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)
    return found


def measured_of(rung: Mapping[str, Any]) -> Measured:
    """What the choice reads of a rung."""
    measures = {name: interval_of(rung[key]) for name, key in MEASURES.items() if key in rung}
    return Measured(rung["name"], measures, rung["cpu_seconds"], rung["bytes"])


def interval_of(value: Mapping[str, float | None]) -> Interval:
    """An interval from its plain form, where null is NaN."""
    mean, low, high = (value[part] for part in ("mean", "low", "high"))
    return Interval(*(np.nan if bound is None else float(bound) for bound in (mean, low, high)))
