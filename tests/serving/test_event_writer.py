import asyncio
import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from recsys.errors import EXIT_TEMPORARY, RecsysError
from serving.events.export import export
from serving.events.log import Outcome, Record
from serving.events.sqlite_log import SqliteLog
from serving.events.sqlite_reader import SqliteReader
from serving.events.writer import EventWriter

ROOT = Path(__file__).parents[2]


def record(event_id: str, size: int = 100) -> Record:
    payload = (event_id + "-" + "x" * size).encode()
    return Record(event_id, "interaction", hashlib.sha256(payload).digest(), 1.5e9, 1.6e9, payload)


def records(count: int, prefix: str = "e") -> list[Record]:
    return [record(f"{prefix}{n}") for n in range(count)]


def ids(path: Path) -> list[str]:
    found: list[str] = []
    with closing(SqliteReader(path)) as reader:
        after = 0
        while page := reader.read(after, 5000):
            found += [one.record.event_id for one in page]
            after = page[-1].sequence
    return found


@contextmanager
def writing(path: Path, **options) -> Iterator[EventWriter]:
    log = SqliteLog(path)
    writer = EventWriter(log, **options)
    try:
        yield writer
    finally:
        writer.close()
        log.close()


def refusal(call, *arguments) -> RecsysError:
    with pytest.raises(RecsysError) as caught:
        call(*arguments)
    return caught.value


class Slow(SqliteLog):
    """A log on a disk that takes its time, which it does when told to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.may_write = threading.Event()
        self.batches: list[int] = []

    def append(self, records):
        self.may_write.wait(20)
        self.batches.append(len(records))
        return super().append(records)


@contextmanager
def held_up(path: Path, **options) -> Iterator[tuple[EventWriter, Slow]]:
    log = Slow(path)
    writer = EventWriter(log, **options)
    try:
        yield writer, log
    finally:
        log.may_write.set()
        writer.close()
        log.close()


def test_outcomes_come_back_to_who_handed_the_records_in(tmp_path: Path):
    with writing(tmp_path / "log.db") as writer:
        futures = [writer.submit(records(n + 1, f"{n}-")) for n in range(20)]
        again = writer.submit([record("3-0"), record("fresh"), record("3-0", 5)])

        assert [future.result(10) for future in futures] == [[Outcome.ACCEPTED] * (n + 1) for n in range(20)]
        assert again.result(10) == [Outcome.DUPLICATE, Outcome.ACCEPTED, Outcome.CONFLICT]
        assert writer.submit([]).result(0) == []
        assert writer.waiting == 0


def test_results_mean_on_the_disk(tmp_path: Path):
    with writing(tmp_path / "log.db") as writer:
        writer.submit(records(3)).result(10)

        assert ids(tmp_path / "log.db") == ["e0", "e1", "e2"]


def test_what_comes_together_is_written_together_up_to_the_limit(tmp_path: Path):
    with held_up(tmp_path / "log.db", batch_events=50) as (writer, log):
        futures = [writer.submit(records(10, f"{n}-")) for n in range(21)]
        futures.append(writer.submit(records(120, "large-")))
        log.may_write.set()
        for future in futures:
            future.result(10)

        assert sum(log.batches) == 330
        assert max(log.batches) == 50
        assert len(log.batches) <= 10


def test_records_wait_a_moment_for_others(tmp_path: Path):
    with held_up(tmp_path / "log.db", wait_s=0.5) as (writer, log):
        log.may_write.set()
        first = writer.submit(records(3, "a"))
        time.sleep(0.05)
        second = writer.submit(records(3, "b"))
        first.result(10)
        second.result(10)

        assert log.batches == [6]


def test_lone_record_does_not_wait_long(tmp_path: Path):
    with writing(tmp_path / "log.db") as writer:
        times = []
        for n in range(30):
            started = time.perf_counter()
            writer.submit([record(f"e{n}")]).result(10)
            times.append(time.perf_counter() - started)

    assert min(times) < 0.05, f"{min(times) * 1e3:.1f} ms"


def test_too_much_is_refused_at_once_and_the_rest_is_written(tmp_path: Path):
    with held_up(tmp_path / "log.db", queue_events=100) as (writer, log):
        futures = [writer.submit(records(25, f"{n}-")) for n in range(4)]

        started = time.perf_counter()
        error = refusal(writer.submit, [record("one-more")])
        assert time.perf_counter() - started < 0.5
        assert (error.code, error.exit_code) == ("events_busy", EXIT_TEMPORARY)
        assert "100 events" in error.what

        log.may_write.set()
        for future in futures:
            future.result(10)
        assert writer.submit([record("one-more")]).result(10) == [Outcome.ACCEPTED]


def test_bytes_that_wait_are_limited_too(tmp_path: Path):
    with held_up(tmp_path / "log.db", queue_bytes=1000) as (writer, _):
        writer.submit([record("a", 900)])

        assert refusal(writer.submit, [record("b", 900)]).code == "events_busy"


def test_more_than_the_limit_is_taken_when_nothing_waits(tmp_path: Path):
    with writing(tmp_path / "log.db", queue_events=10, queue_bytes=10) as writer:
        assert writer.submit(records(30)).result(10) == [Outcome.ACCEPTED] * 30


def test_close_writes_what_waits_and_then_refuses(tmp_path: Path):
    with held_up(tmp_path / "log.db") as (writer, log):
        futures = [writer.submit(records(10, f"{n}-")) for n in range(20)]
        threading.Timer(0.2, log.may_write.set).start()
        writer.close()

        assert all(future.done() for future in futures)
        assert len(ids(tmp_path / "log.db")) == 200
        assert refusal(writer.submit, [record("late")]).code == "events_busy"
        writer.close()


def test_cancelled_records_are_not_written_and_hold_nobody_up(tmp_path: Path):
    with held_up(tmp_path / "log.db", wait_s=0.2) as (writer, log):
        kept = writer.submit([record("kept")])
        cancelled = writer.submit([record("cancelled")])
        assert cancelled.cancel()
        log.may_write.set()

        assert kept.result(10) == [Outcome.ACCEPTED]
        assert ids(tmp_path / "log.db") == ["kept"]


def test_event_loop_can_wait_for_it_and_give_up(tmp_path: Path):
    async def run(writer: EventWriter, log: Slow) -> list[Outcome]:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(writer.submit([record("slow")])), 0.05)
        log.may_write.set()
        return await asyncio.wrap_future(writer.submit([record("quick")]))

    with held_up(tmp_path / "log.db") as (writer, log):
        assert asyncio.run(run(writer, log)) == [Outcome.ACCEPTED]


def test_failure_reaches_everybody_who_waits_and_ends_with_its_cause(tmp_path: Path):
    with writing(tmp_path / "log.db") as writer:
        writer.log.close()
        futures = [writer.submit(records(2, f"{n}-")) for n in range(3)]

        assert {refusal(future.result, 10).code for future in futures} == {"events_blocked"}


def test_record_that_cannot_be_stored_does_not_end_the_thread(tmp_path: Path):
    with writing(tmp_path / "log.db") as writer:
        with pytest.raises(UnicodeEncodeError):
            writer.submit([Record("\ud800", "interaction", b"0" * 32, 0.0, 0.0, b"")]).result(10)

        assert writer.submit([record("good")]).result(10) == [Outcome.ACCEPTED]


def test_idle_writer_uses_no_processor(tmp_path: Path):
    with writing(tmp_path / "log.db") as writer:
        writer.submit(records(3)).result(10)
        time.sleep(0.1)
        started = time.process_time()
        time.sleep(1.0)
        assert time.process_time() - started < 0.02


def test_blocked_log_comes_back_without_being_asked():
    """Its state must tell the truth also when clients, seeing it blocked, have stopped sending."""
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("no volume can be mounted here")
    folder = Path(tempfile.mkdtemp())
    mount = ["mount", "-t", "tmpfs", "-o", "size=4000000", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        folder.rmdir()
        pytest.skip("no volume can be mounted here")
    try:
        log = SqliteLog(folder / "log.db", reserve_bytes=-(10**9))
        writer = EventWriter(log)
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(65_536))
        assert refusal(writer.submit([record("a", 500_000)]).result, 10).code == "storage_full"
        assert log.state == "storage_full"
        filler.unlink()
        deadline = time.monotonic() + 5
        while log.state != "ready":
            assert time.monotonic() < deadline, "it does not come back"
            time.sleep(0.05)
        assert writer.submit([record("a", 500_000)]).result(10) == [Outcome.ACCEPTED]
        writer.close()
        log.close()
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


CLIENTS = """
import hashlib, os, sys, threading, time
from pathlib import Path
import msgspec
from serving.events.log import Record
from serving.events.writer import EventWriter
from serving.messages import InteractionEvent
from serving.events.sqlite_log import SqliteLog

started = time.perf_counter()
writer = EventWriter(SqliteLog(Path(sys.argv[1])))
os.write(1, b"ready %.3f\\n" % (time.perf_counter() - started))
life, clients, at = sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
turn = threading.Lock()

def record(name):  # as event_intake makes it, which takes longer to import than to kill
    event = InteractionEvent(event_id=name, user_id="u", item_id="i", event_type="click", timestamp=at)
    payload = msgspec.json.encode(event, order="sorted")
    return Record(name, "interaction", hashlib.sha256(payload).digest(), at, at, payload)

def client(number):
    batch = 0
    while True:
        names = [f"{life}-{number}-{batch}-{place}" for place in range(1 + (number + batch) % 7)]
        taken = [record(name) for name in names]
        with turn:
            os.write(1, ("sent " + " ".join(names) + "\\n").encode())
        outcomes = writer.submit(taken).result()
        assert set(outcomes) <= {"accepted", "duplicate"}
        with turn:
            os.write(1, ("acknowledged " + " ".join(names) + "\\n").encode())
        batch += 1

for number in range(clients):
    threading.Thread(target=client, args=(number,)).start()
"""


def kill_while_writing(path: Path, kills: int, at: float) -> tuple[set[str], set[str], list[float]]:
    """Ids that were sent, those that were acknowledged, and the seconds that each start took."""
    draws = random.Random(kills)
    sent: set[str] = set()
    acknowledged: set[str] = set()
    starts: list[float] = []
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for life in range(kills):
        command = [sys.executable, "-c", CLIENTS, str(path), str(life), "32", str(at)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            starts.append(float(child.stdout.readline().split()[1]))
            killer = threading.Timer(draws.uniform(0.0, 0.6), child.send_signal, [signal.SIGKILL])
            killer.start()
            for line in child.stdout:
                word, *names = line.decode().split()
                if line.endswith(b"\n"):
                    (sent if word == "sent" else acknowledged).update(names)
            killer.join()
            assert child.wait(10) == -signal.SIGKILL
    return sent, acknowledged, starts


def check_nothing_is_lost_or_doubled(folder: Path, kills: int) -> None:
    at = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
    sent, acknowledged, starts = kill_while_writing(folder / "log.db", kills, at)
    assert len(acknowledged) > kills
    with closing(SqliteLog(folder / "log.db")) as log:
        assert log.damage.rows_lost == 0
        counts = export(log, folder / "out", now=at + 86_400 * 2)

    exported = Counter(pl.read_parquet(folder / "out" / "events.parquet")["event_id"].to_list())
    assert counts["records"] == exported.total()
    assert set(exported.values()) == {1}, "exported twice"
    assert acknowledged <= set(exported), "acknowledged and lost"
    assert set(exported) <= sent, "never sent"
    assert max(starts) < 10


@pytest.mark.slow
def test_ten_kills_under_load_lose_and_double_nothing(tmp_path: Path):
    check_nothing_is_lost_or_doubled(tmp_path, 10)


@pytest.mark.soak
def test_a_hundred_kills_under_load_lose_and_double_nothing(tmp_path: Path):
    check_nothing_is_lost_or_doubled(tmp_path, 100)


@pytest.mark.soak
def test_start_with_a_million_events_takes_less_than_ten_seconds(tmp_path: Path):
    with closing(SqliteLog(tmp_path / "log.db", durability="os")) as log:
        for n in range(100):
            log.append(records(10_000, f"{n}-"))
        copy = tmp_path / "crashed.db"
        for suffix in ("", "-wal"):
            shutil.copy(f"{log.path}{suffix}", f"{copy}{suffix}")
    for path in (tmp_path / "log.db", copy):
        started = time.perf_counter()
        with closing(SqliteLog(path)) as log:
            took = time.perf_counter() - started
            assert log.last == 1_000_000
        assert took < 10, f"{took:.1f} s"


def test_thousands_of_events_a_second_are_durable(tmp_path: Path):
    """At least 5,000 a second in batches of 100 on an idle machine; the best second half counts here."""
    with writing(tmp_path / "log.db") as writer:
        best = 0.0
        for part in range(5):
            batches = [records(100, f"{part}-{n}-") for n in range(20)]
            started = time.perf_counter()
            for future in [writer.submit(batch) for batch in batches]:
                future.result(20)
            best = max(best, 2000 / (time.perf_counter() - started))
    assert best > 1500, f"{best:.0f} events a second"
