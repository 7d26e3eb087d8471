"""The receipt of a text encoder: what it is, what it costs, and how near it stays to the teacher."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recsys.events import Float32, Float64
from recsys.text.runtime import Encoder
from recsys.text.student import neighbour_overlap
from recsys.text.transformer import Architecture

ROUNDS = 5
SINGLE_TEXTS = 200


@dataclass(frozen=True)
class Closeness:
    """How near embeddings stay to the teacher's: mean cosine, and shared share of the ten nearest texts."""

    cosine: float
    neighbour_overlap: float


@dataclass(frozen=True)
class Speed:
    """Wall seconds: `text_s` of one text within many (median over rounds), p50 and p99 of a text alone."""

    text_s: float
    single_p50_s: float
    single_p99_s: float

    @property
    def texts_per_second(self) -> float:
        """Of a long list."""
        return 1.0 / self.text_s


def operations(architecture: Architecture, tokens: int) -> int:
    """Floating-point operations of the matrix products for one text of so many tokens, two a multiply-add.

    The word table is looked up and counts nothing; norms, softmax and activations are left out.
    """
    dim = architecture.dim
    of_token = 2 * architecture.word_rank * dim
    for number in architecture.order or range(len(architecture.layers)):
        layer = architecture.layers[number]
        attended = layer.heads * architecture.head_dim
        of_token += 8 * dim * attended + 4 * tokens * attended + 4 * dim * layer.feed_forward
    return tokens * of_token


def closeness(found: Float32, reference: Float32) -> Closeness:
    """Compare embeddings (texts, dim) of the same texts, rows unit; rows that are zero in both are left out.

    NaN where nothing is left; the overlap is NaN for ten texts or fewer.
    """
    some = found.any(axis=1) | reference.any(axis=1)
    found, reference = found[some], reference[some]
    if not len(found):
        return Closeness(float("nan"), float("nan"))
    cosine = float(np.einsum("td,td->t", found, reference).mean())
    return Closeness(cosine, neighbour_overlap(found, reference))


def measure_speed(
    encoders: Mapping[str, Encoder], texts: Sequence[str], *, rounds: int = ROUNDS
) -> dict[str, Speed]:
    """Time all encoders on the same texts, one after another in every round, so that noise falls on all.

    Args:
        encoders: by name.
        texts: one at least; after the rounds the first 200 are encoded one by one.
        rounds: how often; medians are taken.

    Raises:
        ValueError: no text, or no round.
    """
    if not texts or rounds < 1:
        raise ValueError("speed is measured on one text and in one round at least")
    for encoder in encoders.values():
        encoder.encode(texts[:8])
    whole: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(rounds):
        for name, encoder in encoders.items():
            began = time.perf_counter()
            encoder.encode(texts)
            whole[name].append(time.perf_counter() - began)
    found = {}
    for name, encoder in encoders.items():
        p50, p99 = np.quantile(_single_seconds(encoder, texts[:SINGLE_TEXTS]), [0.5, 0.99])
        found[name] = Speed(float(np.median(whole[name])) / len(texts), float(p50), float(p99))
    return found


def _single_seconds(encoder: Encoder, texts: Sequence[str]) -> Float64:
    """(texts,) seconds of each text alone."""
    seconds = np.empty(len(texts))
    for place, text in enumerate(texts):
        began = time.perf_counter()
        encoder.encode([text])
        seconds[place] = time.perf_counter() - began
    return seconds
