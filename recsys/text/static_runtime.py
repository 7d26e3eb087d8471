"""The encoder without a network: the mean of one vector a token. Never imports torch.

Pairs of neighbouring tokens that are frequent may have a vector of their own beside those of their tokens.
"""

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
from recsys.events import Float32, Int32, Int64, lengths_to_offsets
from recsys.text.runtime import files_digest
from recsys.text.tokenization import Tokenizer, TokenLimits

TABLE_FILE = "static_table.safetensors"
TOKENIZER_FILE = "tokenizer.json"
LIMITS_FILE = "static.json"
NO_PAIRS: Int32 = np.zeros((0, 2), np.int32)


class StaticEncoder:
    """Text to unit vectors by a table of token vectors in int8, one scale a row."""

    def __init__(
        self, table: NDArray[np.int8], scale: Float32, tokenizer: Tokenizer, pairs: Int32 | None = None
    ) -> None:
        """Take a table (vocabulary + pairs, dim), the scale of its rows, the tokenizer, (pairs, 2) tokens."""
        self._table, self._scale, self._tokenizer = table, scale, tokenizer
        self._pairs = NO_PAIRS if pairs is None else pairs
        self._rows = table.astype(np.float32) * scale[:, None]
        self.encoder_id = files_digest(self.to_files())

    @classmethod
    def of(cls, table: Float32, tokenizer: Tokenizer, pairs: Int32 | None = None) -> StaticEncoder:
        """Round a table (vocabulary + pairs, dim) to int8."""
        scale = np.maximum(np.abs(table).max(axis=1), 1e-12) / np.float32(127.0)
        rounded = np.rint(table / scale[:, None]).astype(np.int8)
        return cls(rounded, scale.astype(np.float32), tokenizer, pairs)

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self._table.shape[1]

    def encode(self, texts: Sequence[str]) -> Float32:
        """(len(texts), dim) rows of length 1 in input order; zeros for a text without a word."""
        sums = token_matrix(self._tokenizer, texts, self._pairs) @ self._rows
        norms = np.sqrt(np.einsum("td,td->t", sums, sums))[:, None]
        return np.divide(sums, norms, out=np.zeros_like(sums), where=norms > 0)

    def to_files(self) -> dict[str, bytes]:
        """Table, tokenizer and its limits."""
        return {
            TABLE_FILE: safetensors.numpy.save(
                {"table": self._table, "scale": self._scale, "pairs": self._pairs}
            ),
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
            pairs = arrays.get("pairs", NO_PAIRS)
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise RecsysError("encoder_invalid", f"the static table does not load: {error}") from error
        tokenizer = Tokenizer(definition, limits)
        if pairs.shape != (len(table) - tokenizer.vocabulary, 2) or scale.shape != (len(table),):
            raise RecsysError("encoder_invalid", "the static table and its tokenizer disagree", TABLE_FILE)
        return cls(table, scale, tokenizer, pairs)


def token_matrix(tokenizer: Tokenizer, texts: Sequence[str], pairs: Int32 = NO_PAIRS) -> sparse.csr_matrix:
    """(texts, vocabulary + pairs) share of each token in its text, and of each named pair of neighbours.

    A pair counts as often as it occurs, over the number of tokens. An empty row for a text without a word.
    """
    tokens, offsets = token_rows(tokenizer, texts)
    text = np.repeat(np.arange(len(texts)), np.diff(offsets))
    share = (1.0 / np.maximum(np.diff(offsets), 1)).astype(np.float32)
    place, known = pair_places(tokens, text, pairs, tokenizer.vocabulary)
    rows = np.concatenate([text, text[:-1][known]])
    columns = np.concatenate([tokens, tokenizer.vocabulary + place[known]])
    shape = (len(texts), tokenizer.vocabulary + len(pairs))
    return sparse.csr_matrix((share[rows], (rows, columns)), shape=shape)


def token_rows(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Int64, Int64]:
    """Tokens of all texts in a row, and the (texts + 1,) offsets of each text."""
    encoded = tokenizer.encode(texts)
    tokens = np.array([token for ids in encoded for token in ids], np.int64)
    return tokens, lengths_to_offsets(np.array([len(ids) for ids in encoded], np.int64))


def pair_places(tokens: Int64, text: Int64, pairs: Int32, vocabulary: int) -> tuple[Int64, NDArray[np.bool_]]:
    """Row in `pairs`, ascending, of every token but the last with the next, and whether it is there."""
    codes = pairs[:, 0].astype(np.int64) * vocabulary + pairs[:, 1]
    asked = tokens[:-1] * vocabulary + tokens[1:]
    place = np.searchsorted(codes, asked)
    known = (text[:-1] == text[1:]) & (place < len(codes))
    known[known] = codes[place[known]] == asked[known]
    return place, known
