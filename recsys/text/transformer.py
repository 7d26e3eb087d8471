"""The encoder's architecture in torch: BERT layers, mean pooling, unit length; from and to safetensors.

Layer names are our own. It does not know where weights come from (`teacher`) or how they are trained
(`student`).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.errors import RecsysError

WEIGHTS_FILE = "transformer.safetensors"
ARCHITECTURE_FILE = "transformer.json"
SMALLEST_PREFIX = 16


@dataclass(frozen=True)
class LayerShape:
    """The shape of one layer: attention heads, and width of the feed-forward part; 0 leaves that part out."""

    heads: int
    feed_forward: int


@dataclass(frozen=True)
class Architecture:
    """The shape of a BERT encoder, whole or compressed.

    Attributes:
        vocabulary: rows of the word table.
        dim: width of a token, and of the embedding.
        head_dim: width of an attention head.
        positions: longest input in tokens.
        layers: the shape of each layer that has weights of its own.
        order: numbers of the layers in the order in which they run, a shared one several times; () runs
            each once.
        word_rank: width of the word table where it is factorised (its rows then pass a (rank, dim) map), 0
            where it is not.
        projected: numbers that the embedding passes through on its way (by a (projected, dim) map and back),
            0 where it does not.
        epsilon: of the layer norms.
    """

    vocabulary: int
    dim: int
    head_dim: int
    positions: int
    layers: tuple[LayerShape, ...]
    order: tuple[int, ...] = ()
    word_rank: int = 0
    projected: int = 0
    epsilon: float = 1e-12

    @property
    def depth(self) -> int:
        """Layers that a text passes."""
        return len(self.running)

    @property
    def running(self) -> tuple[int, ...]:
        """Numbers of the layers in the order in which they run."""
        return self.order or tuple(range(len(self.layers)))

    @classmethod
    def uniform(
        cls, vocabulary: int, *, dim: int, heads: int, feed_forward: int, layers: int, positions: int
    ) -> Architecture:
        """BERT as it is trained: all layers alike, `dim` shared out among the heads."""
        shape = LayerShape(heads, feed_forward)
        return cls(vocabulary, dim, dim // heads, positions, (shape,) * layers)

    @classmethod
    def from_json(cls, text: bytes) -> Architecture:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        record = json.loads(text)
        record["layers"] = tuple(LayerShape(**layer) for layer in record["layers"])
        return cls(**record | {"order": tuple(record["order"])})

    def to_json(self) -> bytes:
        """All of it."""
        return json.dumps(asdict(self), indent=1).encode()


class TransformerLayer(nn.Module):
    """Self-attention, then two dense layers, each added to its input and normalised (post-norm)."""

    def __init__(self, shape: LayerShape, architecture: Architecture) -> None:
        super().__init__()
        dim, attended, epsilon = architecture.dim, shape.heads * architecture.head_dim, architecture.epsilon
        self.shape = shape
        if shape.heads:
            self.query = nn.Linear(dim, attended)
            self.key = nn.Linear(dim, attended)
            self.value = nn.Linear(dim, attended)
            self.attention_out = nn.Linear(attended, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=epsilon)
        if shape.feed_forward:
            self.expand = nn.Linear(dim, shape.feed_forward)
            self.contract = nn.Linear(shape.feed_forward, dim)
        self.output_norm = nn.LayerNorm(dim, eps=epsilon)

    def forward(self, hidden: Tensor, attend: Tensor) -> Tensor:
        """Map (B, T, dim) to (B, T, dim); `attend` (B, 1, 1, T) is added to the attention logits."""
        if self.shape.heads:
            hidden = hidden + self._attended(hidden, attend)
        hidden = self.attention_norm(hidden)
        if self.shape.feed_forward:
            hidden = hidden + self.contract(functional.gelu(self.expand(hidden)))
        return self.output_norm(hidden)

    def _attended(self, hidden: Tensor, attend: Tensor) -> Tensor:
        query, key, value = (
            self._split(part(hidden)) for part in (self.query, self.key, self.value)
        )  # (B, heads, T, head_dim)
        if self.training:
            attended = _attention(query, key, value, attend)
        else:
            attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=attend)
        out: Tensor = self.attention_out(attended.transpose(1, 2).flatten(2))  # (B, T, dim)
        return out

    def _split(self, hidden: Tensor) -> Tensor:
        """(B, T, heads * head_dim) to (B, heads, T, head_dim)."""
        batch, length, width = hidden.shape
        return hidden.view(batch, length, self.shape.heads, width // self.shape.heads).transpose(1, 2)


class TextTransformer(nn.Module):
    """Token ids to one unit-length embedding a text.

    It has no dropout: it is only ever trained from a teacher, briefly. With a projection B the embedding is
    that of B'B mean. While it trains, each batch passes the first rows of B alone, as many as a random one of
    `nested_sizes`, so that all those prefixes serve (nested dropout, Rippel et al. 2014; Matryoshka
    representations, Kusupati et al. 2022).
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.words = nn.Embedding(architecture.vocabulary, architecture.word_rank or architecture.dim)
        if architecture.word_rank:
            self.word_map = nn.Linear(architecture.word_rank, architecture.dim, bias=False)
        self.positions = nn.Embedding(architecture.positions, architecture.dim)
        self.norm = nn.LayerNorm(architecture.dim, eps=architecture.epsilon)
        self.layers = nn.ModuleList(TransformerLayer(shape, architecture) for shape in architecture.layers)
        if architecture.projected:
            self.projection = nn.Linear(architecture.dim, architecture.projected, bias=False)
            self._draws = random.Random(0)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed a batch.

        Args:
            input_ids: (B, T) token ids; what stands under a zero of the mask has no influence.
            attention_mask: (B, T) 1 for a token, 0 for padding. At least one 1 a row.

        Returns:
            (B, dim) rows of length 1.
        """
        return self.embed(self.hidden_states(input_ids, attention_mask), attention_mask)

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor, *, stop: int | None = None) -> Tensor:
        """Tokens (B, T, dim) after the first `stop` layers that run, all where it is None.

        Padded places hold numbers without meaning.
        """
        words = self.words(input_ids)
        if self.architecture.word_rank:
            words = self.word_map(words)
        hidden = self.norm(words + self.positions.weight[: input_ids.shape[1]])
        return self.run_layers(hidden, attention_mask, stop=stop)

    def run_layers(
        self, hidden: Tensor, attention_mask: Tensor, *, start: int = 0, stop: int | None = None
    ) -> Tensor:
        """Tokens (B, T, dim) through the layers that run, from place `start` to before `stop`."""
        attend = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * torch.finfo(torch.float32).min
        for number in self.architecture.running[start:stop]:
            hidden = self.layers[number](hidden, attend)
        return hidden

    def embed(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """From the last layer's tokens to the embedding: (B, T, dim), (B, T) to (B, dim) rows of length 1."""
        pooled = pool(hidden, attention_mask)
        if not self.architecture.projected:
            return pooled
        basis = self.projection.weight
        if self.training:
            basis = basis[: self._draws.choice(nested_sizes(len(basis)))]
        return functional.normalize((pooled @ basis.T @ basis).float(), dim=-1)

    @property
    def weighted_layers(self) -> list[TransformerLayer]:
        """The layers that have weights of their own, in their numbers' order."""
        return [layer for layer in self.layers if isinstance(layer, TransformerLayer)]

    @property
    def dim(self) -> int:
        """Width of the embedding."""
        return self.architecture.dim

    @property
    def parameter_count(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())

    @classmethod
    def from_teacher(cls, teacher: TextTransformer, layers: int | Sequence[int] = 3) -> TextTransformer:
        """A shallower copy of a deeper model.

        Args:
            teacher: the model to copy; it is not changed.
            layers: which of its layers to keep, in order; or how many, spread evenly with the
                first and the last always kept (3 of 6 are 0, 3, 5).

        Raises:
            ValueError: there are no such layers.
        """
        shape = teacher.architecture
        running = shape.running
        kept = spread_layers(len(running), layers) if isinstance(layers, int) else list(layers)
        if not kept or not set(kept) <= set(range(len(running))):
            raise ValueError(f"layers {kept} of a model with {len(running)}")
        sources = [running[place] for place in kept]
        student = cls(replace(shape, layers=tuple(shape.layers[source] for source in sources), order=()))
        student.take_all_but_layers(teacher)
        for layer, source in zip(student.layers, sources, strict=True):
            layer.load_state_dict(teacher.layers[source].state_dict())
        return student

    def take_all_but_layers(self, source: TextTransformer) -> None:
        """Copy everything else of a model whose architecture differs in layers only."""
        rest = {
            name: weight for name, weight in source.state_dict().items() if not name.startswith("layers.")
        }
        self.load_state_dict(rest, strict=False)

    def to_files(self) -> dict[str, bytes]:
        """Weights as safetensors and the architecture as JSON."""
        weights = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        return {
            ARCHITECTURE_FILE: self.architecture.to_json(),
            WEIGHTS_FILE: safetensors.torch.save(weights),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> TextTransformer:
        """Rebuild what `to_files` wrote, in evaluation mode.

        Raises:
            RecsysError: the files do not fit each other.
        """
        try:
            model = cls(Architecture.from_json(files[ARCHITECTURE_FILE]))
            model.load_state_dict(safetensors.torch.load(files[WEIGHTS_FILE]))
        except (KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise RecsysError("encoder_invalid", f"the text model does not load: {reason}") from error
        return model.eval()


def _attention(query: Tensor, key: Tensor, value: Tensor, attend: Tensor) -> Tensor:
    """Attention written out: training steps take half the time of those with torch's fused kernel on CPU."""
    logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + attend  # (B, heads, T, T)
    return torch.softmax(logits.float(), -1).to(value.dtype) @ value


def pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean of the unmasked tokens scaled to length 1: (B, T, dim), (B, T) to (B, dim)."""
    mask = attention_mask[:, :, None].to(hidden.dtype)
    mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1.0)
    return functional.normalize(mean.float(), dim=-1)


def nested_sizes(dims: int) -> tuple[int, ...]:
    """`dims`, its half, its quarter and so on, none below 16 but `dims` itself."""
    sizes = [dims]
    while sizes[-1] // 2 >= SMALLEST_PREFIX:
        sizes.append(sizes[-1] // 2)
    return tuple(sizes)


def spread_layers(available: int, wanted: int) -> list[int]:
    """Which `wanted` of `available` layers to keep: the first, the last and evenly between them."""
    if not 1 <= wanted <= available:
        raise ValueError(f"cannot keep {wanted} layers of {available}")
    if wanted == 1:
        return [0]
    return [math.ceil(step * (available - 1) / (wanted - 1)) for step in range(wanted)]
