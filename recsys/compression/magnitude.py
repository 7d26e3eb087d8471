"""Weights near zero become zero, one by one (Han et al. 2015): fewer bytes where zeros are stored as none.

Dense kernels multiply zeros like other numbers, so the model is as fast as before. The largest share of a
model's bytes may be its word table, whose numbers have a scale of their own: it is pruned by the same share
as the dense maps of the layers, but apart from them. Norms, biases, positions and the map of a factorised
table are few, and stay.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recsys.compression.variant import Variant
from recsys.text.transformer import TextTransformer


def prune_weights(variant: Variant, *, share: float) -> Variant:
    """Set the smallest weights by magnitude to exactly zero.

    Every method that fits or trains weights fills zeros again; `masks_held` keeps them while a model trains.

    Args:
        variant: what to prune; it is not changed.
        share: of the weights of all dense maps of layers together, and of the word table, that is zero
            afterwards; weights that are zero before count.

    Raises:
        ValueError: `share` is not between 0 and 1.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"share must lie between 0 and 1, not {share}")
    pruned = copy.deepcopy(variant.transformer)
    _silence([dense.weight for dense in dense_maps(pruned)], share)
    _silence([pruned.words.weight], share)
    return variant.then(f"sparse-{100 * share:g}", pruned.eval())


def dense_maps(transformer: TextTransformer) -> list[nn.Linear]:
    """The dense maps of all layers, in their order."""
    return [module for module in transformer.layers.modules() if isinstance(module, nn.Linear)]


@contextmanager
def masks_held(transformer: TextTransformer) -> Iterator[None]:
    """Inside, weights of dense maps that are zero stay so, whatever trains them; after, names are as before.

    The weights are parametrised meanwhile, so that state dictionaries name them differently.
    """
    masked = [(dense, dense.weight == 0) for dense in dense_maps(transformer)]
    masked = [(dense, mask) for dense, mask in masked if mask.any()]
    with parametrised((dense, _Masked(mask)) for dense, mask in masked):
        yield
    with torch.no_grad():
        for dense, mask in masked:
            dense.weight.masked_fill_(mask, 0.0)


@contextmanager
def parametrised(views: Iterable[tuple[nn.Linear, nn.Module]]) -> Iterator[None]:
    """Inside, each map works with its weight as its module gives it; the weight itself is what learns.

    Such contexts may stand within each other: each takes away its own.
    """
    seen = []
    try:
        for dense, view in views:
            parametrize.register_parametrization(dense, "weight", view)
            seen.append(dense)
        yield
    finally:
        for dense in seen:
            _take_last_view(dense)


def _take_last_view(dense: nn.Linear) -> None:
    views = dense.get_submodule("parametrizations.weight")
    if isinstance(views, nn.ModuleList) and len(views) > 1:
        del views[-1]
    else:
        parametrize.remove_parametrizations(dense, "weight", leave_parametrized=False)


class _Masked(nn.Module):
    """A weight with zeros where `mask` is true, which learn nothing."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight.masked_fill(self.mask, 0.0)


@torch.no_grad()
def _silence(weights: list[Tensor], share: float) -> None:
    """Zero the smallest of all of them together, in place, to the very number."""
    flat = np.concatenate([weight.numpy().ravel() for weight in weights])
    count = round(share * len(flat))
    flat[np.argpartition(np.abs(flat), count - 1)[:count]] = 0.0
    ends = np.cumsum([weight.numel() for weight in weights])
    for weight, part in zip(weights, np.split(flat, ends[:-1]), strict=True):
        weight.copy_(torch.from_numpy(part).view_as(weight))
