"""A server and its registry: aliases that move under load, refused versions, and copies that stand in."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from recsys.bundle import read_bundle
from recsys.signing import sign_bundle
from serving.engine.answering import rank
from serving.lifecycle.cached_bundles import CachedBundles
from serving.lifecycle.shadow import rank_correlation
from serving.messages import RankRequest
from tests.serving.expected import model_of
from tests.serving.running import JSON, Running, exchange, running, wait_until

# MLflow 3.17 on SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

URI = "models:/recsys@champion"
ITEMS = [f"i{number:02d}" for number in range(40)]
CANARY = {"user_id": "u03", "candidates": ITEMS, "timestamp": 30 * 86_400.0 + 60.0}
NEVER_S = 3600.0
PATIENT = {"deadline_s": 10.0} | {
    f"watch__{name}": 120.0 for name in ("open_s", "first_resolve_s", "resolve_s")
}

Answers = dict[int, list[dict[str, Any]]]


def items_of(bundle: Path) -> list[dict[str, Any]]:
    """What the canary gets from a bundle."""
    model = model_of(bundle)
    found = rank(model, RankRequest(**CANARY), CANARY["timestamp"]).items
    return [{"id": item.id, "score": item.score, "rank": item.rank, "source": ""} for item in found]


def canary(server: Running) -> tuple[int, list[dict[str, Any]]]:
    got = server.post("/v1/rank", CANARY)
    assert got.status == 200, got.body
    return got.json["model"]["version"], got.json["items"]


def version(server: Running) -> int:
    return server.ask("GET", "/version").json["model"]["version"]


def admin(server: Running, what: str):
    return server.ask("POST", f"/admin/{what}", admin=True)


def ready(server: Running) -> dict[str, Any]:
    got = server.ask("GET", "/readyz")
    assert got.status == 200, got.body
    return got.json


def count(server: Running, name: str) -> float:
    text = server.ask("GET", "/metrics").body.decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def note_trials(home: Path, *bundles: Path) -> None:
    """Let trials of these bundles count as passed: they have tests of their own and take seconds."""
    for role in ("main", "shadow"):
        cache = CachedBundles(home / "cache" / "served" / role)
        for bundle in bundles:
            cache.note_passed(read_bundle(bundle).digest)


@pytest.fixture
def versions(registry, bundle_parts, bundle_folder, second_folder, tmp_path) -> tuple[Any, Answers]:
    """A registry with three versions, the first of them champion, and what each of them answers.

    The third scores as the first does and is another bundle: so no flip finds its version still loaded.
    """
    parts = bundle_parts[0]
    third = type(parts)(parts.files, {**parts.metadata, "seed": 3}).write(tmp_path / "third")
    folders = (bundle_folder, second_folder, third)
    for folder in folders:
        registry.log_training("recsys", folder, {}, {})
    registry.set_alias("recsys", "champion", 1)
    note_trials(registry.home, *folders)
    first, second = items_of(bundle_folder), items_of(second_folder)
    assert first != second
    return registry, {1: first, 2: second, 3: first}


@pytest.fixture
def serve(registry, tmp_path) -> Callable[..., Any]:
    """Start a server on that registry, which looks at the alias when it is told to."""
    return partial(running, URI, tmp_path, home=registry.home, watch__poll_s=NEVER_S, **PATIENT)


class Load:
    """Clients that ask for the canary all the time, and hold each answer against those of the versions."""

    def __init__(self, server: Running, expected: Answers, clients: int = 4) -> None:
        self.answered: Counter[int] = Counter()
        self.wrong: list[bytes] = []
        self._server, self._expected, self._stop = server, expected, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        body = json.dumps(CANARY).encode()
        with contextlib.closing(self._server.connection()) as connection:
            while not self._stop.wait(0.002):
                got = exchange(connection, "POST", "/v1/rank", body, JSON)
                answer = got.json
                number = answer["model"]["version"] if got.status == 200 else 0
                if answer.get("items") != self._expected.get(number) or answer["degraded"]:
                    self.wrong.append(got.body[:500])
                self.answered[number] += 1


def flip(registry, server: Running, number: int) -> None:
    registry.set_alias("recsys", "champion", number)
    got = admin(server, "reload")
    assert (got.status, got.json.get("model", {}).get("version")) == (200, number), got.body


def test_flips_under_load_fail_no_request_and_mix_no_versions(versions, serve):
    registry, expected = versions
    with serve() as server, Load(server, expected) as load:
        for number in range(20):
            flip(registry, server, 1 + (number + 1) % 3)
            assert canary(server) == (version(server), expected[version(server)])
    assert load.wrong == []
    assert load.answered.keys() == {1, 2, 3}


@pytest.mark.soak
def test_c07_three_hundred_flips_leave_nothing_behind(versions, serve):
    registry, expected = versions

    def held(server: Running) -> tuple[int, int, int]:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        kib, threads = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads"))
        return kib, threads, len(os.listdir(f"/proc/{server.process.pid}/fd"))

    with serve() as server:
        first = server.post("/v1/rank", CANARY, x_request_id="same").body
        with Load(server, expected) as load:
            for number in range(300):
                if number == 9:
                    before = held(server)
                flip(registry, server, 1 + (number + 1) % 3)
        time.sleep(1.0)
        after = held(server)
        assert load.wrong == []
        assert (version(server), load.answered.keys()) == (1, {1, 2, 3})
        assert server.post("/v1/rank", CANARY, x_request_id="same").body == first
    print(f"{sum(load.answered.values())} answers, held {before} before and {after} after")
    assert after[0] <= 1.1 * before[0]
    assert after[1:] <= (before[1], before[2] + 2)


def test_the_alias_is_followed_by_itself_under_load(versions, serve):
    registry, expected = versions
    with serve(watch__poll_s=0.2) as server, Load(server, expected) as load:
        for number in (2, 3, 1, 2):
            registry.set_alias("recsys", "champion", number)
            wait_until(lambda number=number: version(server) == number)
        name = {"name": "recsys", "version": 2, "alias": "champion"}
        assert ready(server)["model"] == name
        for model, status in (("champion", 200), ("recsys", 200), ("challenger", 404)):
            request = {
                "id": "m",
                "timestamp": str(round(time.time() * 1e3)),
                "user": "u01",
                "items": [{"id": "i01"}],
            }
            assert server.post(f"/rank/{model}", request).status == status
    assert load.wrong == []
    assert load.answered.keys() == {1, 2, 3}


def test_a_rollback_goes_back_and_stays_until_the_alias_moves(versions, serve):
    registry, expected = versions
    with serve(watch__poll_s=0.2) as server:
        assert admin(server, "rollback").problem(409, "nothing_to_roll_back")
        first = server.post("/v1/rank", CANARY, x_request_id="same").body
        registry.set_alias("recsys", "champion", 2)
        wait_until(lambda: version(server) == 2)
        swap = admin(server, "rollback").json
        assert (swap["model"]["version"], swap["previous"]["version"]) == (1, 2)
        assert server.post("/v1/rank", CANARY, x_request_id="same").body == first
        assert ready(server)["degraded_reason"] == "rolled_back"
        polls = server.log.count("model_unchanged")
        wait_until(lambda: server.log.count("model_unchanged") >= polls + 2)
        assert canary(server) == (1, expected[1])
        admin(server, "reload").problem(409, "rolled_back")
        admin(server, "rollback").problem(409, "nothing_to_roll_back")
        registry.set_alias("recsys", "champion", 3)
        wait_until(lambda: version(server) == 3)
        assert ready(server)["degraded_reason"] is None


def test_a_version_that_is_over_its_budget_goes_by_itself(versions, serve):
    """With a budget that nothing can keep; the first version stays all the same, for want of another."""
    registry, expected = versions
    budget = {"requests": 50, "slow_factor": 1e-9, "slow_floor_s": 1e-9}
    settings = {f"watch__budget__{name}": value for name, value in budget.items()}
    with serve(**settings) as server, Load(server, expected) as load:
        wait_until(lambda: load.answered[1] > 200)
        assert ready(server)["degraded_reason"] is None
        registry.set_alias("recsys", "champion", 2)
        admin(server, "reload")
        wait_until(lambda: "model_rolled_back" in server.log)
        wait_until(lambda: ready(server)["degraded_reason"] == "rolled_back")
        assert canary(server) == (1, expected[1])
        assert '"why":"too_slow"' in server.log
        admin(server, "reload").problem(409, "rolled_back")
    assert load.wrong == []
    assert load.answered.keys() == {1, 2}


def damage(registry, name: str) -> None:
    """Cut a file of the newest version in the registry's store."""
    stored = (registry.home / "artifacts").rglob(f"data/bundle/{name}")
    newest = max(stored, key=lambda path: path.stat().st_mtime)
    newest.write_bytes(newest.read_bytes()[:-100])


def test_c01_a_damaged_version_is_refused_and_a_copy_stands_in_at_the_next_start(versions, serve):
    registry, expected = versions
    damage(registry, "ranker.txt")
    with serve() as server:
        registry.set_alias("recsys", "champion", 3)
        with Load(server, expected) as load:
            for _ in range(2):
                problem = admin(server, "reload").problem(422, "digest_mismatch")
                assert len(re.findall(r"\b[0-9a-f]{12}\b", problem["detail"])) == 2, problem
                assert problem["detail"].endswith(" ranker.txt")
            assert canary(server) == (1, expected[1])
        assert load.wrong == []
        assert count(server, 'recsys_bundle_rejected_total{reason="digest_mismatch"}') == 1
        assert ready(server)["degraded_reason"] is None
        assert server.stop() == 0
    with serve() as server:
        assert canary(server) == (1, expected[1])
        assert ready(server)["degraded_reason"] == "registry_artifact_rejected"
        flip(registry, server, 2)
        assert ready(server)["degraded_reason"] is None


def test_c03_a_copy_stands_in_while_the_registry_is_away_and_goes_when_it_is_back(versions, serve):
    registry, expected = versions
    with serve() as server:
        wait_until(lambda: URI in notes(registry.home))
        assert server.stop() == 0
    registry.set_alias("recsys", "champion", 2)
    database = registry.home / "mlflow.db"
    whole = database.read_bytes()
    database.write_bytes(b"not a database" * 1000)
    with serve(watch__poll_s=0.5) as server, Load(server, expected) as load:
        assert canary(server) == (1, expected[1])
        assert ready(server)["degraded_reason"] == "registry_unavailable"
        admin(server, "reload").problem(503, "registry_unavailable")
        database.write_bytes(whole)
        wait_until(lambda: version(server) == 2)
        assert ready(server)["degraded_reason"] is None
    assert load.wrong == []


def notes(home: Path) -> str:
    return (home / "cache" / "served" / "main" / "notes.json").read_text()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_c03_without_a_copy_the_server_lives_and_is_not_ready(tmp_path):
    options = ["--tracking-uri", f"http://127.0.0.1:{closed_port()}"]
    with running(URI, tmp_path, home=tmp_path / "home", options=options, ready=False) as server:
        wait_until(lambda: "no_model" in server.log)
        assert server.ask("GET", "/healthz").status == 200
        server.ask("GET", "/readyz").problem(503, "not_ready")
        server.post("/v1/rank", CANARY).problem(503, "not_ready")
        begin = time.monotonic()
        admin(server, "reload").problem(503, "registry_unavailable")
        assert time.monotonic() - begin < 10.0
        assert server.stop() == 0


def test_only_signed_versions_are_served_where_a_key_is_configured(registry, bundle_parts, serve, tmp_path):
    """Signed, signed by somebody else, not signed; each another bundle."""
    keys = [Ed25519PrivateKey.from_private_bytes(bytes([number] * 32)) for number in (1, 2)]
    parts = bundle_parts[0]
    for number, key in enumerate((keys[0], keys[1], None, keys[0])):
        folder = type(parts)(parts.files, {**parts.metadata, "seed": number}).write(tmp_path / str(number))
        if key is not None:
            sign_bundle(folder, key)
        note_trials(registry.home, folder)
        registry.log_training("recsys", folder, {}, {})
    registry.set_alias("recsys", "champion", 1)
    public = tmp_path / "key.hex"
    public.write_text(keys[0].public_key().public_bytes_raw().hex())
    public.chmod(0o644)
    with serve(options=["--public-key", str(public)]) as server:
        for number, code in ((2, "signature_invalid"), (3, "signature_missing")):
            registry.set_alias("recsys", "champion", number)
            admin(server, "reload").problem(422, code)
            assert version(server) == 1
            assert count(server, f'recsys_bundle_rejected_total{{reason="{code}"}}') == 1
        flip(registry, server, 4)
        assert server.stop() == 0


def test_an_unsigned_bundle_is_never_served_first(hosted, bundle_folder, tmp_path):
    public = tmp_path / "key.hex"
    public.write_text(Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw().hex())
    with hosted(bundle_folder, tmp_path, options=["--public-key", str(public)], ready=False) as server:
        wait_until(lambda: "no_model" in server.log)
        server.ask("GET", "/readyz").problem(503, "not_ready")
        admin(server, "reload").problem(422, "signature_missing")


@pytest.fixture
def shadowed(versions, serve) -> Iterator[Callable[..., Any]]:
    """Start a server with the challenger in its shadow, which sees every request."""
    return partial(
        serve, options=["--shadow", "models:/recsys@challenger"], shadow__share=1.0, shadow__longest_s=600.0
    )


def test_a_shadow_is_told_of_and_its_failures_are_nobodys(versions, shadowed, second_folder):
    registry, expected = versions
    registry.set_alias("recsys", "challenger", 2)
    with shadowed() as server:
        wait_until(lambda: server.log.count("model_swapped") == 2)
        for _ in range(10):
            assert canary(server) == (1, expected[1])
        wait_until(lambda: figures(server)["requests"] == 10)
        found = figures(server)
        ours, others = ({item["id"]: item for item in expected[number]} for number in (1, 2))
        assert (found["dropped"], found["errors"]) == (0, 0)
        assert found["first_changed"] == (expected[1][0]["id"] != expected[2][0]["id"])
        places = [others[each]["rank"] for each in ours]
        assert found["rank_correlation"] == pytest.approx(rank_correlation(places), abs=1e-9)
        largest = max(abs(ours[each]["score"] - others[each]["score"]) for each in ours)
        assert found["largest_difference"] == pytest.approx(largest, abs=1e-6)
        assert count(server, "recsys_model_info") == 1
        assert count(server, 'recsys_model_info{name="recsys",version="1"}') == 1, "the one that answers"
        swaps = [json.loads(line) for line in server.log.splitlines() if "model_swapped" in line]
        assert {(line["version"], line.get("role")) for line in swaps} == {(1, None), (2, "shadow")}


def figures(server: Running) -> dict[str, Any]:
    got = server.ask("GET", "/admin/shadow", admin=True)
    assert got.status == 200
    return got.json


def test_a_shadow_that_does_not_come_costs_nobody_anything(versions, shadowed):
    """Its bundle is damaged."""
    registry, expected = versions
    damage(registry, "ranker.txt")
    registry.set_alias("recsys", "challenger", 3)
    with shadowed() as server, Load(server, expected) as load:
        wait_until(lambda: "no_model" in server.log)
        wait_until(lambda: load.answered[1] > 20)
        assert figures(server)["requests"] == 0
        assert ready(server)["degraded_reason"] is None
    assert load.wrong == []


def test_requests_that_a_shadow_fails_at_are_answered_all_the_same(
    versions, shadowed, bundle_parts, tmp_path
):
    """It knows of a later moment than the canary's, and so has no answer for it."""
    registry, expected = versions
    parts, later = bundle_parts[1], CANARY["timestamp"] + 60.0
    folder = type(parts)(parts.files, {**parts.metadata, "as_of": later}).write(tmp_path / "later")
    note_trials(registry.home, folder)
    registry.log_training("recsys", folder, {}, {})
    registry.set_alias("recsys", "challenger", 4)
    with shadowed() as server:
        wait_until(lambda: server.log.count("model_swapped") == 2)
        for _ in range(10):
            assert canary(server) == (1, expected[1])
        wait_until(lambda: figures(server)["errors"] == 10)
        assert figures(server)["requests"] == 0
        assert server.post("/v1/rank", CANARY | {"timestamp": later}).status == 200
        wait_until(lambda: figures(server)["requests"] == 1)
        assert ready(server)["degraded_reason"] is None
