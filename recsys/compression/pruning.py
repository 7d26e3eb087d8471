"""Narrower layers: attention heads and feed-forward neurons that matter least are cut out, matrices and all.

How much a part matters is measured on texts: a gate in front of it is nudged, and what counts is how far
the embedding moves (the squared derivative along a random direction a text, its mean over texts; after the
head masks of Michel et al. 2019, with the embedding in place of a loss, so that no labels are needed). The
dense map behind the cut can be fitted again in closed form, to give from what is left what it gave before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from recsys.compression.variant import Variant
from recsys.events import Float64, Int64
from recsys.text.item_text import evenly
from recsys.text.transformer import LayerShape, TextTransformer, TransformerLayer

DIRECTIONS = 4
JUDGING_TEXTS = 256
REFIT_TEXTS = 1000
RIDGE = 1e-3
"""Of the mean square of an input, added to the diagonal of the closed form."""


@dataclass(frozen=True)
class Importance:
    """How much each part matters, layer by layer: `heads` (heads,), `neurons` (feed_forward,)."""

    heads: list[Float64]
    neurons: list[Float64]


def measure_importance(variant: Variant, texts: Sequence[str], *, seed: int = 0) -> Importance:
    """Mean squared derivative of the embedding by the gate of every head and neuron.

    Args:
        variant: the model; layers without heads or neurons have empty arrays.
        texts: some hundred texts like those to come; one with a token at least.
        seed: of the random directions.

    Raises:
        ValueError: no text has a token.
    """
    transformer = variant.transformer.eval()
    heads = [np.zeros(layer.shape.heads) for layer in transformer.weighted_layers]
    neurons = [np.zeros(layer.shape.feed_forward) for layer in transformer.weighted_layers]
    generator = torch.Generator().manual_seed(seed)
    sums = {"heads": heads, "neurons": neurons}
    seen = 0
    for input_ids, mask in variant.batches(texts):
        for place, kind, squares in _gate_squares(transformer, input_ids, mask, generator):
            sums[kind][place] += squares
        seen += len(input_ids)
    if not seen:
        raise ValueError("importance is measured on texts, and none has a token")
    scale = 1.0 / (seen * DIRECTIONS)
    return Importance([values * scale for values in heads], [values * scale for values in neurons])


def _gate_squares(
    transformer: TextTransformer, input_ids: Tensor, mask: Tensor, generator: torch.Generator
) -> Iterator[tuple[int, str, Float64]]:
    """(layer, part, squared derivative by each of its gates, summed over the texts) for every direction."""
    with _inputs_of_outputs(transformer) as inputs, torch.enable_grad():
        embedding = transformer(input_ids, mask)
    read = [tensor for _, _, tensor in inputs]
    for direction in torch.randn(DIRECTIONS, *embedding.shape, generator=generator):
        gradients = torch.autograd.grad((embedding * direction).sum(), read, retain_graph=True)
        for (place, kind, tensor), gradient in zip(inputs, gradients, strict=True):
            by_gate = (tensor * gradient).sum(1)  # (B, T, width) to (B, width)
            if kind == "heads":
                by_gate = by_gate.view(len(by_gate), -1, transformer.architecture.head_dim).sum(2)
            yield place, kind, by_gate.square().sum(0).double().numpy(force=True)


def prune(
    variant: Variant,
    texts: Sequence[str],
    *,
    heads: int | None = None,
    feed_forward: int | None = None,
    refit: bool = True,
    seed: int = 0,
) -> Variant:
    """Keep the most important heads and neurons of every layer, as many in each.

    Args:
        variant: what to prune; it is not changed.
        texts: 1,000 of them, evenly spread, are fitted again on, 256 measure importance; their tokens should
            be many times the neurons kept.
        heads: heads to keep a layer, 0 leaves attention out; None keeps all.
        feed_forward: neurons to keep a layer, likewise.
        refit: whether the maps behind the cuts are fitted again.
        seed: of the importance.

    Raises:
        ValueError: more is to be kept than there is, or a negative number, or no text has a token.
    """
    transformer = variant.transformer
    shapes = transformer.architecture.layers
    for name, wanted, most in (
        ("heads", heads, min(shape.heads for shape in shapes)),
        ("feed_forward", feed_forward, min(shape.feed_forward for shape in shapes)),
    ):
        if wanted is not None and not 0 <= wanted <= most:
            raise ValueError(f"{name} must lie in 0..{most}, not {wanted}")
    importance = measure_importance(variant, evenly(texts, JUDGING_TEXTS), seed=seed)
    kept_heads = [_best(values, heads) for values in importance.heads]
    kept_neurons = [_best(values, feed_forward) for values in importance.neurons]
    head_dim = transformer.architecture.head_dim
    columns = [(head[:, None] * head_dim + np.arange(head_dim)).ravel() for head in kept_heads]
    pruned = _cut(transformer, kept_heads, columns, kept_neurons)
    if refit:
        _refit(variant, pruned, texts, columns, kept_neurons)
    step = "-".join(
        [
            "pruned",
            *(f"{n}{name}" for n, name in ((heads, "heads"), (feed_forward, "neurons")) if n is not None),
        ]
    )
    return variant.then(step, pruned.eval())


def _best(values: Float64, count: int | None) -> Int64:
    """Ascending numbers of the `count` highest values."""
    order = np.argsort(-values, kind="stable")
    return np.sort(order[: len(values) if count is None else count])


def _cut(
    transformer: TextTransformer, heads: list[Int64], columns: list[Int64], neurons: list[Int64]
) -> TextTransformer:
    """The network over the kept parts; `columns` are those of the kept heads."""
    shapes = tuple(LayerShape(len(h), len(n)) for h, n in zip(heads, neurons, strict=True))
    pruned = TextTransformer(replace(transformer.architecture, layers=shapes))
    pruned.take_all_but_layers(transformer)
    for layer, source, attended, hidden in zip(
        pruned.weighted_layers, transformer.weighted_layers, columns, neurons, strict=True
    ):
        layer.load_state_dict(_cut_weights(source, torch.from_numpy(attended), torch.from_numpy(hidden)))
    return pruned


def _cut_weights(layer: TransformerLayer, attended: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    """Weights of one layer over kept columns of attention and kept neurons, none of a part left out."""
    by_row = {"query": attended, "key": attended, "value": attended, "expand": hidden}
    by_column = {"attention_out": attended, "contract": hidden}
    weights = {}
    for name, weight in layer.state_dict().items():
        part, _, kind = name.partition(".")
        kept = by_row.get(part, by_column.get(part))
        if kept is not None and not len(kept):
            continue
        if part in by_row:
            weights[name] = weight[kept]
        elif part in by_column and kind == "weight":
            weights[name] = weight[:, kept]
        else:
            weights[name] = weight
    return weights


@torch.no_grad()
def _refit(
    variant: Variant,
    pruned: TextTransformer,
    texts: Sequence[str],
    columns: list[Int64],
    neurons: list[Int64],
) -> None:
    """Fit the output maps of `pruned` to the outputs of the whole ones, by least squares over tokens."""
    squares: dict[tuple[int, str], Tensor] = {}
    for input_ids, mask in variant.batches(evenly(texts, REFIT_TEXTS)):
        with _inputs_of_outputs(variant.transformer) as inputs:
            variant.transformer(input_ids, mask)
        for place, kind, tensor in inputs:
            rows = nn.functional.pad(tensor[mask.bool()].double(), (0, 1), value=1.0)  # and the intercept
            squares[place, kind] = squares.get((place, kind), 0.0) + rows.T @ rows
    for (place, kind), square in squares.items():
        kept, part = (columns, "attention_out") if kind == "heads" else (neurons, "contract")
        if 0 < len(kept[place]) < len(square) - 1:
            whole: nn.Linear = getattr(variant.transformer.weighted_layers[place], part)
            _solve(getattr(pruned.weighted_layers[place], part), whole, square, torch.from_numpy(kept[place]))


def _solve(target: nn.Linear, whole: nn.Linear, square: Tensor, kept: Tensor) -> None:
    """Least squares from the Gram matrix of the whole inputs and a one; the ridge pulls towards `whole`."""
    chosen = torch.cat([kept, torch.tensor([len(square) - 1])])
    gram = square[chosen][:, chosen]
    ridge = RIDGE * gram.diagonal()[:-1].mean() * torch.eye(len(chosen), dtype=gram.dtype)
    ridge[-1, -1] = 0.0
    weight = torch.cat([whole.weight, whole.bias[:, None]], dim=1).double().T  # (inputs + 1, dim)
    solved = torch.linalg.solve(gram + ridge, square[chosen] @ weight + ridge @ weight[chosen])
    target.weight.copy_(solved[:-1].T)
    target.bias.copy_(solved[-1])


@contextmanager
def _inputs_of_outputs(transformer: TextTransformer) -> Iterator[list[tuple[int, str, Tensor]]]:
    """Collects (layer, part, input) of every attention output and every second dense layer of a pass."""
    inputs: list[tuple[int, str, Tensor]] = []

    def collect(place: int, kind: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            inputs.append((place, kind, arguments[0]))

        return hook

    hooks = []
    for place, layer in enumerate(transformer.weighted_layers):
        if layer.shape.heads:
            hooks.append(layer.attention_out.register_forward_pre_hook(collect(place, "heads")))
        if layer.shape.feed_forward:
            hooks.append(layer.contract.register_forward_pre_hook(collect(place, "neurons")))
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()
