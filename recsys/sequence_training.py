"""Fits the sequence model in torch: the next item of every history, by a sampled softmax.

The loss of an event is the cross-entropy of its item among negatives that the whole step shares, each
logit lowered by the logarithm of how often its item is drawn (Bengio & Senécal 2008; Yi et al. 2019).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from recsys.dataset import Dataset
from recsys.events import Float32, Float64, Int64, concatenated_ranges
from recsys.sequence import SequenceConfig, SequenceModel, SequenceWeights
from recsys.sequence_windows import NO_ITEM, Windows, steps_of, training_windows

WARM_UP_STEPS = 100
GRADIENT_NORM = 5.0

_FIELDS = {
    "recurrence.weight_ih_l0": "input",
    "recurrence.weight_hh_l0": "state",
    "recurrence.bias_ih_l0": "input_bias",
    "recurrence.bias_hh_l0": "state_bias",
    "output.weight": "output",
    "output.bias": "output_bias",
}
"""Torch's names of the arrays of `SequenceWeights`, whose matrices lie the other way round."""


@dataclass(frozen=True)
class SequenceReport:
    """How a fit went: windows and events seen in a pass, mean loss of each pass (nats), wall seconds."""

    windows: int
    events: int
    loss: tuple[float, ...]
    seconds: float


def fit_sequence(
    data: Dataset,
    embeddings: Float32,
    config: SequenceConfig,
    *,
    start: SequenceModel | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[SequenceModel, SequenceReport]:
    """Fit on the histories of `data`; a log without two events of one user gives the empty model.

    Args:
        data: what may be learned from.
        embeddings: (items, D) text embeddings, rows unit or zero.
        config: shape and training.
        start: a model of the same items, fitted on an earlier log, to go on from.
        seed: of initial weights, order, dropout and negatives.
        progress: called with (passes done, passes in all).
    """
    began = time.perf_counter()
    windows = training_windows(data.histories, config)
    epochs = _epochs(windows, config, warm=start is not None)
    if not epochs:
        return SequenceModel.empty(embeddings, config), SequenceReport(0, 0, (), 0.0)
    with _threads(config.threads):
        counts = np.bincount(data.histories.item_index, minlength=len(embeddings)).astype(np.float64)
        network = SequenceNetwork(start or _initial(counts, embeddings, config, seed), seed=seed)
        training = _Training(network, windows, counts, config, epochs, seed)
        losses = []
        for epoch in range(epochs):
            losses.append(training.epoch())
            if progress:
                progress(epoch + 1, epochs)
        model = network.to_model(counts > 0, config)
    report = SequenceReport(
        len(windows.start),
        int((windows.stop - windows.start).sum()),
        tuple(losses),
        time.perf_counter() - began,
    )
    return model, report


def _epochs(windows: Windows, config: SequenceConfig, *, warm: bool) -> int:
    """Passes that the settings and `events_max` allow; one at least where there is anything to learn."""
    events = int((windows.stop - windows.start).sum())
    if not events or not config.epochs:
        return 0
    wanted = min(config.warm_epochs, config.epochs) if warm else config.epochs
    return max(1, min(wanted, config.events_max // events))


class SequenceNetwork(nn.Module):
    """The forward pass of `sequence` in torch, with dropout."""

    def __init__(self, model: SequenceModel, *, seed: int = 0) -> None:
        """Start from the arrays of `model`; `seed` is that of what training drops."""
        super().__init__()
        dim, weights = model.config.embedding_dim, model.weights
        self.learned = nn.Parameter(torch.from_numpy(model.learned.copy()))
        self.bias = nn.Parameter(torch.from_numpy(model.bias.copy()))
        self.text = nn.Parameter(torch.from_numpy(weights.text.copy()))
        self.embeddings = torch.from_numpy(np.ascontiguousarray(model.embeddings))
        self.recurrence = nn.GRU(dim, dim, batch_first=True)
        self.output = nn.Linear(dim, dim)
        self.dropout, self.text_only = model.config.dropout, model.config.text_only
        self.rng = np.random.default_rng(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name in _FIELDS:
                    array = getattr(weights, _FIELDS[name])
                    parameter.copy_(torch.from_numpy(np.ascontiguousarray(array.T)))

    def items(self, rows: Tensor) -> Tensor:
        """(n, d) vectors of these items; in training some stand on their text alone."""
        learned = self.learned[rows]
        if self.training and self.text_only:
            learned = learned * self._kept((len(rows), 1), self.text_only)
        return learned + self.embeddings[rows] @ self.text

    def forward(self, vectors: Tensor) -> Tensor:
        """(windows, width, d) predicted item vector after each event; `vectors` are those read."""
        states, _ = self.recurrence(self._thinned(vectors))
        predicted: Tensor = self.output(self._thinned(states))
        return predicted

    def _thinned(self, values: Tensor) -> Tensor:
        """Dropout, with draws by numpy: torch's take seven times as long on a CPU."""
        if not self.training or not self.dropout:
            return values
        return values * (self._kept(tuple(values.shape), self.dropout) / (1.0 - self.dropout))

    def _kept(self, shape: tuple[int, ...], dropped: float) -> Tensor:
        return torch.from_numpy((self.rng.random(shape, np.float32) >= dropped).astype(np.float32))

    def to_model(self, seen: np.ndarray, config: SequenceConfig) -> SequenceModel:
        """The arrays for scoring; items not `seen` keep no row of their own, and an average bias."""
        arrays = {name: parameter.detach().numpy().copy() for name, parameter in self.named_parameters()}
        fields = {field: np.ascontiguousarray(arrays[name].T) for name, field in _FIELDS.items()}
        weights = SequenceWeights(text=arrays["text"], **fields)
        learned = np.where(seen[:, None], arrays["learned"], np.float32(0.0))
        bias = np.where(seen, arrays["bias"], arrays["bias"][seen].mean()).astype(np.float32)
        return SequenceModel(learned, bias, weights, self.embeddings.numpy(), config)


class _Training:
    """One fit: the order of windows, the negatives, the optimizer and its schedule."""

    def __init__(
        self,
        network: SequenceNetwork,
        windows: Windows,
        counts: Float64,
        config: SequenceConfig,
        epochs: int,
        seed: int,
    ) -> None:
        self.network, self.windows, self.config = network, windows, config
        self.rng = np.random.default_rng(seed)
        drawn = np.where(counts > 0, counts, 0.0) ** config.negatives_power * (counts > 0)
        self.cumulative = np.cumsum(drawn / drawn.sum())
        expected = np.maximum(drawn / drawn.sum() * config.negatives, 1e-12)
        self.log_expected = torch.from_numpy(np.log(expected).astype(np.float32))
        self.optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, betas=(0.9, 0.98))
        steps = epochs * len(steps_of(np.sort(windows.stop - windows.start), config))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: _rate(step, steps))

    def epoch(self) -> float:
        """One pass over all windows; the mean loss of an event."""
        self.network.train()
        total, events = 0.0, 0
        for rows in self._batches():
            loss, count = self._step(rows)
            total += loss * count
            events += count
        return total / max(events, 1)

    def _batches(self) -> Iterator[Int64]:
        """Windows of like length together, so that little is padded; batches in random order."""
        lengths = self.windows.stop - self.windows.start
        order = np.argsort(lengths + 2.0 * self.rng.random(len(lengths)), kind="stable")
        batches = np.split(order, steps_of(lengths[order], self.config)[1:])
        for place in self.rng.permutation(len(batches)):
            yield batches[place]

    def _step(self, rows: Int64) -> tuple[float, int]:
        read, following = self.windows.batch(rows)
        inside = following != NO_ITEM
        negatives = np.searchsorted(self.cumulative, self.rng.random(self.config.negatives))
        negatives = np.minimum(negatives, len(self.cumulative) - 1)
        needed, place = np.unique(
            np.concatenate([read[inside], following[inside], negatives]), return_inverse=True
        )
        count = int(inside.sum())
        at_read, at_next, at_negative = (torch.from_numpy(p) for p in np.split(place, [count, 2 * count]))
        items = torch.from_numpy(needed)
        vectors = self.network.items(items)
        padded = torch.zeros(*inside.shape, vectors.shape[1])
        mask = torch.from_numpy(inside)
        padded = padded.masked_scatter(mask[..., None], vectors[at_read])
        predicted = self.network(padded)[mask]
        offset = self.network.bias[items] - self.log_expected[items]
        leaves = [predicted, vectors[at_next], offset[at_next], vectors[at_negative], offset[at_negative]]
        hits = same_items(following[inside], negatives)
        loss, gradients = sampled_softmax(leaves, hits)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(leaves, gradients)
        nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        self.schedule.step()
        return loss, count


def same_items(following: Int64, negatives: Int64) -> tuple[Tensor, Tensor]:
    """(event, negative) places where the item drawn is the event's own, which is no negative for it."""
    order = np.argsort(following, kind="stable")
    first = np.searchsorted(following[order], negatives, side="left")
    last = np.searchsorted(following[order], negatives, side="right")
    event = order[concatenated_ranges(first, last)]
    negative = np.repeat(np.arange(len(negatives)), last - first)
    return torch.from_numpy(event), torch.from_numpy(negative)


@torch.no_grad()
def sampled_softmax(inputs: Sequence[Tensor], hits: tuple[Tensor, Tensor]) -> tuple[float, list[Tensor]]:
    """Mean cross-entropy of each event's own item among the negatives, and its gradients.

    By hand, in place: the block of (events, negatives) logits is what a step costs most, and autograd
    keeps and passes over it several times more.

    Args:
        inputs: predicted vectors (events, d), vectors of the events' own items (events, d) and what is
            added to their logits (events,), vectors of the negatives (n, d) and what is added to theirs (n,).
        hits: (event, negative) places to leave out.

    Returns:
        The loss, and its gradients by the five inputs in their order.
    """
    predicted, following, following_offset, negatives, negatives_offset = inputs
    own = (predicted * following).sum(1) + following_offset
    block = torch.addmm(negatives_offset, predicted, negatives.T)
    block[hits] = -torch.inf
    highest = torch.maximum(block.amax(1), own)
    block.sub_(highest[:, None]).exp_()
    share = (own - highest).exp()
    total = block.sum(1) + share
    loss = float((total.log() + highest - own).mean())
    block.div_(total[:, None] * len(own))
    pull = (share / total - 1.0) / len(own)
    return loss, [
        torch.addmm(pull[:, None] * following, block, negatives),
        pull[:, None] * predicted,
        pull,
        block.T @ predicted,
        block.sum(0),
    ]


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a fiftieth."""
    warm_up = min(1.0, (step + 1) / min(WARM_UP_STEPS, steps))
    return warm_up * max(0.02, 0.5 * (1.0 + math.cos(math.pi * min(step / steps, 1.0))))


def _initial(counts: Float64, embeddings: Float32, config: SequenceConfig, seed: int) -> SequenceModel:
    """Random weights; learned rows small, so that at first an item is its text."""
    dim = config.embedding_dim
    rng = np.random.default_rng(seed)
    empty = SequenceModel.empty(embeddings, config)
    weights = {
        name: rng.uniform(-(dim**-0.5), dim**-0.5, array.shape).astype(np.float32)
        for name, array in vars(empty.weights).items()
    }
    weights["text"] *= math.sqrt(3.0 * dim / max(embeddings.shape[1], 1))  # variance 1 / D
    learned = rng.normal(0.0, 0.02 * math.sqrt(dim), (len(counts), dim)).astype(np.float32)
    return replace(empty, learned=learned, weights=SequenceWeights(**weights))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch with so many threads, as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
