"""Pruning in rounds: the schedule by hand, one round against its two halves, and the budget."""

from __future__ import annotations

from dataclasses import replace

import pytest

from recsys.compression.gradual import prune_gradually, schedule
from recsys.compression.pruning import prune
from recsys.compression.variant import Variant
from recsys.text.quantization import mean_cosine
from recsys.text.settings import DistillationConfig
from recsys.text.student import Lessons, imitate
from recsys.text.torch_runtime import TorchEncoder

CONFIG = DistillationConfig(max_epochs=1, learning_rate=2e-3, warmup_steps=2)


@pytest.fixture(scope="module")
def variant(tiny_teacher) -> Variant:
    return Variant(tiny_teacher.transformer, tiny_teacher.tokenizer)


@pytest.fixture(scope="module")
def texts(made_up_texts) -> list[str]:
    return made_up_texts[:120]


@pytest.fixture(scope="module")
def lessons(tiny_teacher, texts) -> Lessons:
    return Lessons.of(tiny_teacher, texts, CONFIG)


@pytest.mark.parametrize(
    ("present", "wanted", "rounds", "kept"),
    [
        (64, 16, 3, [30, 18, 16]),  # 16 + 48 (8/27, 1/27, 0)
        (64, 0, 4, [27, 8, 1, 0]),  # 64 (27/64, 8/64, 1/64, 0)
        (12, 12, 2, [12, 12]),
        (12, 3, 1, [3]),
    ],
)
def test_schedule_is_cubic_and_ends_where_it_should(present, wanted, rounds, kept):
    assert schedule(present, wanted, rounds) == kept


def test_layers_end_narrow_under_one_step_of_the_recipe(variant, texts, lessons):
    files = variant.transformer.to_files()
    earlier = replace(variant, recipe=("before",))
    pruned = prune_gradually(earlier, texts, lessons, CONFIG, heads=0, feed_forward=8)
    assert {(shape.heads, shape.feed_forward) for shape in pruned.transformer.architecture.layers} == {(0, 8)}
    assert pruned.recipe == ("before", "pruned-gradually-0heads-8neurons")
    assert variant.transformer.to_files() == files
    reference = TorchEncoder(variant.transformer, variant.tokenizer)
    at_once = prune(variant, texts, heads=0, feed_forward=8)
    slow, fast = (
        mean_cosine(TorchEncoder(made.transformer, made.tokenizer), reference, texts)
        for made in (pruned, at_once)
    )
    assert slow > fast + 0.05


def test_one_round_is_pruning_and_then_recovery(variant, texts, lessons):
    gradual = prune_gradually(variant, texts, lessons, CONFIG, feed_forward=24, rounds=1, seed=3)
    expected = prune(variant, texts, feed_forward=24, seed=3)
    imitate(expected.transformer, expected.tokenizer, lessons, CONFIG)
    assert gradual.transformer.to_files() == expected.transformer.to_files()
    assert gradual.recipe == ("pruned-gradually-24neurons",)


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, max_epochs=9, max_tokens_seen=3_000)])
def test_all_rounds_together_spend_the_budget_of_one_recovery(variant, texts, lessons, config):
    seen: list[tuple[int, int]] = []
    prune_gradually(
        variant, texts, lessons, config, heads=3, rounds=2, progress=lambda *step: seen.append(step)
    )
    tokens = sum(map(len, variant.tokenizer.encode(lessons.texts)))
    batches = -(-len(lessons.texts) // config.batch_size)
    planned = min(config.max_epochs, config.max_tokens_seen / tokens) * batches
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, total in seen} == {len(seen)}
    assert planned <= len(seen) < planned + 2  # every round ends with a whole step


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ({}, "needs heads or feed_forward"),
        ({"heads": 2, "rounds": 0}, "one round at least"),
        ({"heads": 5}, r"heads must lie in 0\.\.4, not 5"),
        ({"feed_forward": -1}, r"feed_forward must lie in 0\.\.64, not -1"),
    ],
)
def test_what_cannot_be_done_is_refused(variant, texts, lessons, kept, words):
    with pytest.raises(ValueError, match=words):
        prune_gradually(variant, texts, lessons, CONFIG, **kept)
