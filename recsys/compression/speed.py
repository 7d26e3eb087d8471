"""Speeds of encoders, told apart on a noisy machine: all take turns in every round, and medians count."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from recsys.events import Float64
from recsys.metrics.intervals import Interval
from recsys.text.runtime import Encoder
from recsys.text.tokenization import Tokenizer

ROUNDS = 6
"""The range of six rounds holds the median with a probability of 1 - 2 / 2 ** 6 = .97."""

SINGLE_TEXTS = 200
WORST_SHARE = 0.99


@dataclass(frozen=True)
class Timing:
    """Wall seconds of one encoder.

    Attributes:
        texts: how many texts a round had.
        rounds: (rounds,) seconds of all of them.
        single: (up to 200,) seconds of each of the first texts alone.
    """

    texts: int
    rounds: Float64
    single: Float64

    @property
    def texts_per_second(self) -> float:
        """Of a long list, median round."""
        return self.texts / float(np.median(self.rounds))

    @property
    def p50_ms(self) -> float:
        """Median milliseconds of a text alone."""
        return float(np.median(self.single)) * 1e3

    @property
    def p99_ms(self) -> Interval:
        """99th percentile of a text alone, with its percentile bootstrap interval."""
        rng = np.random.default_rng(0)
        draws = self.single[rng.integers(len(self.single), size=(500, len(self.single)))]
        low, high = np.quantile(np.quantile(draws, WORST_SHARE, axis=1), [0.025, 0.975])
        return Interval(*(float(x) * 1e3 for x in (np.quantile(self.single, WORST_SHARE), low, high)))

    def ratio_to(self, reference: Timing) -> Interval:
        """How many times faster than the reference: median over rounds, and their range."""
        ratios = reference.rounds / self.rounds
        return Interval(float(np.median(ratios)), float(ratios.min()), float(ratios.max()))


def measure_speed(
    encoders: Mapping[str, Encoder], texts: Sequence[str], *, rounds: int = ROUNDS
) -> dict[str, Timing]:
    """Time all encoders on the same texts, one after another in every round, so that noise falls on all.

    Args:
        encoders: by name.
        texts: one at least; after the rounds the first 200 are encoded one by one.
        rounds: how often.

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
            whole[name].append(_seconds(encoder, texts))
    return {
        name: Timing(
            len(texts),
            np.array(whole[name]),
            np.array([_seconds(encoder, [text]) for text in texts[:SINGLE_TEXTS]]),
        )
        for name, encoder in encoders.items()
    }


def texts_of_tokens(tokenizer: Tokenizer, texts: Sequence[str], count: int, tokens: int) -> list[str]:
    """`count` texts of about so many tokens (never more), made of the words of `texts` in their order.

    Fewer than `count`, or none, where the texts have too few words; they are read again from the start at
    most once a text wanted.
    """
    words = [word for text in texts for word in text.split()][: count * tokens]
    lengths = [max(1, len(ids) - 2) for ids in tokenizer.encode(words)]  # without the two at the ends
    made: list[str] = []
    current: list[str] = []
    size = 2
    for _ in range(count if words else 0):
        for word, length in zip(words, lengths, strict=True):
            if size + length > tokens and current:
                made.append(" ".join(current))
                current, size = [], 2
                if len(made) == count:
                    return made
            current.append(word)
            size += length
    return made


def _seconds(encoder: Encoder, texts: Sequence[str]) -> float:
    began = time.perf_counter()
    encoder.encode(texts)
    return time.perf_counter() - began
