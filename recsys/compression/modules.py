"""A shallower network by parts of layers: whole attention or feed-forward parts that matter least go.

What a part does is measured, not estimated: the model runs without it, and its embeddings are compared with
the whole model's. Parts make up for each other, so they go one after another, each time the one that is
missed least beside those that are gone already.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from recsys.compression.variant import Variant
from recsys.text.item_text import evenly
from recsys.text.transformer import Architecture, TextTransformer

JUDGING_TEXTS = 128

Batches = list[tuple[Tensor, Tensor]]
Kind = Literal["heads", "feed_forward"]
Part = tuple[int, Kind]
"""Number of a layer, and which count of its shape stands for the part."""


def drop_modules(variant: Variant, texts: Sequence[str], *, count: int) -> Variant:
    """Leave out the `count` attention or feed-forward parts that the embeddings miss least.

    Nothing is drawn: the same input gives the same parts, and of equal ones the first goes.

    Args:
        variant: what to make shallower; it is not changed.
        texts: 128 of them, evenly spread, are embedded for every part that is tried.
        count: how many parts go; all of them leave the word table and the norms.

    Raises:
        ValueError: layers are shared, there are not so many parts or `count` is below one, or no text has a
            token.
    """
    transformer = variant.transformer
    if transformer.architecture.order:
        raise ValueError("a part of a shared layer cannot be left out alone")
    most = len(_parts(transformer.architecture))
    if not 1 <= count <= most:
        raise ValueError(f"count must lie in 1..{most}, not {count}")
    batches = list(variant.batches(evenly(texts, JUDGING_TEXTS)))
    if not batches:
        raise ValueError("modules are judged on texts, and none has a token")
    closeness = partial(_closeness, batches=batches, whole=_embed(transformer, batches))
    for _ in range(count):
        parts = _parts(transformer.architecture)
        transformer = max((_without(transformer, part) for part in parts), key=closeness)
    return variant.then(f"modules-{count}", copy.deepcopy(transformer))


def _parts(architecture: Architecture) -> list[Part]:
    """Those that are there."""
    numbered = enumerate(architecture.layers)
    return [(place, kind) for place, shape in numbered for kind in get_args(Kind) if getattr(shape, kind)]


def _without(transformer: TextTransformer, part: Part) -> TextTransformer:
    """The network that lacks one part, in evaluation mode; it holds the very tensors of `transformer`."""
    place, kind = part
    shapes = list(transformer.architecture.layers)
    shapes[place] = replace(shapes[place], **{kind: 0})
    with torch.device("meta"):
        rest = TextTransformer(replace(transformer.architecture, layers=tuple(shapes)))
    weights = transformer.state_dict()
    rest.load_state_dict({name: weights[name] for name in rest.state_dict()}, assign=True)
    return rest.eval()


def _closeness(transformer: TextTransformer, batches: Batches, whole: Tensor) -> float:
    """Mean cosine to the embeddings of the whole model."""
    return float((_embed(transformer, batches) * whole).sum(1).mean())


@torch.inference_mode()
def _embed(transformer: TextTransformer, batches: Batches) -> Tensor:
    """(texts, dim) in the order of the batches."""
    return torch.cat([transformer(input_ids, mask) for input_ids, mask in batches])
