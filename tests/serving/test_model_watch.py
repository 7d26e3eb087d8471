"""The life of models in a server: real registries, real trials, and one model that always answers."""

import asyncio
import gc
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from recsys.bundle import read_bundle
from recsys.errors import RecsysError
from recsys.signing import key_id, sign_bundle
from recsys.storage import json_bytes
from serving.engine.answering import rank
from serving.engine.live_model import LiveModel
from serving.events.parsing import record_of
from serving.events.sqlite_log import SqliteLog
from serving.lifecycle.cached_bundles import CachedBundles, KnownGood, open_registry
from serving.lifecycle.changes import ChangeLimits, ModelChanges
from serving.lifecycle.health_budget import HealthBudget
from serving.lifecycle.report import ModelReport
from serving.lifecycle.slot import ModelSlot
from serving.lifecycle.source import FolderSource, RegistrySource
from serving.lifecycle.supply import ModelSupply
from serving.lifecycle.trial import TrialLimits
from serving.lifecycle.watch import ModelWatch, WatchSettings
from serving.logs import LineLog
from serving.messages import InteractionEvent, ModelName, RankRequest
from serving.meters import Meters

# MLflow 3.17 on SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

URI = "models:/recsys@champion"
NAME = ModelName(name="recsys", version=1, alias="champion")
AS_OF = 30 * 86_400.0
CANARY = RankRequest(
    user_id="u03", candidates=[f"i{number:02d}" for number in range(20)], timestamp=AS_OF + 60.0
)
PATIENT = TrialLimits(wall_s=120.0)
"""The machine that runs the tests may be busy."""


@dataclass
class Served:
    """One slot and everything that keeps it filled."""

    slot: ModelSlot
    watch: ModelWatch
    report: ModelReport
    meters: Meters
    cache: CachedBundles
    log: LineLog
    lines: Path

    def canary(self) -> bytes:
        """An answer of the current model, without the name that an alias gives it."""
        answer = rank(self.slot.current, CANARY, AS_OF + 60.0)
        return msgspec.json.encode([(item.id, item.score) for item in answer.items])

    @property
    def version(self) -> int | None:
        return self.slot.current and self.slot.current.name.version

    def told(self) -> list[dict]:
        self.log.close()
        return [json.loads(line) for line in self.lines.read_text().splitlines()]


@pytest.fixture
def serve(tmp_path: Path):
    """Make a watched slot over a source; trials of the given bundles count as passed."""
    opened = []

    def make(source, passed=(), *, keys=None, events=None, limits=PATIENT, **settings) -> Served:
        cache = CachedBundles(tmp_path / "cache")
        for folder in passed:
            cache.note_passed(read_bundle(folder).digest)
        source = source(cache) if callable(source) else source
        lines = tmp_path / f"lines-{len(opened)}"
        descriptor = os.open(lines, os.O_WRONLY | os.O_CREAT)
        meters = Meters()
        log = LineLog(descriptor, meters.lines_dropped)
        report = ModelReport(meters, log)
        slot = ModelSlot()
        supply = ModelSupply(source, cache, keys, limits)
        changes = ModelChanges(slot, supply, report, events, ChangeLimits(load_s=200.0))
        watch = ModelWatch(
            changes, supply, WatchSettings(**{"first_resolve_s": 60.0, "resolve_s": 60.0, **settings})
        )
        opened.append((log, descriptor))
        return Served(slot, watch, report, meters, cache, log, lines)

    yield make
    for log, descriptor in opened:
        log.close()
        os.close(descriptor)


def registered(registry):
    return lambda cache: RegistrySource(URI, lambda: registry, cache)


def at(uri: str, home: Path):
    return lambda cache: RegistrySource(URI, lambda: open_registry(home, uri), cache)


def refused(coroutine) -> RecsysError:
    async def call() -> RecsysError:
        with pytest.raises(RecsysError) as caught:
            await coroutine
        return caught.value

    return call()


def rejected(served: Served, reason: str) -> float:
    return served.meters.registry.get_sample_value("recsys_bundle_rejected_total", {"reason": reason}) or 0.0


def damage(registry, name: str, change) -> None:
    """Change a file of the newest version in the registry's store."""
    stored = max(
        (registry.home / "artifacts").rglob(f"data/bundle/{name}"), key=lambda path: path.stat().st_mtime
    )
    stored.write_bytes(change(stored.read_bytes()))


async def settle(served: Served) -> None:
    """Let what the watch started by itself come to its end."""
    while served.watch._tasks:
        await asyncio.gather(*served.watch._tasks)


def test_the_champion_is_served_and_followed(serve, two_versions, bundle_folder, second_folder):
    registry, first, second = two_versions
    served = serve(registered(registry), [bundle_folder, second_folder])

    async def live() -> None:
        await served.watch.start()
        assert (served.version, served.slot.degraded_reason) == (1, None)
        assert served.slot.current.digest == first.digest
        before = served.canary()
        unchanged = await served.watch.reload()
        assert unchanged.model == unchanged.previous == NAME
        registry.set_alias("recsys", "champion", 2)
        await served.watch.poll()
        assert served.slot.current.digest == second.digest
        assert served.slot.previous.digest == first.digest
        assert served.canary() != before
        registry.set_alias("recsys", "champion", 1)
        swap = await served.watch.reload()
        assert (swap.model.version, swap.previous.version) == (1, 2)
        assert served.canary() == before
        await settle(served)

    asyncio.run(live())
    assert served.report.swaps == 3
    assert [line["event"] for line in served.told()] == ["model_swapped"] * 3


def test_the_alias_is_looked_at_by_itself(serve, two_versions, bundle_folder, second_folder):
    registry, _, _ = two_versions
    served = serve(registered(registry), [bundle_folder, second_folder], poll_s=0.05)

    async def live() -> None:
        await served.watch.start()
        running = asyncio.create_task(served.watch.run())
        registry.set_alias("recsys", "champion", 2)
        while served.version != 2:
            await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await settle(served)

    asyncio.run(asyncio.wait_for(live(), 60.0))


def slowly(registry, seconds: float):
    """A registry whose client takes long to be imported."""

    def connect():
        time.sleep(seconds)
        return registry

    return lambda cache: RegistrySource(URI, connect, cache)


def test_a_client_that_is_slow_to_import_is_no_dead_registry(serve, two_versions, bundle_folder):
    registry, first, _ = two_versions
    registry.resolve(URI)
    served = serve(slowly(registry, 1.5), [bundle_folder], first_resolve_s=1.0)

    async def live() -> None:
        await served.watch.start()
        await settle(served)

    asyncio.run(live())
    assert (served.version, served.slot.degraded_reason) == (1, None)
    assert served.slot.current.digest == first.digest


def test_a_client_that_does_not_come_in_time_leaves_the_copy_until_it_does(
    serve, two_versions, bundle_folder
):
    registry, _, _ = two_versions
    served = serve(slowly(registry, 1.0), [bundle_folder], open_s=0.1)
    known_good(served, bundle_folder)

    async def live() -> None:
        await served.watch.start()
        assert (served.version, served.slot.degraded_reason) == (1, "registry_unavailable")
        while served.slot.degraded_reason is not None:
            await asyncio.sleep(0.1)
            await served.watch.poll()
        await settle(served)

    asyncio.run(asyncio.wait_for(live(), 60.0))
    told = [(line["event"], line.get("code")) for line in served.told()]
    assert told[0] == ("last_known_good", "registry_unavailable")


def test_another_version_of_the_same_bundle_is_only_renamed(serve, registry, bundle_folder):
    for _ in range(2):
        registry.log_training("recsys", bundle_folder, {}, {})
    registry.set_alias("recsys", "champion", 1)
    served = serve(registered(registry), [bundle_folder])

    async def live() -> None:
        await served.watch.start()
        model = served.slot.current
        registry.set_alias("recsys", "champion", 2)
        await served.watch.poll()
        assert served.slot.current is model
        assert served.version == 2

    asyncio.run(live())
    assert served.report.swaps == 1


@pytest.mark.parametrize("percent", [10, 90])
def test_c01_a_truncated_ranker_is_refused_once_until_the_alias_moves(
    serve, two_versions, bundle_folder, second_folder, percent
):
    registry, _, _ = two_versions
    damage(registry, "ranker.txt", lambda data: data[: len(data) * percent // 100])
    served = serve(registered(registry), [bundle_folder, second_folder])

    async def live() -> None:
        await served.watch.start()
        before = served.canary()
        registry.set_alias("recsys", "champion", 2)
        for _ in range(3):
            error = await refused(served.watch.reload())
            assert (error.code, error.where) == ("digest_mismatch", "ranker.txt")
            await served.watch.poll()
            assert (served.version, served.canary()) == (1, before)
        assert rejected(served, "digest_mismatch") == 1
        registry.set_alias("recsys", "champion", 1)
        await served.watch.poll()
        registry.set_alias("recsys", "champion", 2)
        await refused(served.watch.reload())
        assert rejected(served, "digest_mismatch") == 2
        assert served.slot.degraded_reason is None

    asyncio.run(live())
    assert "digest_mismatch" in served.meters.exposition().decode()


def test_c01_a_cold_start_on_a_refused_version_uses_the_last_known_good(
    serve, two_versions, bundle_folder, second_folder
):
    registry, first, _ = two_versions
    damage(registry, "ranker.txt", lambda data: data[: len(data) // 2])

    async def run_once(served: Served) -> bytes:
        await served.watch.start()
        await settle(served)
        return served.canary()

    before = asyncio.run(run_once(serve(registered(registry), [bundle_folder, second_folder])))
    registry.set_alias("recsys", "champion", 2)
    again = serve(registered(registry))
    started = time.monotonic()
    assert asyncio.run(run_once(again)) == before
    assert time.monotonic() - started < 10
    assert (again.version, again.slot.degraded_reason) == (1, "registry_artifact_rejected")
    assert again.slot.current.digest == first.digest


def test_c01_without_a_copy_there_is_no_model_until_a_good_version_comes(
    serve, two_versions, bundle_folder, second_folder
):
    registry, _, _ = two_versions
    damage(registry, "ranker.txt", lambda data: data[:-10])
    registry.set_alias("recsys", "champion", 2)
    served = serve(registered(registry), [bundle_folder, second_folder])

    async def live() -> None:
        assert (await refused(served.watch.start())).code == "digest_mismatch"
        assert served.slot.current is None
        await served.watch.poll()
        assert served.slot.current is None
        registry.set_alias("recsys", "champion", 1)
        await served.watch.poll()
        assert served.version == 1
        await settle(served)

    asyncio.run(live())


def wrong_golden(parts) -> bytes:
    golden = json.loads(parts.files["golden.json"])
    golden["score"][5] -= 1e-3
    return json_bytes(golden)


def lethal_ranker(parts) -> bytes:
    head, sizes, rest = parts.files["ranker.txt"].partition(b"tree_sizes=")
    line, _, rest = rest.partition(b"\n")
    longer = b" ".join(b"%d" % (int(size) * 1000) for size in line.split())
    return head + sizes + longer + b"\n" + rest


@pytest.mark.parametrize(
    ("file", "change", "code"),
    [("golden__json", wrong_golden, "golden_mismatch"), ("ranker__txt", lethal_ranker, "trial_crashed")],
)
def test_c02_a_version_that_fails_its_trial_changes_nothing(
    serve, registry, bundle_parts, bundle_folder, tmp_path, file, change, code
):
    registry.log_training("recsys", bundle_folder, {}, {})
    registry.log_training(
        "recsys", bundle_parts[1].write(tmp_path / "b", **{file: change(bundle_parts[1])}), {}, {}
    )
    registry.set_alias("recsys", "champion", 1)
    served = serve(registered(registry), [bundle_folder])

    async def live() -> None:
        await served.watch.start()
        before, ticks = served.canary(), 0
        registry.set_alias("recsys", "champion", 2)
        reload = asyncio.create_task(refused(served.watch.reload()))
        while not reload.done():
            assert served.canary() == before
            ticks += 1
            await asyncio.sleep(0.01)
        assert reload.result().code == code
        assert ticks > 10, "the loop goes on during the trial"
        assert (served.version, served.canary()) == (1, before)
        await settle(served)

    asyncio.run(live())
    assert rejected(served, code) == 1


@contextmanager
def web_server(status: int, body: bytes, content_type: str) -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def known_good(served: Served, folder: Path) -> None:
    """A copy that an earlier start left."""
    from recsys.bundle import write_bundle

    bundle = read_bundle(folder)
    manifest = bundle.manifest
    about = {"name": manifest.name, "as_of": manifest.as_of, "feature_schema": manifest.feature_schema}
    write_bundle(served.cache.path(bundle.digest), bundle.files, {**about, **manifest.metadata})
    served.cache.note_good(URI, KnownGood(bundle.digest, "recsys", 1, "champion"))


@pytest.mark.parametrize(
    ("status", "body", "content_type"),
    [
        (500, b"broken", "text/plain"),
        (429, b"later", "text/plain"),
        (200, b"<html>sign in</html>", "text/html"),
    ],
)
def test_c03_a_registry_that_is_none_leaves_the_copy(
    serve, bundle_folder, tmp_path, status, body, content_type
):
    with web_server(status, body, content_type) as uri:
        served = serve(at(uri, tmp_path), [bundle_folder], first_resolve_s=4.0, resolve_s=9.0)
        known_good(served, bundle_folder)

        async def live() -> None:
            started = time.monotonic()
            await served.watch.start()
            assert time.monotonic() - started < 10
            assert (served.version, served.slot.degraded_reason) == (1, "registry_unavailable")
            started = time.monotonic()
            assert (await refused(served.watch.reload())).code == "registry_unavailable"
            assert time.monotonic() - started < 10
            await settle(served)

        asyncio.run(live())


@pytest.mark.soak  # measures pauses: needs a machine of its own
def test_c03_a_registry_that_never_answers_holds_nothing_up(serve, bundle_folder, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        served = serve(at(uri, tmp_path), [bundle_folder], first_resolve_s=0.5, resolve_s=0.5)
        known_good(served, bundle_folder)

        async def live() -> None:
            started = time.monotonic()
            await served.watch.start()
            assert served.slot.degraded_reason == "registry_unavailable"
            for _ in range(3):
                assert (await refused(served.watch.reload())).code == "registry_unavailable"
            assert time.monotonic() - started < 10
            await settle(served)

        before = threading.active_count()
        asyncio.run(live())
        assert threading.active_count() <= before + 1, "one call hangs, and no other is started behind it"


def test_c03_a_closed_port_and_no_copy(serve, tmp_path):
    served = serve(at("http://127.0.0.1:9", tmp_path))

    async def live() -> None:
        assert (await refused(served.watch.start())).code == "registry_unavailable"
        assert served.slot.current is None

    asyncio.run(live())


def test_c03_the_newest_version_is_served_once_the_registry_is_back(
    serve, two_versions, bundle_folder, second_folder
):
    registry, _, _ = two_versions
    database = registry.home / "mlflow.db"
    registry.set_alias("recsys", "champion", 2)
    whole = database.read_bytes()
    database.write_bytes(b"not a database" * 1000)
    source = lambda cache: RegistrySource(URI, lambda: open_registry(registry.home), cache)  # noqa: E731
    served = serve(source, [bundle_folder, second_folder])
    known_good(served, bundle_folder)

    async def live() -> None:
        await served.watch.start()
        assert (served.version, served.slot.degraded_reason) == (1, "registry_unavailable")
        await served.watch.poll()
        assert (served.version, served.slot.degraded_reason) == (1, "registry_unavailable")
        database.write_bytes(whole)
        await served.watch.poll()
        assert (served.version, served.slot.degraded_reason) == (2, None)
        await settle(served)

    asyncio.run(live())


def test_signatures_are_asked_for_where_a_key_is_configured(serve, registry, bundle_parts, tmp_path):
    key, other = (Ed25519PrivateKey.from_private_bytes(bytes([number] * 32)) for number in (1, 2))
    unsigned, wrong, signed = (
        bundle_parts[0].write(tmp_path / name) for name in ("unsigned", "wrong", "signed")
    )
    sign_bundle(wrong, other)
    sign_bundle(signed, key)
    for folder in (unsigned, wrong, signed):
        registry.log_training("recsys", folder, {}, {})
    keys = {key_id(key.public_key()): key.public_key()}
    codes = {}
    for number in (1, 2, 3):
        registry.set_alias("recsys", "champion", number)
        folder = (unsigned, wrong, signed)[number - 1]
        served = serve(registered(registry), [folder], keys=keys)
        # the bundles differ in nothing but their signature, which no copy may hide
        served.cache.prune([], young_s=0.0)

        async def live(served: Served = served) -> str:
            try:
                await served.watch.start()
            except RecsysError as error:
                return error.code
            await settle(served)
            return "served"

        codes[number] = asyncio.run(live())
    assert codes == {1: "signature_missing", 2: "signature_invalid", 3: "served"}


@pytest.mark.soak  # measures pauses: needs a machine of its own
def test_c07_a_storm_of_reloads_fails_no_request_and_leaves_nothing_behind(
    serve, two_versions, bundle_folder, second_folder
):
    registry, _, _ = two_versions
    served = serve(registered(registry), [bundle_folder, second_folder])
    reference: dict[int, bytes] = {}
    answered = {1: 0, 2: 0}

    async def client(stop: asyncio.Event) -> None:
        while not stop.is_set():
            version = served.version
            assert served.canary() == reference[version], "each answer is of exactly one version"
            answered[version] += 1
            await asyncio.sleep(0.001)

    async def flip(count: int) -> None:
        for number in range(count):
            registry.set_alias("recsys", "champion", 2 - number % 2)
            await served.watch.reload()

    async def live() -> None:
        await served.watch.start()
        reference[1] = served.canary()
        registry.set_alias("recsys", "champion", 2)
        await served.watch.reload()
        reference[2] = served.canary()
        await flip(4)
        await settle(served)
        before = (len(os.listdir("/proc/self/fd")), threading.active_count(), models_alive())
        stop = asyncio.Event()
        clients = [asyncio.create_task(client(stop)) for _ in range(4)]
        await flip(40)
        stop.set()
        await asyncio.gather(*clients)
        registry.set_alias("recsys", "champion", 1)
        await served.watch.reload()
        await settle(served)
        assert served.canary() == reference[1]
        after = (len(os.listdir("/proc/self/fd")), threading.active_count(), models_alive())
        assert (after[0], after[2]) == (before[0], before[2])
        assert after[1] <= before[1]

    asyncio.run(live())
    assert min(answered.values()) > 10
    assert reference[1] != reference[2]


def models_alive() -> int:
    gc.collect()
    return sum(type(each) is LiveModel for each in gc.get_objects())  # isinstance would wake lazy modules


def test_many_reloads_at_once_are_taken_in_turn_and_the_rest_refused(serve, two_versions, bundle_folder):
    registry, _, _ = two_versions
    served = serve(registered(registry), [bundle_folder])

    async def live() -> list:
        await served.watch.start()
        return await asyncio.gather(*(served.watch.reload() for _ in range(40)), return_exceptions=True)

    found = asyncio.run(live())
    codes = [error.code for error in found if isinstance(error, RecsysError)]
    assert set(codes) == {"reload_running"}
    assert len(found) - len(codes) == 16


def event(number: int) -> InteractionEvent:
    return InteractionEvent(
        event_id=f"e{number}", user_id="u03", item_id=f"i{number % 40:02d}", event_type="click",
        timestamp=AS_OF + number / 10.0,
    )  # fmt: skip


def test_a_rollback_goes_back_with_all_events_and_does_not_come_again(
    serve, two_versions, bundle_folder, second_folder, tmp_path
):
    registry, _, _ = two_versions
    events = SqliteLog(tmp_path / "events.db", reserve_bytes=0, durability="os")
    served = serve(registered(registry), [bundle_folder, second_folder], events=events)

    async def live() -> None:
        assert (await refused(served.watch.rollback())).code == "nothing_to_roll_back"
        await served.watch.start()
        registry.set_alias("recsys", "champion", 2)
        await served.watch.reload()
        for number in range(1, 301):
            events.append([record_of(event(number), AS_OF)])
            served.slot.apply(event(number), number)
        swap = await served.watch.rollback()
        assert (swap.model.version, swap.previous.version) == (1, 2)
        assert (served.version, served.slot.degraded_reason) == (1, "rolled_back")
        assert served.slot.current.sequence == 300
        expected = LiveModel.load(read_bundle(bundle_folder), NAME)
        for number in range(1, 301):
            expected.apply(event(number), number)
        assert served.slot.current.state.to_files() == expected.state.to_files()
        assert (await refused(served.watch.rollback())).code == "nothing_to_roll_back"
        await served.watch.poll()
        assert served.version == 1
        assert (await refused(served.watch.reload())).code == "rolled_back"
        registry.set_alias("recsys", "champion", 1)
        await served.watch.poll()
        assert served.slot.degraded_reason is None
        registry.set_alias("recsys", "champion", 2)
        await served.watch.poll()
        assert served.version == 2
        await settle(served)

    asyncio.run(live())
    events.close()
    assert served.report.rollbacks == 1


def observe(served: Served, count: int, seconds: float, *, failed: bool = False) -> None:
    for _ in range(count):
        served.watch.observe(CANARY, seconds, failed=failed)


@pytest.mark.parametrize("how", ["errors", "latency"])
def test_a_version_that_does_badly_goes_by_itself(serve, two_versions, bundle_folder, second_folder, how):
    registry, _, _ = two_versions
    served = serve(
        registered(registry),
        [bundle_folder, second_folder],
        budget=HealthBudget(requests=100, slow_floor_s=0.001),
    )

    async def live() -> None:
        await served.watch.start()
        observe(served, 200, 0.002)
        registry.set_alias("recsys", "champion", 2)
        await served.watch.reload()
        assert served.version == 2
        observe(served, 30, 0.002 if how == "errors" else 0.02, failed=how == "errors")
        await settle(served)
        assert (served.version, served.slot.degraded_reason) == (1, "rolled_back")
        assert served.slot.previous is None, "its memory is given back"
        await served.watch.poll()
        assert served.version == 1

    asyncio.run(live())
    why = {"errors": "too_many_errors", "latency": "too_slow"}[how]
    assert [line["why"] for line in served.told() if line["event"] == "model_rolled_back"] == [why]


def test_a_first_version_that_does_badly_stays_for_want_of_another(serve, two_versions, bundle_folder):
    registry, _, _ = two_versions
    served = serve(registered(registry), [bundle_folder])

    async def live() -> None:
        await served.watch.start()
        observe(served, 50, 0.001, failed=True)
        await settle(served)
        assert served.version == 1

    asyncio.run(live())
    assert "nothing_to_roll_back" in [line.get("code") for line in served.told()]


def test_a_version_is_known_to_be_good_when_it_has_served_well(
    serve, two_versions, bundle_folder, second_folder
):
    registry, first, second = two_versions
    served = serve(registered(registry), [bundle_folder, second_folder], budget=HealthBudget(requests=20))

    async def live() -> None:
        await served.watch.start()
        await settle(served)
        assert served.cache.known_good(URI).digest == first.digest, "better than none"
        registry.set_alias("recsys", "champion", 2)
        await served.watch.reload()
        observe(served, 19, 0.001)
        await settle(served)
        assert served.cache.known_good(URI).digest == first.digest
        observe(served, 1, 0.001)
        await settle(served)
        assert served.cache.known_good(URI).digest == second.digest

    asyncio.run(live())


def test_a_folder_is_served_without_a_registry_and_reloaded(serve, bundle_parts, tmp_path):
    folder = bundle_parts[0].write(tmp_path / "model")
    served = serve(FolderSource(folder), [folder])

    async def live() -> None:
        await served.watch.start()
        before = served.canary()
        assert served.slot.current.name == ModelName(name="recsys", version=0)
        folder.rename(tmp_path / "old")
        bundle_parts[1].write(folder)
        served.cache.note_passed(read_bundle(folder).digest)
        await served.watch.reload()
        assert served.canary() != before
        await settle(served)

    asyncio.run(live())


class Exhausted(FolderSource):
    """A folder that is read when there is no memory left, or that makes a library panic."""

    failure: BaseException | None = None

    def resolve(self):
        if self.failure is not None:
            raise self.failure
        return super().resolve()


@pytest.mark.parametrize("failure", [MemoryError(), BaseException("a panic, as Rust libraries raise it")])
def test_a_failure_of_the_machine_is_told_and_the_model_goes_on(serve, bundle_folder, failure):
    source = Exhausted(bundle_folder)
    served = serve(source, [bundle_folder], poll_s=0.01)

    async def live() -> None:
        await served.watch.start()
        before, source.failure = served.canary(), failure
        assert (await refused(served.watch.reload())).code == "load_failed"
        watching = asyncio.create_task(served.watch.run())
        await asyncio.sleep(0.2)
        assert not watching.done()
        assert served.canary() == before
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await settle(served)

    asyncio.run(live())
    assert "load_failed" in {line.get("code") for line in served.told()}


def test_a_trial_is_not_repeated_for_what_has_passed_it(serve, bundle_folder):
    served = serve(FolderSource(bundle_folder))
    digest = read_bundle(bundle_folder).digest
    assert not served.cache.has_passed(digest)
    asyncio.run(served.watch.start())
    assert served.cache.has_passed(digest)
    again = serve(FolderSource(bundle_folder), limits=TrialLimits(wall_s=0.001))
    asyncio.run(again.watch.start())
    assert again.slot.current.digest == digest


def test_a_bundle_that_only_the_server_trips_over_is_refused(serve, bundle_parts, tmp_path):
    folder = bundle_parts[0].write(tmp_path / "bundle", live__safetensors=b"\xff" * 64)
    served = serve(FolderSource(folder), [folder])

    async def live() -> None:
        error = await refused(served.watch.start())
        assert (error.code, served.slot.current) == ("load_failed", None)
        assert len(str(error)) < 300

    asyncio.run(live())
