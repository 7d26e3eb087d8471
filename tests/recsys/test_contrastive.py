"""The contrastive objective: its loss by hand, and what it does to a tiny encoder."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys.events import lengths_to_offsets
from recsys.next_items import NextItems
from recsys.requests import HistoryBatch, Requests
from recsys.text.contrastive import _NextItem, contrast, sampled_softmax_loss
from recsys.text.settings import ContrastConfig, FinetuneConfig
from recsys.text.text_in_training import EncodedTexts, TextInTraining
from recsys.text.torch_runtime import TorchEncoder

CONFIG = FinetuneConfig(
    objective="contrastive",
    max_steps=40,
    evaluate_every=20,
    learning_rate=2e-3,
    lora_learning_rate=1e-2,
    anchor=0.1,
    holdout=0.2,
    contrast=ContrastConfig(batch_size=32, hard_negatives=2, history_limit=3, holdout_texts=200),
)
PAIRS, EVENTS = 400, 3
NEVER_TAKEN = 4
"""Every text whose number is this modulo 5 stands in no pair."""


def made_pairs(own, negatives):
    """Pairs whose last column is what came next; the events of a history weigh 1, .5, .25 backwards."""
    n, events = own.shape[0], own.shape[1] - 1
    offsets = np.arange(n + 1, dtype=np.int64)
    requests = Requests.of(
        np.arange(n), np.arange(n, dtype=np.float64), np.zeros(n), (offsets, own[:, -1].astype(np.int32))
    )
    history = HistoryBatch(
        lengths_to_offsets(np.full(n, events)),
        own[:, :-1].ravel().astype(np.int32),
        np.zeros(n * events, np.int32),
        np.full(n * events, 3600.0),
    )
    recency = np.tile(0.5 ** np.arange(events)[::-1], n)
    return NextItems(requests, history, recency, negatives.astype(np.int32))


@pytest.fixture(scope="module")
def catalogue(tiny_teacher, made_up_texts):
    encoder = TorchEncoder(tiny_teacher.transformer, tiny_teacher.tokenizer)
    texts = [*made_up_texts, ""]  # the last item has no word
    return EncodedTexts(texts, encoder.encode(texts))


@pytest.fixture(scope="module")
def noun(made_up_texts):
    """There are eight nouns, six texts apart; who takes one takes more of the same."""
    return np.arange(len(made_up_texts)) // 6 % 8


@pytest.fixture(scope="module")
def pairs(noun):
    rng = np.random.default_rng(0)
    taken = np.flatnonzero(np.arange(len(noun)) % 5 != NEVER_TAKEN)
    taste = rng.integers(0, 8, PAIRS)
    own = np.stack([rng.choice(taken[noun[taken] == t], EVENTS + 1, replace=False) for t in taste])
    others = np.stack([rng.choice(taken[noun[taken] != t], 4, replace=False) for t in taste])
    return made_pairs(own, others)


def tune(tiny_teacher, catalogue, pairs, config):
    return contrast(tiny_teacher.transformer, tiny_teacher.tokenizer, catalogue, pairs, config)


def test_sampled_softmax_by_hand():
    scores = torch.tensor([[2.0, 1.0, 0.0, 5.0]])
    expected = torch.tensor([[1.0, 0.25, 0.5, 1.0]])
    usable = torch.tensor([[True, True, True, False]])
    total = math.exp(2) + math.exp(1) / 0.25 + math.exp(0) / 0.5
    loss = sampled_softmax_loss(scores, expected, usable)
    assert float(loss) == pytest.approx(-math.log(math.exp(2) / total), abs=1e-6)


def by_hand(objective, pairs, vectors, log_q):
    """The loss of one batch of all pairs, every mined negative drawn, in plain loops."""
    n, temperature = len(pairs), objective.config.temperature
    chance = {item: float(np.mean(pairs.item_index == item)) for item in pairs.item_index.tolist()}
    losses = []
    for i in range(n):
        rows = slice(pairs.history.offsets[i], pairs.history.offsets[i + 1])
        past = pairs.history.item_index[rows]
        mean = (pairs.recency[rows][:, None] * vectors[past]).sum(0)
        profile = (mean / np.linalg.norm(mean) + vectors[past[-1]]) / 2.0
        own, mined = pairs.item_index[i], pairs.negatives[i].tolist()
        positive = math.exp(profile @ vectors[own] / temperature)
        total = positive + sum(math.exp(profile @ vectors[item] / temperature) for item in mined)
        for j in range(n):
            other = int(pairs.item_index[j])
            if other != own and other not in past and other not in mined:
                count = (n - 1) * chance[other] if log_q else 1.0
                total += math.exp(profile @ vectors[other] / temperature) / count
        losses.append(-math.log(positive / total))
    return float(np.mean(losses))


@pytest.mark.parametrize("log_q", [True, False])
def test_a_step_has_the_loss_that_is_computed_by_hand(log_q, tiny_teacher, catalogue):
    own = np.array([[0, 1, 2], [3, 4, 5], [2, 6, 5], [7, 8, 9], [10, 11, 12]])  # 5 twice, 2 was taken before
    pairs = made_pairs(own, np.array([[20, 9], [21, 22], [23, 24], [25, 26], [27, 5]]))
    settings = replace(CONFIG.contrast, hard_negatives=2, log_q=log_q, temperature=0.2)
    config = replace(CONFIG, max_texts=0, contrast=settings)  # nothing encoded anew: the bank as it is
    text = TextInTraining(tiny_teacher.transformer, tiny_teacher.tokenizer, catalogue, config)
    objective = _NextItem(text, pairs, pairs)
    loss = objective.loss(np.arange(5), np.random.default_rng(0))
    assert float(loss) == pytest.approx(by_hand(objective, pairs, catalogue.embeddings, log_q), abs=1e-5)


def test_the_share_of_an_item_is_its_frequency_among_the_positives(tiny_teacher, catalogue, pairs):
    text = TextInTraining(tiny_teacher.transformer, tiny_teacher.tokenizer, catalogue, CONFIG)
    three_times = pairs.take(np.array([0, 0, 0, 1]))
    share = _NextItem(text, three_times, three_times).share
    assert share[three_times.item_index].tolist() == [0.75, 0.75, 0.75, 0.25]
    assert share.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_co_consumed_items_come_together_and_so_do_items_never_seen(
    mode, tiny_teacher, catalogue, pairs, noun
):
    tuned, report = tune(tiny_teacher, catalogue, pairs, replace(CONFIG, mode=mode))
    assert report.improved, report
    assert report.loss < report.loss_before
    assert report.auc > report.auc_before
    assert (report.objective, report.mode) == ("contrastive", mode)
    assert 0 < report.parameters < tuned.parameter_count
    assert 20 <= report.holdout_rows <= 80
    encoder = TorchEncoder(tuned, tiny_teacher.tokenizer)
    after = encoder.encode(catalogue.texts[:-1])
    never = np.flatnonzero(np.arange(len(noun)) % 5 == NEVER_TAKEN)
    for items in (np.arange(len(noun)), never):
        contrasts = [contrast_of(made[items], noun[items]) for made in (catalogue.embeddings[:-1], after)]
        assert contrasts[1] > contrasts[0] + 0.1


def contrast_of(embeddings, group):
    """Mean cosine within a group less that between groups."""
    cosine = embeddings @ embeddings.T
    same = group[:, None] == group[None, :]
    return float(cosine[same & ~np.eye(len(group), dtype=bool)].mean() - cosine[~same].mean())


def test_same_seed_same_bytes_and_the_student_stays(tiny_teacher, catalogue, pairs):
    before = {name: value.clone() for name, value in tiny_teacher.transformer.state_dict().items()}
    config = replace(CONFIG, mode="lora", max_steps=20, evaluate_every=10)
    one, _ = tune(tiny_teacher, catalogue, pairs, config)
    two, _ = tune(tiny_teacher, catalogue, pairs, config)
    assert one is not tiny_teacher.transformer
    assert one.to_files() == two.to_files()
    after = tiny_teacher.transformer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_frozen_or_too_little_gives_the_student_back(tiny_teacher, catalogue, pairs):
    cases = [
        (pairs, replace(CONFIG, mode="frozen"), "the encoder is frozen"),
        (pairs.take(np.arange(3)), CONFIG, "too few histories with a next item"),
        (pairs.take(np.arange(0)), CONFIG, "too few histories with a next item"),
    ]
    for some, config, reason in cases:
        tuned, report = tune(tiny_teacher, catalogue, some, config)
        assert tuned is tiny_teacher.transformer
        assert (report.steps, report.improved, report.reason) == (0, False, reason)


def test_what_does_not_help_is_not_kept(tiny_teacher, catalogue, pairs):
    config = replace(CONFIG, max_steps=4, evaluate_every=2, min_gain=100.0)
    tuned, report = tune(tiny_teacher, catalogue, pairs, config)
    assert tuned is tiny_teacher.transformer
    assert not report.improved
    assert report.loss == report.loss_before
    assert report.drift == 0.0


def test_items_without_a_word_do_no_harm(tiny_teacher, catalogue, pairs):
    wordless = len(catalogue.texts) - 1
    own = np.column_stack([pairs.history.item_index.reshape(-1, EVENTS), pairs.item_index])
    own[::4, 0] = wordless
    own[1::4, -1] = wordless
    negatives = pairs.negatives.copy()
    negatives[:, 0] = wordless
    config = replace(CONFIG, max_steps=4, evaluate_every=2, min_gain=-100.0)
    _, report = tune(tiny_teacher, catalogue, made_pairs(own, negatives), config)
    assert np.isfinite([report.loss, report.auc, report.drift]).all()
