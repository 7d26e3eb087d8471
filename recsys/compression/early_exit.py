"""Early exit: texts that part of the network embeds well enough leave there (a dynamic network).

After `layer` layers a linear map of the pooled state gives an embedding, and another one an estimate of its
cosine to what the whole network gives; both are fitted in closed form on texts, without labels. It is what
DeeBERT does for classifiers (Xin et al. 2020), with that cosine in place of a class's entropy. The threshold
is set on texts that neither was fitted on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import openvino
import openvino.properties.hint as hints
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys.compression.receipt import operations
from recsys.compression.variant import Variant
from recsys.events import Float64
from recsys.text.exit_runtime import ALWAYS, NEVER, ExitConfig, ExitEncoder
from recsys.text.item_text import evenly
from recsys.text.openvino_runtime import Precision
from recsys.text.quantization import (
    CALIBRATION_TEXTS,
    LOWEST_COSINE,
    calibration_batches,
    export,
    mean_cosine,
    quantize,
    serialize,
)
from recsys.text.tokenization import Tokenizer
from recsys.text.transformer import TextTransformer, pool

MOST_TEXTS = 3000
LEAST_TEXTS = 20
HOLDOUT_SHARE = 0.25
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Relative to the number of texts; inputs have unit variance."""

Parts = tuple[openvino.Model, openvino.Model]

logger = logging.getLogger(__name__)


def exit_step(layer: int, share: float) -> str:
    """Name of the step in a recipe: `exit-3-50` lets half of the texts leave after layer 3."""
    return f"exit-{layer}-{share * 100:g}"


def early_exit(
    variant: Variant,
    texts: Sequence[str],
    *,
    layer: int,
    share: float | None = None,
    cosine: float | None = None,
    precision: Precision = "int8",
    threads: int = 2,
    seed: int = 0,
) -> ExitEncoder:
    """Compile a network in two parts with an exit between them.

    Args:
        variant: the network.
        texts: those to come are like them. At most 3,000 different ones are read; a quarter of them only
            sets the threshold.
        layer: layers before the exit, fewer than the network runs.
        share: of texts that are to leave early, 0 to 1.
        cosine: or: as many leave as keep, on average over those that leave, this cosine to the whole network.
        precision: int8 parts that fall under cosine .99 to fp32 are dropped for fp32, as in `build_encoder`.
        threads: cores the encoder uses.
        seed: of the texts held out.

    Raises:
        ValueError: `layer`, `share` or `cosine` out of range, both or neither of the last two, or fewer than
            20 different texts with a token.
    """
    _check(variant, layer, share, cosine)
    fitted_on, held = _parted(variant.tokenizer, texts, seed)
    network = variant.transformer.eval()
    first = FirstPart(network, layer, _fitted_head(variant, fitted_on, layer))
    encoder = _compiled(first, RestPart(network, layer), variant.tokenizer, fitted_on, precision, threads)
    estimates = encoder.estimates(held).astype(np.float64)
    if share is not None:
        return encoder.with_threshold(_threshold_of_share(estimates, share))
    early, whole = (encoder.with_threshold(end).encode(held) for end in (ALWAYS, NEVER))
    reached = np.einsum("td,td->t", early, whole).astype(np.float64)
    return encoder.with_threshold(_threshold_of_cosine(estimates, reached, cosine or 0.0))


def spared_share(variant: Variant, encoder: ExitEncoder, texts: Sequence[str]) -> float:
    """Share of the network's operations on these texts that early exits spare; below 0 where too few leave.

    Args:
        variant: what `encoder` was made from. Operations are counted as in `receipt.operations`.
        encoder: with its threshold.
        texts: NaN where none has a token.
    """
    shape = variant.transformer.architecture
    before = replace(shape, order=shape.running[: encoder.config.layer], projected=0)
    head = 2 * shape.dim * shape.dim + 2 * (shape.dim + 1)
    whole = done = 0
    tokens = variant.tokenizer.encode(texts)
    for ids, leaves in zip(tokens, encoder.leaving(texts), strict=True):
        all_of_it = operations(shape, len(ids)) if ids else 0
        whole += all_of_it
        if ids:
            done += head + (operations(before, len(ids)) if leaves else all_of_it)
    return 1.0 - done / whole if whole else float("nan")


class ExitHead(nn.Module):
    """From the pooled state to an embedding, and to an estimate of its cosine to the whole network's.

    The estimate is written as a sum of products: a matrix product would be rounded to int8 or bf16, and texts
    close to the threshold would share one value.
    """

    def __init__(self, embedding: RidgeFit, estimate: RidgeFit) -> None:
        """Take the maps from the state, and from the state and the log of the length."""
        super().__init__()
        dim = len(embedding.weight)
        self.embedding = nn.Linear(dim, dim)
        self.embedding.load_state_dict(
            {"weight": torch.from_numpy(embedding.weight.T), "bias": torch.from_numpy(embedding.bias)}
        )
        self.by_state = nn.Parameter(torch.from_numpy(estimate.weight[:dim, 0]).float())
        self.by_length, self.bias = float(estimate.weight[dim, 0]), float(estimate.bias[0])

    def forward(self, state: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """(B, dim) unit states and (B, 1) numbers of tokens, to unit embeddings (B, dim) and (B, 1)."""
        estimate = (state * self.by_state).sum(1, keepdim=True) + self.by_length * length.log() + self.bias
        return functional.normalize(self.embedding(state), dim=-1), estimate


class FirstPart(nn.Module):
    """The layers before the exit, and the exit."""

    def __init__(self, network: TextTransformer, layer: int, head: ExitHead) -> None:
        super().__init__()
        self.network, self.layer, self.head = network, layer, head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T), (B, T) to the tokens' states (B, T, dim), the embedding (B, dim), the estimate (B, 1)."""
        hidden = self.network.hidden_states(input_ids, attention_mask, stop=self.layer)
        length = attention_mask.sum(1, keepdim=True).float()
        return hidden, *self.head(pool(hidden, attention_mask), length)


class RestPart(nn.Module):
    """The layers behind the exit."""

    def __init__(self, network: TextTransformer, layer: int) -> None:
        super().__init__()
        self.network, self.layer = network, layer

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T, dim), (B, T) to the embedding (B, dim)."""
        hidden = self.network.run_layers(hidden, attention_mask, start=self.layer)
        return self.network.embed(hidden, attention_mask)


def _check(variant: Variant, layer: int, share: float | None, cosine: float | None) -> None:
    depth = variant.transformer.architecture.depth
    if not 1 <= layer < depth:
        raise ValueError(f"layer must lie in 1..{depth - 1}, not {layer}")
    if (share is None) == (cosine is None):
        raise ValueError("one of share and cosine decides how many texts leave early")
    for name, value, low in (("share", share, 0.0), ("cosine", cosine, -1.0)):
        if value is not None and not low <= value <= 1.0:
            raise ValueError(f"{name} must lie in {low:g}..1, not {value}")


def _parted(tokenizer: Tokenizer, texts: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """Texts to fit on and texts held out, all different and with a token."""
    unique = sorted(set(texts))
    told = [text for text, ids in zip(unique, tokenizer.encode(unique), strict=True) if ids]
    if len(told) < LEAST_TEXTS:
        raise ValueError(f"an exit is fitted on {LEAST_TEXTS} different texts at least, not {len(told)}")
    order = np.random.default_rng(seed).permutation(len(told))[:MOST_TEXTS]
    mixed = [told[int(row)] for row in order]
    held = round(len(mixed) * HOLDOUT_SHARE)
    return mixed[held:], mixed[:held]


@torch.no_grad()
def _fitted_head(variant: Variant, texts: Sequence[str], layer: int) -> ExitHead:
    """Both maps by ridge regression; the second learns what the first gives for texts left out of it."""
    network = variant.transformer
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for input_ids, mask in variant.batches(texts):
        hidden = network.hidden_states(input_ids, mask, stop=layer)
        embedded = network.embed(network.run_layers(hidden, mask, start=layer), mask)
        found.append((pool(hidden, mask), mask.sum(1, keepdim=True), embedded))
    state, length, whole = (torch.cat(parts).double().numpy() for parts in zip(*found, strict=True))
    embedding = fit_ridge(state, whole)
    norm = np.maximum(np.linalg.norm(embedding.left_out, axis=1), 1e-12)
    cosine = np.einsum("td,td->t", embedding.left_out, whole) / norm
    estimate = fit_ridge(np.concatenate([state, np.log(length)], axis=1), cosine[:, None])
    return ExitHead(embedding, estimate)


@dataclass(frozen=True)
class RidgeFit:
    """A linear map, `weight` (inputs, outputs) and `bias` (outputs,).

    `left_out` (rows, outputs) is what the map that is fitted without a row gives for it.
    """

    weight: Float64
    bias: Float64
    left_out: Float64


def fit_ridge(inputs: Float64, wanted: Float64) -> RidgeFit:
    """Linear regression from (rows, inputs) to (rows, outputs), with the ridge of least left-out error.

    What a fit without one row misses there is its residual over 1 - leverage (Allen 1974), so that no fit
    is repeated. The intercept bears no ridge. Inputs are scaled to unit variance, the same for all rows.
    """
    count, centre, mean = len(inputs), inputs.mean(axis=0), wanted.mean(axis=0)
    scale = np.maximum(inputs.std(axis=0), 1e-9)
    left, values, right = np.linalg.svd((inputs - centre) / scale, full_matrices=False)
    turned = left.T @ (wanted - mean)
    misses = []
    for ridge in RIDGES:
        shrunk = np.square(values) / (np.square(values) + ridge * count)
        residual = wanted - mean - left @ (shrunk[:, None] * turned)
        misses.append(residual / (1.0 - 1.0 / count - np.square(left) @ shrunk)[:, None])
    best = int(np.argmin([np.square(missed).sum() for missed in misses]))
    strength = values / (np.square(values) + RIDGES[best] * count)
    weight = right.T @ (strength[:, None] * turned) / scale[:, None]
    return RidgeFit(weight, mean - centre @ weight, wanted - misses[best])


def _compiled(
    first: FirstPart,
    rest: RestPart,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    precision: Precision,
    threads: int,
) -> ExitEncoder:
    """Both parts in the precision, or in fp32 where int8 is too far from it; no text leaves early yet."""

    def encoder(models: Parts, precision: Precision) -> ExitEncoder:
        limits = tokenizer.limits
        sizes = (limits.max_chars, limits.max_tokens)
        config = ExitConfig(first.network.dim, first.layer, NEVER, *sizes, precision)
        return ExitEncoder(serialize(models[0]), serialize(models[1]), tokenizer, config, threads=threads)

    mask = torch.ones(2, 8, dtype=torch.int64)
    states = torch.ones(2, 8, first.network.dim)
    models = export(first), export(rest, {"hidden": states, "attention_mask": mask})
    plain = encoder(models, "bf16" if precision == "bf16" else "fp32")
    if precision != "int8":
        return plain
    texts = evenly(texts, CALIBRATION_TEXTS)
    small = encoder(_quantized(*models, calibration_batches(tokenizer, texts)), "int8")
    ends = (ALWAYS, NEVER)
    cosine = min(mean_cosine(small.with_threshold(end), plain.with_threshold(end), texts) for end in ends)
    if cosine < LOWEST_COSINE:
        logger.warning("int8 encoder with an exit has cosine %.4f to fp32; keeping fp32", cosine)
        return plain
    return small


def _quantized(
    first: openvino.Model, rest: openvino.Model, batches: Sequence[dict[str, np.ndarray]]
) -> Parts:
    """Both parts in int8; the scales of the rest come from what the first part gives in int8."""
    first = quantize(first, batches)
    run = openvino.Core().compile_model(first, "CPU", {hints.inference_precision: openvino.Type.f32})
    mask = "attention_mask"
    return first, quantize(rest, [{"hidden": run(each)[0].copy(), mask: each[mask]} for each in batches])


def _threshold_of_share(estimates: Float64, share: float) -> float:
    """So that this share of the estimates reaches it."""
    if share in (0.0, 1.0):
        return ALWAYS if share else NEVER
    return float(np.quantile(estimates, 1.0 - share))


def _threshold_of_cosine(estimates: Float64, reached: Float64, wanted: float) -> float:
    """The least at which those who leave keep the wanted cosine on average; `NEVER` where none does."""
    order = np.argsort(-estimates, kind="stable")
    means = np.cumsum(reached[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(means >= wanted)
    return float(estimates[order[enough[-1]]]) if len(enough) else NEVER
