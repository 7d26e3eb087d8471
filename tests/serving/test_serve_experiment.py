"""An experiment from end to end: served, shown, clicked, logged, compared, and exported for the night."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from recsys.bundle import read_bundle
from recsys.dataset_folder import load
from serving.experiments.experiment import Arm, Experiment, Label
from serving.experiments.interleaving import Teams
from serving.lifecycle.cached_bundles import CachedBundles
from tests.serving.running import RECSYS, Running, refused, running, start, wait_until

# MLflow 3.17 on SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

URI = "models:/recsys@champion"
ITEMS = [f"i{number:02d}" for number in range(40)]
USERS = [f"u{number:02d}" for number in range(100)]
"""The versions know a fifth of them."""
PATIENT = {"deadline_s": 10.0} | {
    f"watch__{name}": 120.0 for name in ("open_s", "first_resolve_s", "resolve_s")
}


@pytest.fixture
def aliases(two_versions, bundle_folder, second_folder) -> Any:
    """A registry where the first version is champion and the second challenger."""
    registry, _, _ = two_versions
    registry.set_alias("recsys", "challenger", 2)
    for role in ("main", "treatment"):
        cache = CachedBundles(registry.home / "cache" / "served" / role)
        for folder in (bundle_folder, second_folder):
            cache.note_passed(read_bundle(folder).digest)
    return registry


def settings(folder: Path, **changes: object) -> Path:
    """The file of an experiment."""
    lines = {"name": "demo", "control": "champion", "treatment": "challenger"} | changes
    path = folder / "experiment.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items()))
    return path


def recsys(*words: object) -> dict[str, Any]:
    done = subprocess.run([*RECSYS, *map(str, words), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def item_events() -> list[dict[str, Any]]:
    """What is known of every item, for the night that knows the log alone."""
    return [
        {"kind": "item", "event_id": f"about-{each}", "item_id": each, "title": f"thing {each}"}
        | {"category": "c1", "timestamp": time.time()}
        for each in ITEMS
    ]


def show_and_click(server: Running, number: int) -> tuple[Label, bool]:
    """A list is asked for and shown; in lists of the treatment something is clicked, in others sometimes.

    The click arrives before the list that it was made in.
    """
    user = USERS[number]
    got = server.post("/v1/recommend", {"user_id": user, "k": 6}).json
    shown, label = [item["id"] for item in got["items"]], Label.parse(got["arm"])
    assert label is not None
    assert len(set(shown)) == 6
    slate = {"kind": "impression", "event_id": got["request_id"], "user_id": user, "shown": shown}
    slate |= {"timestamp": time.time(), "arm": got["arm"]}
    events, place = [slate], liked(label, shown, number)
    if place is not None:
        click = {"event_id": f"click-{user}", "user_id": user, "item_id": shown[place], "event_type": "click"}
        click |= {"timestamp": time.time(), "impression_id": got["request_id"], "position": place + 1}
        events.insert(0, click)
    assert server.post("/v1/events", events).json["accepted"] == len(events)
    assert got["model"]["version"] == (2 if label.arm is Arm.TREATMENT else 1)
    again = server.post("/v1/rank", {"user_id": user, "candidates": ITEMS[:9]}).json
    assert Label.parse(again["arm"]).arm is label.arm, "it stays with the user"
    return label, place is not None


def liked(label: Label, shown: list[str], number: int) -> int | None:
    """The place that this user clicks at."""
    if label.arm is Arm.INTERLEAVED:
        teams = Teams.parse(label.teams)
        return next(place for place in range(6) if teams.find(shown[place], place) is Arm.TREATMENT)
    return 1 if label.arm is Arm.TREATMENT or number % 5 == 0 else None


@pytest.mark.parametrize(("mode", "share"), [("split", 0.5), ("interleave", 1.0)])
def test_an_experiment_from_the_request_to_the_winner_and_the_night(aliases, tmp_path, mode, share):
    options = ["--experiment", str(settings(tmp_path, mode=mode, share=share))]
    with running(URI, tmp_path, home=aliases.home, options=options, **PATIENT) as server:
        wait_until(lambda: server.log.count("model_swapped") == 2)
        assert server.post("/v1/events", item_events()).json["accepted"] == len(ITEMS)
        acted = [show_and_click(server, number) for number in range(len(USERS))]
        item = {
            "id": "m",
            "timestamp": str(round(time.time() * 1e3)),
            "user": "u01",
            "items": [{"id": "i01"}],
        }
        assert server.post("/rank/recsys", item).status == 200, "it has no place for a label"
        compared = recsys("compare", "--log", tmp_path / "events.db")
        assert server.stop() == 0
    experiment = Experiment("demo", "champion", "challenger", share, mode)
    assert [label.arm for label, _ in acted] == [experiment.assign(user, "").arm for user in USERS]
    check_comparison(compared, mode, acted)
    clicks = sum(clicked for _, clicked in acted)
    check_night(tmp_path / "events.db", tmp_path / "night", clicks)


def check_comparison(compared: dict[str, Any], mode: str, acted: list[tuple[Label, bool]]) -> None:
    """The command has counted what was done, and names who is better by construction."""
    [found] = compared["experiments"]
    clicks = sum(clicked for _, clicked in acted)
    assert (compared["outcomes"], compared["outcomes_joined"], compared["warnings"]) == (clicks, clicks, [])
    assert (found["name"], found["mode"], found["winner"], found["warnings"]) == (
        "demo",
        mode,
        "treatment",
        [],
    )
    figures = found["figures"]
    if mode == "interleave":
        assert figures["wins"] == {"control": 0, "treatment": len(USERS)}
        return
    for arm in (Arm.CONTROL, Arm.TREATMENT):
        of_arm = [clicked for label, clicked in acted if label.arm is arm]
        counts = [figures[arm][name] for name in ("users", "impressions", "outcomes")]
        assert counts == [len(of_arm), len(of_arm), sum(of_arm)]


def check_night(log: Path, out: Path, clicks: int) -> None:
    """The same log as a dataset: every event once, and none of them bad."""
    counts = recsys("events", "export", out, "--log", log, "--until", "now")
    assert [counts[name] for name in ("items", "impressions", "events")] == [len(ITEMS), len(USERS), clicks]
    dataset, report = load(out)
    assert (len(dataset.catalogue), len(dataset.events)) == (len(ITEMS), clicks)
    assert {name: table.quarantined for name, table in report.tables.items()} == dict.fromkeys(
        report.tables, 0
    )
    assert report.tables["impressions"].good == len(USERS)


def test_a_treatment_that_does_not_come_leaves_everybody_the_control(aliases, tmp_path):
    """Nobody is in the experiment then: no label is given, so nothing is compared."""
    options = ["--experiment", str(settings(tmp_path, treatment="nobody"))]
    with running(URI, tmp_path, home=aliases.home, options=options, **PATIENT) as server:
        wait_until(lambda: "no_model" in server.log)
        for user in USERS[:20]:
            got = server.post("/v1/rank", {"user_id": user, "candidates": ITEMS}).json
            assert (got["model"]["version"], got["arm"], got["degraded"]) == (1, None, False)


@pytest.mark.parametrize(
    ("changes", "model"),
    [
        ({"share": 2.0}, URI),
        ({}, "models:/recsys@another"),
    ],
)
def test_an_experiment_that_means_nothing_stops_the_start(tmp_path, changes, model):
    options = ["--experiment", str(settings(tmp_path, **changes))]
    code, line = refused(start(model, tmp_path, home=tmp_path / "home", options=options), tmp_path)
    assert (code, line.split(": ")[:2]) == (78, ["error", "experiment_invalid"])
