"""The relevance head: how likely a click is, from a user's history and the text of a candidate.

This module holds the learned arrays and scores with them; it never sees torch. `relevance_training` fits
them, and a test holds the two forward passes equal.

For candidate c and history events h, with unit text vectors e and their learned projections u and v:

    similarity   s_h = e_c · e_h
    attention    a = softmax over the events and one null slot of
                     scale · s_h + interaction · (u_c · v_h) / d + age + place + event type
    pooled       p = Σ a_h v_h + a_null v_null
    logit        dense · [Σ a_h s_h, mean s, max s, last s, log(1 + events)]
                 + bilinear · (u_c * p) + prior · u_c + MLP(u_c, p, u_c * p) + bias

The target attention is that of DIN (Zhou et al. 2018), with the plain text similarity left in: an
untrained head ranks by it, so on a tiny log it is no worse than text neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from recsys.calibration import Calibration
from recsys.dense_products import DenseProducts
from recsys.dot_products import LANES
from recsys.errors import RecsysError
from recsys.events import Float32, Int32, Int64, concatenated_ranges, lengths_to_offsets
from recsys.pairs import DensePairs
from recsys.relevance_kernel import (
    KernelItems,
    KernelLog,
    KernelWeights,
    are_rows,
    score_requests,
    weigh_events,
)
from recsys.relevance_weights import AGE_SLOTS, PLACE_SLOTS, HeadConfig, HeadWeights, check_weights
from recsys.requests import HistoryBatch, Requests, blocks

SIMILARITY_UNIT = 0.2
"""Text similarities are divided by this, about their spread, before they meet a weight."""
_WEIGHTS_FILE = "head.safetensors"
_CONFIG_FILE = "head.json"


@dataclass(frozen=True)
class ProjectedItems:
    """Everything of an item that scoring needs, computed once an item table; row -1 is an unknown item.

    Shapes: `vectors` (items, D) as given; `candidate` and `history` (items + 1, d), `hidden`
    (items + 1, h) and `prior` (items + 1,), whose last rows belong to a text of zeros.
    """

    vectors: Float32
    candidate: Float32
    history: Float32
    hidden: Float32
    prior: Float32

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def kernel_items(self) -> KernelItems:
        """The same arrays, as the kernel takes them."""
        return KernelItems(self.candidate, self.history, self.hidden, self.prior)

    @cached_property
    def text(self) -> DensePairs:
        """The text similarities of the items."""
        return DensePairs(self.vectors)

    def tables(self) -> tuple[Float32, ...]:
        """All arrays, whose first axis is the item."""
        return self.vectors, self.candidate, self.history, self.hidden, self.prior


@dataclass(frozen=True)
class HistorySlots:
    """The newest events of each history with their bias slots: what attention knows beside the text.

    Shapes: `offsets` (requests + 1,); `item_index`, `age`, `place`, `event_type` (events,). `event_type` is
    `types` where the head does not know the event type.
    """

    offsets: Int64
    item_index: Int32
    age: Int32
    place: Int32
    event_type: Int32

    @classmethod
    def of(cls, history: HistoryBatch, limit: int, types: int) -> HistorySlots:
        """The last `limit` events of each request in slots; `types` is how many types have a bias."""
        history = newest_events(history, limit)
        lengths = history.lengths
        from_end = np.repeat(history.offsets[1:], lengths) - np.arange(len(history.item_index))
        hours = np.maximum(history.age_s, 0.0) / 3600.0
        kind = history.type_index
        return cls(
            history.offsets,
            history.item_index.astype(np.int32),
            np.minimum(np.log2(hours + 1.0), AGE_SLOTS - 1).astype(np.int32),
            np.minimum(np.log2(from_end), PLACE_SLOTS - 1).astype(np.int32),
            np.where((kind >= 0) & (kind < types), kind, types).astype(np.int32),
        )


def newest_events(history: HistoryBatch, limit: int) -> HistoryBatch:
    """The last `limit` events of each request."""
    lengths = np.minimum(history.lengths, limit)
    rows = concatenated_ranges(history.offsets[1:] - lengths, history.offsets[1:])
    return HistoryBatch(
        lengths_to_offsets(lengths), history.item_index[rows], history.type_index[rows], history.age_s[rows]
    )


class RelevanceHead:
    """Scores (request, candidate) rows with learned arrays; safe to share between threads."""

    def __init__(self, config: HeadConfig, weights: HeadWeights, calibration: Calibration) -> None:
        """Hold the arrays; nothing is learned or changed afterwards."""
        self.config = config
        self.weights = weights
        self.calibration = calibration

    @classmethod
    def untrained(
        cls, embeddings: Float32, type_weights: Float32, config: HeadConfig | None = None
    ) -> RelevanceHead:
        """A head that ranks by text similarity to the history; for (items, D) embeddings."""
        config = config or HeadConfig()
        return cls(config, HeadWeights.initial(embeddings, type_weights, config), Calibration.identity())

    def project(self, embeddings: Float32) -> ProjectedItems:
        """Prepare an item table, shape (items, D), rows unit or zero; do it once and keep the result.

        Raises RecsysError where the width is not the one that the head was fitted on, or on NaN.
        """
        weights = self.weights
        if embeddings.ndim != 2 or embeddings.shape[1] != len(weights.candidate):
            wanted = f"(items, {len(weights.candidate)})"
            raise RecsysError("embeddings_shape", f"the relevance head needs embeddings of shape {wanted}")
        vectors = np.ascontiguousarray(embeddings, np.float32)
        candidate = _projected(vectors, weights.candidate)
        if not np.isfinite(candidate).all():
            raise RecsysError("embeddings_not_finite", "item embeddings hold NaN or infinity")
        return ProjectedItems(
            vectors,
            candidate,
            _projected(vectors, weights.history),
            candidate @ weights.hidden_candidate + weights.hidden_bias,
            candidate @ weights.prior + weights.bias,
        )

    def score(
        self,
        requests: Requests,
        history: HistoryBatch,
        items: ProjectedItems,
        products: DenseProducts | None = None,
    ) -> Float32:
        """Calibrated click probabilities, shape (rows,), in the order of the candidate rows.

        `history` holds one range a request. A row's score depends on its request's history and its own
        item alone: not on the other candidates, nor on what else is in the batch. An empty history and
        an unknown item (-1) are fine. `products` are those of the items' text vectors with the newest events
        of this history, where they are there already: as many as the head looks at, at least.
        """
        return self.calibration.probability(self.logits(requests, history, items, products))

    def logits(
        self,
        requests: Requests,
        history: HistoryBatch,
        items: ProjectedItems,
        products: DenseProducts | None = None,
    ) -> Float32:
        """Uncalibrated log-odds, shape (rows,); without products many requests go block by block."""
        _check_rows(requests, history, items)
        if products is None:
            limit, parts = self.config.history_limit, [np.zeros(0, np.float32)]
            newest = newest_events(history, limit)
            for chosen in blocks(requests.offsets):
                some, past = requests.take(chosen), newest.take(chosen)
                parts.append(self.logits(some, past, items, DenseProducts.of(items.text, some, past, limit)))
            return np.concatenate(parts)
        events = (history.offsets, history.item_index, history.type_index, history.age_s)
        kept, past, bias = weigh_events(*events, self.config.history_limit, self._biases)
        older = history.lengths - (kept[1:] - kept[:-1])
        log = KernelLog(
            requests.offsets,
            requests.item_index,
            kept,
            past,
            bias,
            products.values,
            products.begins + older * requests.lengths,
        )
        out = np.empty(requests.rows, np.float32)
        score_requests(log, items.kernel_items, self._kernel_weights, out)
        return out

    @cached_property
    def _kernel_weights(self) -> KernelWeights:
        return _parameters(self.weights)

    @cached_property
    def _biases(self) -> tuple[Float32, Float32, Float32]:
        """What age, place and event type add to the attention logit; the last type is an unknown one."""
        return self.weights.age, self.weights.place, np.append(self.weights.event_type, np.float32(0.0))

    def calibrated(self, calibration: Calibration) -> RelevanceHead:
        """The same head with another map from logit to probability."""
        return RelevanceHead(self.config, self.weights, calibration)

    def to_files(self) -> dict[str, bytes]:
        """`head.safetensors` (weights and calibration) and `head.json` (config)."""
        arrays: dict[str, np.ndarray] = dict(self.weights.arrays())
        arrays |= {f"calibration.{name}": array for name, array in self.calibration.to_arrays().items()}
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        config = json.dumps(asdict(self.config), indent=2, sort_keys=True) + "\n"
        return {_WEIGHTS_FILE: save_safetensors(contiguous), _CONFIG_FILE: config.encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> RelevanceHead:
        """Read `to_files` back; raises RecsysError for a damaged, incomplete or non-finite head."""
        try:
            config = HeadConfig(**json.loads(files[_CONFIG_FILE]))
            arrays = load_safetensors(files[_WEIGHTS_FILE])
            weights = HeadWeights(**{field.name: arrays[field.name] for field in fields(HeadWeights)})
            prefix = "calibration."
            curve = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
            calibration = Calibration.from_arrays(curve)
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise RecsysError("head_invalid", f"the relevance head cannot be read: {error!r}") from error
        check_weights(weights, config)
        return cls(config, weights, calibration)


def _projected(vectors: Float32, weights: Float32) -> Float32:
    """(items + 1, d) the vectors times the weights (D, d), with a row of zeros behind them."""
    out = np.zeros((len(vectors) + 1, weights.shape[1]), np.float32)
    np.matmul(vectors, weights, out=out[:-1])
    return out


def _check_rows(requests: Requests, history: HistoryBatch, items: ProjectedItems) -> None:
    if len(history) != len(requests):
        raise ValueError(f"{len(history)} histories for {len(requests)} requests")
    for name, index in (("candidate", requests.item_index), ("history", history.item_index)):
        if not are_rows(index, len(items)):
            raise ValueError(f"{name} item_index outside -1..{len(items) - 1}")


def _parameters(weights: HeadWeights) -> KernelWeights:
    """The weights as the kernel wants them: constants folded in, contiguous."""
    scale = np.array([1 / SIMILARITY_UNIT, 1 / len(weights.null), 1.0], np.float32)
    units = np.array([1 / SIMILARITY_UNIT] * 4 + [1.0], np.float32)
    hidden = np.concatenate([weights.hidden_pooled, weights.hidden_product]).T  # (h, 2d)
    return KernelWeights(
        weights.attention * scale,
        np.ascontiguousarray(weights.null),
        weights.dense * units,
        np.ascontiguousarray(weights.bilinear),
        np.ascontiguousarray(np.pad(hidden, ((0, -len(hidden) % LANES), (0, 0)))),
        np.ascontiguousarray(weights.output),
    )
