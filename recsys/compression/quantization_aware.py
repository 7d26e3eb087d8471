"""Fine-tuning for int8: the model learns with the rounding that its compiled form will have.

On the way forward numbers are rounded, the gradient passes as if they were not (Jacob et al. 2018; straight
through: Bengio et al. 2013). They are rounded as the compiled graph does it: weights to 255 symmetric levels
of each output, what goes into a dense map to 256 levels of its running range, and so queries and keys, whose
products are int8, too, and rows of the word table to their 255 levels. First the inputs' scale is moved into
the weights (SmoothQuant, Xiao et al. 2023, with the compiler's settings): without that, what is learnt is to
bear a rounding that never comes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from recsys.compression.magnitude import dense_maps, masks_held, parametrised
from recsys.compression.variant import Variant
from recsys.text.item_text import evenly
from recsys.text.settings import DistillationConfig
from recsys.text.student import Lessons, Progress, imitate
from recsys.text.transformer import TextTransformer

OBSERVED_TEXTS = 128
SMOOTHING = 0.95
"""Alpha: an input's scale is divided by its largest value to this power."""
LEAST_SHARE = 0.1
"""Share of the inputs that are divided by more than that asks for: by as little as the one above them."""
MOMENTUM = 0.01
LEAST = 1e-30
FLOOR = 1e-5
"""Of magnitudes whose ratio is a scale."""

Batches = list[tuple[Tensor, Tensor]]


def quantization_aware(
    variant: Variant, lessons: Lessons, config: DistillationConfig, progress: Progress | None = None
) -> Variant:
    """Train on the lessons with simulated int8; weights that are zero stay zero.

    The best weights by the simulation are kept, those before training if none were better. The simulation is
    near to the compiled graph, not equal: compare the encoders before and after, and keep the better.

    Args:
        variant: what to train; it is not changed.
        lessons: what to imitate; without a text nothing is trained.
        config: of the training; `layers` is not read.
        progress: called with steps done and steps planned.
    """
    learner = variant.then("int8-aware", copy.deepcopy(variant.transformer))
    observed = list(learner.batches(evenly(lessons.texts, OBSERVED_TEXTS)))
    with masks_held(learner.transformer), int8_simulated(learner.transformer, observed):
        imitate(learner.transformer, learner.tokenizer, lessons, config, progress=progress)
    return learner


@contextmanager
def int8_simulated(transformer: TextTransformer, observed: Batches) -> Iterator[None]:
    """Inside, dense maps work on rounded numbers; after, weights have their names and no rounding.

    Ranges move on in training mode and stand still in evaluation mode.

    Args:
        transformer: what to simulate, in evaluation mode then.
        observed: token ids and masks that set the scales; without any, inputs are not smoothed, and the
            first batch that comes sets the ranges.
    """
    scales = _input_scales(transformer, observed)
    with ExitStack() as stack:
        stack.enter_context(_rounded_table(transformer.words.weight))
        stack.enter_context(parametrised((dense, _RoundedWeight(scale)) for dense, scale in scales.items()))
        for dense, scale in scales.items():
            stack.callback(dense.register_forward_pre_hook(_RoundedInput(scale)).remove)
        for layer in transformer.weighted_layers:
            for dense in (layer.query, layer.key) if layer.shape.heads else ():
                stack.callback(dense.register_forward_hook(_RoundedOutput()).remove)
        _run(transformer.train(), observed)
        transformer.eval()
        yield


def _rounded_rows(weight: Tensor) -> Tensor:
    """Every row to 255 levels, symmetric around zero, which stays."""
    step = weight.abs().amax(1, keepdim=True).clamp(min=LEAST) / 127
    return torch.round(weight / step) * step


@contextmanager
def _rounded_table(table: Tensor) -> Iterator[None]:
    """The word table does not learn: it is rounded once, and put back."""
    whole = table.detach().clone()
    try:
        table.data.copy_(_rounded_rows(whole))
        yield
    finally:
        table.data.copy_(whole)


class _RoundedWeight(nn.Module):
    """A weight (outputs, inputs) on its levels after smoothing."""

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        kept = weight.detach()
        return weight + (_rounded_rows(kept * self.scale) / self.scale - kept)


class _Rounding:
    """Rounds a tensor to 256 levels between the running means of its least and greatest number, and zero."""

    def __init__(self) -> None:
        self.low = self.high = torch.zeros(())
        self.seen = 0

    def __call__(self, tensor: Tensor, learning: bool) -> Tensor:
        if learning or not self.seen:
            self._observe(tensor.detach())
        step = ((self.high - self.low) / 255).clamp(min=LEAST)
        zero = torch.round(-self.low / step)
        within = tensor.clamp(-zero * step, (255 - zero) * step)  # no gradient beyond the range
        return within + (torch.round(within / step) * step - within).detach()

    def _observe(self, tensor: Tensor) -> None:
        self.seen += 1
        least, greatest = tensor.amin().clamp(max=0.0), tensor.amax().clamp(min=0.0)
        weight = max(1 / self.seen, MOMENTUM)
        self.low, self.high = torch.lerp(self.low, least, weight), torch.lerp(self.high, greatest, weight)


class _RoundedInput:
    """Pre-hook of a dense map. Rounds in fp32: bf16 has no more digits than int8."""

    def __init__(self, scale: Tensor) -> None:
        self.scale, self.rounding = scale, _Rounding()

    def __call__(self, dense: nn.Module, arguments: tuple[Tensor]) -> Tensor:
        return self.rounding(arguments[0].float() / self.scale, dense.training) * self.scale


class _RoundedOutput:
    """Hook of a dense map, likewise."""

    def __init__(self) -> None:
        self.rounding = _Rounding()

    def __call__(self, dense: nn.Module, _: tuple[Tensor], output: Tensor) -> Tensor:
        return self.rounding(output.float(), dense.training)


def _input_scales(transformer: TextTransformer, observed: Batches) -> dict[nn.Linear, Tensor]:
    """(inputs,) of every map: max|x|^alpha / max|w|^(1 - alpha), ones where nothing was observed."""
    largest: dict[nn.Module, Tensor] = {}

    def keep(dense: nn.Module, arguments: tuple[Tensor]) -> None:
        highest = arguments[0].abs().flatten(0, -2).amax(0)
        largest[dense] = torch.maximum(largest.get(dense, highest), highest)

    maps = dense_maps(transformer)
    if transformer.architecture.word_rank:
        maps.append(transformer.word_map)
    with ExitStack() as stack:
        for dense in maps:
            stack.callback(dense.register_forward_pre_hook(keep).remove)
        _run(transformer.eval(), observed)
    return {
        dense: _scale(largest[dense], dense.weight.detach())
        if dense in largest
        else torch.ones(dense.in_features)
        for dense in maps
    }


def _scale(inputs: Tensor, weight: Tensor) -> Tensor:
    """From the largest magnitude of every input and the weight (outputs, inputs)."""
    weights = weight.abs().amax(0).clamp(min=FLOOR)
    scale = inputs.clamp(min=FLOOR) ** SMOOTHING / weights ** (1.0 - SMOOTHING)
    return scale.clamp(min=float(scale.quantile(LEAST_SHARE)))


@torch.no_grad()
def _run(transformer: TextTransformer, batches: Batches) -> None:
    for input_ids, mask in batches:
        transformer(input_ids, mask)
