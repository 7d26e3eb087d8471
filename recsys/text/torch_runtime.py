"""The encoder on torch: the reference that the compiled runtimes are compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from recsys.events import Float32
from recsys.text.runtime import plan_batches
from recsys.text.tokenization import Tokenizer
from recsys.text.transformer import TextTransformer


class TorchEncoder:
    """A text model with its tokenizer, in fp32. It reads the weights as they are at each call."""

    def __init__(self, transformer: TextTransformer, tokenizer: Tokenizer) -> None:
        self.transformer = transformer
        self.tokenizer = tokenizer

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.transformer.dim

    @property
    def encoder_id(self) -> str:
        """Digest of the weights, the tokenizer and its limits."""
        digest = hashlib.blake2b(self.tokenizer.definition, digest_size=16)
        digest.update(repr(self.tokenizer.limits).encode())
        for content in self.transformer.to_files().values():
            digest.update(content)
        return digest.hexdigest()

    def encode(self, texts: Sequence[str]) -> Float32:
        """(len(texts), dim) rows of length 1 in input order; zeros for a text without a word."""
        embeddings = np.zeros((len(texts), self.dim), np.float32)
        self.transformer.eval()
        with torch.inference_mode():
            for rows, input_ids, attention_mask in plan_batches(self.tokenizer.encode(texts)):
                output = self.transformer(torch.from_numpy(input_ids), torch.from_numpy(attention_mask))
                embeddings[rows] = output.numpy()
        return embeddings
