"""What comes next: a recurrent network reads a user's history in order and scores every item.

This module holds the learned arrays and scores with them; it never sees torch. `sequence_training` fits
them, and a test holds the two forward passes equal.

A gated recurrent unit (Cho et al. 2014; for recommendation Hidasi et al. 2016, "GRU4Rec") reads the item
vectors of the newest events, oldest first, from a state of zeros:

    r, z = sigmoid(x W_r + h U_r + b_r), sigmoid(x W_z + h U_z + b_z)
    n    = tanh(x W_n + b_n + r * (h U_n + c_n))
    h    = (1 - z) * n + z * h

The user's vector is the last state times `output`; an item's score is its dot product with the item's
vector, plus the item's bias. An item vector is a learned row plus a projection of the item's text, so an
item that nobody has touched yet is read and scored by its text alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property

import numpy as np
from numba import njit
from safetensors.numpy import save

from recsys import numeric_storage
from recsys.errors import RecsysError
from recsys.events import Bool, Float32, Int32, Int64
from recsys.numeric_storage import Storage, load_arrays
from recsys.pairs import known_rows
from recsys.requests import HistoryBatch, Requests
from recsys.row_scores import row_scores
from recsys.transcendental import exp32
from recsys.user_memo import UserMemo

_ARRAYS_FILE, _CONFIG_FILE = "sequence.safetensors", "sequence.json"


@dataclass(frozen=True)
class SequenceConfig:
    """Shape and training of the sequence model.

    Attributes:
        embedding_dim: length of item vectors and of the recurrent state.
        history_limit: how many of the newest events are read; longer histories are cut into windows of
            so many for training.
        epochs: passes over the training windows; 0 leaves the model out.
        warm_epochs: passes when a fit goes on from a model of an earlier log.
        events_max: events seen in training at most; passes are cut down to it, then the oldest windows.
        batch_size: windows in a step at most. `batch_events`: events in a step at most, but one window.
        learning_rate: highest of the cosine schedule.
        dropout: of item vectors on the way in and of states on the way out.
        text_only: share of items in a step whose learned row is dropped, so that text learns to stand in.
        negatives: items drawn a step, with probability proportional to count ** `negatives_power`.
        threads: torch threads.
    """

    embedding_dim: int = 128
    history_limit: int = 150
    epochs: int = 14
    warm_epochs: int = 4
    events_max: int = 14_000_000
    batch_size: int = 64
    batch_events: int = 3_200
    learning_rate: float = 2e-3
    dropout: float = 0.2
    text_only: float = 0.1
    negatives: int = 512
    negatives_power: float = 0.5
    threads: int = 2


@dataclass(frozen=True)
class SequenceWeights:
    """Learned arrays; d is the width of item vectors and of the state, D that of text embeddings.

    Shapes: `input` and `state` (d, 3d) with the gates r, z, n side by side, `input_bias` and
    `state_bias` (3d,), `output` (d, d), `output_bias` (d,), `text` (D, d).
    """

    input: Float32
    state: Float32
    input_bias: Float32
    state_bias: Float32
    output: Float32
    output_bias: Float32
    text: Float32


@dataclass(frozen=True)
class SequenceModel:
    """Item vectors and the network that reads them.

    Attributes:
        learned: (items, d) learned rows; zeros for an item without training events.
        bias: (items,) score of each item whoever asks.
        weights: the network.
        embeddings: (items, D) text embeddings.
        config: how it was fitted and how much it reads.
    """

    learned: Float32
    bias: Float32
    weights: SequenceWeights
    embeddings: Float32
    config: SequenceConfig

    def __len__(self) -> int:
        return len(self.learned)

    @classmethod
    def empty(cls, embeddings: Float32, config: SequenceConfig) -> SequenceModel:
        """The model that knows nothing: every score is unknown."""
        d, items = config.embedding_dim, len(embeddings)
        zeros = {
            "input": (d, 3 * d),
            "state": (d, 3 * d),
            "input_bias": (3 * d,),
            "state_bias": (3 * d,),
            "output": (d, d),
            "output_bias": (d,),
            "text": (embeddings.shape[1], d),
        }
        weights = SequenceWeights(**{name: np.zeros(shape, np.float32) for name, shape in zeros.items()})
        nothing = np.zeros((items, d), np.float32)
        return cls(nothing, np.zeros(items, np.float32), weights, embeddings, config)

    @cached_property
    def items(self) -> Float32:
        """(items, d) item vectors; zeros where nothing is known of an item."""
        items = self.embeddings @ self.weights.text
        items += self.learned  # in place: the table is large
        return items

    @cached_property
    def known(self) -> Bool:
        """(items,) whether the item has a vector."""
        return known_rows(self.items)

    @cached_property
    def _inputs(self) -> Float32:
        """(items, 3d) what reading an item adds to the gates."""
        inputs = self.items @ self.weights.input
        inputs += self.weights.input_bias
        return inputs

    def settle(self, row: int) -> None:
        """Read the text of an item anew, whose row of `embeddings` was written in place."""
        self.items[row] = self.learned[row] + self.embeddings[row] @ self.weights.text
        self.known[row] = self.items[row].any()
        self._inputs[row] = self.items[row] @ self.weights.input + self.weights.input_bias
        self._memo.clear()
        self._states.clear()

    def user_vectors(self, history: HistoryBatch) -> Float32:
        """(requests, d) what each history leads to; zeros where it holds no known item.

        A request's vector does not depend on the requests beside it, to the bit.
        """
        return self._memo.get(history, lambda: self._vectors(history))

    def _vectors(self, history: HistoryBatch) -> Float32:
        states = self._states.get(history, lambda: self._read_all(history))
        return _to_vectors(states, self.weights.output, self.weights.output_bias)

    def _read_all(self, history: HistoryBatch) -> Float32:
        """(requests, d) last states, read on from the one that is remembered of all but the newest events."""
        starts, states = history.offsets[:-1], np.zeros((len(history), self.config.embedding_dim), np.float32)
        before = self._states.before(history)
        if before is not None and len(history.item_index) <= self.config.history_limit:
            starts, states = starts + before[0], before[1].copy()
        _read(
            (self._inputs, self.known),
            (self.weights.state, self.weights.state_bias),
            (starts, history.offsets[1:], np.ascontiguousarray(history.item_index, np.int32)),
            self.config.history_limit,
            states,
        )
        return states

    @cached_property
    def _memo(self) -> UserMemo:
        return UserMemo()

    @cached_property
    def _states(self) -> UserMemo:
        return UserMemo()

    def block_scores(self, history: HistoryBatch) -> Float32:
        """(requests, items) score of every item, -inf where the item or the user is unknown."""
        users = self.user_vectors(history)
        scores: Float32 = users @ self.items.T + self.bias
        scores[:, ~self.known] = -np.inf
        scores[~known_rows(users)] = -np.inf
        return scores

    def scores(self, requests: Requests, history: HistoryBatch) -> Float32:
        """(rows,) score of every candidate, NaN where the item or the user is unknown."""
        return row_scores(requests, self.user_vectors(history), self.items, self.known, self.bias)

    def over(self, rows: Int32, embeddings: Float32) -> SequenceModel:
        """The model over another catalogue: new item i is old item rows[i], -1 for one it has not seen.

        `embeddings` are those of the new catalogue. An unseen item has the bias of an average one.
        """
        seen = rows >= 0
        learned = np.zeros((len(rows), self.learned.shape[1]), np.float32)
        learned[seen] = self.learned[rows[seen]]
        bias = np.full(len(rows), self.bias.mean() if len(self) else 0.0, np.float32)
        bias[seen] = self.bias[rows[seen]]
        return replace(self, learned=learned, bias=bias, embeddings=embeddings)

    def rounded(self, storage: Storage) -> SequenceModel:
        """The model with learned rows that `storage` can hold; `to_files` then writes so few bytes.

        Raises:
            ValueError: what `numeric_storage.rounded` refuses.
        """
        return replace(self, learned=numeric_storage.rounded(self.learned, storage))

    def to_files(self) -> dict[str, bytes]:
        """Arrays and settings for the bundle; the text embeddings have a file of their own."""
        rest = {"bias": self.bias, **vars(self.weights)}
        arrays = {name: np.ascontiguousarray(array) for name, array in rest.items()}
        return {
            _ARRAYS_FILE: save(numeric_storage.to_arrays(self.learned, "learned") | arrays),
            _CONFIG_FILE: json.dumps(asdict(self.config), indent=1).encode(),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], embeddings: Float32) -> SequenceModel:
        """Read what `to_files` wrote, its rows of any kind; `embeddings` are those of the same items.

        Raises:
            RecsysError: a file is missing or damaged, or the arrays contradict each other.
        """
        arrays = load_arrays(files, _ARRAYS_FILE, "sequence_invalid")
        learned = numeric_storage.from_arrays(arrays, "learned")
        try:
            weights = SequenceWeights(**{part.name: arrays[part.name] for part in fields(SequenceWeights)})
            config = SequenceConfig(**json.loads(files[_CONFIG_FILE]))
            bias = arrays["bias"]
        except (KeyError, TypeError, ValueError) as error:
            raise RecsysError("sequence_invalid", f"the model cannot be read: {error!r}") from error
        if learned.ndim != 2 or not bias.shape == learned.shape[:1] == embeddings.shape[:1]:
            raise RecsysError("sequence_invalid", "its arrays contradict each other", _ARRAYS_FILE)
        return cls(learned, bias, weights, embeddings, config)


@njit(cache=True, nogil=True)
def _read(
    items: tuple[Float32, Bool],
    weights: tuple[Float32, Float32],
    events: tuple[Int64, Int64, Int32],
    limit: int,
    states: Float32,
) -> None:
    """One recurrence a request from its state on, in an order of additions that no other request changes.

    `events` are the first and the end of each request, and items. On one thread: of numba's threading layers
    the one that is always there must not be entered twice.
    """
    inputs, known = items
    state_weights, state_bias = weights
    starts, ends, item_index = events
    gates = np.empty(len(state_bias), np.float32)
    for q in range(len(starts)):
        for row in range(max(starts[q], ends[q] - limit), ends[q]):
            item = item_index[row]
            if item < 0 or not known[item]:
                continue
            gates[:] = state_bias
            _add_product(states[q], state_weights, gates)
            _step(inputs[item], gates, states[q])


@njit(cache=True, nogil=True)
def _to_vectors(states: Float32, output: Float32, output_bias: Float32) -> Float32:
    """(requests, d) what the states mean; zeros for one of zeros, to which no event leads."""
    out = np.zeros_like(states)
    for q in range(len(states)):
        if states[q].any():
            out[q] = output_bias
            _add_product(states[q], output, out[q])
    return out


@njit(cache=True, nogil=True)
def _add_product(h: Float32, weights: Float32, out: Float32) -> None:
    """Out += h @ weights, one element of h after another, eight on each way through `out`."""
    eights = len(h) // 8 * 8
    for i in range(0, eights, 8):
        a, b, c, d = h[i], h[i + 1], h[i + 2], h[i + 3]
        e, f, g, k = h[i + 4], h[i + 5], h[i + 6], h[i + 7]
        for j in range(len(out)):
            total = out[j] + a * weights[i, j]
            total += b * weights[i + 1, j]
            total += c * weights[i + 2, j]
            total += d * weights[i + 3, j]
            total += e * weights[i + 4, j]
            total += f * weights[i + 5, j]
            total += g * weights[i + 6, j]
            out[j] = total + k * weights[i + 7, j]
    for i in range(eights, len(h)):
        for j in range(len(out)):
            out[j] += h[i] * weights[i, j]


@njit(cache=True, nogil=True, error_model="numpy")
def _step(x: Float32, gates: Float32, h: Float32) -> None:
    """H becomes the next state; `x` is what the input adds to the gates, `gates` what the state does."""
    dim = len(h)
    one, two = np.float32(1.0), np.float32(2.0)
    for i in range(dim):
        reset = one / (one + exp32(-(x[i] + gates[i])))
        update = one / (one + exp32(-(x[dim + i] + gates[dim + i])))
        new = one - two / (one + exp32(two * (x[2 * dim + i] + reset * gates[2 * dim + i])))
        h[i] = (one - update) * new + update * h[i]
