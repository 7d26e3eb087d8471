"""The contract that every event log passes, and what is particular to Redis."""

import hashlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from recsys.errors import EXIT_CONFIG, EXIT_USAGE, RecsysError
from serving.events.log import EventLog, EventReader, Outcome, Record
from serving.events.sqlite_log import SqliteLog

ROOT = Path(__file__).parents[2]
ACCEPTED, DUPLICATE, CONFLICT = Outcome.ACCEPTED, Outcome.DUPLICATE, Outcome.CONFLICT


def record(event_id: str, payload: bytes | None = None, ingest_ts: float = 1.6e9) -> Record:
    payload = b'{"id":"%s"}' % event_id.encode() if payload is None else payload
    return Record(
        event_id, "interaction", hashlib.sha256(payload).digest(), 1.5e9 + 1 / 3, ingest_ts, payload
    )


def records(count: int, prefix: str = "e") -> list[Record]:
    return [record(f"{prefix}{n}") for n in range(count)]


def everything(log: EventReader, limit: int = 100) -> dict[int, Record]:
    found: dict[int, Record] = {}
    while page := log.read(max(found, default=0), limit):
        found |= {stored.sequence: stored.record for stored in page}
    return found


def refusal(call, *arguments, **options) -> RecsysError:
    with pytest.raises(RecsysError) as caught:
        call(*arguments, **options)
    return caught.value


class RedisServer:
    """A real server on a socket file, which can be stopped and started again with the same data."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/socket"
        self.options = options
        self.start()

    def start(self, *more: str) -> None:
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            pytest.skip("redis-server is not installed")
        command = [
            program,
            "--port",
            "0",
            "--unixsocket",
            str(self.folder / "socket"),
            "--dir",
            str(self.folder),
        ]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always", *self.options, *more]
        (self.folder / "socket").unlink(missing_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while not (self.folder / "socket").exists():
            assert time.monotonic() < deadline, "the server did not start"
            assert self.process.poll() is None, "the server did not start"
            time.sleep(0.02)

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        self.process.send_signal(signal_number)
        self.process.wait(30)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: those of sockets may have 107 characters."""
    name = Path(tempfile.mkdtemp(prefix="redis"))
    yield name
    shutil.rmtree(name)


@pytest.fixture
def server(folder: Path) -> Iterator[RedisServer]:
    pytest.importorskip("redis", reason="the package redis is not installed")
    running = RedisServer(folder)
    yield running
    running.stop(signal.SIGKILL)


@pytest.fixture(params=["sqlite", "redis"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], EventLog]]:
    """Opens the same log again and again; each is closed at the end."""
    if request.param == "redis":
        running: RedisServer = request.getfixturevalue("server")
        from serving.events.redis_log import RedisLog

    with ExitStack() as stack:

        def open_log() -> EventLog:
            log: EventLog = (
                SqliteLog(tmp_path / "log.db") if request.param == "sqlite" else RedisLog(running.url)
            )
            stack.callback(log.close)
            return log

        yield open_log


class TestEveryEventLog:
    def test_empty_log_has_nothing(self, opened: Callable[[], EventLog]):
        log = opened()

        assert log.last == 0
        assert log.read(0, 10) == []
        assert log.append([]) == []
        assert (log.state, log.durability) == ("ready", "fsync")
        assert log.damage.places == []

    def test_records_come_back_in_order_and_to_the_bit(self, opened: Callable[[], EventLog]):
        log = opened()
        awkward = [
            record("\u0000\U0010ffff\u202e", bytes(range(256))),
            record("x" * 256, b""),
            record("large", b"y" * 1_000_000),
            record("-", b"{}", ingest_ts=-0.1),
        ]

        assert log.append(awkward) == [ACCEPTED] * 4
        assert everything(log) == dict(enumerate(awkward, 1))
        assert log.last == 4

    def test_reading_goes_on_behind_any_number(self, opened: Callable[[], EventLog]):
        log = opened()
        batch = records(25)
        log.append(batch[:20])
        log.append(batch[20:])

        assert [one.sequence for one in log.read(0, 10)] == list(range(1, 11))
        assert [one.sequence for one in log.read(18, 10)] == list(range(19, 26))
        assert [one.record.event_id for one in log.read(24, 1)] == ["e24"]
        assert log.read(25, 10) == []
        assert log.read(1000, 10) == []

    def test_same_id_is_a_duplicate_or_a_conflict(self, opened: Callable[[], EventLog]):
        log = opened()
        log.append([record("a")])

        later, other = record("a", ingest_ts=1.7e9), record("a", b"other")

        assert log.append([later, other, record("b")]) == [DUPLICATE, CONFLICT, ACCEPTED]
        assert [one.payload for one in everything(log).values()] == [record("a").payload, record("b").payload]
        assert everything(log)[1].ingest_ts == 1.6e9

    def test_first_of_a_batch_counts(self, opened: Callable[[], EventLog]):
        log = opened()

        outcomes = log.append([record("a", b"1"), record("a", b"2"), record("a", b"1"), record("b")])

        assert outcomes == [ACCEPTED, CONFLICT, DUPLICATE, ACCEPTED]
        assert list(everything(log)) == [1, 2]

    def test_one_event_a_thousand_times_is_stored_once(self, opened: Callable[[], EventLog]):
        log = opened()

        outcomes = [outcome for _ in range(250) for outcome in log.append([record("a")] * 4)]

        assert outcomes == [ACCEPTED] + [DUPLICATE] * 999
        assert len(everything(log)) == 1

    def test_one_event_from_fifty_threads_is_stored_once(self, opened: Callable[[], EventLog]):
        log = opened()
        outcomes: list[Outcome] = []
        barrier = threading.Barrier(50)

        def send() -> None:
            barrier.wait()
            outcomes.extend(log.append(records(3)))

        threads = [threading.Thread(target=send) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert (outcomes.count(ACCEPTED), outcomes.count(DUPLICATE)) == (3, 147)
        assert len(everything(log)) == 3

    def test_opened_again_it_knows_everything(self, opened: Callable[[], EventLog]):
        first = opened()
        first.append(records(7))
        first.close()

        second = opened()

        assert second.last == 7
        assert second.append([*records(7), record("new")]) == [DUPLICATE] * 7 + [ACCEPTED]
        assert list(everything(second)) == list(range(1, 9))

    def test_closing_twice_is_fine_and_a_closed_log_refuses(self, opened: Callable[[], EventLog]):
        log = opened()
        log.append(records(2))
        log.close()
        log.close()

    def test_reading_while_another_thread_appends_misses_nothing(self, opened: Callable[[], EventLog]):
        log = opened()
        done = threading.Event()

        def write() -> None:
            for n in range(60):
                log.append([record(f"{n}-{m}") for m in range(5)])
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        seen: list[int] = []
        while len(seen) < 300 and not (done.is_set() and not log.read(max(seen, default=0), 1)):
            seen += [one.sequence for one in log.read(max(seen, default=0), 7)]
        writer.join()

        assert seen == list(range(1, 301))


def redis_log(server: RedisServer, **options):
    from serving.events.redis_log import RedisLog

    return closing(RedisLog(server.url, **options))


def test_two_servers_share_one_log(server: RedisServer):
    """Two processes' worth: each has its own connection, and sees what the other one wrote."""
    with redis_log(server) as one, redis_log(server) as two:
        assert one.append(records(3)) == [ACCEPTED] * 3
        assert two.append(records(5)) == [DUPLICATE] * 3 + [ACCEPTED] * 2
        assert one.last == two.last == 5
        assert everything(one) == everything(two)
        assert [stored.record.event_id for stored in one.read(3, 10)] == ["e3", "e4"]


def test_many_processes_write_one_log_without_gaps_or_copies(server: RedisServer):
    code = """
import hashlib, sys
from serving.events.log import Record
from serving.events.redis_log import RedisLog
log = RedisLog(sys.argv[1])
def record(name):
    payload = b'{"id":"%s"}' % name.encode()
    return Record(name, "interaction", hashlib.sha256(payload).digest(), 1.5e9, 1.6e9, payload)
accepted = 0
for n in range(40):
    batch = [record(f"common-{n}"), record(f"{sys.argv[2]}-{n}")]
    accepted += log.append(batch).count("accepted")
print(accepted)
log.close()
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, server.url, str(n)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(3)
    ]
    accepted = [int(child.communicate(timeout=60)[0]) for child in children]

    assert sum(accepted) == 40 + 3 * 40
    with redis_log(server) as log:
        assert list(everything(log)) == list(range(1, 161))
        assert len({one.event_id for one in everything(log).values()}) == 160


def test_names_keep_logs_apart(server: RedisServer):
    with redis_log(server, name="one") as one, redis_log(server, name="two") as two:
        one.append(records(2))

        assert two.last == 0
        assert two.append(records(2)) == [ACCEPTED] * 2


def test_killed_server_loses_nothing_acknowledged(server: RedisServer):
    with redis_log(server) as log:
        acknowledged = [
            one for n in range(30) for one in [record(f"e{n}")] if log.append([one]) == [ACCEPTED]
        ]
        server.stop(signal.SIGKILL)
        error = refusal(log.append, [record("lost")])
        assert error.code == "events_blocked"
        assert log.state == "events_blocked"

        server.start()
        deadline = time.monotonic() + 20
        while log.state != "ready" and time.monotonic() < deadline:
            time.sleep(0.2)
            try:
                log.append([])
            except RecsysError:
                continue

        assert log.append([record("lost")]) in ([ACCEPTED], [DUPLICATE])
        assert list(everything(log).values())[:30] == acknowledged
        assert log.damage.places == []


def test_restart_between_two_appends_goes_unnoticed(server: RedisServer):
    with redis_log(server) as log:
        log.append(records(3))
        server.stop()
        server.start()

        assert log.append(records(4)) == [DUPLICATE] * 3 + [ACCEPTED]


def test_server_that_comes_back_with_other_settings_is_looked_at_again(server: RedisServer):
    with redis_log(server) as log:
        log.append(records(3))
        assert log.durability == "fsync"
        server.stop()
        server.start("--appendfsync", "everysec")

        assert log.append(records(4)) == [DUPLICATE] * 3 + [ACCEPTED]
        assert log.durability == "os"


def test_server_that_comes_back_without_records_is_damage(server: RedisServer):
    with redis_log(server) as log:
        log.append(records(5))
        server.stop()
        shutil.rmtree(server.folder / "appendonlydir")
        server.start()

        assert log.append([record("new")]) == [ACCEPTED]
        assert log.damage.rows_lost == 5
        assert "5 records" in log.damage.places[0]


@pytest.mark.parametrize(
    "options", [("--appendonly", "no"), ("--appendfsync", "everysec"), ("--rename-command", "CONFIG", "")]
)
def test_server_that_does_not_sync_or_does_not_tell_is_not_called_durable(
    folder: Path, options: tuple[str, ...]
):
    pytest.importorskip("redis")
    server = RedisServer(folder, *options)
    try:
        with redis_log(server) as log:
            assert log.durability == "os"
            assert log.append([record("a")]) == [ACCEPTED]
    finally:
        server.stop(signal.SIGKILL)


def test_server_that_may_drop_keys_is_refused(folder: Path):
    pytest.importorskip("redis")
    from serving.events.redis_log import RedisLog

    server = RedisServer(folder, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    try:
        error = refusal(RedisLog, server.url)
    finally:
        server.stop(signal.SIGKILL)
    assert (error.code, error.exit_code) == ("redis_evicts", EXIT_CONFIG)


def test_full_server_refuses_and_room_brings_the_log_back(folder: Path):
    pytest.importorskip("redis")
    import redis

    server = RedisServer(folder, "--maxmemory", "4mb", "--maxmemory-policy", "noeviction")
    try:
        with redis_log(server) as log:
            stored: list[str] = []
            codes: set[str] = set()
            for n in range(200):
                batch = [record(f"{n}-{m}", b"x" * 20_000) for m in range(3)]
                try:
                    stored += [one.event_id for one in batch if log.append(batch)]
                except RecsysError as error:
                    codes.add(error.code)
            assert codes == {"storage_full"}
            assert log.state == "storage_full"
            assert [one.event_id for one in everything(log).values()] == stored

            with closing(redis.Redis.from_url(server.url)) as client:
                client.config_set("maxmemory", "0")

            assert log.append([record("more")]) == [ACCEPTED]
            assert log.state == "ready"
    finally:
        server.stop(signal.SIGKILL)


def test_damaged_entry_is_left_out_and_counted(server: RedisServer):
    import redis

    with redis_log(server) as log:
        log.append(records(3))
        with closing(redis.Redis.from_url(server.url)) as client:
            [(_, fields)] = client.xrange("{recsys}:events", "2", "2")
            row = bytearray(fields[b"row"])
            row[-1] ^= 1
            client.xadd("{recsys}:events", {"row": bytes(row)}, id="4-0")
            client.set("{recsys}:event-count", 4)

        assert list(everything(log)) == [1, 2, 3]
        assert list(everything(log, limit=1)) == [1, 2, 3]
        assert log.damage.rows_lost == 1
        assert log.append([record("e9")]) == [ACCEPTED]
        assert list(everything(log)) == [1, 2, 3, 5]


def test_errors_hold_no_password(folder: Path):
    pytest.importorskip("redis")
    from serving.events.redis_log import RedisLog

    for url in (f"unix://user:secret@{folder}/none", "redis://user:secret@127.0.0.1:1/0"):
        error = refusal(RedisLog, url)
        assert error.code == "events_blocked"
        assert "secret" not in f"{error}{error.__cause__}"
    error = refusal(RedisLog, "http://secret@example.org")
    assert (error.code, error.exit_code) == ("usage", EXIT_USAGE)


def test_numbers_of_a_large_log_stay_exact(server: RedisServer):
    import redis

    with redis_log(server) as log, closing(redis.Redis.from_url(server.url)) as client:
        client.set("{recsys}:event-count", 10**12)

        log.append(records(3))

        assert [stored.sequence for stored in log.read(0, 10)] == [10**12 + 1, 10**12 + 2, 10**12 + 3]
        assert log.last == 10**12 + 3


def test_batches_are_not_slow(server: RedisServer):
    """At least 5,000 events a second in batches of 100 on an idle machine; a third of it on a busy one."""
    with redis_log(server) as log:
        batches = [records(100, f"b{n}-") for n in range(20)]
        times = []
        for batch in itertools.chain(batches):
            started = time.perf_counter()
            log.append(batch)
            times.append(time.perf_counter() - started)
    assert min(times) < 0.06, f"best of {len(times)}: {min(times) * 1e3:.1f} ms"
