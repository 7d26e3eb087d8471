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
from recsys.compression.quantization_aware import int8_simulated, quantization_aware
from recsys.compression.sharing import share_layers
from recsys.compression.variant import Variant
from recsys.text.quantization import build_encoder, mean_cosine
from recsys.text.settings import DistillationConfig
from recsys.text.student import Lessons, imitate
from recsys.text.torch_runtime import TorchEncoder
from recsys.text.transformer import TextTransformer

CONFIG = DistillationConfig(max_epochs=2, learning_rate=2e-3, warmup_steps=5)
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


def with_outliers(variant: Variant) -> Variant:
    """A copy with one weight of every output so large that the others share few levels."""
    network = copy.deepcopy(variant.transformer)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for dense in dense_maps(network):
            rows = torch.arange(dense.out_features)
            dense.weight[rows, torch.randint(0, dense.in_features, rows.shape, generator=generator)] *= 60.0
    return replace(variant, transformer=network)


def test_channels_of_large_numbers_cost_the_simulation_no_more_than_the_compiled_graph(
    variant, made_up_texts, texts
):
    """What a norm gives is scaled up in a few places, and the maps behind it down: the same function."""
    network = copy.deepcopy(variant.transformer)
    with torch.no_grad():
        for layer in network.weighted_layers:
            layer.attention_norm.weight[[3, 17]] *= 40.0
            layer.attention_norm.bias[[3, 17]] *= 40.0
            layer.expand.weight[:, [3, 17]] /= 40.0
    scaled = replace(variant, transformer=network)
    plain = TorchEncoder(network, variant.tokenizer).encode(made_up_texts)
    compiled = build_encoder(network, variant.tokenizer, texts)
    assert compiled.config.precision == "int8"
    lost = 1.0 - float((compiled.encode(made_up_texts) * plain).sum(1).mean())
    with int8_simulated(network, batches(scaled, texts)):
        simulated = TorchEncoder(network, variant.tokenizer).encode(made_up_texts)
    foreseen = 1.0 - float((simulated * plain).sum(1).mean())
    with int8_simulated(network, []):
        rough = TorchEncoder(network, variant.tokenizer).encode(made_up_texts)
    print(lost, foreseen, 1.0 - float((rough * plain).sum(1).mean()))
    assert foreseen == pytest.approx(lost, rel=1.0)


def test_training_with_the_rounding_brings_int8_back_and_training_without_does_less(
    variant, lessons, made_up_texts, texts
):
    lossy = with_outliers(prune(variant, made_up_texts, heads=2, feed_forward=16))
    imitate(lossy.transformer, lossy.tokenizer, lessons, CONFIG)
    aware = quantization_aware(lossy, lessons, CONFIG)
    unaware = replace(lossy, transformer=copy.deepcopy(lossy.transformer))
    imitate(unaware.transformer, unaware.tokenizer, lessons, CONFIG)
    teacher = TorchEncoder(variant.transformer, variant.tokenizer)
    reached, loss = {}, {}
    for name, made in (("aware", aware), ("unaware", unaware)):
        compiled = build_encoder(made.transformer, made.tokenizer, texts)
        assert compiled.config.precision == "int8", name
        reached[name] = mean_cosine(compiled, teacher, texts)
        loss[name] = 1.0 - mean_cosine(compiled, TorchEncoder(made.transformer, made.tokenizer), texts)
    print(reached, loss)
    before = mean_cosine(TorchEncoder(lossy.transformer, lossy.tokenizer), teacher, texts)
    assert loss["aware"] < 0.7 * loss["unaware"]
    assert reached["aware"] > before


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
        columns = seen["inputs"].flatten(0, 1).T
        assert max(len(column.unique()) for column in columns) <= 256 < columns.shape[1]
        smooth = layer.contract.weight.detach() * layer.contract.parametrizations.weight[0].scale
        levels = smooth / smooth.abs().amax(1, keepdim=True) * 127
        torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert float((embedding * expected).sum(1).mean()) > 0.999


def test_gradients_pass_straight_through_but_not_beyond_the_range(variant, texts):
    network = copy.deepcopy(variant.transformer)
    expand = network.weighted_layers[1].expand
    with int8_simulated(network, batches(variant, texts)):
        inputs = torch.zeros(3, expand.in_features)
        inputs[1], inputs[2] = 0.01, 1e6
        inputs.requires_grad_()
        by_inputs, by_weight = torch.autograd.grad(
            expand(inputs).sum(), [inputs, expand.parametrizations.weight.original]
        )
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
    changed = 0
    for old, new in zip(dense_maps(sparse.transformer), dense_maps(aware.transformer), strict=True):
        assert torch.equal(new.weight == 0, old.weight == 0)
        changed += int((new.weight != old.weight).sum())
    assert changed
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


def test_without_a_text_nothing_is_trained(variant, tiny_teacher):
    for texts in ([], ["", " "]):
        aware = quantization_aware(variant, Lessons.of(tiny_teacher, texts, CONFIG), CONFIG)
        assert aware.transformer.to_files() == variant.transformer.to_files()
