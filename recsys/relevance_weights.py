"""The relevance head's settings and learned arrays; `relevance` says what they mean and scores with them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from recsys.errors import RecsysError
from recsys.events import Float32

AGE_SLOTS = 16
"""Slot b holds events of 2^b - 1 to 2^(b + 1) - 1 hours ago; the last one everything older (3.7 years)."""
PLACE_SLOTS = 7
"""Slot b holds the events that are 2^b to 2^(b + 1) - 1 places from the end of the history."""
DENSE = ("attended", "mean", "max", "last", "log_events")


@dataclass(frozen=True)
class HeadConfig:
    """Shape and training of the relevance head.

    Attributes:
        embedding_dim: width of the projections.
        hidden_dim: width of the hidden layer.
        history_limit: how many of the newest history events count.
        epochs: most passes over the training requests.
        batch_size: requests in a step.
        learning_rate: of AdamW.
        regularization: AdamW's weight decay, on the matrices.
        dropout: on the pooled history and the hidden layer, while training.
        patience: epochs without a better held-out loss before stopping.
        holdout: newest share of the requests, for early stopping and calibration.
        seed: of weights, order and dropout.
    """

    embedding_dim: int = 64
    hidden_dim: int = 16
    history_limit: int = 30
    epochs: int = 6
    batch_size: int = 256
    learning_rate: float = 3e-3
    regularization: float = 1e-2
    dropout: float = 0.1
    patience: int = 2
    holdout: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class HeadWeights:
    """The learned arrays, all float32; d is `embedding_dim`, h `hidden_dim`, D the text dimension.

    Attributes:
        candidate: (D, d) projection of a candidate.
        history: (D, d) projection of a history event.
        attention: (3,) weights of similarity and of interaction, logit of the null slot.
        age: (AGE_SLOTS,) added to the attention logit.
        place: (PLACE_SLOTS,) likewise.
        event_type: (types,) likewise; an unknown type adds 0.
        null: (d,) pooled value of the null slot.
        dense: (5,) weights of `DENSE`.
        bilinear: (d,).
        prior: (d,).
        hidden_candidate: (d, h) first layer, candidate part.
        hidden_pooled: (d, h) first layer, pooled history part.
        hidden_product: (d, h) first layer, product part.
        hidden_bias: (h,).
        output: (h,).
        bias: (1,).
    """

    candidate: Float32
    history: Float32
    attention: Float32
    age: Float32
    place: Float32
    event_type: Float32
    null: Float32
    dense: Float32
    bilinear: Float32
    prior: Float32
    hidden_candidate: Float32
    hidden_pooled: Float32
    hidden_product: Float32
    hidden_bias: Float32
    output: Float32
    bias: Float32

    @classmethod
    def initial(cls, embeddings: Float32, type_weights: Float32, config: HeadConfig) -> HeadWeights:
        """Weights that rank by text similarity: principal axes to project on, no learned correction.

        Args:
            embeddings: (items, D), to find the axes in.
            type_weights: (types,) preference weights, taken over as attention weights.
            config: shapes and seed.
        """
        rng = np.random.default_rng(config.seed)
        axes = _principal_axes(embeddings, config.embedding_dim)
        d, h = config.embedding_dim, config.hidden_dim
        parts = rng.normal(0.0, (1.0 / d) ** 0.5, (3, d, h)).astype(np.float32)
        zeros = np.zeros(max(d, h), np.float32)
        return cls(
            candidate=axes,
            history=axes.copy(),
            attention=np.array([1.0, 0.0, 0.0], np.float32),
            age=np.zeros(AGE_SLOTS, np.float32),
            place=np.zeros(PLACE_SLOTS, np.float32),
            event_type=np.log(np.maximum(np.asarray(type_weights, np.float32), 0.05)),
            null=zeros[:d].copy(),
            dense=np.array([0.5, 0.5, 0.0, 0.0, 0.0], np.float32),
            bilinear=zeros[:d].copy(),
            prior=zeros[:d].copy(),
            hidden_candidate=parts[0],
            hidden_pooled=parts[1],
            hidden_product=parts[2],
            hidden_bias=zeros[:h].copy(),
            output=zeros[:h].copy(),
            bias=np.array([-3.0], np.float32),
        )

    def arrays(self) -> dict[str, Float32]:
        """The arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _principal_axes(embeddings: Float32, dim: int) -> Float32:
    """(D, dim) leading principal axes, scaled so that u · v / dim is about the text similarity.

    Signs are fixed, so the same table gives the same axes. An empty table gives unit axes.
    """
    sample = embeddings[:: max(1, len(embeddings) // 50_000)].astype(np.float64)
    values, vectors = np.linalg.eigh(sample.T @ sample / max(1, len(sample)) + 1e-9 * np.eye(sample.shape[1]))
    axes = vectors[:, ::-1][:, :dim]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    scale = (dim / values[::-1][:dim].sum()) ** 0.5 if len(sample) else 1.0
    padded = np.zeros((sample.shape[1], dim), np.float32)
    padded[:, : axes.shape[1]] = axes * scale
    return padded


def check_weights(weights: HeadWeights, config: HeadConfig) -> None:
    """Refuse arrays of other shapes or kinds; raises RecsysError `head_invalid`."""
    d, h, text = config.embedding_dim, config.hidden_dim, len(weights.candidate)
    shapes: dict[str, tuple[int, ...]] = {
        "candidate": (text, d), "history": (text, d), "attention": (3,), "age": (AGE_SLOTS,),
        "place": (PLACE_SLOTS,), "event_type": (len(weights.event_type),), "null": (d,),
        "dense": (len(DENSE),), "bilinear": (d,), "prior": (d,), "hidden_bias": (h,), "output": (h,),
        "hidden_candidate": (d, h), "hidden_pooled": (d, h), "hidden_product": (d, h), "bias": (1,),
    }  # fmt: skip
    for name, array in weights.arrays().items():
        if array.shape != shapes[name] or array.dtype != np.float32 or not np.isfinite(array).all():
            raise RecsysError("head_invalid", f"array {name} must be finite float32 of shape {shapes[name]}")
