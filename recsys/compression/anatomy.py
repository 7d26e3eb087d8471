"""What a network is made of, for people to look at: weights by kind of part, what matters, what was kept.

It counts, bins and compares. It measures no importance and draws nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.compression.origin import LayerOrigin, origins
from recsys.compression.pruning import Importance
from recsys.compression.variant import Variant
from recsys.events import Float32, Float64, Int64
from recsys.text.transformer import Architecture, TextTransformer

BINS = 60
COLUMNS = 64
INNER_SHARE = 0.999
"""Of a kind's weights, those that the bins span; the rest is counted in the outermost two."""

KINDS = {
    "words": "word table",
    "word_map": "word map",
    "positions": "positions",
    "query": "attention",
    "key": "attention",
    "value": "attention",
    "attention_out": "attention",
    "expand": "feed-forward",
    "contract": "feed-forward",
    "norm": "norms",
    "attention_norm": "norms",
    "output_norm": "norms",
    "projection": "projection",
}
"""Module of the network, to the kind that it is summed under; any other is of the kind "other"."""


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        recipe: the steps that made it.
        architecture: its shape.
        parameters: number of weights by kind; they sum to all there are.
        zeros: how many of them are exactly zero, likewise.
        histograms: by kind, (BINS,) how many weights lie in each bin; they sum to `parameters`.
    """

    recipe: tuple[str, ...]
    architecture: Architecture
    parameters: dict[str, int]
    zeros: dict[str, int]
    histograms: dict[str, Int64]

    def to_document(self) -> dict[str, Any]:
        """All of it as JSON values; `depth` and `parameter_count` are added."""
        return {
            "recipe": list(self.recipe),
            "architecture": json.loads(self.architecture.to_json()) | {"depth": self.architecture.depth},
            "parameters": self.parameters,
            "parameter_count": sum(self.parameters.values()),
            "zeros": self.zeros,
            "histograms": {kind: counts.tolist() for kind, counts in self.histograms.items()},
        }


@dataclass(frozen=True)
class Anatomy:
    """A network and what compression made of it.

    Attributes:
        root: before compression.
        compressed: after it; None where no network is left.
        edges: by kind, (BINS + 1,) edges of the bins, the same for both networks.
        importance: of the parts of `root`.
        kept: what each layer of `compressed` was in `root`, None for one that cannot be told; None in all
            where no network is left or its layers are not those of `root` (shared, or of another width).
    """

    root: Network
    compressed: Network | None
    edges: dict[str, Float64]
    importance: Importance
    kept: tuple[LayerOrigin | None, ...] | None

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values.

        `importance` holds rows by layer: `heads` as they are, `neurons` as means of at most 64 equal groups
        in falling order of importance (neurons have no order of their own), and `layers` with the sums over
        both kinds of parts.
        """
        heads, neurons = self.importance.heads, self.importance.neurons
        kept = self.kept and [origin.to_document() if origin else None for origin in self.kept]
        return {
            "root": self.root.to_document(),
            "compressed": self.compressed.to_document() if self.compressed else None,
            "edges": {kind: edges.tolist() for kind, edges in self.edges.items()},
            "importance": {
                "heads": [values.tolist() for values in heads],
                "neurons": [_ranked_means(values) for values in neurons],
                "layers": [
                    {"attention": float(h.sum()), "feed_forward": float(n.sum())}
                    for h, n in zip(heads, neurons, strict=True)
                ],
            },
            "kept": kept,
        }


def anatomy_of(root: Variant, compressed: Variant | None, importance: Importance) -> Anatomy:
    """Lay two networks open.

    Args:
        root: before compression.
        compressed: after it; None where no network is left.
        importance: of the parts of `root`.

    Raises:
        ValueError: the importance is not of `root`, by its sizes.
    """
    shapes = root.transformer.architecture.layers
    sizes = [(len(h), len(n)) for h, n in zip(importance.heads, importance.neurons, strict=True)]
    if sizes != [(shape.heads, shape.feed_forward) for shape in shapes]:
        raise ValueError(f"importance of (heads, neurons) {sizes} for a network of {shapes}")
    networks = [root] if compressed is None else [root, compressed]
    weights = [_weights(each.transformer) for each in networks]
    first = {kind: values for each in reversed(weights) for kind, values in each.items()}
    reach = {kind: float(np.quantile(np.abs(first[kind]), INNER_SHARE)) or 1.0 for kind in first}
    opened = [_open(each, values, reach) for each, values in zip(networks, weights, strict=True)]
    return Anatomy(
        opened[0],
        opened[1] if compressed is not None else None,
        {kind: np.linspace(-width, width, BINS + 1) for kind, width in reach.items()},
        importance,
        origins(root.transformer, compressed.transformer) if compressed is not None else None,
    )


def _weights(transformer: TextTransformer) -> dict[str, Float32]:
    """All weights by kind, flat."""
    found: dict[str, list[Float32]] = {}
    for name, parameter in transformer.named_parameters():
        kind = KINDS.get(name.split(".")[-2], "other")
        found.setdefault(kind, []).append(parameter.float().numpy(force=True).ravel())
    return {kind: np.concatenate(parts) for kind, parts in found.items()}


def _open(variant: Variant, weights: dict[str, Float32], reach: dict[str, float]) -> Network:
    return Network(
        variant.recipe,
        variant.transformer.architecture,
        {kind: len(values) for kind, values in weights.items()},
        {kind: int(np.count_nonzero(values == 0)) for kind, values in weights.items()},
        {kind: _histogram(values, reach[kind]) for kind, values in weights.items()},
    )


def _histogram(values: Float32, reach: float) -> Int64:
    """(BINS,) counts over -reach..reach; what lies beyond is in the outermost."""
    return np.histogram(np.clip(values, -reach, reach), BINS, (-reach, reach))[0].astype(np.int64)


def _ranked_means(values: Float64) -> list[float]:
    """Means of at most 64 groups, as equal as can be, from the highest values down."""
    if not len(values):
        return []
    return [float(part.mean()) for part in np.array_split(np.sort(values)[::-1], min(COLUMNS, len(values)))]
