"""Fine-tunes the encoder on what came next: a history's profile is to be nearest to the next item.

A step estimates the softmax over the whole catalogue from two strata of it: hard negatives drawn from
those mined for the pair, and the batch's other positives for all the rest, each divided by how often
the draw is expected to bring it (log-Q correction; Yi et al. 2019, "Sampling-bias-corrected neural
modeling"). The positive itself is certain to be there, so it is not corrected. How the encoder is
trained and judged stands in `adaptation`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from recsys.events import Bool, Float32, Float64, Int32, Int64
from recsys.next_items import NextItems
from recsys.pairs import known_rows
from recsys.relevance_examples import requests_within
from recsys.relevance_training import MIN_JUDGED
from recsys.text.adaptation import (
    FinetuneReport,
    Progress,
    descend,
    unchanged,
)
from recsys.text.settings import FinetuneConfig
from recsys.text.text_in_training import EncodedTexts, TextInTraining
from recsys.text.tokenization import Tokenizer
from recsys.text.transformer import TextTransformer

JUDGED_TEMPERATURES = np.geomspace(0.01, 1.0, 21)


def contrast(
    student: TextTransformer,
    tokenizer: Tokenizer,
    catalogue: EncodedTexts,
    pairs: NextItems,
    config: FinetuneConfig | None = None,
    *,
    progress: Progress | None = None,
) -> tuple[TextTransformer, FinetuneReport]:
    """Fine-tune a copy of the student; the student itself is never changed.

    Args:
        student: the encoder to start from.
        tokenizer: its tokenizer.
        catalogue: texts and embeddings of all items.
        pairs: what to learn from; those without a word on either side do not count.
        config: what is trained, how long, on how much.
        progress: called with (step, max_steps) after every step.

    Returns:
        The tuned encoder in evaluation mode, LoRA or IA3 merged into its weights; or `student` itself
        where the mode is `frozen`, there is too little to judge by, or nothing got better. The report's
        losses are per pair, of the softmax over all judged items at the temperature that suits it best;
        its AUC is the mean share of them that score below the positive.

    Raises:
        RecsysError: `config_invalid` for the modes `prompt` and `prefix`, which are only compared.
    """
    config = config or FinetuneConfig(objective="contrastive")
    config.check_mergeable()
    if config.mode == "frozen":
        return student, unchanged(config, "the encoder is frozen")
    rng = np.random.default_rng(config.seed)
    pairs = pairs.take(_worded(pairs, known_rows(catalogue.embeddings)))
    first = len(pairs) - round(len(pairs) * config.holdout)
    lesson, later = pairs.take(np.arange(first)), pairs.take(np.arange(first, len(pairs)))
    texts = config.contrast.holdout_texts
    holdout = later.take(requests_within(later.requests, later.history, items=texts, rng=rng))
    if min(len(lesson), len(holdout)) < MIN_JUDGED:
        return student, unchanged(config, "too few histories with a next item")
    text = TextInTraining(student, tokenizer, catalogue, config)
    return descend(student, text, lambda: _NextItem(text, lesson, holdout), rng, progress)


def sampled_softmax_loss(scores: Tensor, expected: Tensor, usable: Tensor) -> Tensor:
    """Mean of -log(share of column 0) in the softmax of scores - log(expected), over the usable columns.

    Args:
        scores: (B, C) similarities over temperature, the positive in column 0.
        expected: (B, C) how often the draw brings this candidate on average, 1 where it is certain to.
        usable: (B, C) what counts; column 0 must.
    """
    logits = (scores - expected.log()).masked_fill(~usable, -torch.inf)
    return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))


def _worded(pairs: NextItems, known: Bool) -> Int64:
    """Numbers of the pairs with a word in the positive and in the history."""
    item = pairs.history.item_index
    owner = np.repeat(np.arange(len(pairs)), pairs.history.lengths)
    told = np.bincount(owner[(item >= 0) & known[item]], minlength=len(pairs)) > 0
    return np.flatnonzero(told & known[pairs.item_index])


class _Profiles:
    """The profiles of some pairs as the text retriever has them, given vectors of `items`."""

    def __init__(self, pairs: NextItems, others: Int32) -> None:
        history = pairs.history
        both = np.concatenate([pairs.item_index, others, history.item_index])
        self.items, place = np.unique(both, return_inverse=True)
        self.items = self.items.astype(np.int64)
        n, events = len(pairs), len(history.item_index)
        self.positive, self.others = place[:n], place[n : n + len(others)]
        owner = np.repeat(np.arange(n), history.lengths)
        weight = np.zeros((n, len(self.items)), np.float32)
        np.add.at(weight, (owner, place[len(both) - events :]), pairs.recency.astype(np.float32))
        self.weight = torch.from_numpy(weight)
        self.seen = weight > 0.0  # (n, items)
        self.newest = torch.from_numpy(place[len(both) - events + history.offsets[1:] - 1])

    def of(self, vectors: Tensor) -> Tensor:
        """(n, D): half the direction of the weighted mean, half the newest item."""
        mean = functional.normalize(self.weight @ vectors, dim=1)
        return (mean + vectors[self.newest]) / 2.0


class _NextItem:
    """The next item among sampled ones; judged among all items that the held-out pairs need."""

    def __init__(self, text: TextInTraining, lesson: NextItems, holdout: NextItems) -> None:
        self.text, self.lesson = text, lesson
        self.config = text.config.contrast
        self.batch_size = self.config.batch_size
        counts = np.bincount(lesson.item_index, minlength=len(text.catalogue.embeddings))
        self.share = (counts / len(lesson)).astype(np.float32)  # chance of each item to be a positive
        self.judged = _Profiles(holdout, np.zeros(0, np.int32))
        self.items = self.judged.items
        self.rows = len(holdout)

    def __len__(self) -> int:
        return len(self.lesson)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Nothing but the encoder is trained."""
        return []

    def loss(self, examples: Int64, rng: np.random.Generator) -> Tensor:
        """Sampled softmax; positives are encoded before hard negatives and histories."""
        pairs = self.lesson.take(examples)
        hard, chance = _drawn(pairs.negatives, self.config.hard_negatives, rng)
        view = _Profiles(pairs, hard.ravel())
        urgency = np.zeros(len(view.items), np.int64)
        urgency[view.positive] = 1
        vectors, anchor = self.text.refreshed(view.items, urgency, rng)
        profiles = view.of(vectors)  # (B, D)
        batch = profiles @ vectors[torch.from_numpy(view.positive)].T  # (B, B)
        others = vectors[torch.from_numpy(view.others)].view(*hard.shape, vectors.shape[1])  # (B, H, D)
        mined = (others @ profiles[:, :, None]).squeeze(2)  # (B, H)
        scores = torch.cat([batch.diagonal()[:, None], batch, mined], dim=1) / self.config.temperature
        expected, usable = self._draw(pairs, view, hard >= 0, chance)
        return sampled_softmax_loss(scores, torch.from_numpy(expected), torch.from_numpy(usable)) + anchor

    def _draw(self, pairs: NextItems, view: _Profiles, drawn: Bool, chance: Float32) -> tuple[Float32, Bool]:
        """Expected count and use of every candidate (B, 1 + B + H).

        A pair's own item, what its history holds and what was mined for it (a stratum of its own) are no
        in-batch negatives.
        """
        item, size = pairs.item_index, len(pairs)
        others = np.broadcast_to((size - 1) * self.share[item], (size, size))
        own = item[:, None] == item[None, :]
        mined = (pairs.negatives[:, :, None] == item[None, None, :]).any(1)
        if not self.config.hard_negatives:
            mined = np.zeros_like(own)
        certain = np.ones((size, 1), np.float32)
        usable = np.concatenate([certain > 0.0, ~(own | mined | view.seen[:, view.positive]), drawn], axis=1)
        if not self.config.log_q:
            return np.ones(usable.shape, np.float32), usable
        chances = np.broadcast_to(chance[:, None], drawn.shape)
        expected = np.concatenate([certain, others, chances], axis=1).astype(np.float32)
        return np.where(usable, expected, np.float32(1.0)), usable

    def judge(self, embeddings: Float32, step: int) -> tuple[Float64, float]:
        """Losses by pair and AUC, what the history holds left out; `step` does not matter."""
        vectors = torch.from_numpy(embeddings)
        scores = (self.judged.of(vectors) @ vectors.T).numpy().astype(np.float64)
        pairs = np.arange(self.rows)
        positive = scores[pairs, self.judged.positive]
        scores[self.judged.seen] = -np.inf
        below = (scores < positive[:, None]) & np.isfinite(scores)
        ties = (scores == positive[:, None]).sum(1) - 1
        rivals = np.maximum(np.isfinite(scores).sum(1) - 1, 1)
        losses = [_softmax_losses(scores, positive, value) for value in JUDGED_TEMPERATURES]
        best = min(losses, key=lambda loss: float(loss.sum()))
        return best, float(np.mean((below.sum(1) + ties / 2.0) / rivals))


def _softmax_losses(scores: Float64, positive: Float64, temperature: float) -> Float64:
    """(n,) -log of the positive's share at this temperature."""
    top = scores.max(axis=1, keepdims=True)
    total = np.exp((scores - top) / temperature).sum(axis=1)
    losses: Float64 = np.log(total) - (positive - top[:, 0]) / temperature
    return losses


def _drawn(negatives: Int32, most: int, rng: np.random.Generator) -> tuple[Int32, Float32]:
    """(n, k) of each row's negatives at random, -1 where too few, and the (n,) chance of each to be drawn."""
    most = min(most, negatives.shape[1])
    keys = np.where(negatives >= 0, rng.random(negatives.shape), 2.0)
    order = np.argsort(keys, axis=1, kind="stable")[:, :most]
    mined = (negatives >= 0).sum(axis=1)
    chance = np.minimum(most / np.maximum(mined, 1), 1.0)
    return np.take_along_axis(negatives, order, axis=1), chance.astype(np.float32)
