"""The encoder while it is trained, over the texts of a catalogue.

A step encodes a bounded number of texts anew; the others come from a bank of vectors that is written
back as it goes. An anchor keeps every embedding near the distilled one, so items that nobody touched
stay where their text puts them.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recsys.events import Float32, Int64
from recsys.text.adapters import equip
from recsys.text.item_text import evenly
from recsys.text.runtime import plan_batches
from recsys.text.settings import FinetuneConfig
from recsys.text.tokenization import Tokenizer, pad_batch
from recsys.text.transformer import TextTransformer

COUNTED_TEXTS = 200
"""Texts whose most frequent words virtual tokens start as."""


@dataclass(frozen=True)
class EncodedTexts:
    """The catalogue's texts and the student's (items, D) embeddings of them, zeros where there is no word."""

    texts: Sequence[str]
    embeddings: Float32


class TextInTraining:
    """The encoder in training over the catalogue's tokens, and the bank of everyone's vectors."""

    def __init__(
        self,
        student: TextTransformer,
        tokenizer: Tokenizer,
        catalogue: EncodedTexts,
        config: FinetuneConfig,
    ) -> None:
        self._student = copy.deepcopy(student)
        self.model: nn.Module = self._student
        self.catalogue = catalogue
        self.tokenizer = tokenizer
        self.config = config
        padded = np.pad(catalogue.embeddings, ((0, 1), (0, 0)))  # one more row, of zeros, for item -1
        self.original = torch.from_numpy(padded)
        self.bank = self.original.clone()
        self._tokens: dict[int, list[int]] = {}

    def equip(self) -> list[nn.Parameter]:
        """Put in what the mode trains; the weights to train."""
        self.model, trained = equip(self._student, self.config, self._common_words(self.config.prompt_length))
        return trained

    def _common_words(self, count: int) -> Tensor:
        """(count,) the most frequent token ids of the texts, over again where there are fewer; 0 for none."""
        encoded = self.tokenizer.encode(evenly(self.catalogue.texts, COUNTED_TEXTS))
        words = Counter(word for ids in encoded for word in ids[1:-1])
        common = [word for word, _ in words.most_common(count)] or [0]
        return torch.from_numpy(np.resize(np.array(common, np.int64), count))

    def tokens(self, item: int) -> list[int]:
        """Token ids of an item; empty for -1 and for a text without a word."""
        if item < 0:
            return []
        if item not in self._tokens:
            self._tokens[item] = self.tokenizer.encode([self.catalogue.texts[item]])[0]
        return self._tokens[item]

    def refreshed(self, items: Int64, urgency: Int64, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """(n, D) vectors of these different items, `max_texts` of them encoded anew, and the anchor term.

        The most urgent come first, in random order among equals; the others, and all of a frozen encoder's,
        come from the bank.
        """
        self.model.train()
        vectors = self.bank[torch.from_numpy(items)]
        fresh = self._fresh(items, urgency, rng)
        if not len(fresh):
            return vectors, torch.zeros(())
        chosen = torch.from_numpy(items[fresh])
        encoded = self._encode(items[fresh])
        anchor = (1.0 - (encoded * self.original[chosen]).sum(1)).mean()
        self.bank[chosen] = encoded.detach()
        return vectors.index_copy(0, torch.from_numpy(fresh), encoded), self.config.anchor * anchor

    def _fresh(self, items: Int64, urgency: Int64, rng: np.random.Generator) -> Int64:
        if self.config.mode == "frozen":
            return np.zeros(0, np.int64)
        order = np.lexsort((rng.random(len(items)), -urgency))
        worded = [place for place in order.tolist() if self.tokens(int(items[place]))]
        return np.array(worded[: self.config.max_texts], np.int64)

    def _encode(self, items: Int64) -> Tensor:
        """(n, D) with gradients; every item has a token."""
        most = self.config.max_tokens
        ids = [self.tokens(item) for item in items.tolist()]
        cut = [tokens if len(tokens) <= most else [*tokens[: most - 1], tokens[-1]] for tokens in ids]
        input_ids, attention_mask = map(torch.from_numpy, pad_batch(cut, max(map(len, cut))))
        with torch.autocast("cpu", torch.bfloat16):
            embedding: Tensor = self.model(input_ids, attention_mask)
        return embedding

    def embed(self, items: Int64) -> Float32:
        """(n, D) of whole texts, without gradients; zeros for a text without a word."""
        out = np.zeros((len(items), self.original.shape[1]), np.float32)
        self.model.eval()
        tokens = [self.tokens(item) for item in items.tolist()]
        with torch.inference_mode():
            for rows, input_ids, attention_mask in plan_batches(tokens):
                out[rows] = self.model(torch.from_numpy(input_ids), torch.from_numpy(attention_mask)).numpy()
        return out
