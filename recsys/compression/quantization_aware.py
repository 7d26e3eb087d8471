"""Fine-tuning for int8: the model learns with the rounding that its compiled form will have.

On the way forward numbers are rounded, the gradient passes as if they were not (Jacob et al. 2018; straight
through: Bengio et al. 2013). They are rounded as the compiled graph does it: weights to 255 symmetric levels
of each output, rows of the word table likewise, what goes into a dense map to 256 levels of its running
range, and so queries and keys, whose products are int8, too.

What is learnt holds for these very levels. Compilation otherwise moves scale from activations into weights
first (SmoothQuant, Xiao et al. 2023), which sets other levels and undoes it: `build_aware` leaves that out.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import nncf
import torch
from nncf.quantization.advanced_parameters import (
    AdvancedQuantizationParameters,
    AdvancedSmoothQuantParameters,
)
from torch import Tensor, nn

from recsys.compression.magnitude import dense_maps, masks_held, parametrised
from recsys.compression.variant import Variant
from recsys.text.item_text import evenly
from recsys.text.openvino_runtime import EncoderConfig, OpenVinoEncoder
from recsys.text.quantization import CALIBRATION_TEXTS, build_encoder, calibration_batches, export, serialize
from recsys.text.settings import DistillationConfig
from recsys.text.student import Lessons, Progress, imitate
from recsys.text.transformer import TextTransformer

OBSERVED_TEXTS = 128
MOMENTUM = 0.01
LEAST = 1e-30

Batches = list[tuple[Tensor, Tensor]]


def quantization_aware(
    variant: Variant, lessons: Lessons, config: DistillationConfig, progress: Progress | None = None
) -> Variant:
    """Train on the lessons with simulated int8; weights that are zero stay zero.

    The weights of the best held-out cosine under the simulation are kept, those before training if none were
    better, and left on their levels. Compile them by `build_aware`; whether that beats the variant compiled
    without training is for the caller to compare.

    Args:
        variant: what to train; it is not changed.
        lessons: what to imitate; without a text weights are rounded, and nothing is trained.
        config: of the training; `layers` is not read.
        progress: called with steps done and steps planned.
    """
    network = copy.deepcopy(variant.transformer)
    observed = list(variant.batches(evenly(lessons.texts, OBSERVED_TEXTS)))
    with masks_held(network), int8_simulated(network, observed):
        imitate(network, variant.tokenizer, lessons, config, progress=progress)
    with torch.no_grad():
        for weight in [network.words.weight, *(dense.weight for dense in _int8_maps(network))]:
            weight.copy_(_Rounded()(weight))
    return variant.then("int8-aware", network)


def build_aware(
    variant: Variant, calibration_texts: Sequence[str], *, threads: int = 2, sparse: bool = False
) -> OpenVinoEncoder:
    """Compile in int8 on the levels of `quantization_aware`, without smoothing.

    Args:
        variant: what it returned.
        calibration_texts: texts like those to come; at most 256, taken evenly, set the activations' ranges.
            Where none has a token the encoder is fp32.
        threads: cores the encoder uses.
        sparse: its weights are stored without their zeros.
    """
    transformer, tokenizer = variant.transformer, variant.tokenizer
    batches = calibration_batches(tokenizer, evenly(calibration_texts, CALIBRATION_TEXTS))
    if not batches:
        return build_encoder(transformer, tokenizer, [], precision="fp32", threads=threads, sparse=sparse)
    nncf.set_log_level(logging.ERROR)
    as_they_are = AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    graph = nncf.quantize(
        export(transformer),
        nncf.Dataset(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(batches),
        fast_bias_correction=True,
        advanced_parameters=AdvancedQuantizationParameters(smooth_quant_alphas=as_they_are),
    )
    limits = tokenizer.limits
    config = EncoderConfig(transformer.dim, limits.max_chars, limits.max_tokens, "int8")
    return OpenVinoEncoder(*serialize(graph), tokenizer, config, threads=threads, sparse=sparse)


@contextmanager
def int8_simulated(transformer: TextTransformer, observed: Batches) -> Iterator[None]:
    """Inside, dense maps work on rounded numbers; after, weights have their names and no rounding.

    Ranges move on in training mode and stand still in evaluation mode.

    Args:
        transformer: what to simulate, in evaluation mode then.
        observed: token ids and masks that set the ranges; without any, the first batch that comes does.
    """
    with ExitStack() as stack:
        maps = _int8_maps(transformer)
        stack.enter_context(_rounded_table(transformer.words.weight))
        stack.enter_context(parametrised((dense, _Rounded()) for dense in maps))
        for dense in maps:
            stack.callback(dense.register_forward_pre_hook(_RoundedInput()).remove)
        for layer in transformer.weighted_layers:
            for dense in (layer.query, layer.key) if layer.shape.heads else ():
                stack.callback(dense.register_forward_hook(_RoundedOutput()).remove)
        transformer.train()
        with torch.no_grad():
            for input_ids, mask in observed:
                transformer(input_ids, mask)
        transformer.eval()
        yield


def _int8_maps(transformer: TextTransformer) -> list[nn.Linear]:
    """The dense maps of layers, and that of a factorised word table."""
    factor = [transformer.word_map] if transformer.architecture.word_rank else []
    return [*dense_maps(transformer), *factor]


class _Rounded(nn.Module):
    """A weight with every row on 255 levels, symmetric around zero."""

    def forward(self, weight: Tensor) -> Tensor:
        step = weight.detach().abs().amax(1).clamp(min=LEAST) / 127
        zero = torch.zeros(len(step), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, step, zero, 0, -127, 127)


@contextmanager
def _rounded_table(table: Tensor) -> Iterator[None]:
    """The word table does not learn: it is rounded once, and put back."""
    whole = table.detach().clone()
    try:
        table.data.copy_(_Rounded()(whole))
        yield
    finally:
        table.data.copy_(whole)


class _Range:
    """Rounds a tensor to 256 levels between the running means of its least and greatest number, and zero."""

    def __init__(self) -> None:
        self.low = self.high = torch.zeros(())
        self.seen = 0

    def rounded(self, tensor: Tensor, learning: bool) -> Tensor:
        """In fp32, since bf16 has no more digits than int8; beyond the range there is no gradient."""
        tensor = tensor.float()
        if learning or not self.seen:
            self._observe(tensor.detach())
        step = (self.high - self.low).clamp(min=LEAST) / 255
        zero = torch.round(-self.low / step).int()
        return torch.fake_quantize_per_tensor_affine(tensor, step, zero, 0, 255)

    def _observe(self, tensor: Tensor) -> None:
        self.seen += 1
        least, greatest = torch.aminmax(tensor)
        weight = max(1 / self.seen, MOMENTUM)
        self.low = torch.lerp(self.low, least.clamp(max=0.0), weight)
        self.high = torch.lerp(self.high, greatest.clamp(min=0.0), weight)


class _RoundedInput(_Range):
    """Forward pre-hook of a dense map."""

    def __call__(self, dense: nn.Module, arguments: tuple[Tensor]) -> Tensor:
        return self.rounded(arguments[0], dense.training)


class _RoundedOutput(_Range):
    """Forward hook of a dense map."""

    def __call__(self, dense: nn.Module, _: tuple[Tensor], output: Tensor) -> Tensor:
        return self.rounded(output, dense.training)
