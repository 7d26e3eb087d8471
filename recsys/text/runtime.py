"""What every encoder runtime answers to, and how texts are batched so that batch mates do not matter."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from recsys.events import Float32, Int64
from recsys.text.tokenization import pad_batch

TOKEN_BUDGET = 2048
LENGTH_STEP = 8

Batch = tuple[Int64, Int64, Int64]
"""Row numbers (B,), input ids (B, T) and attention mask (B, T)."""


class Encoder(Protocol):
    """Text to unit vectors. `encoder_id` changes whenever the vectors would."""

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        ...

    @property
    def encoder_id(self) -> str:
        """Digest of everything that decides the embeddings."""
        ...

    def encode(self, texts: Sequence[str]) -> Float32:
        """(len(texts), dim) rows of length 1 in input order; zeros for a text without a word."""
        ...


class SavedEncoder(Encoder, Protocol):
    """An encoder that a bundle can hold; `loading.load_encoder` rebuilds it from its files."""

    def to_files(self) -> dict[str, bytes]:
        """All that it is, as bytes by name."""
        ...


def plan_batches(tokens: Sequence[Sequence[int]], *, token_budget: int = TOKEN_BUDGET) -> list[Batch]:
    """Batches of at most `token_budget` tokens (one text at least), longest first; empty lists are left out.

    Only texts whose length rounds up to the same multiple of 8 share a batch: a text is padded by its
    own length alone, so its embedding is the same in whatever company.
    """
    lengths = np.array([len(ids) for ids in tokens], np.int64)
    padded = -(-lengths // LENGTH_STEP) * LENGTH_STEP
    batches: list[Batch] = []
    for length in np.unique(padded[padded > 0])[::-1]:
        rows = np.flatnonzero(padded == length)
        step = max(1, token_budget // int(length))
        for start in range(0, len(rows), step):
            chosen = rows[start : start + step]
            batches.append((chosen, *pad_batch([tokens[row] for row in chosen], int(length))))
    return batches


def files_digest(files: Mapping[str, bytes]) -> str:
    """Digest of an encoder's files, whatever their order: its `encoder_id`."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(files):
        digest.update(hashlib.sha256(files[name]).digest())
    return digest.hexdigest()
