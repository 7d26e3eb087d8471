"""Leaving out whole parts of layers, against trying all of them by hand."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.compression.modules import drop_modules
from recsys.compression.sharing import share_layers
from recsys.compression.variant import Variant
from recsys.text.quantization import build_encoder
from recsys.text.torch_runtime import TorchEncoder
from recsys.text.transformer import TextTransformer

OUTPUTS = {"heads": "attention_out", "feed_forward": "contract"}


@pytest.fixture(scope="module")
def variant(tiny_teacher) -> Variant:
    return Variant(tiny_teacher.transformer, tiny_teacher.tokenizer)


@pytest.fixture(scope="module")
def texts(made_up_texts) -> list[str]:
    return made_up_texts[:24]


def encoded(variant: Variant, texts: list[str]) -> np.ndarray:
    return TorchEncoder(variant.transformer, variant.tokenizer).encode(texts)


def silenced(variant: Variant, parts: list[tuple[int, str]]) -> Variant:
    """A copy in which these parts add nothing."""
    network = copy.deepcopy(variant.transformer)
    with torch.no_grad():
        for place, kind in parts:
            output = getattr(network.weighted_layers[place], OUTPUTS[kind])
            output.weight.zero_()
            output.bias.zero_()
    return replace(variant, transformer=network)


def gone(variant: Variant) -> set[tuple[int, str]]:
    layers = enumerate(variant.transformer.architecture.layers)
    return {(place, kind) for place, shape in layers for kind in OUTPUTS if getattr(shape, kind) == 0}


def test_the_parts_that_are_missed_least_go_one_after_another(variant, texts):
    whole = encoded(variant, texts)
    chosen: list[tuple[int, str]] = []
    for count in (1, 2, 3):
        left = [(place, kind) for place in range(4) for kind in OUTPUTS if (place, kind) not in chosen]
        closeness = [(encoded(silenced(variant, [*chosen, part]), texts) * whole).sum() for part in left]
        chosen.append(left[int(np.argmax(closeness))])
        dropped = drop_modules(variant, texts, count=count)
        assert gone(dropped) == set(chosen)
        assert dropped.recipe == (f"modules-{count}",)
        np.testing.assert_allclose(
            encoded(dropped, texts), encoded(silenced(variant, chosen), texts), atol=1e-6
        )


def test_parts_that_add_nothing_go_first_and_nothing_changes(variant, texts):
    parts = [(0, "feed_forward"), (2, "heads"), (3, "heads")]
    silent = silenced(variant, parts)
    dropped = drop_modules(silent, texts, count=3)
    assert gone(dropped) == set(parts)
    np.testing.assert_allclose(encoded(dropped, texts), encoded(silent, texts), atol=1e-6)


def test_what_is_left_is_smaller_reloads_and_compiles(variant, texts):
    for count in (1, 8):
        dropped = drop_modules(variant, texts, count=count)
        assert dropped.transformer.parameter_count < variant.transformer.parameter_count
        assert len(gone(dropped)) == count
        expected = encoded(dropped, texts)
        again = TextTransformer.from_files(dropped.transformer.to_files())
        np.testing.assert_array_equal(encoded(replace(dropped, transformer=again), texts), expected)
        compiled = build_encoder(dropped.transformer, dropped.tokenizer, [], precision="fp32")
        np.testing.assert_allclose(compiled.encode(texts), expected, atol=1e-5)


def test_parts_that_are_gone_are_not_counted_again(variant, texts):
    once = drop_modules(variant, texts, count=6)
    twice = drop_modules(once, texts, count=1)
    assert gone(once) < gone(twice)
    with pytest.raises(ValueError, match=r"count must lie in 1\.\.1, not 2"):
        drop_modules(twice, texts, count=2)


def test_training_the_result_leaves_the_source_alone(variant, texts):
    before = variant.transformer.to_files()
    dropped = drop_modules(variant, texts, count=2).transformer
    assert all(weight.requires_grad for weight in dropped.parameters())
    with torch.no_grad():
        for weight in dropped.parameters():
            weight.add_(1.0)
    assert variant.transformer.to_files() == before


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (lambda v, t: drop_modules(v, t, count=0), r"count must lie in 1\.\.8, not 0"),
        (lambda v, t: drop_modules(v, t, count=9), r"count must lie in 1\.\.8, not 9"),
        (lambda v, t: drop_modules(v, ["", " "], count=1), "none has a token"),
        (lambda v, t: drop_modules(share_layers(v), t, count=1), "shared layer"),
    ],
)
def test_what_cannot_be_done_is_refused(variant, texts, method, words):
    with pytest.raises(ValueError, match=words):
        method(variant, texts)
