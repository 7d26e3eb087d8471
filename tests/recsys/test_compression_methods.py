"""Each method on the tiny teacher: what must stay, what must shrink, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.compression.factorisation import factorise_words
from recsys.compression.pruning import measure_importance, prune
from recsys.compression.sharing import share_layers
from recsys.compression.variant import Variant
from recsys.compression.vocabulary import token_counts, trim_vocabulary
from recsys.text.quantization import build_encoder, mean_cosine
from recsys.text.student import DistillationConfig, Lessons, imitate
from recsys.text.torch_runtime import TorchEncoder
from recsys.text.transformer import TextTransformer


@pytest.fixture(scope="module")
def variant(tiny_teacher) -> Variant:
    return Variant(tiny_teacher.transformer, tiny_teacher.tokenizer)


@pytest.fixture(scope="module")
def texts(made_up_texts) -> list[str]:
    return made_up_texts[:120]


def encoded(variant: Variant, texts: list[str]) -> np.ndarray:
    return TorchEncoder(variant.transformer, variant.tokenizer).encode(texts)


def altered(variant: Variant, change) -> Variant:
    """A copy whose weights `change` has been at."""
    copy = TextTransformer(variant.transformer.architecture)
    copy.load_state_dict(variant.transformer.state_dict())
    with torch.no_grad():
        change(copy)
    return replace(variant, transformer=copy.eval())


def test_every_method_gives_a_smaller_model_that_reloads_and_compiles(variant, texts):
    made = [
        prune(variant, texts, heads=2, feed_forward=32),
        prune(variant, texts, heads=0),
        prune(variant, texts, feed_forward=0, refit=False),
        factorise_words(variant, texts, rank=8),
        share_layers(variant, group=2),
        share_layers(variant, group=3),
        trim_vocabulary(variant, texts[:5]),
    ]
    for smaller in made:
        assert smaller.transformer.parameter_count < variant.transformer.parameter_count, smaller.recipe
        again = TextTransformer.from_files(smaller.transformer.to_files())
        expected = encoded(smaller, texts)
        np.testing.assert_array_equal(encoded(replace(smaller, transformer=again), texts), expected)
        compiled = build_encoder(smaller.transformer, smaller.tokenizer, [], precision="fp32")
        np.testing.assert_allclose(compiled.encode(texts), expected, atol=1e-5, err_msg=str(smaller.recipe))


def test_methods_follow_each_other_and_the_recipe_tells(variant, texts):
    made = prune(
        share_layers(factorise_words(trim_vocabulary(variant, texts), texts, rank=8)), texts, heads=3
    )
    assert [step.split("-")[0] for step in made.recipe] == ["vocabulary", "word", "shared", "pruned"]
    assert made.transformer.architecture.depth == variant.transformer.architecture.depth
    assert len(made.transformer.layers) == 2
    assert np.isfinite(encoded(made, texts)).all()


def test_trimming_leaves_texts_of_the_corpus_as_they_are_to_the_bit(variant, texts):
    trimmed = trim_vocabulary(variant, texts)
    assert trimmed.transformer.architecture.vocabulary == trimmed.tokenizer.vocabulary
    np.testing.assert_array_equal(encoded(trimmed, texts), encoded(variant, texts))


def test_unseen_words_are_spelled_and_not_unknown(variant, texts):
    trimmed = trim_vocabulary(variant, texts[:1])
    assert trimmed.tokenizer.vocabulary < variant.tokenizer.vocabulary
    unknown = 1
    for old, new in zip(variant.tokenizer.encode(texts), trimmed.tokenizer.encode(texts), strict=True):
        assert new.count(unknown) == old.count(unknown)
        assert len(new) >= len(old)


def test_a_piece_that_is_rare_is_spelled_by_shorter_ones(variant, texts):
    all_kept, frequent = (trim_vocabulary(variant, texts, least_count=n) for n in (1, 40))
    assert frequent.tokenizer.vocabulary < all_kept.tokenizer.vocabulary


def test_a_head_whose_output_is_never_read_is_cut_first_and_nothing_changes(variant, texts):
    head_dim = variant.transformer.architecture.head_dim

    def silence(copy: TextTransformer) -> None:
        for number, layer in enumerate(copy.weighted_layers):
            layer.attention_out.weight[:, number % 4 * head_dim : (number % 4 + 1) * head_dim] = 0.0
            layer.contract.weight[:, [number, 40 + number]] = 0.0

    silent = altered(variant, silence)
    importance = measure_importance(silent, texts)
    for number, (heads, neurons) in enumerate(zip(importance.heads, importance.neurons, strict=True)):
        assert np.flatnonzero(heads == 0).tolist() == [number % 4]
        assert np.flatnonzero(neurons == 0).tolist() == [number, 40 + number]
    cut = prune(silent, texts, heads=3, feed_forward=62, refit=False)
    np.testing.assert_allclose(encoded(cut, texts), encoded(silent, texts), atol=1e-6)


def test_importance_is_the_effect_of_a_nudge(variant, texts):
    """Along random directions, so equal to the squared length of the change on average."""
    nudge = 0.05
    importance = np.mean([measure_importance(variant, texts, seed=n).heads[1] for n in range(5)], axis=0)
    before, effects = encoded(variant, texts), []
    head_dim = variant.transformer.architecture.head_dim
    for head in range(4):
        columns = slice(head * head_dim, (head + 1) * head_dim)

        def close(copy: TextTransformer, columns: slice = columns) -> None:
            copy.weighted_layers[1].attention_out.weight[:, columns] *= 1.0 - nudge

        change = (encoded(altered(variant, close), texts) - before) / nudge
        effects.append(np.square(change).sum(1).mean())
    np.testing.assert_allclose(importance, effects, rtol=0.2)


def test_fitting_again_brings_the_pruned_model_closer(variant, texts):
    reference = TorchEncoder(variant.transformer, variant.tokenizer)
    close, far = (
        mean_cosine(TorchEncoder(made.transformer, made.tokenizer), reference, texts)
        for made in (prune(variant, texts, feed_forward=24, refit=refit) for refit in (True, False))
    )
    assert close > far


def test_weights_by_use_keep_frequent_words_closer(variant, texts):
    counts = token_counts(variant, texts)
    thin = factorise_words(variant, texts, rank=6)
    table = variant.transformer.words.weight.detach().numpy()
    near = (thin.transformer.word_map(thin.transformer.words.weight)).detach().numpy()
    error = np.square(near - table).sum(1)
    often, seldom = counts > np.quantile(counts, 0.9), counts <= 1
    assert error[often].mean() < error[seldom].mean()
    left, values, right = np.linalg.svd(table, full_matrices=False)
    plain = np.square((left[:, :6] * values[:6]) @ right[:6] - table).sum(1)
    weight = np.maximum(counts, 1)
    assert (weight * error).sum() < (weight * plain).sum()


def test_shared_layers_are_the_means_of_their_groups(variant):
    shared = share_layers(variant, group=3).transformer
    assert shared.architecture.order == (0, 0, 0, 1)
    whole = variant.transformer.weighted_layers
    mean = torch.stack([whole[n].expand.weight for n in range(3)]).mean(0)
    torch.testing.assert_close(shared.weighted_layers[0].expand.weight, mean)
    torch.testing.assert_close(shared.weighted_layers[1].expand.weight, whole[3].expand.weight)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (lambda v, t: prune(v, t, heads=5), r"heads must lie in 0\.\.4"),
        (lambda v, t: prune(v, t, feed_forward=-1), r"feed_forward must lie in 0\.\.64"),
        (lambda v, t: measure_importance(v, ["", " "]), "none has a token"),
        (lambda v, t: factorise_words(v, t, rank=32), r"rank must lie in 1\.\.31"),
        (lambda v, t: factorise_words(factorise_words(v, t, rank=8), t, rank=4), "already"),
        (lambda v, t: share_layers(v, group=1), "2 or more"),
        (lambda v, t: share_layers(share_layers(v)), "one shape"),
        (lambda v, t: trim_vocabulary(v, t, least_count=0), "1 or more"),
    ],
)
def test_what_cannot_be_done_is_refused(variant, texts, method, words):
    with pytest.raises(ValueError, match=words):
        method(variant, texts)


def test_a_pruned_model_recovers_towards_the_teacher(variant, texts, tiny_teacher, made_up_texts):
    reference = TorchEncoder(tiny_teacher.transformer, tiny_teacher.tokenizer)
    pruned = prune(
        trim_vocabulary(factorise_words(variant, texts, rank=8), texts), texts, heads=2, feed_forward=16
    )
    config = DistillationConfig(max_epochs=2, learning_rate=2e-3, warmup_steps=5)

    def closeness() -> float:
        return mean_cosine(TorchEncoder(pruned.transformer, pruned.tokenizer), reference, made_up_texts)

    before, words = closeness(), pruned.transformer.words.weight.clone()
    lessons = Lessons.of(tiny_teacher, made_up_texts, config)
    report = imitate(pruned.transformer, pruned.tokenizer, lessons, config)
    assert closeness() > before + 0.02
    assert report.holdout_cosine > report.initial_cosine
    assert report.layers == 4
    torch.testing.assert_close(pruned.transformer.words.weight, words, rtol=0, atol=0)
