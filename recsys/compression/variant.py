"""What a compression method takes and gives: a network, its tokenizer, and the recipe that made them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recsys.text.runtime import plan_batches
from recsys.text.tokenization import Tokenizer
from recsys.text.transformer import TextTransformer


@dataclass(frozen=True)
class Variant:
    """A text model before it is compiled.

    Attributes:
        transformer: the network; methods make another and leave this one alone.
        tokenizer: gives the token ids that the network's word table has rows for.
        recipe: the methods that made it from the teacher, in their order.
    """

    transformer: TextTransformer
    tokenizer: Tokenizer
    recipe: tuple[str, ...] = ()

    def then(
        self, step: str, transformer: TextTransformer | None = None, tokenizer: Tokenizer | None = None
    ) -> Variant:
        """The variant after one more step of the recipe."""
        return replace(
            self,
            transformer=transformer or self.transformer,
            tokenizer=tokenizer or self.tokenizer,
            recipe=(*self.recipe, step),
        )

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[Tensor, Tensor]]:
        """Padded `input_ids` and `attention_mask` of the texts that have a token, like lengths together."""
        for _, input_ids, attention_mask in plan_batches(self.tokenizer.encode(texts)):
            yield torch.from_numpy(input_ids), torch.from_numpy(attention_mask)
