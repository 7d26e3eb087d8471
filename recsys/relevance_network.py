"""The relevance head as a torch network, and examples as padded batches for it.

The forward pass is that of `relevance` plus what only training needs: dropout and the examination term.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from recsys.events import Bool, Float32, Int64
from recsys.relevance import SIMILARITY_UNIT, HistorySlots
from recsys.relevance_examples import Examples
from recsys.relevance_weights import HeadConfig, HeadWeights

POSITIONS = 64
"""Places with an examination term of their own; those further down share the last one."""

PACE = {"age": 5.0, "place": 5.0, "event_type": 5.0}
"""How many times as fast as the matrices these few numbers learn; they have a longer way to go."""

ITEM_EFFECT_PACE = 10.0
"""The same of the item effects: they explain an item before its text does."""

SHRINKAGE = 10.0
"""Rows of average click rate that an item starts with before its own are counted."""

SLATE_WIDTH = 64
"""Wider slates are cut into pieces of so many rows: the loss is a row's, and padding stays small."""


@dataclass(frozen=True)
class HeadBatch:
    """Padded requests for one step; indices are into `items`, the item rows that the batch needs.

    Shapes: `items` (U,) with -1 for an unknown item; `candidate`, `label`, `weight`, `position` (B, C),
    weight 0 where padded; `history`, `valid`, `age`, `place`, `event_type` (B, H).
    """

    items: Int64
    candidate: Tensor
    label: Tensor
    weight: Tensor
    position: Tensor
    history: Tensor
    valid: Tensor
    age: Tensor
    place: Tensor
    event_type: Tensor


class HeadNetwork(nn.Module):
    """The forward pass of `relevance` in torch, with dropout and two terms that only training has.

    Examination: a place's bias is added to the logit while training and left out afterwards (position
    as a shallow tower, Guo et al. 2019, "PAL"), so the head learns what is liked, not what is seen.

    Item effect: so is one intercept an item. It takes up how popular each training item is, which the
    text weights would otherwise learn by heart and carry over to other items (on the MIND sample's
    next day: AUC .634 with it, .599 without, .631 untrained). Popularity has features of its own.
    """

    def __init__(self, weights: HeadWeights, item_effect: Float32, dropout: float = 0.0) -> None:
        """Start from these weights and item effects, shape (items + 1,) with item -1 last."""
        super().__init__()
        self.learned = nn.ParameterDict(
            {name: nn.Parameter(torch.from_numpy(array.copy())) for name, array in weights.arrays().items()}
        )
        self.examination = nn.Parameter(torch.zeros(POSITIONS))
        self.item_effect = nn.Parameter(torch.from_numpy(item_effect.copy()))
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Tensor, batch: HeadBatch) -> Tensor:
        """Logits (B, C) without the examination term; `vectors` (U, D) are those of `batch.items`."""
        learned = self.learned
        text_c, text_h = (
            _rows(vectors, batch.candidate),
            _rows(vectors, batch.history),
        )  # (B, C, D), (B, H, D)
        u = _rows(vectors @ learned["candidate"], batch.candidate)  # (B, C, d)
        v = _rows(vectors @ learned["history"], batch.history)  # (B, H, d)
        similarity = text_c @ text_h.transpose(1, 2) / SIMILARITY_UNIT  # (B, C, H)
        share = self._attention(similarity, u @ v.transpose(1, 2), batch)  # (B, C, H + 1), null slot last
        pooled = share[..., :-1] @ v + share[..., -1:] * learned["null"]  # (B, C, d)
        dense = _dense_inputs(similarity, share[..., :-1], batch.valid)
        prior = u @ learned["prior"] + learned["bias"]
        return dense @ learned["dense"] + prior + self._interaction(u, self.dropout(pooled))

    def _attention(self, similarity: Tensor, interaction: Tensor, batch: HeadBatch) -> Tensor:
        learned = self.learned
        kinds = torch.cat([learned["event_type"], torch.zeros(1)])
        bias = _rows(learned["age"], batch.age) + _rows(learned["place"], batch.place)
        bias = bias + _rows(kinds, batch.event_type)
        bias = bias.masked_fill(~batch.valid, -torch.inf)  # (B, H)
        scale, cross, null = learned["attention"]
        logits = scale * similarity + cross * interaction / len(learned["null"]) + bias[:, None, :]
        return torch.softmax(torch.cat([logits, null.expand(*logits.shape[:2], 1)], dim=-1), dim=-1)

    def _interaction(self, u: Tensor, pooled: Tensor) -> Tensor:
        """(B, C) bilinear term and hidden layer."""
        learned = self.learned
        product = u * pooled
        hidden = u @ learned["hidden_candidate"] + learned["hidden_bias"]
        hidden = hidden + pooled @ learned["hidden_pooled"] + product @ learned["hidden_product"]
        return product @ learned["bilinear"] + self.dropout(torch.relu(hidden)) @ learned["output"]

    def loss(self, vectors: Tensor, batch: HeadBatch) -> Tensor:
        """Weighted binary cross-entropy a row with both terms; 0 for a batch without weight."""
        examined = (batch.position > 0) * _rows(self.examination, batch.position.clamp(0, POSITIONS - 1))
        item = torch.from_numpy(batch.items % len(self.item_effect))[batch.candidate]
        logits = self(vectors, batch) + examined + _rows(self.item_effect, item)
        rows = functional.binary_cross_entropy_with_logits(logits, batch.label, batch.weight, reduction="sum")
        return rows / batch.weight.sum().clamp(min=1.0)

    def weights(self) -> HeadWeights:
        """The learned arrays as they stand, copied."""
        return HeadWeights(
            **{field.name: self.learned[field.name].detach().numpy().copy() for field in fields(HeadWeights)}
        )


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """table[index] for a table of any row shape, with a gradient that is summed in a fixed order."""
    if table.ndim == 1:
        return functional.embedding(index, table[:, None])[..., 0]
    return functional.embedding(index, table)


def _dense_inputs(similarity: Tensor, share: Tensor, valid: Tensor) -> Tensor:
    """(B, C, 5) the inputs that `relevance.DENSE` names; zeros without history."""
    events = valid.sum(1)  # (B,)
    mask = valid[:, None, :]
    kept = similarity * mask
    best = similarity.masked_fill(~mask, -torch.inf).amax(-1)
    best = torch.where(events[:, None] > 0, best, 0.0)
    last = (events - 1).clamp(min=0)[:, None, None].expand(-1, similarity.shape[1], 1)
    newest = kept.gather(-1, last)[..., 0]
    mean = kept.sum(-1) / events.clamp(min=1)[:, None]
    length = torch.log1p(events.float())[:, None].expand_as(mean)
    return torch.stack([(share * kept).sum(-1), mean, best, newest, length], dim=-1)


def popularity_effects(examples: Examples, items: int) -> Float32:
    """(items + 1,) where item effects start: each item's log-odds of a click less those of all rows.

    Counts are shrunk towards the mean by `SHRINKAGE` rows. Item -1, the last one, has no effect.
    """
    requests = examples.requests
    known = ~np.isnan(requests.label) & (requests.item_index >= 0)
    index, label, weight = requests.item_index[known], requests.label[known], examples.weight[known]
    mean = ((label * weight).sum() + 1.0) / (weight.sum() + 2.0)
    clicks = np.bincount(index, label * weight, minlength=items) + SHRINKAGE * mean
    others = np.bincount(index, (1.0 - label) * weight, minlength=items) + SHRINKAGE * (1.0 - mean)
    return np.append(np.log(clicks / others) - np.log(mean / (1.0 - mean)), 0.0).astype(np.float32)


class BatchSource:
    """Cuts examples into padded batches; wide slates come in pieces."""

    def __init__(self, examples: Examples, slots: HistorySlots) -> None:
        self.examples = examples
        self.slots = slots
        offsets = examples.requests.offsets
        pieces = -(-np.diff(offsets) // SLATE_WIDTH)
        self.owner = np.repeat(np.arange(len(pieces)), pieces)
        nth = np.arange(len(self.owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        self.start = offsets[self.owner] + nth * SLATE_WIDTH
        self.stop = np.minimum(self.start + SLATE_WIDTH, offsets[self.owner + 1])

    def __len__(self) -> int:
        return len(self.owner)

    def epoch(self, batch_size: int, rng: np.random.Generator) -> Iterator[HeadBatch]:
        """All pieces once in random order."""
        order = rng.permutation(len(self))
        for first in range(0, len(order), batch_size):
            yield self.batch(order[first : first + batch_size])

    def batch(self, pieces: Int64) -> HeadBatch:
        """These pieces, padded to the widest of them."""
        requests, slots = self.examples.requests, self.slots
        rows, kept = _padded_rows(self.start[pieces], self.stop[pieces])
        owner = self.owner[pieces]
        events, valid = _padded_rows(slots.offsets[owner], slots.offsets[owner + 1])
        candidate = np.where(kept, _at(requests.item_index, rows), -1)
        history = np.where(valid, _at(slots.item_index, events), -1)
        both = np.concatenate([candidate.ravel(), history.ravel()])
        items, inverse = np.unique(both, return_inverse=True)
        label = _at(requests.label, rows)
        weight = np.where(kept & ~np.isnan(label), _at(self.examples.weight, rows), 0.0)
        return HeadBatch(
            items.astype(np.int64),
            _index(inverse[: candidate.size].reshape(candidate.shape)),
            torch.from_numpy(np.nan_to_num(label)),
            torch.from_numpy(weight.astype(np.float32)),
            _index(_at(requests.position, rows)),
            _index(inverse[candidate.size :].reshape(history.shape)),
            torch.from_numpy(valid),
            _index(_at(slots.age, events)),
            _index(_at(slots.place, events)),
            _index(_at(slots.event_type, events)),
        )


def _padded_rows(start: Int64, stop: Int64) -> tuple[Int64, Bool]:
    """Row numbers start..stop-1 of each range as (n, longest) with a mask; 0 where padded, width >= 1."""
    width = max(1, int((stop - start).max(initial=0)))
    rows = start[:, None] + np.arange(width)
    kept = rows < stop[:, None]
    return np.where(kept, rows, 0), kept


def _at(values: NDArray[Any], rows: Int64) -> NDArray[Any]:
    """values[rows], zeros where there are no values at all."""
    return values[rows] if len(values) else np.zeros(rows.shape, values.dtype)


def _index(values: NDArray[np.integer]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))


def parameter_groups(network: HeadNetwork, config: HeadConfig) -> list[dict[str, Any]]:
    """AdamW groups with their learning rates; only matrices decay."""
    rate = config.learning_rate
    groups = [
        {
            "params": [parameter],
            "lr": PACE.get(name, 1.0) * rate,
            "weight_decay": config.regularization if parameter.ndim > 1 else 0.0,
        }
        for name, parameter in network.learned.items()
    ]
    return [
        *groups,
        {"params": [network.examination], "lr": PACE["place"] * rate, "weight_decay": 0.0},
        {"params": [network.item_effect], "lr": ITEM_EFFECT_PACE * rate, "weight_decay": 0.0},
    ]
