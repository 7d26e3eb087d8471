"""Encoders judged in the full engine: the root against itself, swapped embeddings, and verdicts by hand."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipelines.config import Config, load_config
from pipelines.downstream import (
    Downstream,
    Judged,
    downstream,
    verdict,
    with_embeddings,
)
from pipelines.fitting import fit
from pipelines.validation import WindowConfig, rolling_windows, sampled_window
from recsys.dataset import Dataset
from recsys.dataset_folder import load
from recsys.protocols import split
from recsys.simulation import SimulationConfig, simulate

SETTINGS = [
    "collaborative.embedding_dim=16",
    "sequence.embedding_dim=16",
    "sequence.epochs=2",
    "head.epochs=2",
    "ranker.rounds=20",
    "ranker.min_data_in_leaf=20",
]


@contextmanager
def silent(_: str):
    yield lambda done, total: None


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("world")
    simulate(folder, SimulationConfig(users=200, items=120, days=6, seed=3))
    return load(folder)[0]


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(None, SETTINGS)


@pytest.fixture(scope="module", params=["time", "slate"])
def judged_window(world: Dataset, config: Config, request: pytest.FixtureRequest) -> Downstream:
    protocol = request.param
    window = rolling_windows(split(world, protocol).train, protocol, WindowConfig(windows=1))[0]
    vectors = np.random.default_rng(0).normal(size=(len(world.catalogue), 12)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    fitted = fit(window.train, window.visible, protocol, vectors, config, silent)
    return downstream(fitted.recommender, fitted.features, window, protocol, world, config, silent)


def test_the_root_is_its_own_equal(judged_window):
    again = judged_window.judge(
        with_embeddings(judged_window.models, judged_window.models.retriever.embeddings), silent
    )
    np.testing.assert_array_equal(again.values, judged_window.root.values)
    for mine, root in zip(again.effects, judged_window.root.effects, strict=True):
        np.testing.assert_array_equal(mine, root)
    found = verdict([judged_window], [again])
    assert (found.quality_ratio.mean, found.quality_ratio.low, found.quality_ratio.high) == (1.0, 1.0, 1.0)
    assert found.explanation_fidelity.mean == pytest.approx(1.0)
    assert found.fairness_gap.mean >= 0.0 or np.isnan(found.fairness_gap.mean)


def test_other_embeddings_reach_every_part_that_reads_text(judged_window):
    models = judged_window.models
    turned = np.roll(models.retriever.embeddings, 1, axis=0)
    swapped = with_embeddings(models, turned)
    assert swapped.retriever.sequence.embeddings is turned
    assert swapped.pairs["text"] is not models.pairs["text"]
    requests, state = judged_window.explained, judged_window.state
    reading = state.read(requests)
    assert (swapped.head_scores(requests, reading) != models.head_scores(requests, reading)).any()
    before = models.retriever.sequence.scores(requests, reading.history)
    after = swapped.retriever.sequence.scores(requests, reading.history)
    assert (np.nan_to_num(before) != np.nan_to_num(after)).any()
    worse = judged_window.judge(swapped, silent)
    assert (worse.values != judged_window.root.values).any()


def test_explained_requests_have_history_and_their_best_candidate(judged_window):
    explained, rows = judged_window.explained, judged_window.rows
    assert len(explained) == len(rows) == len(judged_window.root.effects) > 0
    assert (np.diff(explained.offsets) <= 20).all()
    scores = judged_window.models.score(explained, judged_window.state)
    assert np.isfinite(scores).all()
    assert all(len(effects) >= 3 for effects in judged_window.root.effects)


def hand_window(values: list[float], users: list[int]) -> Any:
    """As much of a window as a verdict reads."""
    requests = AskedBy(users)
    root = Judged(np.array(values), [np.array([1.0, 2.0, 3.0])])
    return SimpleNamespace(window=SimpleNamespace(requests=requests), protocol="slate", groups={}, root=root)


class AskedBy(list[int]):
    """Requests that know their users."""

    @property
    def user_index(self) -> np.ndarray:
        return np.array(self)


def test_a_verdict_by_hand_over_two_windows():
    windows = [hand_window([0.6, 0.7], [0, 1]), hand_window([0.9], [2])]
    judged = [
        Judged(np.array([0.6, 0.6]), [np.array([3.0, 2.0, 1.0])]),
        Judged(np.array([0.8]), [np.array([1.0, 5.0, 9.0])]),
    ]
    found = verdict(windows, judged)
    assert found.quality.mean == pytest.approx(2.0 / 3.0)
    assert found.quality_ratio.mean == pytest.approx((0.1 + 0.1 + 0.3) / (0.1 + 0.2 + 0.4))
    assert found.explanation_fidelity.mean == pytest.approx(0.0)  # one turned round, one the same
    assert np.isnan(found.fairness_gap.mean)


def test_a_sampled_window_keeps_each_requests_answers(world):
    window = rolling_windows(split(world, "time").train, "time", WindowConfig(windows=1))[0]
    few = sampled_window(window, 7, seed=1)
    assert len(few.requests) == 7
    offsets, items = window.positives
    answers = {
        int(user): items[offsets[place] : offsets[place + 1]].tolist()
        for place, user in enumerate(window.requests.user_index)
    }
    for place, user in enumerate(few.requests.user_index):
        own = few.positives[1][few.positives[0][place] : few.positives[0][place + 1]]
        assert own.tolist() == answers[int(user)]
    assert sampled_window(window, 10**6, seed=1) is window
