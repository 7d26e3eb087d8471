"""Starts, memory, changes of the version under load, and whether a night's scores come back over HTTP."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.tracking import Registry
from tests.benchmarks.serving_capacity import LOAD_CORE, rank_stream
from tests.benchmarks.serving_figures import Figures
from tests.benchmarks.serving_load import Heard, drive
from tests.benchmarks.serving_process import our_server
from tests.benchmarks.serving_requests import our_bodies, rank_calls, request_file
from tests.benchmarks.serving_world import World, another_version

FLIPS, VERSIONS = 30, 3
FLIP_RATE = 100.0
NIGHT_USERS = 25
TOLERANCE = 1e-6


def starts(figures: Figures, worlds: dict[str, World], folder: Path) -> None:
    """From nothing to ready, the first time (with the trial) and the second; memory then."""
    memory = {}
    for size, world in worlds.items():
        for source, model in (("registry", world.uri), ("folder", str(world.folder))):
            home = _home_of_its_own(world, folder / f"{size}-{source}")
            goal = 5.0 if world is worlds[max(worlds, key=lambda each: len(worlds[each].items))] else None
            part = f"start, {size} items, {source}"
            for turn in ("first", "second"):
                with our_server(model, home, home / f"{turn}.db") as server:
                    note = f"bundle of {world.bytes() / 1e6:.0f} MB; " + (
                        "with the trial" if turn == "first" else "tried before"
                    )
                    limit = goal if turn == "second" else None
                    figures.add(part, f"{turn} start to ready", server.ready_s, "s", at_most=limit, note=note)
                    memory[size, source] = server.memory_bytes()
            figures.add(part, "resident memory when ready", memory[size, source] / 2**20, "MiB")
            shutil.rmtree(home)
    (small, least), (large, most) = sorted(((len(world.items), size) for size, world in worlds.items()))
    slope = (memory[most, "folder"] - memory[least, "folder"]) / (large - small)
    note = f"from {small:,} to {large:,} items, with their share of users and events"
    figures.add("memory", "per million items", slope * 1e6 / 2**30, "GiB", note=note)


def _home_of_its_own(world: World, home: Path) -> Path:
    """The registry of the world without what servers have noted; its artifacts stay where they are."""
    home.mkdir(parents=True)
    shutil.copy(world.home / "mlflow.db", home / "mlflow.db")
    return home


def flips(figures: Figures, world: World, folder: Path) -> None:
    """An alias that moves between three versions while calls come in."""
    for number in range(1, VERSIONS + 1):
        name = another_version(world, number).name
    registry = Registry(world.home)
    registry.set_alias(name, "champion", 1)
    requests = request_file(folder, "flips", "/v1/rank", our_bodies(rank_calls(world)))
    heard: list[Heard] = []
    with our_server(f"models:/{name}@champion", world.home, folder / "flips.db") as server:
        drive([rank_stream(server.port, requests, 3.0, FLIP_RATE)], LOAD_CORE)
        before = server.memory_bytes()
        done = threading.Event()

        def load() -> None:
            while not done.is_set():
                heard.extend(drive([rank_stream(server.port, requests, 5.0, FLIP_RATE)], LOAD_CORE))

        loading = threading.Thread(target=load)
        loading.start()
        try:
            for flip in range(1, FLIPS + 1):
                registry.set_alias(name, "champion", flip % VERSIONS + 1)
                answer = server.ask("POST", "/admin/reload", {}, admin=True)
                assert answer["model"]["version"] == flip % VERSIONS + 1, answer
        finally:
            done.set()
            loading.join()
        after = server.memory_bytes()
    calls, bad = sum(each.due for each in heard), sum(each.bad for each in heard)
    failed = sum(sum(each.statuses.values()) + each.lost for each in heard)
    figures.add(
        "flips",
        f"calls that failed of {calls:,} during {FLIPS} flips",
        failed,
        at_most=0,
        note=f"{FLIP_RATE:.0f}/s, server on both cores",
    )
    figures.add("flips", "answers of less than the whole model", bad - failed)
    figures.add("flips", "memory before", before / 2**20, "MiB", note="one version loaded")
    figures.add("flips", "memory after", after / 2**20, "MiB", note="two versions loaded")
    figures.add("flips", "memory after against before", after / before, "x")


def nightly(figures: Figures, world: World, folder: Path) -> None:
    """The night's lists and the golden requests, asked for at the moment of the night."""
    with our_server(world.uri, world.home, folder / "nightly.db") as server:
        figures_of = [_lists(server, world), _golden(server, world)]
    for name, pairs, furthest in figures_of:
        note = f"{pairs:,} pairs"
        figures.add("nightly", f"furthest score from {name}", furthest, at_most=TOLERANCE, note=note)


def _lists(server: Any, world: World) -> tuple[str, int, float]:
    """`/v1/recommend` against the published night; an item in another place counts as infinitely far."""
    night = world.night()
    chosen = np.random.default_rng(0).choice(
        night["user_id"].unique().sort().to_numpy(), NIGHT_USERS, replace=False
    )
    pairs, furthest = 0, 0.0
    for user in chosen.tolist():
        rows = night.filter(pl.col("user_id") == user).sort("rank")
        document = {"user_id": user, "k": rows.height, "timestamp": world.as_of}
        items = server.ask("POST", "/v1/recommend", document)["items"]
        if [item["id"] for item in items] != rows["item_id"].to_list():
            return "the published night (other items)", pairs, float("inf")
        pairs += len(items)
        scores = np.array([item["score"] for item in items])
        furthest = max(furthest, float(np.abs(scores - rows["score"].to_numpy()).max()))
    return "the published night", pairs, furthest


def _golden(server: Any, world: World) -> tuple[str, int, float]:
    """`/v1/rank` against whole candidate lists that training scored by the night's path."""
    golden = world.bundle().golden()
    assert golden is not None
    rows: dict[str, list[tuple[Any, Any, str, float]]] = {}
    for request, *row in zip(
        golden.request, golden.user_id, golden.item_id, golden.source, golden.score, strict=True
    ):
        rows.setdefault(request, []).append(tuple(row))  # type: ignore[arg-type]
    pairs, furthest = 0, 0.0
    for wanted in rows.values():
        candidates = [{"id": item, "source": source} for _, item, source, _ in wanted]
        document = {"user_id": wanted[0][0], "candidates": candidates, "timestamp": world.as_of}
        found = {item["id"]: item["score"] for item in server.ask("POST", "/v1/rank", document)["items"]}
        far = [abs(found[item] - score) for _, item, _, score in wanted]
        pairs, furthest = pairs + len(far), max(furthest, *far)
    return "golden requests", pairs, furthest
