"""Minutes of a server's life: random ones, long ones, rolling ones, one with a million events behind it."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.events.parsing import record_of
from serving.events.sqlite_log import SqliteLog
from serving.messages import InteractionEvent, ItemEvent
from tests.serving.expected import are_close, asked, model_of, ranked, stored
from tests.serving.running import RECSYS, Got, Running, running, wait_until

pytestmark = pytest.mark.soak

ITEMS = [f"i{number:02d}" for number in range(40)]
USERS = [f"u{number:02d}" for number in range(20)]
KINDS = ["click", "purchase", "view", "dismiss"]
MINUTES = float(os.environ.get("RECSYS_SOAK_MINUTES", "5"))


class Life:
    """A server over a folder, and what it has acknowledged so far."""

    def __init__(self, hosted: Callable[..., Any], bundles: list[Path], folder: Path, seed: int) -> None:
        self.hosted, self.bundles, self.folder = hosted, bundles, folder
        self.draws, self.numbers = random.Random(seed), itertools.count()
        self.acknowledged: dict[str, dict[str, Any]] = {}
        self.items, self.bundle, self.damaged = list(ITEMS), bundles[0], 0
        self.served, self.log = folder / "served", folder / "events.db"
        shutil.copytree(self.bundle, self.served)
        self.stack = ExitStack()
        self.start()

    def start(self) -> None:
        self.server: Running = self.stack.enter_context(
            self.hosted(self.served, self.folder, deadline_s=10.0)
        )

    def ingest(self) -> None:
        batch = [self.event(next(self.numbers)) for _ in range(self.draws.randint(1, 200))]
        if self.acknowledged:
            batch += self.draws.sample(sorted(self.acknowledged.values(), key=str), 1)
        got = self.server.post("/v1/events", batch)
        assert (got.status, got.json["rejected"]) == (200, [])
        self.acknowledged |= {event["event_id"]: event for event in batch}

    def event(self, number: int) -> dict[str, Any]:
        common = {"event_id": f"e{number}-{'x' * 30}", "timestamp": time.time()}
        if number % 20 == 0:
            self.items.append(f"n{number}")
            return common | {
                "kind": "item",
                "item_id": f"n{number}",
                "title": self.draws.choice(["a red", "an old"]),
            }
        user, item = self.draws.choice([*USERS, "writer"]), self.draws.choice(self.items)
        if number % 7 == 0:
            return common | {"kind": "impression", "user_id": user, "shown": [item]}
        return common | {"user_id": user, "item_id": item, "event_type": self.draws.choice(KINDS)}

    def reload(self) -> None:
        self.bundle = self.draws.choice(self.bundles)
        shutil.rmtree(self.served)
        shutil.copytree(self.bundle, self.served)
        assert self.server.ask("POST", "/admin/reload", admin=True).status == 200

    def restart(self) -> None:
        assert self.server.stop() == 0
        self.start()

    def kill(self) -> None:
        self.server.stop(signal.SIGKILL)
        self.start()

    def corrupt(self) -> None:
        """Flip a bit of a record while nobody looks; it can be sent again, and so is not lost for ever."""
        assert self.server.stop() == 0
        ids = [each.record.event_id for each in stored(self.log)]
        if ids:
            content = bytearray(self.log.read_bytes())
            content[content.index(self.draws.choice(ids).encode()) + 15] ^= 1
            self.log.write_bytes(content)
            self.damaged += 1
        self.start()

    def taken(self, events: list[dict[str, Any]]) -> Got | None:
        got = self.server.post("/v1/events", events)
        return got if got.status == 200 else None

    def check(self) -> None:
        """What was acknowledged is there once, but for what was damaged, and the answers follow from it."""
        ids = [each.record.event_id for each in stored(self.log)]
        assert len(set(ids)) == len(ids)
        assert set(ids) <= self.acknowledged.keys()
        lost = self.acknowledged.keys() - set(ids)
        assert len(lost) <= self.damaged
        if lost:
            again = [self.acknowledged[each] for each in lost]
            got = self.server.post("/v1/events", again)
            if got.status != 200:  # the log has just seen what is wrong with it, and is mended first
                got.problem(503, "events_blocked")
                got = wait_until(lambda: self.taken(again))
            assert got.json["accepted"] == len(lost)
            self.damaged = 0
        model, moment = model_of(self.bundle, self.log), time.time() + 60.0
        for user in [*self.draws.sample(USERS, 4), "writer"]:
            expected = ranked(model, user, self.items[-300:], moment)
            wait_until(
                lambda user=user, expected=expected: are_close(
                    asked(self.server, user, self.items[-300:], moment), expected
                )
            )


@pytest.mark.parametrize("seed", range(3))
def test_c29_a_random_life_is_what_the_engine_makes_of_its_log(
    hosted, bundle_folder, second_folder, tmp_path, seed
):
    life = Life(hosted, [bundle_folder, second_folder], tmp_path, seed)
    with life.stack:
        for _ in range(40):
            step = life.draws.choice([life.ingest] * 4 + [life.reload, life.restart, life.kill, life.corrupt])
            step()
            life.check()
        assert "Traceback" not in life.server.log


def fill(log: Path, count: int) -> None:
    """A log of this many interactions of the last day, and then of an item that nobody knew."""
    draws, start = np.random.default_rng(1), time.time() - 86_400.0
    with contextlib.closing(SqliteLog(log, durability="os")) as opened:
        for first in range(0, count, 10_000):
            rows = draws.integers(0, (len(USERS), len(ITEMS), len(KINDS)), (10_000, 3)).tolist()
            events = [
                InteractionEvent(
                    event_id=f"e{number}", user_id=USERS[user], item_id=ITEMS[item], event_type=KINDS[kind],
                    timestamp=start + number / 20.0,
                )
                for number, (user, item, kind) in enumerate(rows, first)
            ]  # fmt: skip
            opened.append([record_of(event, start) for event in events])
        last = ItemEvent(event_id="last", item_id="the-last", timestamp=time.time(), title="a blue thing i07")
        opened.append([record_of(last, time.time())])


def knows_the_last(server: Running) -> bool:
    return bool(server.post("/v1/similar", {"item_id": "the-last"}).json.get("items"))


def test_c14_a_server_with_a_million_events_behind_it_is_ready_in_ten_seconds(
    hosted, bundle_folder, tmp_path
):
    """It catches up with the rest while it answers."""
    fill(tmp_path / "events.db", 1_000_000)
    with hosted(bundle_folder, tmp_path / "first"):
        """The bundle has passed its trial, as it has wherever a million events were taken."""
    begin = time.monotonic()
    with hosted(bundle_folder, tmp_path, deadline_s=10.0) as server:
        took, slowest = time.monotonic() - begin, 0.0
        while not knows_the_last(server):
            asking = time.monotonic()
            assert server.post("/v1/rank", {"user_id": "u03", "candidates": ITEMS}).status == 200
            slowest = max(slowest, time.monotonic() - asking)
            assert time.monotonic() - begin < 600
        all_s = time.monotonic() - begin
    print(f"ready after {took:.1f} s, all read after {all_s:.1f} s, slowest answer {slowest * 1e3:.0f} ms")
    assert took < 10.0


# MLflow 3.17 on SQLAlchemy 2.1
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
def test_a_second_model_that_is_far_behind_keeps_no_event_from_the_first(two_versions, tmp_path):
    """The challenger comes when the champion has read everything, and has a quarter of a million to read."""
    registry, _, _ = two_versions
    fill(tmp_path / "events.db", 250_000)
    options = ["--shadow", "models:/recsys@challenger"]
    patient = {f"watch__{name}": 120.0 for name in ("open_s", "first_resolve_s", "resolve_s")}
    home, uri = registry.home, "models:/recsys@champion"
    with running(
        uri, tmp_path, home=home, options=options, deadline_s=10.0, watch__poll_s=0.2, **patient
    ) as server:
        wait_until(lambda: knows_the_last(server))
        registry.set_alias("recsys", "challenger", 2)
        wait_until(lambda: server.log.count("model_swapped") == 2)
        waited = []
        for number in range(9):
            user, begin = f"newcomer-{number}", time.monotonic()
            event = {"event_id": user, "user_id": user, "item_id": "i05", "event_type": "click"}
            assert server.post("/v1/events", event | {"timestamp": time.time()}).json["accepted"] == 1
            wait_until(lambda user=user: knows(server, user))
            waited.append(time.monotonic() - begin)
    print(f"seen after {[round(each, 3) for each in waited]} s")
    assert max(waited) < 2.0


def knows(server: Running, user: str) -> bool:
    got = server.post("/v1/rank", {"user_id": user, "candidates": ITEMS[:3]})
    return got.json["degraded_reason"] is None


class Balancer:
    """Clients of two servers; each request goes to one that said a moment ago that it was ready."""

    def __init__(self) -> None:
        self.servers: list[Running] = []
        self.ready: list[Running] = []
        self.failures: list[str] = []
        self.answered = 0
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._look),
            *(threading.Thread(target=self._ask) for _ in range(4)),
        ]

    def __enter__(self) -> Balancer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.05):
            found = []
            for server in list(self.servers):
                with contextlib.suppress(OSError, http.client.HTTPException):
                    if server.ask("GET", "/readyz").status == 200:
                        found.append(server)
            self.ready = found

    def _ask(self) -> None:
        turns = itertools.count()
        while not self._stop.wait(0.01):
            ready = self.ready
            if not ready:
                continue
            try:
                got = ready[next(turns) % len(ready)].post(
                    "/v1/rank", {"user_id": "u03", "candidates": ITEMS}
                )
                if got.status != 200:
                    self.failures.append(str(got))
            except OSError as error:
                self.failures.append(repr(error))
            self.answered += 1


def test_c32_a_rolling_restart_fails_nobody(hosted, bundle_folder, tmp_path):
    with ExitStack() as stack, Balancer() as balancer:
        for number in range(6):
            server = stack.enter_context(
                hosted(bundle_folder, tmp_path / str(number), drain_delay_s=2.0, deadline_s=10.0)
            )
            balancer.servers.append(server)
            wait_until(lambda server=server: server in balancer.ready)
            if number:
                begin = time.monotonic()
                assert balancer.servers[0].stop() == 0
                assert time.monotonic() - begin < 10.0
                balancer.servers.pop(0)
    assert balancer.failures == []
    assert balancer.answered > 500


def test_c35_a_long_run_leaks_nothing(hosted, bundle_folder, second_folder, tmp_path):
    """Requests, events, reloads and exports at once; RECSYS_SOAK_MINUTES says for how long."""
    life = Life(hosted, [bundle_folder, second_folder], tmp_path, 0)
    stop, failures, seconds = threading.Event(), [], []

    def ask() -> None:
        while not stop.wait(0.01):
            begin = time.perf_counter()
            got = life.server.post("/v1/rank", {"user_id": "u03", "candidates": ITEMS})
            seconds.append(time.perf_counter() - begin)
            if got.status != 200 or got.json["degraded"]:
                failures.append(got)

    def held() -> tuple[float, int, int, int]:
        pid = life.server.process.pid
        status = Path(f"/proc/{pid}/status").read_text()
        kib, threads = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads"))
        return time.monotonic() / 60.0, kib, threads, len(os.listdir(f"/proc/{pid}/fd"))

    clients = [threading.Thread(target=ask) for _ in range(2)]
    with life.stack:
        for client in clients:
            client.start()
        try:
            samples, end, halves = [], time.monotonic() + 60.0 * MINUTES, []
            while time.monotonic() < end:
                life.ingest()
                life.reload()
                export = [
                    *RECSYS,
                    "events",
                    "export",
                    tmp_path / "night",
                    "--log",
                    life.log,
                    "--until",
                    "now",
                ]
                subprocess.run(export, check=True, capture_output=True)
                time.sleep(5.0)
                samples.append(held())
                halves.append(len(seconds))
        finally:
            stop.set()
            for client in clients:
                client.join()
        life.check()
        assert life.server.stop() == 0
    later = np.array(samples[len(samples) // 3 :], float)
    slope = np.polyfit(later[:, 0], later[:, 1] / 1024, 1)[0]
    middle = halves[len(halves) // 2]
    before, after = (np.percentile(part, 99) for part in (seconds[:middle], seconds[middle:]))
    print(f"{len(seconds)} requests, {slope:+.2f} MiB a minute, last {later[-1].tolist()}")
    print(f"p99 {before * 1e3:.1f} ms in the first half, {after * 1e3:.1f} ms in the second")
    assert failures == []
    assert slope < 1.0
    assert np.ptp(later[:, 2]) <= 3
    assert np.ptp(later[:, 3]) <= 6
