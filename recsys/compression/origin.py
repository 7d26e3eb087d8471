"""What the layers of a compressed network were in the one that it came from, told by their weights.

Cutting copies rows of weights and recovery moves them a little: in hundreds of dimensions a row stays by far
the nearest to the one that it was. So nothing needs to be known of how a network was cut, in one step or in
many, and the answer is what happened. Where it is not plain, there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.events import Float32, Int64
from recsys.text.transformer import TextTransformer, TransformerLayer

PLAIN = 0.5
"""Least cosine of a row with what it is taken to have been."""

_LOOKED_AT = 64


@dataclass(frozen=True)
class LayerOrigin:
    """Where a layer comes from.

    Attributes:
        layer: number of the layer that it was.
        heads: ascending numbers of the heads of that layer that it keeps; None where they cannot be told.
        neurons: likewise, of the feed-forward part.
    """

    layer: int
    heads: Int64 | None
    neurons: Int64 | None

    def to_document(self) -> dict[str, Any]:
        """As JSON values."""
        heads, neurons = (None if part is None else part.tolist() for part in (self.heads, self.neurons))
        return {"layer": self.layer, "heads": heads, "neurons": neurons}


def origins(root: TextTransformer, compressed: TextTransformer) -> tuple[LayerOrigin | None, ...] | None:
    """What each layer of `compressed` was in `root`; None for one that was cut or changed past telling.

    None in all where layers are shared in either, or the widths of tokens or heads differ.
    """
    before, after = root.architecture, compressed.architecture
    if before.order or after.order or (before.dim, before.head_dim) != (after.dim, after.head_dim):
        return None
    return tuple(_origin(layer, root.weighted_layers, after.head_dim) for layer in compressed.weighted_layers)


def _origin(layer: TransformerLayer, sources: list[TransformerLayer], head_dim: int) -> LayerOrigin | None:
    nearness = [_nearness(layer, source, head_dim) for source in sources]
    number = int(np.argmax(nearness))
    if not nearness[number] >= PLAIN:
        return None
    source = sources[number]
    return LayerOrigin(
        number,
        _matches(_head_rows(layer, head_dim), _head_rows(source, head_dim)),
        _matches(_neuron_rows(layer), _neuron_rows(source)),
    )


def _nearness(layer: TransformerLayer, source: TransformerLayer, head_dim: int) -> float:
    """Mean over some heads and neurons of the highest cosine with any of the source; 0 without any."""
    best = [np.zeros(0)]
    for found, there in (
        (_head_rows(layer, head_dim), _head_rows(source, head_dim)),
        (_neuron_rows(layer)[:_LOOKED_AT], _neuron_rows(source)),
    ):
        if len(found):
            best.append((found @ there.T).max(axis=1, initial=0.0))
    highest = np.concatenate(best)
    return float(highest.mean()) if len(highest) else 0.0


def _matches(found: Float32, there: Float32) -> Int64 | None:
    """Which rows `found` are, of `there`; None where they are not all plain, all different and in order."""
    if not len(found):
        return np.zeros(0, np.int64)
    if len(found) > len(there):
        return None
    cosines = found @ there.T
    numbers = cosines.argmax(axis=1).astype(np.int64)
    plain = bool((cosines.max(axis=1) >= PLAIN).all() and (np.diff(numbers) > 0).all())
    return numbers if plain else None


def _head_rows(layer: TransformerLayer, head_dim: int) -> Float32:
    """(heads, 2 * head_dim * dim) what makes the queries and the values of each head, unit rows."""
    if not layer.shape.heads:
        return np.zeros((0, 2 * head_dim * layer.output_norm.normalized_shape[0]), np.float32)
    parts = (layer.query, layer.value)
    return _unit(np.hstack([_array(part.weight).reshape(layer.shape.heads, -1) for part in parts]))


def _neuron_rows(layer: TransformerLayer) -> Float32:
    """(feed_forward, dim) what each neuron reads, unit rows."""
    if not layer.shape.feed_forward:
        return np.zeros((0, layer.output_norm.normalized_shape[0]), np.float32)
    return _unit(_array(layer.expand.weight))


def _array(weight: Any) -> Float32:
    return weight.float().numpy(force=True)


def _unit(rows: Float32) -> Float32:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
