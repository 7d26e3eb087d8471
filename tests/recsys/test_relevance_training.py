from dataclasses import replace

import numpy as np
import pytest

from recsys.metrics.slate import slate_metrics
from recsys.relevance import RelevanceHead
from recsys.relevance_examples import Examples
from recsys.relevance_training import fit_head
from recsys.relevance_weights import HeadConfig
from recsys.requests import HistoryBatch, Requests

ITEMS, TEXT_DIM, EVENTS, SLATE = 300, 24, 8, 10
WEIGHTS = np.ones(2, np.float32)
CONFIG = HeadConfig(embedding_dim=16, hidden_dim=8, epochs=6, batch_size=64, learning_rate=1e-2, holdout=0.2)


class World:
    """Clicks follow the text similarity to the history events that count, and nothing else."""

    def __init__(self, counts, requests=1200, seed=0, examination=0.0, best_first=False):
        rng = np.random.default_rng(seed)
        vectors = rng.normal(size=(ITEMS, TEXT_DIM)).astype(np.float32)
        self.embeddings = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        history_items = rng.integers(0, ITEMS, (requests, EVENTS)).astype(np.int32)
        types = rng.integers(0, 2, (requests, EVENTS)).astype(np.int32)
        age = np.sort(rng.exponential(5 * 86_400.0, (requests, EVENTS)), axis=1)[:, ::-1]
        share = counts(types, age).astype(np.float32)
        taste = np.einsum("re,red->rd", share, self.embeddings[history_items])
        taste /= np.maximum(share.sum(1, keepdims=True), 1.0)
        items = rng.integers(0, ITEMS, (requests, SLATE)).astype(np.int32)
        if best_first:
            likely = np.einsum("rcd,rd->rc", self.embeddings[items], taste)
            items = np.take_along_axis(items, np.argsort(-likely, axis=1), axis=1)
        self.truth = 8.0 * np.einsum("rcd,rd->rc", self.embeddings[items], taste) - 1.5
        position = np.tile(np.arange(1, SLATE + 1, dtype=np.int32), requests)
        logit = self.truth.ravel() - examination * np.log(position)
        label = (rng.random(requests * SLATE) < 1 / (1 + np.exp(-logit))).astype(np.float32)
        offsets = np.arange(requests + 1, dtype=np.int64) * SLATE
        made = Requests.of(
            np.arange(requests), np.arange(requests) * 60.0, np.zeros(requests), (offsets, items.ravel())
        )
        self.requests = replace(made.labelled(label), position=position)
        self.history = HistoryBatch(
            np.arange(requests + 1, dtype=np.int64) * EVENTS,
            history_items.ravel(),
            types.ravel(),
            age.ravel().copy(),
        )

    @property
    def examples(self):
        return Examples(self.requests, self.ones)

    @property
    def ones(self):
        return np.ones(self.requests.rows, np.float32)

    def fit(self, config=CONFIG, history=None):
        return fit_head(self.examples, history or self.history, self.embeddings, WEIGHTS, config)

    def auc(self, head, history=None):
        """Mean AUC of telling the truly likelier half of a slate from the other half."""
        better = (self.truth > np.median(self.truth, axis=1, keepdims=True)).ravel()
        logits = head.logits(self.requests, history or self.history, head.project(self.embeddings))
        values = slate_metrics(logits, better, self.requests.offsets)["auc"]
        return float(np.nanmean(values))


def newest_three(types, age):
    return np.arange(EVENTS) >= EVENTS - 3 + np.zeros_like(types)


def of_type_one(types, age):
    return types == 1


@pytest.fixture(scope="module")
def recent_world():
    return World(newest_three)


@pytest.fixture(scope="module")
def recent_fit(recent_world):
    return recent_world.fit()


def test_head_learns_that_only_recent_history_counts(recent_world, recent_fit):
    head, report = recent_fit
    fresh = World(newest_three, requests=400, seed=0)
    untrained = RelevanceHead.untrained(recent_world.embeddings, WEIGHTS, CONFIG)
    assert fresh.auc(head) > 0.88
    assert fresh.auc(head) > fresh.auc(untrained) + 0.1
    assert report.auc > report.auc_untrained
    assert report.best_epoch > 0
    assert min(report.holdout_loss) == report.holdout_loss[report.best_epoch]


def test_probabilities_are_calibrated(recent_fit):
    _, report = recent_fit
    assert report.ece < 0.05
    assert report.ece <= report.ece_raw + 0.01
    assert report.metrics()["ece"] == report.ece
    assert report.holdout_rows == 240 * SLATE


def test_event_types_are_an_input():
    world = World(of_type_one)
    blind = replace(world.history, type_index=np.zeros_like(world.history.type_index))
    seeing_head, _ = world.fit()
    blind_head, _ = world.fit(history=blind)
    assert world.auc(seeing_head) > world.auc(blind_head, blind) + 0.03


def test_position_is_explained_away():
    """Where the best stand first, what is seen and what is liked differ; the head learns what is liked."""
    world = World(newest_three, examination=1.5, best_first=True)
    blind = Examples(replace(world.requests, position=np.zeros_like(world.requests.position)), world.ones)
    blind_head, _ = fit_head(blind, world.history, world.embeddings, WEIGHTS, CONFIG)
    head, _ = world.fit()
    assert head.weights.dense[:4].sum() < blind_head.weights.dense[:4].sum()
    assert world.auc(head) > 0.8


def test_same_seed_same_bytes(recent_world, recent_fit):
    again, report = recent_world.fit()
    assert again.to_files() == recent_fit[0].to_files()
    assert replace(report, seconds=0.0) == replace(recent_fit[1], seconds=0.0)
    other, _ = recent_world.fit(replace(CONFIG, seed=1))
    assert other.to_files() != again.to_files()


def test_weights_do_not_depend_on_later_labels(recent_world):
    """What is held out steers when to stop and the calibration, never a gradient."""
    once = replace(CONFIG, epochs=1)
    last = recent_world.requests.label.copy()
    last[-100 * SLATE :] = 1 - last[-100 * SLATE :]
    changed = Examples(recent_world.requests.labelled(last), np.ones(len(last), np.float32))
    one, _ = recent_world.fit(once)
    two, report = fit_head(changed, recent_world.history, recent_world.embeddings, WEIGHTS, once)
    assert report.train_loss == recent_world.fit(once)[1].train_loss
    if report.best_epoch == 1:
        assert all(np.array_equal(a, two.weights.arrays()[n]) for n, a in one.weights.arrays().items())


def test_a_row_without_weight_teaches_nothing(recent_world):
    once = replace(CONFIG, epochs=1)
    label = recent_world.requests.label.copy()
    weight = np.ones(len(label), np.float32)
    weight[::3] = 0.0
    flipped = label.copy()
    flipped[::3][: len(label) // 4] = 1 - flipped[::3][: len(label) // 4]
    losses = [
        fit_head(
            Examples(recent_world.requests.labelled(values), weight),
            recent_world.history,
            recent_world.embeddings,
            WEIGHTS,
            once,
        )[1].train_loss
        for values in (label, flipped)
    ]
    assert losses[0] == losses[1]


def test_noise_leaves_the_ranking_by_text_similarity():
    world = World(newest_three, requests=200)
    kept = []
    for seed in range(6):
        noise = (np.random.default_rng(seed).random(world.requests.rows) < 0.3).astype(np.float32)
        examples = Examples(world.requests.labelled(noise), world.ones)
        _, report = fit_head(examples, world.history, world.embeddings, WEIGHTS, CONFIG)
        kept.append(report.best_epoch == 0)
    assert np.mean(kept) > 0.6


@pytest.mark.parametrize("requests", [0, 1, 30])
def test_tiny_logs_give_the_untrained_head(requests):
    world = World(newest_three)
    few = np.arange(requests)
    head, report = fit_head(
        world.examples.take(few), world.history.take(few), world.embeddings, WEIGHTS, CONFIG
    )
    assert report.best_epoch == 0
    assert report.train_loss == ()
    scores = head.score(world.requests, world.history, head.project(world.embeddings))
    assert ((scores > 0) & (scores < 1)).all()


def test_slates_wider_than_a_piece_train_like_any_other():
    world = World(newest_three, requests=60)
    wide = np.array([0, 10 * SLATE, 20 * SLATE, 25 * SLATE, 40 * SLATE, 60 * SLATE], np.int64)
    some = np.array([9, 19, 24, 39, 59])
    requests = replace(
        world.requests.take(some),
        **{name: getattr(world.requests, name) for name in ("item_index", "source", "label", "position")},
        offsets=wide,
    )
    examples = Examples(requests, np.ones(requests.rows, np.float32))
    config = replace(CONFIG, holdout=0.4, epochs=1)
    _, report = fit_head(examples, world.history.take(some), world.embeddings, WEIGHTS, config)
    assert len(report.train_loss) == 1
    assert np.isfinite(report.train_loss).all()
