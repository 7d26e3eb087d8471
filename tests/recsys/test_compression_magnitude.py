"""Zeros by magnitude: which, that they stay, and that an encoder without them is the same encoder."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from recsys.compression.magnitude import dense_maps, masks_held, prune_weights
from recsys.compression.variant import Variant
from recsys.errors import RecsysError
from recsys.text.openvino_runtime import OpenVinoEncoder
from recsys.text.quantization import build_encoder
from recsys.text.settings import DistillationConfig
from recsys.text.student import Lessons, imitate
from recsys.text.torch_runtime import TorchEncoder
from recsys.text.transformer import TextTransformer

CONFIG = DistillationConfig(max_epochs=1, max_tokens_seen=4_000, learning_rate=2e-3, warmup_steps=2)


@pytest.fixture(scope="module")
def variant(tiny_teacher) -> Variant:
    return Variant(tiny_teacher.transformer, tiny_teacher.tokenizer)


@pytest.fixture(scope="module")
def lessons(tiny_teacher, made_up_texts) -> Lessons:
    return Lessons.of(tiny_teacher, made_up_texts, CONFIG)


def flat(weights: list[torch.Tensor]) -> np.ndarray:
    return np.concatenate([weight.detach().numpy().ravel() for weight in weights])


def groups(transformer: TextTransformer) -> list[np.ndarray]:
    """What is pruned together."""
    return [flat([dense.weight for dense in dense_maps(transformer)]), flat([transformer.words.weight])]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_the_smallest_of_all_maps_and_of_the_word_table_are_zero(variant, share):
    pruned = prune_weights(variant, share=share)
    for before, after in zip(groups(variant.transformer), groups(pruned.transformer), strict=True):
        count = round(share * len(before))
        threshold = np.sort(np.abs(before))[count - 1]
        np.testing.assert_array_equal(after, np.where(np.abs(before) <= threshold, 0.0, before))
        assert np.count_nonzero(after == 0) == count
        assert not np.signbit(after[after == 0]).any()  # a negative zero has a bit, and would be stored
    assert pruned.recipe == (f"sparse-{100 * share:g}",)


def test_norms_biases_and_positions_stay_and_so_does_the_source(variant):
    files = variant.transformer.to_files()
    pruned = prune_weights(variant, share=0.5).transformer.state_dict()
    for name, weight in variant.transformer.state_dict().items():
        if weight.ndim == 1 or name.startswith("positions."):
            assert torch.equal(pruned[name], weight), name
        else:
            assert not torch.equal(pruned[name], weight), name
    assert variant.transformer.to_files() == files


def test_maps_of_small_weights_lose_more_and_ties_do_not_add_to_the_share(variant):
    network = copy.deepcopy(variant.transformer)
    with torch.no_grad():
        network.weighted_layers[1].expand.weight.mul_(0.01)
        network.words.weight.fill_(0.5)
    pruned = prune_weights(Variant(network, variant.tokenizer), share=0.25).transformer
    zeros = [float((dense.weight == 0).double().mean()) for dense in dense_maps(pruned)]
    least = dense_maps(pruned).index(pruned.weighted_layers[1].expand)
    assert zeros[least] == 1.0
    assert max(zeros[:least] + zeros[least + 1 :]) < 0.3
    assert int((pruned.words.weight == 0).sum()) == round(0.25 * network.words.weight.numel())


def test_zeros_of_before_count(variant):
    once, again = (
        prune_weights(variant, share=0.5),
        prune_weights(prune_weights(variant, share=0.3), share=0.5),
    )
    assert once.transformer.to_files() == again.transformer.to_files()
    same = prune_weights(once, share=0.3)
    assert same.transformer.to_files() == once.transformer.to_files()


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(variant, share):
    with pytest.raises(ValueError, match="share must lie between 0 and 1"):
        prune_weights(variant, share=share)


def test_training_keeps_zeros_only_under_the_masks(variant, lessons):
    pruned = prune_weights(variant, share=0.6)
    zero = groups(pruned.transformer)[0] == 0
    kept, filled = (copy.deepcopy(pruned.transformer) for _ in range(2))
    with masks_held(kept):
        held = imitate(kept, pruned.tokenizer, lessons, CONFIG)
    imitate(filled, pruned.tokenizer, lessons, CONFIG)
    assert held.holdout_cosine > held.initial_cosine
    assert np.count_nonzero(groups(filled)[0][zero]) > 0.9 * zero.sum()
    after = groups(kept)[0]
    np.testing.assert_array_equal(after[zero].view(np.uint32), 0)
    assert np.mean(after[~zero] != groups(pruned.transformer)[0][~zero]) > 0.9


def test_names_are_as_before_and_zeros_exact_whatever_changed_the_weights(variant):
    pruned = prune_weights(variant, share=0.5)
    network = copy.deepcopy(pruned.transformer)
    expected = TorchEncoder(pruned.transformer, pruned.tokenizer).encode(["red lamp"])
    with masks_held(network):
        assert any("parametrizations" in name for name in network.state_dict())
        with torch.no_grad():
            for dense in dense_maps(network):
                dense.parametrizations.weight.original[dense.weight == 0] = 7.0
        np.testing.assert_array_equal(TorchEncoder(network, pruned.tokenizer).encode(["red lamp"]), expected)
    assert network.to_files() == pruned.transformer.to_files()
    assert set(network.state_dict()) == set(pruned.transformer.state_dict())
    assert {type(module) for module in network.modules()} == {
        type(module) for module in pruned.transformer.modules()
    }


def test_masks_go_when_training_fails_and_when_they_stand_within_each_other(variant):
    network = prune_weights(variant, share=0.5).transformer
    files = network.to_files()
    with pytest.raises(ZeroDivisionError), masks_held(network), masks_held(network):
        1 / 0  # noqa: B018
    assert network.to_files() == files


def test_a_model_without_zeros_is_not_parametrised(variant):
    network = copy.deepcopy(variant.transformer)
    with masks_held(network):
        assert set(network.state_dict()) == set(variant.transformer.state_dict())


@pytest.mark.parametrize(("precision", "width"), [("fp32", 4), ("bf16", 4), ("int8", 1)])
def test_a_sparse_encoder_is_the_same_in_fewer_bytes(variant, made_up_texts, precision, width):
    pruned = prune_weights(variant, share=0.6)
    zeros = sum(int((group == 0).sum()) for group in groups(pruned.transformer))
    encoder = build_encoder(
        pruned.transformer, pruned.tokenizer, made_up_texts[:64], precision=precision, sparse=True
    )
    assert encoder.config.precision == precision
    files = encoder.to_files()
    assert set(files) == {"encoder.xml", "encoder_sparse.bin", "tokenizer.json", "encoder.json"}
    again = OpenVinoEncoder.from_files(files)
    assert again.to_files() == files
    assert again.encoder_id == encoder.encoder_id
    np.testing.assert_array_equal(again.encode(made_up_texts), encoder.encode(made_up_texts))

    dense = again._files()["encoder.bin"]
    assert OpenVinoEncoder.from_files(again._files()).encoder_id == encoder.encoder_id
    mask = len(dense) / (8 * width) + 14
    assert (
        len(dense) - len(files["encoder_sparse.bin"]) >= zeros * width - mask
    )  # every zero is stored as none


def test_damaged_sparse_weights_are_refused(variant):
    pruned = prune_weights(variant, share=0.5)
    encoder = build_encoder(pruned.transformer, pruned.tokenizer, [], precision="fp32", sparse=True)
    files = encoder.to_files()
    for damaged in (b"", b"RSP1", bytes(400), files["encoder_sparse.bin"][:-1]):
        with pytest.raises(RecsysError, match="encoder_invalid"):
            OpenVinoEncoder.from_files(files | {"encoder_sparse.bin": damaged})
