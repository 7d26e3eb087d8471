"""The anatomy counts every weight once, and tells from the weights alone what pruning kept."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from recsys.compression.anatomy import BINS, COLUMNS, anatomy_of
from recsys.compression.factorisation import factorise_words
from recsys.compression.origin import origins
from recsys.compression.pruning import Importance, measure_importance, prune
from recsys.compression.sharing import share_layers
from recsys.compression.variant import Variant
from recsys.text.transformer import Architecture, TextTransformer


@pytest.fixture(scope="module")
def root(tiny_teacher) -> Variant:
    return Variant(tiny_teacher.transformer, tiny_teacher.tokenizer)


@pytest.fixture(scope="module")
def texts(made_up_texts) -> list[str]:
    return made_up_texts[:60]


@pytest.fixture(scope="module")
def importance(root, texts) -> Importance:
    return measure_importance(root, texts)


def of_layers(variant: Variant, layers: list[int]) -> Variant:
    return variant.then("layers", TextTransformer.from_teacher(variant.transformer, layers).eval())


def moved(variant: Variant, noise: float) -> Variant:
    """A copy with noise on every weight, in units of the weights' own deviation."""
    copy = TextTransformer(variant.transformer.architecture)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in variant.transformer.state_dict().items():
            step = noise * weight.std() * torch.randn(weight.shape, generator=generator)
            copy.get_parameter(name).copy_(weight + step)
    return replace(variant, transformer=copy.eval())


def test_weights_by_kind_sum_to_all_and_so_do_the_bins(root, texts, importance):
    thin = prune(factorise_words(root, texts, rank=8), texts, heads=2, feed_forward=20)
    anatomy = anatomy_of(root, thin, importance)
    for network, variant in ((anatomy.root, root), (anatomy.compressed, thin)):
        assert sum(network.parameters.values()) == variant.transformer.parameter_count
        for kind, counts in network.histograms.items():
            assert counts.shape == (BINS,)
            assert counts.sum() == network.parameters[kind], kind
    shape = root.transformer.architecture
    assert anatomy.root.parameters["word table"] == shape.vocabulary * 32
    assert anatomy.root.parameters["attention"] == 4 * 4 * (32 * 32 + 32)
    assert anatomy.root.parameters["feed-forward"] == 4 * (2 * 32 * 64 + 64 + 32)
    assert anatomy.compressed.parameters["word table"] == shape.vocabulary * 8
    assert anatomy.compressed.parameters["word map"] == 8 * 32
    assert set(anatomy.root.parameters) < set(anatomy.compressed.parameters)
    assert set(anatomy.edges) == set(anatomy.compressed.parameters)


def test_bins_are_those_of_a_plain_count(root, importance):
    anatomy = anatomy_of(root, None, importance)
    table = root.transformer.words.weight.detach().numpy().ravel()
    edges = anatomy.edges["word table"]
    inner = [((table >= low) & (table < high)).sum() for low, high in itertools.pairwise(edges[1:-1])]
    counts = anatomy.root.histograms["word table"]
    assert counts[1:-1].tolist() == inner
    assert counts[0] == (table < edges[1]).sum()
    assert counts[-1] == (table >= edges[-2]).sum()
    assert np.abs(table).max() > edges[-1], "some weights lie beyond the bins"


def test_zeros_are_counted_by_kind(root, importance):
    copy = TextTransformer(root.transformer.architecture)
    copy.load_state_dict(root.transformer.state_dict())
    with torch.no_grad():
        copy.weighted_layers[2].expand.weight[:10] = 0.0
    zeros = anatomy_of(root, replace(root, transformer=copy), importance).compressed.zeros
    biases = sum(
        int((b == 0).sum())
        for name, b in copy.named_parameters()
        if "expand.b" in name or "contract.b" in name
    )
    assert zeros["feed-forward"] == 10 * 32 + biases
    assert zeros["word table"] == 0


def test_a_weight_of_an_unknown_module_is_counted_as_other(root, importance):
    wider = TextTransformer(root.transformer.architecture)
    wider.add_module("probe", nn.Linear(3, 5, bias=False))
    anatomy = anatomy_of(replace(root, transformer=wider), None, importance)
    assert anatomy.root.parameters["other"] == 15


@pytest.mark.parametrize("refit", [False, True])
def test_masks_are_what_pruning_kept(root, texts, importance, refit):
    """Layers 1 and 3 of four, then heads by one measurement and neurons by a second."""
    shallow = of_layers(root, [1, 3])
    compressed = prune(prune(shallow, texts, heads=2, refit=refit), texts, feed_forward=20, refit=refit)
    kept = anatomy_of(root, compressed, importance).kept
    assert [origin.layer for origin in kept] == [1, 3]
    for origin, layer in zip(kept, compressed.transformer.weighted_layers, strict=True):
        source = root.transformer.weighted_layers[origin.layer]
        assert (len(origin.heads), len(origin.neurons)) == (2, 20)
        torch.testing.assert_close(layer.expand.weight, source.expand.weight[origin.neurons])
        columns = (origin.heads[:, None] * 8 + np.arange(8)).ravel()
        torch.testing.assert_close(layer.query.weight, source.query.weight[columns])


def test_masks_of_one_cut_are_the_most_important_parts(root, texts, importance):
    cut = prune(root, texts, heads=3, feed_forward=40)
    measured = measure_importance(root, texts)
    for number, origin in enumerate(origins(root.transformer, cut.transformer)):
        assert origin.layer == number
        assert origin.heads.tolist() == sorted(np.argsort(-measured.heads[number])[:3].tolist())
        assert origin.neurons.tolist() == sorted(np.argsort(-measured.neurons[number])[:40].tolist())


def test_masks_are_still_told_after_training_and_not_when_nothing_is_left(root, texts):
    cut = prune(of_layers(root, [0, 2]), texts, heads=2, feed_forward=16)
    plain = origins(root.transformer, cut.transformer)
    trained = origins(root.transformer, moved(cut, 0.5).transformer)
    assert [o.to_document() for o in trained] == [o.to_document() for o in plain]
    assert origins(root.transformer, moved(cut, 30.0).transformer) == (None, None)


def test_parts_left_out_are_empty_and_an_empty_layer_cannot_be_told(root, texts):
    no_attention = origins(root.transformer, prune(root, texts, heads=0).transformer)
    assert [(o.layer, len(o.heads), len(o.neurons)) for o in no_attention] == [(n, 0, 64) for n in range(4)]
    no_dense = origins(root.transformer, prune(root, texts, feed_forward=0).transformer)
    assert [(o.layer, len(o.heads), len(o.neurons)) for o in no_dense] == [(n, 4, 0) for n in range(4)]
    nothing = prune(root, texts, heads=0, feed_forward=0)
    assert origins(root.transformer, nothing.transformer) == (None,) * 4


def test_shared_layers_have_no_origin(root, importance):
    assert anatomy_of(root, share_layers(root), importance).kept is None


def test_importance_of_another_network_is_refused(root, texts, importance):
    with pytest.raises(ValueError, match="importance of"):
        anatomy_of(of_layers(root, [0, 3]), None, importance)


def test_document_is_plain_json_and_binned(root, texts, importance):
    heads = [np.arange(4.0) for _ in range(4)]
    many = Importance(heads, [np.arange(64.0) * 3 for _ in range(4)])
    document = anatomy_of(root, prune(root, texts, heads=2), many).to_document()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["importance"]["neurons"][0] == [3.0 * n for n in range(63, -1, -1)]
    assert document["importance"]["layers"][0] == {"attention": 6.0, "feed_forward": 3.0 * 63 * 64 / 2}
    assert document["kept"][1]["heads"] is not None
    assert document["root"]["architecture"]["depth"] == 4
    alone = anatomy_of(root, None, importance).to_document()
    assert alone["compressed"] is None
    assert alone["kept"] is None


def test_many_neurons_become_means_of_equal_groups(root):
    shape = Architecture.uniform(50, dim=8, heads=2, feed_forward=1536, layers=1, positions=4)
    values = np.random.default_rng(0).random(1536)
    wide = replace(root, transformer=TextTransformer(shape))
    document = anatomy_of(wide, None, Importance([np.ones(2)], [values])).to_document()
    (means,) = document["importance"]["neurons"]
    assert len(means) == COLUMNS
    assert means == sorted(means, reverse=True)
    np.testing.assert_allclose(means[0], np.sort(values)[-24:].mean())
    np.testing.assert_allclose(np.mean(means), values.mean())
