"""From a recipe to an encoder: every method runs, beginnings are shared, batch mates do not matter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from recsys.compression import build as building
from recsys.compression.build import Source, build, fingerprint
from recsys.compression.receipt import closeness
from recsys.compression.recipe import METHODS, parse_recipe
from recsys.compression.variant import Variant
from recsys.text.loading import load_encoder
from recsys.text.settings import DistillationConfig
from recsys.text.student import Lessons
from recsys.text.torch_runtime import TorchEncoder
from recsys.text.transformer import TextTransformer

RECIPES = [
    "fp32",
    "bf16",
    "int8",
    "layers=1,int8",
    "heads=2,neurons=24,int8",
    "gradual-neurons=24,int8",
    "gradual-heads=2,int8",
    "modules=1,int8",
    "magnitude=0.5,int8",
    "vocabulary=1,int8",
    "word-rank=8,fp32",
    "shared=2,int8",
    "dims=16,int8",
    "exit=0.5,int8",
    "layers=1,int8-aware,int8",
    "vocabulary=1,pairs=40,static",
    "static",
]


@pytest.fixture(scope="module")
def source(tiny_teacher, made_up_texts, tmp_path_factory) -> Source:
    recovery = DistillationConfig(max_epochs=1, batch_size=32, similarity_weight=0.2)
    embeddings = TorchEncoder(tiny_teacher.transformer, tiny_teacher.tokenizer).encode(made_up_texts)
    return Source(
        Variant(tiny_teacher.transformer, tiny_teacher.tokenizer),
        made_up_texts,
        embeddings,
        Lessons.of(tiny_teacher, made_up_texts, recovery),
        recovery,
        tmp_path_factory.mktemp("networks"),
    )


def test_the_recipes_here_use_every_method():
    assert {step.method for text in RECIPES for step in parse_recipe(text).steps} == set(METHODS)


@pytest.mark.parametrize("text", RECIPES)
def test_a_recipe_gives_an_encoder_that_loads_and_does_not_look_at_batch_mates(source, text):
    built = build(parse_recipe(text), source)
    texts = source.texts[:64]
    together = built.encoder.encode(texts)
    assert closeness(together, source.embeddings[:64]).cosine > 0.3
    shuffled = np.random.default_rng(0).permutation(64)
    mixed = built.encoder.encode([texts[number] for number in shuffled])
    close = 1e-3 if "bf16" in text else 1e-6  # a last bit of fp32 may turn one of bf16
    np.testing.assert_allclose(mixed, together[shuffled], atol=close)
    alone = np.concatenate([built.encoder.encode([one]) for one in texts[:12]])
    np.testing.assert_allclose(alone, together[:12], atol=close)
    reloaded = load_encoder(built.encoder.to_files())
    np.testing.assert_array_equal(reloaded.encode(texts), together)
    assert reloaded.encoder_id == built.encoder.encoder_id
    assert (built.variant is None) == ("static" in text)


def test_recipes_with_a_common_beginning_share_it(source, monkeypatch):
    build(parse_recipe("layers=1,int8"), source)
    made = []
    honest = building.apply
    monkeypatch.setattr(building, "apply", lambda step, *rest: made.append(str(step)) or honest(step, *rest))
    build(parse_recipe("layers=1,vocabulary=1,int8"), source)
    build(parse_recipe("layers=1,vocabulary=1,bf16"), source)
    assert made == ["vocabulary=1"]


def test_whatever_decides_a_network_is_in_its_fingerprint(source):
    steps = parse_recipe("layers=1,int8").steps
    shallower = TextTransformer.from_teacher(source.root.transformer, 1)
    others = [
        replace(source, texts=[*source.texts, "one more"]),
        replace(source, recovery=replace(source.recovery, seed=1)),
        replace(source, root=Variant(shallower, source.root.tokenizer)),
    ]
    found = {fingerprint(each, steps) for each in (source, *others)}
    assert len(found) == 4
    assert fingerprint(source, parse_recipe("layers=2,int8").steps) not in found
