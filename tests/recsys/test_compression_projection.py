"""Embeddings through fewer numbers: what the projection keeps, its prefixes, its training, its files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from recsys.compression.projection import project, truncated
from recsys.compression.pruning import prune
from recsys.compression.receipt import operations
from recsys.compression.variant import Variant
from recsys.errors import RecsysError
from recsys.text.quantization import build_encoder, mean_cosine
from recsys.text.student import DistillationConfig, Lessons, imitate
from recsys.text.torch_runtime import TorchEncoder
from recsys.text.transformer import (
    ARCHITECTURE_FILE,
    Architecture,
    TextTransformer,
    nested_sizes,
)


@pytest.fixture(scope="module")
def variant(tiny_teacher) -> Variant:
    return Variant(tiny_teacher.transformer, tiny_teacher.tokenizer)


@pytest.fixture(scope="module")
def texts(made_up_texts) -> list[str]:
    return made_up_texts[:120]


def encoded(variant: Variant, texts: list[str]) -> np.ndarray:
    return TorchEncoder(variant.transformer, variant.tokenizer).encode(texts)


def basis(variant: Variant) -> np.ndarray:
    return variant.transformer.projection.weight.detach().numpy()


def in_subspace(variant: Variant, axes: np.ndarray) -> Variant:
    """A copy whose last norm writes nothing outside of the span of `axes` (count, dim), rows orthonormal."""
    copy = TextTransformer(variant.transformer.architecture)
    copy.load_state_dict(variant.transformer.state_dict())
    inside = torch.from_numpy(axes.T @ axes).float()
    last = copy.weighted_layers[-1]
    forward = last.forward
    last.forward = lambda hidden, attend: forward(hidden, attend) @ inside
    return replace(variant, transformer=copy.eval())


def test_all_of_the_numbers_change_nothing(variant, texts):
    whole = project(variant, texts, dims=32)
    np.testing.assert_allclose(encoded(whole, texts), encoded(variant, texts), atol=1e-6)
    assert whole.recipe == ("dims-32",)
    assert variant.transformer.architecture.projected == 0


def test_a_known_subspace_is_found_and_nothing_is_lost(variant, texts, rng):
    axes = np.linalg.qr(rng.normal(size=(32, 5)))[0].T
    source = in_subspace(variant, axes)
    plain = encoded(source, texts)
    found = basis(project(source, texts, dims=5))
    np.testing.assert_allclose(found @ found.T, np.eye(5), atol=1e-5)
    np.testing.assert_allclose(found.T @ found, axes.T @ axes, atol=1e-4)
    np.testing.assert_allclose(plain @ found.T @ found, plain, atol=1e-5)


def test_the_embedding_is_the_plain_one_within_the_directions_and_of_length_one(variant, texts):
    thin = project(variant, texts, dims=6)
    kept = encoded(variant, texts) @ basis(thin).T @ basis(thin)
    kept /= np.linalg.norm(kept, axis=1, keepdims=True)
    np.testing.assert_allclose(encoded(thin, texts), kept, atol=1e-5)
    assert thin.transformer.dim == 32
    assert np.linalg.matrix_rank(encoded(thin, texts), tol=1e-3) == 6


def test_no_other_directions_keep_more(variant, texts, rng):
    plain, thin = encoded(variant, texts), project(variant, texts, dims=4)
    kept = np.square(plain @ basis(thin).T).sum()
    values = np.linalg.svd(plain, compute_uv=False)
    assert kept == pytest.approx(np.square(values[:4]).sum(), rel=1e-4)
    other = np.linalg.qr(rng.normal(size=(32, 4)))[0]
    assert np.square(plain @ other).sum() < kept


def test_prefixes_are_nested_and_equal_to_fewer_directions_from_the_start(variant, texts):
    wide = project(variant, texts, dims=24)
    thin = truncated(wide, 8)
    np.testing.assert_array_equal(basis(thin), basis(wide)[:8])
    assert thin.recipe == ("dims-24", "dims-8")
    again = project(variant, texts, dims=8)
    np.testing.assert_allclose(encoded(thin, texts), encoded(again, texts), atol=1e-5)
    reference = TorchEncoder(variant.transformer, variant.tokenizer)
    cosines = [
        mean_cosine(TorchEncoder(made.transformer, made.tokenizer), reference, texts)
        for made in (truncated(wide, dims) for dims in (2, 4, 8, 16, 24))
    ]
    assert cosines == sorted(cosines)
    assert cosines[0] < cosines[-1]


@pytest.mark.parametrize(
    ("dims", "sizes"),
    [(256, (256, 128, 64, 32, 16)), (100, (100, 50, 25)), (32, (32, 16)), (31, (31,)), (5, (5,))],
)
def test_nested_sizes_halve_down_to_sixteen(dims, sizes):
    assert nested_sizes(dims) == sizes


def test_training_mode_draws_prefixes_and_evaluation_uses_all(variant, texts):
    wide = project(variant, texts, dims=32)
    thin = wide.transformer
    (ids, mask), *_ = variant.batches(texts[:8])
    thin.train()
    with torch.no_grad():
        drawn = [thin(ids, mask) for _ in range(20)]
        wanted = [truncated(wide, dims).transformer(ids, mask) for dims in (32, 16)]
        near = [[torch.allclose(each, one, atol=1e-4) for one in wanted] for each in drawn]
        assert all(sum(row) == 1 for row in near)
        assert all(0 < sum(column) < 20 for column in zip(*near, strict=True))
        thin.eval()
        torch.testing.assert_close(thin(ids, mask), variant.transformer(ids, mask), atol=1e-5, rtol=0)


def test_training_brings_every_prefix_closer_and_repeats_itself(variant, texts, tiny_teacher, made_up_texts):
    reference = TorchEncoder(tiny_teacher.transformer, tiny_teacher.tokenizer)
    config = DistillationConfig(max_epochs=3, learning_rate=2e-3, warmup_steps=5)
    lessons = Lessons.of(tiny_teacher, made_up_texts, config)
    source = prune(variant, texts, feed_forward=16, refit=False)

    def trained() -> Variant:
        made = project(source, texts, dims=32)
        imitate(made.transformer, made.tokenizer, lessons, config)
        return made

    def closeness(made: Variant) -> list[float]:
        prefixes = [truncated(made, dims) for dims in (32, 16)]
        return [
            mean_cosine(TorchEncoder(each.transformer, each.tokenizer), reference, made_up_texts)
            for each in prefixes
        ]

    before, made = closeness(project(source, texts, dims=32)), trained()
    assert all(late > early + 0.005 for early, late in zip(before, closeness(made), strict=True))
    assert not np.array_equal(basis(made), basis(project(source, texts, dims=32)))
    assert trained().transformer.to_files() == made.transformer.to_files()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_projected_model_compiles(variant, made_up_texts, precision):
    thin = project(variant, made_up_texts, dims=16)
    compiled = build_encoder(thin.transformer, thin.tokenizer, made_up_texts[:64], precision=precision)
    assert compiled.config.precision == precision
    reference = TorchEncoder(thin.transformer, thin.tokenizer)
    assert mean_cosine(compiled, reference, made_up_texts) > (0.99999 if precision == "fp32" else 0.99)


def test_a_projected_model_reloads_and_damage_is_refused(variant, texts):
    thin = project(variant, texts, dims=12)
    files = thin.transformer.to_files()
    again = replace(thin, transformer=TextTransformer.from_files(files))
    np.testing.assert_array_equal(encoded(again, texts), encoded(thin, texts))
    for projected in (11, 0, -1, "12"):
        record = json.loads(files[ARCHITECTURE_FILE]) | {"projected": projected}
        with pytest.raises(RecsysError, match="encoder_invalid"):
            TextTransformer.from_files(files | {ARCHITECTURE_FILE: json.dumps(record).encode()})


def test_files_from_before_the_projection_load(variant, texts):
    files = variant.transformer.to_files()
    record = json.loads(files[ARCHITECTURE_FILE])
    del record["projected"]
    old = json.dumps(record).encode()
    assert Architecture.from_json(old) == variant.transformer.architecture
    again = replace(variant, transformer=TextTransformer.from_files(files | {ARCHITECTURE_FILE: old}))
    np.testing.assert_array_equal(encoded(again, texts), encoded(variant, texts))


def test_other_methods_keep_the_projection(variant, texts):
    thin = project(variant, texts, dims=12)
    shallow = TextTransformer.from_teacher(thin.transformer, 2)
    np.testing.assert_array_equal(shallow.projection.weight.detach(), basis(thin))
    np.testing.assert_array_equal(basis(prune(thin, texts, heads=2)), basis(thin))


def test_operations_count_the_way_through_the_numbers(variant, texts):
    thin = project(variant, texts, dims=12).transformer
    thin.layers.train()  # attention written out, so that the counter sees it
    ids = torch.ones(1, 7, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        thin(ids, ids)
    assert operations(thin.architecture, 7) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (lambda v, t: project(v, t, dims=0), r"dims must lie in 1\.\.32"),
        (lambda v, t: project(v, t, dims=33), r"dims must lie in 1\.\.32"),
        (lambda v, t: project(v, [" ", ""], dims=8), "none has a token"),
        (lambda v, t: project(v, [], dims=8), "none has a token"),
        (lambda v, t: project(project(v, t, dims=8), t, dims=4), "already"),
        (lambda v, t: truncated(v, 4), "not projected"),
        (lambda v, t: truncated(project(v, t, dims=8), 9), r"dims must lie in 1\.\.8"),
        (lambda v, t: truncated(project(v, t, dims=8), 0), r"dims must lie in 1\.\.8"),
    ],
)
def test_what_cannot_be_done_is_refused(variant, texts, method, words):
    with pytest.raises(ValueError, match=words):
        method(variant, texts)
