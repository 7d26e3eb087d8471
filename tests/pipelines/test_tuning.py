"""The search: its windows, its first trial, what it reads, and how it ends and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipelines.budget import Budget
from pipelines.config import Config, load_config
from pipelines.config_writing import toml_of
from pipelines.search_space import MODELS, RANKER, RETRIEVAL, parameters_of, space_of, with_parameters
from pipelines.tuning import Search, Task, open_study
from pipelines.tuning_report import check_out
from pipelines.validation import WindowConfig, rolling_windows, sampled
from recsys.dataset import Dataset
from recsys.dataset_folder import load
from recsys.errors import RecsysError
from recsys.protocols import split
from recsys.requests import DAY_S
from recsys.simulation import SimulationConfig, simulate

COMMAND = [sys.executable, "-c", "from pipelines.cli import main; main()"]
ROOT = Path(__file__).parents[2]
SETTINGS = [
    "collaborative.embedding_dim=16",
    "sequence.embedding_dim=16",
    "sequence.epochs=2",
    "head.epochs=1",
    "ranker.rounds=15",
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


def search_of(data: Dataset, protocol, config: Config, folder: Path, *, resume: bool = False) -> Search:
    windows = [
        sampled(each, protocol, config, 20_000)
        for each in rolling_windows(split(data, protocol).train, protocol, WindowConfig())
    ]
    embeddings = np.eye(len(data.catalogue), 24, dtype=np.float32)
    task = Task(config, protocol, windows, embeddings, *space_of(config, protocol))
    folder.mkdir(exist_ok=True)
    return Search(open_study(folder, "study", resume=resume, seed=0), task, folder, silent, lambda _: None)


def values_of(search: Search, trials: int) -> list[float | None]:
    for _ in range(trials):
        search.next_trial(Budget(1e6))
    return [trial.value for trial in search.study.trials]


def test_every_key_of_the_space_is_a_setting_and_the_default_is_within():
    for each in RANKER + MODELS + RETRIEVAL:
        value = parameters_of(Config(), (each,))[each.key]
        assert each.low <= value <= each.high, each.key
        assert isinstance(value, int) == each.whole, each.key
    assert with_parameters(Config(), parameters_of(Config(), RANKER + MODELS + RETRIEVAL)) == Config()
    far = load_config(None, ["ranker.leaves=3"])
    assert space_of(far, "time")[0][1].low == 3


def test_what_is_written_is_what_was_tried(tmp_path):
    base = load_config(None, ["text.teacher=my teacher", "roles.'odd kind'.weight=2.5", "gates.auc_min=0.6"])
    tried = with_parameters(base, {"ranker.learning_rate": 0.123456789, "ranker.leaves": 9})
    path = tmp_path / "tuned.toml"
    path.write_text(toml_of(tried))
    assert tried.ranker.learning_rate == 0.1235
    assert load_config(path) == tried
    assert toml_of(Config()) == ""


@pytest.mark.parametrize("protocol", ["time", "last", "slate"])
def test_windows_follow_each_other_and_end_before_the_test(world, protocol):
    test = split(world, protocol)
    first, second = rolling_windows(test.train, protocol, WindowConfig())
    assert len(first.train.events) < len(second.train.events) < len(test.train.events)
    assert len(second.visible.events) <= len(test.train.events)
    if protocol == "slate":
        days = [set(np.floor(each.requests.timestamp / DAY_S)) for each in (first, second, test)]
        assert [len(day) for day in days] == [1, 1, 1]
        assert sorted(set.union(*days)) == [min(days[0]) + place for place in range(3)]
        assert first.visible.end < second.requests.timestamp.min()
    if protocol == "time":
        taken = set(zip(*pairs_of(first), strict=True)) & set(zip(*pairs_of(second), strict=True))
        assert not taken


def pairs_of(window):
    offsets, items = window.positives
    return np.repeat(window.requests.user_index, np.diff(offsets)).tolist(), items.tolist()


def altered_from(data: Dataset, moment: float) -> Dataset:
    """Later events are of other users and items, later slates show and click other things."""
    rng = np.random.default_rng(7)
    late = np.flatnonzero(data.events.timestamp >= moment)
    item, user = data.events.item_index.copy(), data.events.user_index.copy()
    item[late] = rng.permutation(len(data.catalogue))[item[late]]
    user[late] = rng.permutation(len(data.users))[user[late]]
    slates = data.slates
    rows = np.repeat(slates.timestamp >= moment, np.diff(slates.offsets))
    clicked = np.where(rows, ~slates.clicked, slates.clicked)
    return data.with_log(
        replace(data.events, item_index=item, user_index=user), replace(slates, clicked=clicked)
    )


@pytest.mark.parametrize("protocol", ["time", "slate"])
def test_nothing_from_the_test_moves_a_trial(world, config, protocol, tmp_path):
    cut = float(split(world, protocol).requests.timestamp.min())
    changed = altered_from(world, cut)
    assert (changed.events.item_index != world.events.item_index).any()
    runs = [
        values_of(search_of(data, protocol, config, tmp_path / name), 3)
        for name, data in (("as_it_was", world), ("altered", changed))
    ]
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 1  # the trials do differ


def test_the_first_trial_is_the_configuration_as_it_was_given(world, config, tmp_path):
    search = search_of(world, "slate", config, tmp_path)
    values_of(search, 1)
    first = search.study.trials[0]
    assert first.user_attrs["kind"] == "default"
    assert with_parameters(config, first.params) == config


@pytest.mark.slow
def test_a_models_trial_follows_several_of_the_ranker_and_keeps_its_best_settings(world, config, tmp_path):
    search = search_of(world, "slate", config, tmp_path)
    values_of(search, 10)
    trials = search.study.trials
    kinds = [trial.user_attrs["kind"] for trial in trials]
    assert kinds == ["default", *["ranker"] * 7, "models", "ranker"]
    models = next(trial for trial in trials if trial.user_attrs["kind"] == "models")
    before = [trial for trial in trials[: models.number] if trial.value is not None]
    best = max(before, key=lambda trial: trial.value)
    assert {each.key: models.params[each.key] for each in RANKER} == {
        each.key: best.params[each.key] for each in RANKER
    }
    assert any(models.params[each.key] != best.params[each.key] for each in MODELS)


def test_a_search_goes_on_where_it_was_broken_off(world, config, tmp_path):
    search = search_of(world, "slate", config, tmp_path)
    values_of(search, 2)
    search.study.ask()  # a process that died within a trial
    again = search_of(world, "slate", config, tmp_path, resume=True)
    values_of(again, 1)
    assert [trial.state.name for trial in again.study.trials] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert again.study.trials[3].user_attrs["kind"] == "ranker"
    assert search_of(world, "slate", config, tmp_path).study.trials == []  # without --resume: a new one


@pytest.mark.slow
def test_the_command_writes_a_configuration_that_training_takes_and_goes_on_after_a_signal(job, tmp_path):
    words = ["tune", job.data, "--protocol", "slate", *job.settings]
    out = tmp_path / "tuned.toml"
    found = job.json(*words, "--minutes", "0.05", "--out", out)
    assert found["trials"]["complete"] >= 1
    assert found["best"] >= found["default"]
    assert found["difference"]["low"] <= found["difference"]["mean"] <= found["difference"]["high"]
    assert len(found["windows"]) == 2
    assert tomllib.loads(out.read_text())["collaborative"]["embedding_dim"] > 0
    tuned = load_config(out)
    for key, (_, after) in found["changes"].items():
        section, name = key.split(".")
        assert getattr(getattr(tuned, section), name) == after
    process = subprocess.Popen(
        [*COMMAND, *map(str, words), "--minutes", "30", "--resume", "--out", str(out), "--json"],
        env={**os.environ, "RECSYS_HOME": str(job.home), "PYTHONPATH": str(ROOT)},
        cwd=job.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith("trial "):
            break
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    more = json.loads(printed)
    assert more["study"] == found["study"]
    assert more["stopped_by"] == "signal"
    assert more["trials"]["complete"] + more["trials"]["pruned"] > found["trials"]["complete"]
    assert more["best"] >= found["best"]


def test_a_search_without_time_or_a_place_for_its_file_is_refused_at_once(tmp_path):
    for minutes in (0.0, -1.0, float("nan")):
        with pytest.raises(RecsysError, match="usage: --minutes must be more than 0") as refused:
            check_out(minutes, None)
        assert refused.value.exit_code == 64
    with pytest.raises(RecsysError, match="no_such_folder"):
        check_out(1.0, tmp_path / "nowhere" / "tuned.toml")
    check_out(0.1, tmp_path / "tuned.toml")


@pytest.mark.parametrize("protocol", ["time", "last", "slate"])
def test_too_small_a_log_has_its_line(protocol):
    items = pl.DataFrame({"item_id": [1, 2], "title": ["a", "b"]})
    events = pl.DataFrame(
        {"user_id": [1, 1], "item_id": [1, 2], "event_type": ["click"] * 2, "timestamp": [1.0, 2.0]}
    )
    with pytest.raises(RecsysError, match="nothing_to_test"):
        rolling_windows(Dataset.from_frames(items, events), protocol, WindowConfig())


def test_a_word_that_is_no_protocol_ends_with_the_usage_code(tmp_path):
    command = [*COMMAND, "tune", str(tmp_path), "--minutes", "1", "--protocol", "magic"]
    environment = {**os.environ, "RECSYS_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 64, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: unknown_protocol:")
