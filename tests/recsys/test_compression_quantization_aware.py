"""Training with simulated int8: the simulation is what is compiled, it leaves no trace, and it helps."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.compression.factorisation import factorise_words
from recsys.compression.magnitude import dense_maps, prune_weights
from recsys.compression.modules import drop_modules
from recsys.compression.pruning import prune
from recsys.compression.quantization_aware import build_aware, int8_simulated, quantization_aware
from recsys.compression.sharing import share_layers
from recsys.compression.variant import Variant
from recsys.text.quantization import build_encoder, mean_cosine
from recsys.text.settings import DistillationConfig
from recsys.text.student import Lessons
from recsys.text.teacher import Teacher
from recsys.text.torch_runtime import TorchEncoder
from recsys.text.transformer import TextTransformer

CONFIG = DistillationConfig(max_epochs=3, learning_rate=3e-4, warmup_steps=5)
BRIEF = replace(CONFIG, max_epochs=1, max_tokens_seen=2_000)


@pytest.fixture(scope="module")
def variant(tiny_teacher) -> Variant:
    return Variant(tiny_teacher.transformer, tiny_teacher.tokenizer)


@pytest.fixture(scope="module")
def texts(made_up_texts) -> list[str]:
    return made_up_texts[::5]


@pytest.fixture(scope="module")
def lessons(tiny_teacher, made_up_texts) -> Lessons:
    return Lessons.of(tiny_teacher, made_up_texts, CONFIG)


def batches(variant: Variant, texts: list[str]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(variant.batches(texts))


def encoded(variant: Variant, texts: list[str]) -> np.ndarray:
    return TorchEncoder(variant.transformer, variant.tokenizer).encode(texts)


def simulated(variant: Variant, texts: list[str], observed: list[str]) -> np.ndarray:
    with int8_simulated(variant.transformer, batches(variant, observed)):
        return encoded(variant, texts)


@pytest.fixture(scope="module")
def awkward_teacher(tiny_teacher) -> Teacher:
    """Weights of an input that is always zero are so large that the others of an output share few levels."""
    network = TextTransformer.from_teacher(tiny_teacher.transformer, 2)
    with torch.no_grad():
        for layer in network.weighted_layers:
            layer.expand.weight.mul_(3.0)
            layer.contract.weight.mul_(4.0)
            layer.attention_norm.weight[3] = layer.attention_norm.bias[3] = 0.0
            layer.expand.weight[:, 3] = 20.0
    return replace(tiny_teacher, transformer=network)


@pytest.mark.slow
def test_what_int8_loses_is_foreseen_and_learnt_back(awkward_teacher, made_up_texts, texts):
    before = Variant(awkward_teacher.transformer, awkward_teacher.tokenizer)
    expected = encoded(before, made_up_texts)
    aware = quantization_aware(before, Lessons.of(awkward_teacher, made_up_texts, CONFIG), CONFIG)
    usual = build_encoder(before.transformer, before.tokenizer, texts)
    found = {"usual": usual.encode(made_up_texts), "rounded": encoded(aware, made_up_texts)}
    for name, made in (("before", before), ("after", aware)):
        compiled = build_aware(made, texts)
        assert compiled.config.precision == "int8"
        found[name] = compiled.encode(made_up_texts)
        found[f"{name}, simulated"] = simulated(made, made_up_texts, texts)
    lost = {name: 1.0 - float((rows * expected).sum(1).mean()) for name, rows in found.items()}
    assert lost["before, simulated"] == pytest.approx(lost["before"], rel=0.1)
    assert lost["after, simulated"] == pytest.approx(lost["after"], rel=0.25)
    assert lost["after"] < 0.3 * lost["before"]
    assert lost["after"] < lost["usual"]
    assert lost["rounded"] < 0.3 * lost["before"]  # what is left is on the levels itself


@pytest.mark.slow
def test_a_pruned_model_comes_nearer_in_int8(variant, lessons, made_up_texts, texts):
    config = replace(CONFIG, learning_rate=2e-3)
    shallow = variant.then("two", TextTransformer.from_teacher(variant.transformer, 2))
    pruned = prune(shallow, made_up_texts, heads=2, feed_forward=16)
    teacher = TorchEncoder(variant.transformer, variant.tokenizer)
    before = build_encoder(pruned.transformer, pruned.tokenizer, texts)
    after = build_aware(quantization_aware(pruned, lessons, config), texts)
    assert mean_cosine(after, teacher, made_up_texts) > mean_cosine(before, teacher, made_up_texts)


def test_without_a_text_to_calibrate_on_the_encoder_is_fp32(variant):
    encoder = build_aware(variant, ["", " "], sparse=True)
    assert encoder.config.precision == "fp32"
    assert "encoder_sparse.bin" in encoder.to_files()


def test_numbers_lie_on_the_levels_of_int8_under_bf16_too(variant, texts):
    network = copy.deepcopy(variant.transformer)
    seen: dict[str, torch.Tensor] = {}
    with int8_simulated(network, batches(variant, texts)):
        layer = network.weighted_layers[2]
        probe = layer.contract.register_forward_pre_hook(lambda _, inputs: seen.update(inputs=inputs[0]))
        with torch.no_grad():
            with torch.autocast("cpu", torch.bfloat16):
                embedding = network(*batches(variant, texts)[0])
            probe.remove()
            expected = network(*batches(variant, texts)[0])
        assert seen["inputs"].dtype == torch.float32
        assert len(seen["inputs"].unique()) <= 256 < seen["inputs"].numel() / 100
        weight = layer.contract.weight.detach()
        levels = weight / weight.abs().amax(1, keepdim=True) * 127
        torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert float((embedding * expected).sum(1).mean()) > 0.999


def test_gradients_pass_straight_through_but_not_beyond_the_range(variant, texts):
    network = copy.deepcopy(variant.transformer)
    expand = network.weighted_layers[1].expand
    with int8_simulated(network, batches(variant, texts)):
        inputs = torch.zeros(3, expand.in_features)
        inputs[1], inputs[2] = 0.01, 1e6
        inputs.requires_grad_()
        original = expand.parametrizations.weight.original
        by_inputs, by_weight = torch.autograd.grad(expand(inputs).sum(), [inputs, original])
        torch.testing.assert_close(by_inputs[:2], expand.weight.sum(0).expand(2, -1))
        assert not by_inputs[2].any()
        assert by_weight.all()  # though a step of the rounding is flat


def test_ranges_follow_training_and_stand_still_in_evaluation(variant, texts):
    network = copy.deepcopy(variant.transformer)
    (input_ids, mask), *_ = batches(variant, texts)
    with int8_simulated(network, batches(variant, texts)), torch.no_grad():
        assert not network.training
        before = network(input_ids, mask)
        torch.testing.assert_close(network(input_ids, mask), before, rtol=0, atol=0)
        network.words.weight.mul_(3.0)
        network.positions.weight.add_(2.0)
        network.train()
        for _ in range(3):
            network(input_ids, mask)
        network.eval()
        network.words.weight.div_(3.0)
        network.positions.weight.sub_(2.0)
        assert not torch.equal(network(input_ids, mask), before)


def test_simulation_leaves_no_trace_even_where_training_fails(variant, texts):
    network = copy.deepcopy(variant.transformer)
    with pytest.raises(ZeroDivisionError), int8_simulated(network, batches(variant, texts)):
        1 / 0  # noqa: B018
    assert network.to_files() == variant.transformer.to_files()
    expected = TorchEncoder(variant.transformer, variant.tokenizer).encode(texts)
    np.testing.assert_array_equal(TorchEncoder(network, variant.tokenizer).encode(texts), expected)
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert type(module).__name__[:12] != "Parametrized"


def test_the_variant_is_left_alone_and_zeros_stay(variant, lessons, texts):
    sparse = prune_weights(variant, share=0.4)
    files = sparse.transformer.to_files()
    seen: list[tuple[int, int]] = []
    aware = quantization_aware(sparse, lessons, BRIEF, lambda *step: seen.append(step))
    assert sparse.transformer.to_files() == files
    assert aware.recipe == ("sparse-40", "int8-aware")
    assert seen[-1][0] == seen[-1][1] == len(seen)
    for old, new in zip(dense_maps(sparse.transformer), dense_maps(aware.transformer), strict=True):
        assert not new.weight[old.weight == 0].any()
        levels = new.weight / new.weight.abs().amax(1, keepdim=True) * 127
        torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert (
        aware.transformer.weighted_layers[1].expand.bias != sparse.transformer.weighted_layers[1].expand.bias
    ).any()
    assert TextTransformer.from_files(aware.transformer.to_files()).to_files() == aware.transformer.to_files()


def test_every_shape_of_network_can_be_trained_so(variant, lessons, texts):
    for made in (
        share_layers(factorise_words(variant, texts, rank=8)),
        drop_modules(variant, texts, count=3),
        prune(variant, texts, heads=0, feed_forward=0),
    ):
        aware = quantization_aware(made, lessons, BRIEF)
        assert aware.transformer.architecture == made.transformer.architecture
        assert np.isfinite(TorchEncoder(aware.transformer, aware.tokenizer).encode(texts)).all()


def test_without_a_text_weights_are_rounded_and_not_trained(variant, tiny_teacher):
    for texts in ([], ["", " "]):
        aware = quantization_aware(variant, Lessons.of(tiny_teacher, texts, CONFIG), CONFIG)
        for old, new in zip(dense_maps(variant.transformer), dense_maps(aware.transformer), strict=True):
            step = old.weight.abs().amax(1, keepdim=True) / 127
            torch.testing.assert_close(new.weight, (old.weight / step).round() * step)
            torch.testing.assert_close(new.bias, old.bias, rtol=0, atol=0)
