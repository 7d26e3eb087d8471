"""Text to token ids, capped in characters and in tokens, without padding; and padding of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers

from recsys.errors import RecsysError
from recsys.events import Int64
from recsys.text.item_text import MAX_CHARS

MAX_TOKENS = 64


@dataclass(frozen=True)
class TokenLimits:
    """How much of a text is read.

    Attributes:
        max_chars: characters, cut before tokenising, so that a megabyte costs nothing.
        max_tokens: tokens, with the two special ones.
    """

    max_chars: int = MAX_CHARS
    max_tokens: int = MAX_TOKENS


class Tokenizer:
    """A tokenizer of the tokenizers library under our limits; whatever padding its file asks for is off."""

    def __init__(self, definition: bytes, limits: TokenLimits | None = None) -> None:
        """Read a `tokenizer.json`.

        Args:
            definition: content of the file.
            limits: how much of a text is read.

        Raises:
            RecsysError: the content is not a tokenizer.
        """
        self.definition = definition
        self.limits = limits or TokenLimits()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(definition.decode("utf-8"))
        except Exception as error:  # the library raises nothing narrower
            raise RecsysError("encoder_invalid", f"not a tokenizer: {error}", "tokenizer.json") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.limits.max_tokens)
        self.special_tokens = self._tokenizer.num_special_tokens_to_add(False)

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text with special tokens; [] for a text that has no token of its own."""
        capped = [text[: self.limits.max_chars].encode("utf-8", "replace").decode("utf-8") for text in texts]
        encodings = self._tokenizer.encode_batch_fast(capped)
        return [encoding.ids if len(encoding) > self.special_tokens else [] for encoding in encodings]


def pad_batch(tokens: Sequence[Sequence[int]], length: int) -> tuple[Int64, Int64]:
    """Token lists as `input_ids` and `attention_mask`, both (len(tokens), length), padded with 0."""
    input_ids = np.zeros((len(tokens), length), np.int64)
    attention_mask = np.zeros((len(tokens), length), np.int64)
    for row, ids in enumerate(tokens):
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
    return input_ids, attention_mask
