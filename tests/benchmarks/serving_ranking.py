"""Rank calls: in process, over HTTP at half of capacity, and beside what a user would run instead."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from serving.engine.answering import rank
from serving.engine.live_model import LiveModel
from serving.messages import ModelName, RankRequest
from tests.benchmarks.serving_capacity import (
    CLOSED_CONNECTIONS,
    CONNECTIONS,
    LOAD_CORE,
    SERVER_CORE,
    STEP_S,
    capacity,
    rank_stream,
    told,
)
from tests.benchmarks.serving_figures import Figures, middle
from tests.benchmarks.serving_load import Heard, drive
from tests.benchmarks.serving_peers import BUNDLE, Glue
from tests.benchmarks.serving_process import Served, our_server, peer_server
from tests.benchmarks.serving_requests import (
    WHOLE,
    Asked,
    glue_bodies,
    mlflow_bodies,
    our_bodies,
    rank_calls,
    request_file,
)
from tests.benchmarks.serving_world import World

ROUNDS = 3
PEER_S = 4.0
OURS, GLUE, MLFLOW = "ours", "glue behind FastAPI", "mlflow models serve"
ONE_CORE, BOTH_CORES = "one core", "both cores"


def in_process(figures: Figures, worlds: dict[str, World]) -> None:
    """One thread, from a decoded request to an answer, against the merge of two tables and a prediction."""
    for size, world in worlds.items():
        live = LiveModel.load(world.bundle(), ModelName(name="recsys", version=1))
        taken = _side_by_side(live, world)
        trees, columns = _shape(live)
        part = f"in process, {size} items"
        note = f"{trees} trees, {columns} features"
        figures.add(part, "rank, p50", middle(taken["ours"]), "ms", at_most=1.0, note=note)
        figures.add(part, "rank, p99", float(np.quantile(taken["ours"], 0.99)), "ms")
        for name in ("glue", "glue, 1 thread"):
            figures.add(part, f"pandas merge + predict ({name}), p50", middle(taken[name]), "ms")
        best = min(middle(taken["glue"]), middle(taken["glue, 1 thread"]))
        ratio = best / middle(taken["ours"])
        figures.add(part, "times as fast as the better glue", ratio, "x", at_least=25.0)


def _side_by_side(live: LiveModel, world: World) -> dict[str, list[float]]:
    calls = rank_calls(world, 400)
    requests = [RankRequest(user_id=call.user_id, candidates=[*call.candidates]) for call in calls]
    now = max(time.time(), live.as_of)

    def glued(glue: Glue) -> Callable[[int], object]:
        return lambda number: glue.rank(calls[number].user_id, calls[number].candidates)

    return _interleaved(
        {
            "ours": (lambda number: rank(live, requests[number], now), 50),
            "glue": (glued(Glue(world.folder)), 20),
            "glue, 1 thread": (glued(Glue(world.folder, threads=1)), 20),
        }
    )


def _shape(live: LiveModel) -> tuple[int, int]:
    ranker = live.recommender.ranker
    assert ranker is not None
    return ranker.trees, len(ranker.features)


def _interleaved(
    work: dict[str, tuple[Callable[[int], object], int]], rounds: int = 7
) -> dict[str, list[float]]:
    """Milliseconds of each call, by name; a round gives each its number of calls, the first one warms up."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    gc.collect()
    gc.freeze()  # as the server does
    for number in range(rounds):
        for name, (call, times) in work.items():
            for place in range(times):
                begin = time.perf_counter()
                call(number * times + place)
                taken[name].append((time.perf_counter() - begin) * 1e3)
            if not number:
                taken[name].clear()
    gc.unfreeze()
    return taken


def over_http(figures: Figures, world: World, folder: Path) -> None:
    """Capacity and latencies of one server on one core."""
    calls = rank_calls(world)
    plain = request_file(folder, "plain", "/v1/rank", our_bodies(calls))
    full = request_file(folder, "full", "/v1/rank", our_bodies(calls, full=True))
    with our_server(world.uri, world.home, folder / "events.db", {SERVER_CORE}) as server:
        found = capacity(server.port, plain)
        before = server.cpu_s()
        heard = [
            drive([rank_stream(server.port, plain, STEP_S, found.half, seed)], LOAD_CORE)[0]
            for seed in range(ROUNDS)
        ]
        spent = (server.cpu_s() - before) / sum(each.due for each in heard) * 1e3
        other = drive([rank_stream(server.port, full, STEP_S, found.half)], LOAD_CORE)[0]
    note = f"open loop, Poisson, {CONNECTIONS} connections, {STEP_S:.0f} s"
    figures.add("HTTP", "rank calls a core", found.held, "/s", at_least=500.0, note=note)
    note = f"{CLOSED_CONNECTIONS} connections"
    figures.add("HTTP", "rank calls a core, closed loop", found.closed, "/s", note=note)
    note = f"{found.half:.0f}/s, median of {ROUNDS} times {STEP_S:.0f} s"
    for share, name, goal in ((0.5, "p50", 3.0), (0.99, "p99", 10.0), (0.999, "p99.9", None)):
        value = middle([each.quantile(share) for each in heard])
        what = f"200 candidates at half of capacity, {name}"
        figures.add("HTTP", what, value, "ms", at_most=goal, note=note)
    bad = sum(each.bad for each in heard)
    figures.add("HTTP", f"calls not answered in full, of {sum(each.due for each in heard):,}", bad, at_most=0)
    figures.add("HTTP", "processor time a call", spent, "ms")
    for share, name in ((0.5, "p50"), (0.99, "p99")):
        what = f"the same with sources and scores, {name}"
        figures.add("HTTP", what, other.quantile(share), "ms")


def against_peers(figures: Figures, world: World, folder: Path) -> None:
    """Closed loops on all servers in turn; each peer has both cores or one, and the better counts."""
    calls = rank_calls(world)
    asked = {
        OURS: (request_file(folder, "plain", "/v1/rank", our_bodies(calls)), WHOLE),
        GLUE: (request_file(folder, "glue", "/rank", glue_bodies(calls)), ('"items"',)),
        MLFLOW: (request_file(folder, "mlflow", "/invocations", mlflow_bodies(calls)), ('"predictions"',)),
    }
    heard: dict[tuple[str, str], list[Heard]] = {}
    with ExitStack() as running:
        servers = _all_servers(running, world, folder)
        far = _furthest(servers[OURS, ONE_CORE], servers[MLFLOW, ONE_CORE], calls[0], world)
        figures.add("peers", f"furthest score of ours from {MLFLOW}", far, at_most=1e-6, note="200 pairs")
        for number in range(ROUNDS + 1):
            for (name, place), server in servers.items():
                requests, marks = asked[name]
                stream = replace(rank_stream(server.port, requests, PEER_S), marks=marks)
                found = drive([stream], LOAD_CORE)[0]
                if number:  # the first round warms up
                    heard.setdefault((name, place), []).append(found)
    _tell_peers(figures, heard)


def _all_servers(running: ExitStack, world: World, folder: Path) -> dict[tuple[str, str], Served]:
    ours = our_server(world.uri, world.home, folder / "events.db", {SERVER_CORE})
    servers = {(OURS, ONE_CORE): running.enter_context(ours)}
    for place, on in ((ONE_CORE, {SERVER_CORE}), (BOTH_CORES, None)):
        for name, command, path, environment in _peers(world):
            peer = peer_server(command, path, folder, on, environment)
            servers[name, place] = running.enter_context(peer)
    return servers


def _furthest(ours: Served, mlflow: Served, call: Asked, world: World) -> float:
    """How far the two servers of one version are apart at the moment that it was made."""
    document = {"user_id": call.user_id, "candidates": call.candidates, "timestamp": world.as_of}
    found = {item["id"]: item["score"] for item in ours.ask("POST", "/v1/rank", document)["items"]}
    scores: list[float] = mlflow.ask("POST", "/invocations", json.loads(mlflow_bodies([call])[0]))[
        "predictions"
    ]
    return max(abs(float(found[item]) - score) for item, score in zip(call.candidates, scores, strict=True))


def _tell_peers(figures: Figures, heard: dict[tuple[str, str], list[Heard]]) -> None:
    note = f"closed loop, {CLOSED_CONNECTIONS} connections, median of {ROUNDS} times {PEER_S:.0f} s"
    speed = {key: middle([each.rate for each in runs]) for key, runs in heard.items()}
    for (name, place), runs in heard.items():
        p50 = middle([each.quantile(0.5) for each in runs])
        figures.add("peers", f"{name}, {place}", speed[name, place], "/s", note=f"p50 {p50:.1f} ms; {note}")
    bad = [f"{name}: {told(each)}" for (name, _), runs in heard.items() for each in runs if each.bad]
    figures.add(
        "peers", "runs with a call that was not answered in full", len(bad), at_most=0, note="; ".join(bad)
    )
    ours = speed[OURS, ONE_CORE]
    for name, goal in ((GLUE, 10.0), (MLFLOW, 5.0)):
        best = max(value for (each, _), value in speed.items() if each == name)
        figures.add("peers", f"ours on one core against {name}", ours / best, "x", at_least=goal)


def _peers(world: World) -> Iterator[tuple[str, list[str], str, dict[str, str]]]:
    """Name, command, path that says ready, environment."""
    app = "tests.benchmarks.serving_peers:make_app"
    command = ["uvicorn", "--factory", app, "--port", "PORT"]
    yield GLUE, command, "/healthz", {BUNDLE: str(world.folder)}
    uri = f"sqlite:///{world.home}/mlflow.db"
    command = ["mlflow", "models", "serve", "-m", world.uri, "--env-manager", "local", "--port", "PORT"]
    yield MLFLOW, command, "/ping", {"MLFLOW_TRACKING_URI": uri}
