"""Virtual tokens for a frozen encoder: prompts before its words, or keys and values in every layer.

Both stay outside the encoder's weights, so what they make of it is trained and judged here and cannot be
compiled. Their places carry no text: they are attended to and left out of the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.text.transformer import TextTransformer, TransformerLayer


class PromptedTransformer(nn.Module):
    """Trainable vectors stand before the words of every text (Lester et al. 2021, "The Power of Scale").

    They start as common words, as in section 3.2 there. The text keeps the positions that it had; the
    vectors have none of their own, since they can learn one.
    """

    def __init__(self, model: TextTransformer, words: Tensor) -> None:
        """Take over `model` and put vectors before its words; `words` (P,) are the ids that they start as."""
        super().__init__()
        self.length = len(words)
        positions = model.positions.weight.detach()
        longer = torch.cat([torch.zeros(self.length, positions.shape[1]), positions])
        model.add_module("words", _PromptedWords(model.words, words))
        model.positions = nn.Embedding(*longer.shape)
        model.positions.weight = nn.Parameter(longer, requires_grad=False)
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """As the encoder's: (B, T), (B, T) to (B, dim) rows of length 1."""
        longer_ids = functional.pad(input_ids, (self.length, 0))
        longer_mask = functional.pad(attention_mask, (self.length, 0), value=1)
        hidden = self.model.hidden_states(longer_ids, longer_mask)  # (B, P + T, dim)
        return self.model.embed(hidden[:, self.length :], attention_mask)


class _PromptedWords(nn.Module):
    """The word table; the first P places hold the prompt, whatever ids stand there."""

    def __init__(self, table: nn.Embedding, words: Tensor) -> None:
        super().__init__()
        self.table = table
        self.prompt = nn.Parameter(table.weight.detach()[words].clone())  # (P, width)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, P + T) to (B, P + T, width)."""
        words = self.table(input_ids[:, len(self.prompt) :])
        return torch.cat([self.prompt.expand(len(words), -1, -1), words], dim=1)


class PrefixedLayer(nn.Module):
    """A layer whose attention sees trainable keys and values before those of the text (Li & Liang 2021)."""

    def __init__(self, layer: TransformerLayer, keys: Tensor, values: Tensor) -> None:
        """Take over `layer`; `keys` and `values` (P, heads * head_dim) are where the pairs start."""
        super().__init__()
        self.length = len(keys)
        layer.add_module("key", _Prefixed(layer.key, keys))
        layer.add_module("value", _Prefixed(layer.value, values))
        self.layer = layer

    def forward(self, hidden: Tensor, attend: Tensor) -> Tensor:
        """As the layer's: (B, T, dim), (B, 1, 1, T) to (B, T, dim)."""
        out: Tensor = self.layer(hidden, functional.pad(attend, (self.length, 0)))
        return out


class _Prefixed(nn.Module):
    """A dense map whose output begins with trainable rows."""

    def __init__(self, dense: nn.Linear, rows: Tensor) -> None:
        super().__init__()
        self.dense = dense
        self.prefix = nn.Parameter(rows.clone())  # (P, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, dim) to (B, P + T, width)."""
        out = self.dense(hidden)
        return torch.cat([self.prefix.to(out.dtype).expand(len(out), -1, -1), out], dim=1)


def add_prefixes(model: TextTransformer, words: Tensor) -> None:
    """Put a prefix into every layer with attention, in place.

    Keys and values start as those of the text `words` (P,), which is far better with little to learn from
    than random numbers (Li & Liang 2021, section 7.4). We leave out their reparametrisation by a network.
    """
    seen: dict[nn.Module, Tensor] = {}
    attending = [(n, layer) for n, layer in enumerate(model.weighted_layers) if layer.shape.heads]
    maps = [part for _, layer in attending for part in (layer.key, layer.value)]

    def keep(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[part] = output[0].detach()

    hooks = [part.register_forward_hook(keep) for part in maps]
    with torch.no_grad():
        model.hidden_states(words[None], torch.ones(1, len(words), dtype=torch.int64))
    for hook in hooks:
        hook.remove()
    for number, layer in attending:
        model.layers[number] = PrefixedLayer(layer, seen[layer.key], seen[layer.value])
