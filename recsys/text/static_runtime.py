"""The encoder without a network: the mean of one vector a token. Never imports torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError
from scipy import sparse

from recsys.errors import RecsysError
from recsys.events import Float32, lengths_to_offsets
from recsys.text.runtime import files_digest
from recsys.text.tokenization import Tokenizer, TokenLimits

TABLE_FILE = "static_table.safetensors"
TOKENIZER_FILE = "tokenizer.json"
LIMITS_FILE = "static.json"


class StaticEncoder:
    """Text to unit vectors by a table of token vectors in int8, one scale a row."""

    def __init__(self, table: NDArray[np.int8], scale: Float32, tokenizer: Tokenizer) -> None:
        """Take a table (vocabulary, dim), the scale (vocabulary,) of its rows, and the tokenizer."""
        self._table, self._scale, self._tokenizer = table, scale, tokenizer
        self._rows = table.astype(np.float32) * scale[:, None]
        self.encoder_id = files_digest(self.to_files())

    @classmethod
    def of(cls, table: Float32, tokenizer: Tokenizer) -> StaticEncoder:
        """Round a table (vocabulary, dim) to int8."""
        scale = np.maximum(np.abs(table).max(axis=1), 1e-12) / np.float32(127.0)
        return cls(np.rint(table / scale[:, None]).astype(np.int8), scale.astype(np.float32), tokenizer)

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self._table.shape[1]

    def encode(self, texts: Sequence[str]) -> Float32:
        """(len(texts), dim) rows of length 1 in input order; zeros for a text without a word."""
        sums = token_matrix(self._tokenizer, texts) @ self._rows
        norms = np.sqrt(np.einsum("td,td->t", sums, sums))[:, None]
        return np.divide(sums, norms, out=np.zeros_like(sums), where=norms > 0)

    def to_files(self) -> dict[str, bytes]:
        """Table, tokenizer and its limits."""
        return {
            TABLE_FILE: safetensors.numpy.save({"table": self._table, "scale": self._scale}),
            TOKENIZER_FILE: self._tokenizer.definition,
            LIMITS_FILE: json.dumps(asdict(self._tokenizer.limits), indent=1).encode(),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> StaticEncoder:
        """Rebuild what `to_files` wrote.

        Raises:
            RecsysError: a file is missing or damaged.
        """
        try:
            arrays = safetensors.numpy.load(files[TABLE_FILE])
            limits = TokenLimits(**json.loads(files[LIMITS_FILE]))
            table, scale, definition = arrays["table"], arrays["scale"], files[TOKENIZER_FILE]
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise RecsysError("encoder_invalid", f"the static table does not load: {error}") from error
        tokenizer = Tokenizer(definition, limits)
        if len(table) != tokenizer.vocabulary or scale.shape != (len(table),):
            raise RecsysError("encoder_invalid", "the static table and its tokenizer disagree", TABLE_FILE)
        return cls(table, scale, tokenizer)


def token_matrix(tokenizer: Tokenizer, texts: Sequence[str]) -> sparse.csr_matrix:
    """(texts, vocabulary) share of each token in its text; an empty row for a text without a word."""
    tokens = tokenizer.encode(texts)
    lengths = np.array([len(ids) for ids in tokens], np.int64)
    share = np.repeat(1.0 / np.maximum(lengths, 1), lengths).astype(np.float32)
    columns = np.array([token for ids in tokens for token in ids], np.int64)
    return sparse.csr_matrix(
        (share, columns, lengths_to_offsets(lengths)), shape=(len(texts), tokenizer.vocabulary)
    )
