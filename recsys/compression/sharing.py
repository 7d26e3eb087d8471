"""Fewer sets of weights: neighbouring layers run with the same ones, as in ALBERT (Lan et al. 2020)."""

from __future__ import annotations

from dataclasses import replace

import torch

from recsys.compression.variant import Variant
from recsys.text.transformer import TextTransformer


def share_layers(variant: Variant, *, group: int = 2) -> Variant:
    """Let every `group` layers in a row run with the mean of their weights; the last group may be smaller.

    It is as deep and as slow as before, and needs recovery: a mean of layers is not a layer.

    Raises:
        ValueError: `group` below two, layers shared already or of different shapes.
    """
    transformer = variant.transformer
    shape = transformer.architecture
    if group < 2:
        raise ValueError(f"group must be 2 or more, not {group}")
    if shape.order or len(set(shape.layers)) != 1:
        raise ValueError("only whole models with layers of one shape can share them")
    depth = len(shape.layers)
    order = tuple(place // group for place in range(depth))
    shared = TextTransformer(replace(shape, layers=shape.layers[: order[-1] + 1], order=order))
    shared.take_all_but_layers(transformer)
    for number, layer in enumerate(shared.layers):
        members = [transformer.layers[place].state_dict() for place in range(depth) if order[place] == number]
        layer.load_state_dict(
            {name: torch.stack([member[name] for member in members]).mean(0) for name in members[0]}
        )
    return variant.then(f"shared-{group}", shared.eval())
