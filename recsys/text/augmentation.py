"""Altered copies of item texts, so that a student also learns texts that the catalogue does not hold."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
DROP_SHARE = 0.2


def augment(texts: Sequence[str], *, rng: np.random.Generator) -> list[str]:
    """One altered copy of each text.

    The ways are the title alone, the description alone, words dropped, and sentences shuffled, each as
    likely; a text without a description loses words. A copy may equal its original, and is never empty
    unless the original is.
    """
    return [_alter(text, rng) for text in texts]


def _alter(text: str, rng: np.random.Generator) -> str:
    title, _, description = text.partition("\n")
    way = int(rng.integers(4)) if description else 2
    if way == 0:
        return title
    if way == 1:
        return description
    return drop_words(text, rng) if way == 2 else shuffle_sentences(text, rng)


def drop_words(text: str, rng: np.random.Generator) -> str:
    """The text without a fifth of its words, but with one word at least."""
    words = text.split()
    kept = rng.random(len(words)) >= DROP_SHARE
    return " ".join(word for word, keep in zip(words, kept, strict=True) if keep) or text


def shuffle_sentences(text: str, rng: np.random.Generator) -> str:
    """The same sentences (the title is one) in another order."""
    sentences = [part for line in text.split("\n") for part in SENTENCE_END.split(line) if part]
    return " ".join(sentences[row] for row in rng.permutation(len(sentences)))
