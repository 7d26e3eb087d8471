"""Nothing after a request's moment may move its features, its candidates or its score."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from features.replay import Replay
from pipelines.config import Config, load_config
from pipelines.fitting import Fit, fit, retrieve
from recsys.dataset import Dataset
from recsys.dataset_folder import load
from recsys.popularity import fit_popularity
from recsys.protocols import Split, split
from recsys.simulation import SimulationConfig, simulate

SETTINGS = [
    "collaborative.embedding_dim=16",
    "sequence.embedding_dim=16",
    "sequence.epochs=2",
    "head.epochs=1",
    "ranker.rounds=30",
    "ranker.min_data_in_leaf=20",
]


@contextmanager
def silent(_: str):
    yield lambda done, total: None


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("world")
    simulate(folder, SimulationConfig(users=250, items=160, days=7, seed=3))
    return load(folder)[0]


@pytest.fixture(scope="module")
def embeddings(world: Dataset) -> np.ndarray:
    shelf = np.eye(len(world.catalogue.subcategory_names), dtype=np.float32)[world.catalogue.subcategory]
    noise = np.random.default_rng(0).normal(0, 0.2, shelf.shape).astype(np.float32)
    return (shelf + noise) / np.linalg.norm(shelf + noise, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(None, SETTINGS)


def fitted(window: Split, protocol, embeddings, config) -> Fit:
    return fit(window.train, window.visible, protocol, embeddings, config, silent)


def altered_after(data: Dataset, moment: float) -> Dataset:
    """The same log to the moment (included); later items and users are swapped round, clicks turned over."""
    rng = np.random.default_rng(7)
    events, slates = data.events, data.slates
    late = np.flatnonzero(events.timestamp > moment)
    item, user, kind = events.item_index.copy(), events.user_index.copy(), events.type_index.copy()
    item[late] = rng.permutation(len(data.catalogue))[item[late]]
    user[late] = rng.permutation(len(data.users))[user[late]]
    kind[late] = rng.permutation(kind[late])
    assert slates is not None
    late_rows = np.repeat(slates.timestamp > moment, np.diff(slates.offsets))
    clicked, shown = slates.clicked.copy(), slates.item_index.copy()
    clicked[late_rows] = ~clicked[late_rows]
    shown[late_rows] = (shown[late_rows] + 17) % len(data.catalogue)
    return data.with_log(
        replace(events, item_index=item, user_index=user, type_index=kind),
        replace(slates, clicked=clicked, item_index=shown),
    )


def test_slates_see_nothing_that_comes_after_them(world, embeddings, config):
    window = split(world, "slate")
    models = fitted(window, "slate", embeddings, config)
    moment = float(np.median(window.requests.timestamp))
    early = window.requests.take(np.flatnonzero(window.requests.timestamp <= moment))
    changed = altered_after(world, moment)
    before, after = (Replay(data, models.features) for data in (world, changed))
    np.testing.assert_array_equal(
        *(models.recommender.matrix(early, state.read(early)) for state in (before, after))
    )
    np.testing.assert_array_equal(
        models.recommender.score(early, before), models.recommender.score(early, after)
    )


@pytest.mark.parametrize("protocol", ["time", "slate"])
def test_a_fit_sees_nothing_from_its_cut_on(world, embeddings, config, protocol):
    window = split(world, protocol)
    cut = float(window.requests.timestamp.min()) if protocol == "time" else window.train.end
    changed = altered_after(world, np.nextafter(cut, 0))
    assert (changed.events.item_index != world.events.item_index).any()
    other = replace(window, train=changed.before(cut), visible=changed.before(cut))
    requests = (
        window.requests.take(np.arange(40)) if protocol == "time" else window.requests.take(np.arange(1))
    )
    first, second = (fitted(part, protocol, embeddings, config) for part in (window, other))
    lists = []
    for models, part in ((first, replace(window, visible=world.before(cut))), (second, other)):
        state = Replay(part.visible, models.features)
        asked = replace(requests, known=np.minimum(requests.known, len(part.visible.events)))
        candidates = retrieve(asked, models.recommender, state, part.visible)
        lists.append((candidates, models.recommender.score(candidates, state)))
    np.testing.assert_array_equal(lists[0][0].item_index, lists[1][0].item_index)
    np.testing.assert_array_equal(lists[0][0].source, lists[1][0].source)
    np.testing.assert_array_equal(lists[0][1], lists[1][1])


def test_popularity_of_a_day_ignores_that_day_and_later(world, config):
    moment = float(np.quantile(world.events.timestamp, 0.6))
    day = np.array([np.floor(moment / 86_400.0)], np.int64)
    midnight = float(day[0] * 86_400.0)
    counts = [
        fit_popularity(data, config.popularity).scores(day)
        for data in (world, altered_after(world, np.nextafter(midnight, 0)))
    ]
    np.testing.assert_array_equal(*counts)


def test_last_asks_each_user_with_all_but_the_last_event(world, embeddings, config):
    window = split(world, "last")
    hidden = set(zip(window.requests.user_index.tolist(), window.requests.known.tolist(), strict=True))
    kept = {
        (int(user), int(sequence))
        for user in range(len(world.users))
        for sequence in world.histories.sequence[slice(*world.histories.offsets[user : user + 2])][-1:]
    }
    assert hidden <= kept
    assert len(window.train.events) == len(world.events) - len(hidden)


def test_the_known_truth_is_read_by_no_training_code():
    root = Path(__file__).parents[2]
    readers = [
        path.relative_to(root).as_posix()
        for package in ("recsys", "features", "pipelines", "serving")
        for path in (root / package).rglob("*.py")
        if "truth.parquet" in path.read_text()
    ]
    assert sorted(readers) == ["pipelines/demo.py"]
