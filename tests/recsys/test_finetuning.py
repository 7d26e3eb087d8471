import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.events import lengths_to_offsets
from recsys.relevance_examples import Examples
from recsys.relevance_weights import HeadConfig
from recsys.requests import HistoryBatch, Requests
from recsys.text.adapters import equip, merged
from recsys.text.finetuning import Behaviour, finetune
from recsys.text.settings import FinetuneConfig
from recsys.text.text_in_training import EncodedTexts
from recsys.text.torch_runtime import TorchEncoder

HEAD = HeadConfig(embedding_dim=8, hidden_dim=4, epochs=2, batch_size=64)
CONFIG = FinetuneConfig(
    max_steps=60,
    evaluate_every=20,
    learning_rate=2e-3,
    lora_learning_rate=1e-2,
    ia3_learning_rate=1e-2,
    anchor=0.1,
    head=HEAD,
    holdout=0.2,
)
REQUESTS, EVENTS, SLATE = 400, 4, 6
NO_WORDS = torch.zeros(0, dtype=torch.int64)


@pytest.fixture(scope="module")
def catalogue(tiny_teacher, made_up_texts):
    encoder = TorchEncoder(tiny_teacher.transformer, tiny_teacher.tokenizer)
    texts = [*made_up_texts, ""]  # the last item has no word
    return EncodedTexts(texts, encoder.encode(texts))


@pytest.fixture(scope="module")
def behaviour(made_up_texts):
    """Users like one noun each (there are eight, six texts apart): a click is on an item with that noun."""
    rng = np.random.default_rng(0)
    noun = np.arange(len(made_up_texts)) // 6 % 8
    taste = rng.integers(0, 8, REQUESTS)
    own = np.array([rng.choice(np.flatnonzero(noun == t), EVENTS + 1, replace=False) for t in taste])
    items = rng.integers(0, len(made_up_texts), (REQUESTS, SLATE)).astype(np.int32)
    items[:, 0] = own[:, -1]
    items[:, -1] = len(made_up_texts)
    label = (np.append(noun, -1)[items] == taste[:, None]).astype(np.float32)
    offsets = lengths_to_offsets(np.full(REQUESTS, SLATE))
    made = Requests.of(np.arange(REQUESTS), np.arange(REQUESTS), np.zeros(REQUESTS), (offsets, items.ravel()))
    past = HistoryBatch(
        lengths_to_offsets(np.full(REQUESTS, EVENTS)),
        own[:, :-1].ravel().astype(np.int32),
        np.zeros(REQUESTS * EVENTS, np.int32),
        np.full(REQUESTS * EVENTS, 3600.0),
    )
    examples = Examples(made.labelled(label.ravel()), np.ones(items.size, np.float32))
    return Behaviour(examples, past, np.ones(1, np.float32))


def tune(tiny_teacher, catalogue, behaviour, config):
    return finetune(tiny_teacher.transformer, tiny_teacher.tokenizer, catalogue, behaviour, config)


@pytest.mark.parametrize("mode", ["full", "lora", "ia3"])
def test_fine_tuning_lowers_the_held_out_loss_and_leaves_the_student_alone(
    mode, tiny_teacher, catalogue, behaviour
):
    before = copy.deepcopy(tiny_teacher.transformer.state_dict())
    steps = []
    tuned, report = finetune(
        tiny_teacher.transformer,
        tiny_teacher.tokenizer,
        catalogue,
        behaviour,
        replace(CONFIG, mode=mode),
        progress=lambda step, of: steps.append((step, of)),
    )
    assert report.improved, report
    assert report.loss < 0.95 * report.loss_before
    assert report.auc >= report.auc_before - 0.01  # which is 1 in this small world
    assert 0 < report.drift < 0.9
    assert 0 < report.parameters < tuned.parameter_count
    assert report.cpu_seconds > 0
    assert steps == [(step, 60) for step in range(1, report.steps + 1)]
    after = tiny_teacher.transformer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert set(tuned.state_dict()) == set(before)
    assert torch.equal(tuned.words.weight, tiny_teacher.transformer.words.weight)
    encoded = TorchEncoder(tuned, tiny_teacher.tokenizer).encode([*catalogue.texts[:3], ""])
    np.testing.assert_allclose(np.linalg.norm(encoded, axis=1), [1, 1, 1, 0], atol=1e-5)


def test_lora_merges_exactly(tiny_teacher, made_up_texts):
    model = copy.deepcopy(tiny_teacher.transformer)
    model, weights = equip(model, FinetuneConfig(mode="lora", lora_rank=4), NO_WORDS)
    with torch.no_grad():
        for weight in weights:
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    adapted = TorchEncoder(model, tiny_teacher.tokenizer).encode(made_up_texts[:50])
    plain = merged(model)
    assert not [name for name in plain.state_dict() if "lora" in name]
    again = TorchEncoder(plain, tiny_teacher.tokenizer).encode(made_up_texts[:50])
    original = TorchEncoder(tiny_teacher.transformer, tiny_teacher.tokenizer).encode(made_up_texts[:50])
    np.testing.assert_allclose(again, adapted, atol=1e-5)
    assert np.abs(again - original).max() > 1e-3


def test_lora_trains_few_weights_and_full_all_layers(tiny_teacher):
    counts = {}
    for mode in ("full", "lora"):
        model = copy.deepcopy(tiny_teacher.transformer)
        counts[mode] = sum(weight.numel() for weight in equip(model, FinetuneConfig(mode=mode), NO_WORDS)[1])
        assert not model.words.weight.requires_grad
    layers = sum(weight.numel() for weight in tiny_teacher.transformer.layers.parameters())
    assert counts["full"] == layers
    assert counts["lora"] == 4 * 2 * 2 * 8 * 32  # layers, query and value, two factors, rank, width


def test_frozen_gives_the_student_back(tiny_teacher, catalogue, behaviour):
    tuned, report = tune(tiny_teacher, catalogue, behaviour, replace(CONFIG, mode="frozen"))
    assert tuned is tiny_teacher.transformer
    assert (report.steps, report.improved, report.drift) == (0, False, 0.0)


def test_what_does_not_help_is_not_kept(tiny_teacher, catalogue, behaviour):
    rng = np.random.default_rng(0)
    noise = (rng.random(behaviour.examples.requests.rows) < 0.3).astype(np.float32)
    examples = Examples(behaviour.examples.requests.labelled(noise), behaviour.examples.weight)
    config = replace(CONFIG, max_steps=20, evaluate_every=10, min_gain=0.01)
    tuned, report = tune(tiny_teacher, catalogue, replace(behaviour, examples=examples), config)
    assert tuned is tiny_teacher.transformer
    assert not report.improved
    assert report.loss == report.loss_before
    assert report.reason.endswith("too little")


def test_too_little_to_judge_by_gives_the_student_back(tiny_teacher, catalogue, behaviour):
    for requests in (0, 3):
        few = behaviour.take(np.arange(requests))
        tuned, report = tune(tiny_teacher, catalogue, few, CONFIG)
        assert tuned is tiny_teacher.transformer
        assert report.reason == "too few requests with clicks"


def test_same_seed_same_weights(tiny_teacher, catalogue, behaviour):
    config = replace(CONFIG, mode="lora", max_steps=20)
    one, _ = tune(tiny_teacher, catalogue, behaviour, config)
    two, _ = tune(tiny_teacher, catalogue, behaviour, config)
    assert one is not tiny_teacher.transformer
    assert one.to_files() == two.to_files()


def test_the_anchor_holds_embeddings_near_the_old_ones(tiny_teacher, catalogue, behaviour):
    drifts = [
        tune(tiny_teacher, catalogue, behaviour, replace(CONFIG, max_steps=30, anchor=a, min_gain=-1.0))[
            1
        ].drift
        for a in (0.0, 10.0)
    ]
    assert drifts[1] < drifts[0] / 2
