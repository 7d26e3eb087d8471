import hashlib
import os
import random
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from recsys.errors import EXIT_NO_INPUT, EXIT_TEMPORARY, RecsysError
from serving.events.log import EventLog, EventReader, Outcome, Record
from serving.events.sqlite_log import RETRY_S, SqliteLog
from serving.events.sqlite_probe import TAIL_ROWS
from serving.events.sqlite_reader import SqliteReader
from serving.events.sqlite_schema import PAGE_BYTES

ROOT = Path(__file__).parents[2]
NO_RESERVE = 0
CHILD = """
import hashlib, os, sys
from pathlib import Path
from recsys.errors import RecsysError
from serving.events.log import Record
from serving.events.sqlite_log import SqliteLog

def record(event_id, size=100):
    payload = (event_id + "-" + "x" * size).encode()
    return Record(event_id, "interaction", hashlib.sha256(payload).digest(), 1.5e9, 1.6e9, payload)

def say(text):
    os.write(1, (text + "\\n").encode())

path = Path(sys.argv[1])
"""


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder where fsync costs nothing, for tests that open many logs."""
    volume = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - the folder is private
    with tempfile.TemporaryDirectory(dir=volume) as name:
        yield Path(name)


def record(event_id: str, payload: bytes | None = None) -> Record:
    payload = (event_id + "-" + "x" * 100).encode() if payload is None else payload
    return Record(event_id, "interaction", hashlib.sha256(payload).digest(), 1.5e9, 1.6e9, payload)


def records(count: int, prefix: str = "e", size: int = 100) -> list[Record]:
    return [record(f"{prefix}{n:06d}", f"{prefix}{n:06d}-".encode() + b"x" * size) for n in range(count)]


def fill(log: EventLog, batch: list[Record], step: int = 100) -> list[Outcome]:
    return [one for start in range(0, len(batch), step) for one in log.append(batch[start : start + step])]


def everything(log: EventReader, limit: int = 1000) -> dict[int, Record]:
    found: dict[int, Record] = {}
    while page := log.read(max(found, default=0), limit):
        found |= {stored.sequence: stored.record for stored in page}
    return found


def ids(log: EventReader) -> list[str]:
    return [one.event_id for one in everything(log).values()]


def refusal(call, *arguments, **options) -> RecsysError:
    with pytest.raises(RecsysError) as caught:
        call(*arguments, **options)
    return caught.value


def crashed_copy(path: Path, folder: Path) -> Path:
    """The log as a crash of this moment would leave it: file and WAL, while they are open elsewhere."""
    folder.mkdir(parents=True)
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", folder / f"log.db{suffix}")
    return folder / "log.db"


def made(path: Path, batch: list[Record]) -> Path:
    """A log with these records, closed in order."""
    with closing(SqliteLog(path)) as log:
        fill(log, batch)
    return path


def place_of(path: Path, text: bytes) -> int:
    place = path.read_bytes().find(text)
    assert place > 0, "the text is not in the file"
    return place


def overwrite(path: Path, place: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(data)


def flip(path: Path, place: int, bit: int = 0) -> None:
    overwrite(path, place, bytes([path.read_bytes()[place] ^ 1 << bit]))


def child(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD + code, str(path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


def test_closed_log_is_one_file_and_goes_on_where_it_was(tmp_path: Path):
    path = made(tmp_path / "log.db", records(5))
    assert sorted(os.listdir(tmp_path)) == ["log.db", "log.db.lock"]

    with closing(SqliteLog(path)) as log:
        log.append([record("later")])

        assert list(everything(log)) == [1, 2, 3, 4, 5, 6]
        assert log.damage.places == []


def test_crash_without_warning_loses_nothing_and_is_no_damage(tmp_path: Path):
    with closing(SqliteLog(tmp_path / "log.db")) as log:
        fill(log, records(250))
        copy = crashed_copy(log.path, tmp_path / "copy")

    with closing(SqliteLog(copy)) as log:
        assert ids(log) == [one.event_id for one in records(250)]
        assert set(fill(log, records(250))) == {Outcome.DUPLICATE}
        assert log.damage.places == []
        assert log.damage.bytes_dropped == 0


def test_a_second_process_may_read_but_not_write(tmp_path: Path):
    code = """
from serving.events.sqlite_reader import SqliteReader
reader = SqliteReader(path)
say(str(len(reader.read(0, 10))))
reader.close()
try:
    SqliteLog(path)
except RecsysError as error:
    say(f"{error.code} {error.exit_code} {error}")
"""
    with closing(SqliteLog(tmp_path / "log.db")) as log:
        log.append(records(3))
        answer = child(code, log.path).stdout.splitlines()

        assert answer[0] == "3"
        assert answer[1].startswith(f"lock_held {EXIT_TEMPORARY}")
        assert f"process {os.getpid()}" in answer[1]
        assert refusal(SqliteLog, log.path).code == "lock_held"
        assert log.append([record("still")]) == [Outcome.ACCEPTED]
    SqliteLog(tmp_path / "log.db").close()


def test_reader_of_a_running_log_sees_what_is_appended(tmp_path: Path):
    with closing(SqliteLog(tmp_path / "log.db")) as log, closing(SqliteReader(log.path)) as reader:
        for n in range(3):
            log.append([record(f"e{n}")])
            assert reader.last == n + 1
            assert [one.record.event_id for one in reader.read(n, 10)] == [f"e{n}"]


def test_reader_does_not_make_a_log(tmp_path: Path):
    error = refusal(SqliteReader, tmp_path / "nothing.db")

    assert (error.code, error.exit_code) == ("no_input", EXIT_NO_INPUT)
    assert os.listdir(tmp_path) == []


def test_database_of_something_else_is_left_alone(tmp_path: Path):
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE precious(x)")
    before = path.read_bytes()

    assert refusal(SqliteLog, path).code == "not_an_event_log"
    assert path.read_bytes() == before


STRACE = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def traced(code: str, path: Path, *options: str) -> tuple[list[str], str]:
    """System calls of a child under strace, and what the child printed."""
    trace = path.parent / "trace"
    command = [
        "strace",
        "-f",
        "-y",
        "-o",
        str(trace),
        *options,
        sys.executable,
        "-c",
        CHILD + code,
        str(path),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    if "ptrace" in done.stderr or "PTRACE" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    return trace.read_text().splitlines(), done.stdout


@STRACE
def test_append_returns_after_fsync_of_what_it_wrote(tmp_path: Path):
    code = """
log = SqliteLog(path)
say("begin")
log.append([record("the-one")])
say("acknowledged")
log.close()
"""
    calls, _ = traced(code, tmp_path / "log.db", "-s", "99999", "-e", "trace=pwrite64,write,fdatasync,fsync")

    begin, end = (
        next(n for n, call in enumerate(calls) if f'"{word}' in call) for word in ("begin", "acknowledged")
    )
    during = calls[begin:end]
    writes = [n for n, call in enumerate(during) if "log.db-wal>" in call and "write" in call]
    assert any("the-one" in during[n] for n in writes)
    syncs = [
        n for n, call in enumerate(during) if re.search(r"f(data)?sync\(\d+<.*log\.db-wal>\) += 0", call)
    ]
    assert syncs, during
    assert max(syncs) > max(writes)
    folders = [call for call in calls if re.search(rf"fsync\(\d+<{re.escape(str(tmp_path))}>\) += 0", call)]
    assert folders, "the names of new files are not on stable storage"


@STRACE
def test_without_fsync_nothing_is_synced_and_the_log_says_so(tmp_path: Path):
    code = """
log = SqliteLog(path, durability="os")
say("begin")
log.append([record("the-one")])
say(log.durability)
log.close()
"""
    calls, output = traced(code, tmp_path / "log.db", "-e", "trace=write,fdatasync,fsync")

    begin, end = (next(n for n, call in enumerate(calls) if f'"{word}' in call) for word in ("begin", "os"))
    assert output.split() == ["begin", "os"]
    assert not [call for call in calls[begin:end] if "sync(" in call]


@STRACE
def test_failed_fsync_stops_acknowledging_until_the_log_is_opened_again(tmp_path: Path):
    code = """
import time
log = SqliteLog(path)
for number in range(40):
    for attempt in range(8):
        try:
            log.append([record(f"e{number}")])
            say(f"acknowledged e{number}")
            break
        except RecsysError as error:
            say(error.code)
            time.sleep(min(1.1, attempt * 0.6))
say(log.state)
log.close()
"""
    for first in (1, 6, 20):
        path = tmp_path / f"{first}" / "log.db"
        path.parent.mkdir()
        inject = f"inject=fdatasync,fsync:error=EIO:when={first}+13"
        _, output = traced(code, path, "-e", "trace=fdatasync,fsync", "-e", inject)

        said = output.splitlines()
        assert set(said) >= {"events_blocked", "ready"}
        acknowledged = [line.split()[1] for line in said if line.startswith("acknowledged")]
        assert acknowledged == [f"e{n}" for n in range(40)]
        with closing(SqliteLog(path)) as log:
            assert sorted(ids(log)) == sorted(acknowledged)
            assert log.damage.rows_lost == 0


def test_file_size_limit_is_a_full_disk_and_is_met_before_it_is_reached(tmp_path: Path):
    code = """
import resource
log = SqliteLog(path, reserve_bytes=200_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
stored = 0
try:
    while True:
        stored += len(log.append([record(f"e{stored + n}", 1000) for n in range(20)]))
except RecsysError as error:
    say(f"{error.code} {log.state} {stored}")
say(str(max(one.stat().st_size for one in path.parent.iterdir())))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
say(f"{log.state} {log.append([record('more')])}")
log.close()
"""
    done = child(code, tmp_path / "log.db")

    assert done.returncode == 0, done.stderr
    first, size, last = done.stdout.splitlines()
    assert first.startswith("storage_full storage_full")
    assert int(size) < 1_900_000
    assert last == "ready [<Outcome.ACCEPTED: 'accepted'>]"
    with closing(SqliteLog(tmp_path / "log.db")) as log:
        assert len(everything(log)) == int(first.split()[2]) + 1


@contextmanager
def small_volume(size: int) -> Iterator[Path]:
    """A volume of this many bytes."""
    folder = Path(tempfile.mkdtemp())
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if (
        os.geteuid()
        or shutil.which("mount") is None
        or subprocess.run(command, capture_output=True).returncode
    ):
        folder.rmdir()
        pytest.skip("no volume can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def fill_volume(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65_536))
        except OSError:
            pass
    return filler


@pytest.mark.parametrize("reserve", [300_000, NO_RESERVE])
def test_full_volume_refuses_and_room_brings_the_log_back(reserve: int):
    with (
        small_volume(4_000_000) as folder,
        closing(SqliteLog(folder / "log.db", reserve_bytes=reserve)) as log,
    ):
        fill(log, records(200))
        filler = fill_volume(folder)
        for n in range(3):
            assert refusal(log.append, [record(f"n{n}", b"y" * 200_000)]).code == "storage_full"
        assert log.state == "storage_full"
        assert len(everything(log)) == 200

        filler.unlink()

        assert log.state == "ready"
        assert log.append([record("n0", b"y" * 200_000)]) == [Outcome.ACCEPTED]
        assert len(everything(log)) == 201
        assert log.damage.places == []


def test_volume_that_fills_up_under_the_log_loses_nothing_acknowledged():
    """Without any reserve SQLite itself runs into the end, at every possible moment."""
    with small_volume(4_000_000) as folder:
        log = SqliteLog(folder / "log.db", reserve_bytes=-(10**9))
        acknowledged: list[str] = []
        codes: set[str] = set()
        for n in range(2000):
            one = record(f"e{n}", f"e{n}".encode() + b"y" * 2000)
            try:
                log.append([one])
                acknowledged.append(one.event_id)
            except RecsysError as error:
                codes.add(error.code)
        assert codes <= {"storage_full", "events_blocked"}
        assert codes
        assert len(acknowledged) > 100
        log.close()
        (folder / "log.db.lock").unlink()

        roomy = folder.parent / f"{folder.name}-moved"
        shutil.copytree(folder, roomy)
    try:
        with closing(SqliteLog(roomy / "log.db")) as log:
            found = ids(log)
            assert len(set(found)) == len(found)
            assert set(acknowledged) <= set(found)
            assert log.append([record("more")]) == [Outcome.ACCEPTED]
    finally:
        shutil.rmtree(roomy)


def test_full_volume_at_the_start_lets_the_log_be_read_and_written_later(tmp_path: Path):
    whole = made(tmp_path / "log.db", records(100))
    with small_volume(4_000_000) as folder:
        path = Path(shutil.copy(whole, folder / "log.db"))
        filler = fill_volume(folder)
        with closing(SqliteLog(path, reserve_bytes=NO_RESERVE)) as log:
            assert log.state == "storage_full"
            assert len(everything(log)) == 100
            assert refusal(log.append, [record("n")]).code == "storage_full"

            filler.unlink()
            time.sleep(RETRY_S)

            assert log.append([record("n")]) == [Outcome.ACCEPTED]
            assert len(everything(log)) == 101


def test_file_that_may_only_be_read_is_read(tmp_path: Path):
    code = """
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
log = SqliteLog(path)
say(f"{len(log.read(0, 100))} {log.last} {log.state}")
try:
    log.append([record("n")])
except RecsysError as error:
    say(error.code)
log.close()
"""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        path = made(folder / "log.db", records(20))
        path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        folder.chmod(0o555)
        done = child(code, path)
        folder.chmod(0o755)

        assert done.stdout.splitlines() == ["20 20 events_blocked", "events_blocked"], done.stderr


@pytest.mark.parametrize(
    "garbage", [b"\xf7\xe5\x0dRec half a record", bytes(4096), random.Random(1).randbytes(5000)]
)
def test_bytes_behind_the_end_are_cut_off_and_counted(tmp_path: Path, garbage: bytes):
    path = made(tmp_path / "log.db", records(300))
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(garbage)

    with closing(SqliteLog(path)) as log:
        assert log.damage.bytes_dropped == len(garbage)
        assert log.damage.rows_lost == 0
        assert len(everything(log)) == 300
        assert log.append([record("n")]) == [Outcome.ACCEPTED]
    assert path.stat().st_size == size
    with closing(SqliteLog(path)) as log:
        assert log.damage.places == []


@pytest.mark.parametrize(
    "garbage", [b"\xf7\xe5\x0dRec half a record", bytes(4096), random.Random(1).randbytes(5000)]
)
def test_bytes_behind_the_end_of_the_wal_are_cut_off_and_counted(tmp_path: Path, garbage: bytes):
    with closing(SqliteLog(tmp_path / "log.db")) as log:
        fill(log, records(300))
        copy = crashed_copy(log.path, tmp_path / "copy")
    with Path(f"{copy}-wal").open("ab") as file:
        file.write(garbage)

    with closing(SqliteLog(copy)) as log:
        assert log.damage.bytes_dropped == len(garbage)
        assert log.damage.rows_lost == 0
        assert len(everything(log)) == 300
        assert log.append([record("n")]) == [Outcome.ACCEPTED]


def test_transaction_that_never_ended_is_cut_off(tmp_path: Path):
    with closing(SqliteLog(tmp_path / "log.db")) as log:
        fill(log, records(100))
        end = Path(f"{log.path}-wal").stat().st_size
        log.append(records(100, "z"))
        copy = crashed_copy(log.path, tmp_path / "copy")
    wal = Path(f"{copy}-wal")
    torn = wal.stat().st_size - PAGE_BYTES - 24
    os.truncate(wal, torn)

    with closing(SqliteLog(copy)) as log:
        assert ids(log) == [one.event_id for one in records(100)]
        assert log.damage.bytes_dropped == torn - end
        assert log.append(records(100, "z")) == [Outcome.ACCEPTED] * 100
        assert list(everything(log)) == list(range(1, 201))


def test_used_wal_with_frames_of_earlier_generations_is_no_damage(tmp_path: Path):
    """SQLite starts its WAL again from the front once it is copied, and leaves the old frames behind."""
    with closing(SqliteLog(tmp_path / "log.db")) as log:
        seen = set()
        for n in range(80):
            log.append(records(100, f"b{n}-", size=1000))
            wal = Path(f"{log.path}-wal")
            seen.add(wal.stat().st_size)
        copy = crashed_copy(log.path, tmp_path / "copy")
    assert len(seen) < 80, "the WAL was never used again: append more"

    with closing(SqliteLog(copy)) as log:
        assert len(everything(log)) == 8000
        assert log.damage.places == []


def test_record_that_a_flipped_bit_hits_is_left_out_and_the_rest_is_served(tmp_path: Path):
    path = made(tmp_path / "log.db", records(TAIL_ROWS + 500))
    flip(path, place_of(path, b"e000017-x") + 30)

    with closing(SqliteLog(path)) as log:
        found = everything(log)
        assert set(range(1, TAIL_ROWS + 501)) - set(found) == {18}
        assert log.damage.rows_lost == 1
        assert "record 18 " in log.damage.places[0]
        everything(log)
        assert log.damage.rows_lost == 1, "counted twice"

    with closing(SqliteLog(path)) as log:  # what was found is now mended
        assert log.damage.rows_lost == 1
        assert "log.db.damaged-1" in log.damage.places[0]
        assert (tmp_path / "log.db.damaged-1").exists()
        assert everything(log) == found
        assert log.append([records(18)[17], record("n")]) == [Outcome.ACCEPTED] * 2
        assert len(everything(log)) == TAIL_ROWS + 501
    with closing(SqliteLog(path)) as log:
        assert log.damage.places == []


def test_event_whose_record_is_damaged_can_be_sent_again(tmp_path: Path):
    path = made(tmp_path / "log.db", records(TAIL_ROWS + 500))
    flip(path, place_of(path, b"e000017-x") + 30)

    with closing(SqliteLog(path)) as log:
        assert refusal(log.append, records(30)).code == "events_blocked"
        outcomes = log.append(records(30))

        assert [n for n, one in enumerate(outcomes) if one == Outcome.ACCEPTED] == [17]
        assert len(everything(log)) == TAIL_ROWS + 500


def test_any_flipped_bit_costs_no_more_than_its_record(memory: Path):
    """Wherever it is: in a record, an inner page, the index, the schema, the header."""
    batch = [*records(400), record("large", b"large-" + b"y" * 30_000), *records(400, "f", size=900)]
    whole = made(memory / "whole" / "log.db", batch)
    wanted = {one.event_id: one for one in batch}
    draws = random.Random(7)
    size = whole.stat().st_size
    places = [*range(16, 100, 3), *(draws.randrange(size) for _ in range(60))]
    for trial, place in enumerate(places):
        path = memory / str(trial) / "log.db"
        path.parent.mkdir()
        shutil.copy(whole, path)
        flip(path, place, draws.randrange(8))

        with closing(SqliteLog(path)) as log:
            everything(log)
        with closing(SqliteLog(path)) as log:
            found = {one.event_id: one for one in everything(log).values()}
            assert found.items() <= wanted.items(), place
            assert len(found) >= len(wanted) - 1, place
            assert log.append([record("n")]) == [Outcome.ACCEPTED]
            assert log.append(batch).count(Outcome.ACCEPTED) == len(wanted) - len(found)
        shutil.rmtree(path.parent)


def test_flipped_bit_in_the_wal_costs_no_more_than_its_record(memory: Path):
    """SQLite itself gives up all that comes behind such a bit."""
    batch = records(300)
    with closing(SqliteLog(memory / "log.db")) as log:
        fill(log, batch, 10)
        copy = crashed_copy(log.path, memory / "copy")
    draws = random.Random(3)
    for trial in range(25):
        path = memory / str(trial) / "log.db"
        shutil.copytree(copy.parent, path.parent)
        wal = Path(f"{path}-wal")
        flip(wal, draws.randrange(32 if trial < 5 else wal.stat().st_size), draws.randrange(8))

        with closing(SqliteLog(path)) as log:
            found = ids(log)
            assert len(set(found)) == len(found)
            assert len(found) >= len(batch) - 1
            assert set(fill(log, [record("n"), record("m")])) == {Outcome.ACCEPTED}
        shutil.rmtree(path.parent)


@pytest.mark.parametrize("damage", ["no bytes", "other bytes", "no header", "half of it", "zeros inside"])
def test_file_that_cannot_be_opened_is_set_aside_and_what_is_whole_is_kept(tmp_path: Path, damage: str):
    path = made(tmp_path / "log.db", records(1000))
    size = path.stat().st_size
    if damage == "no bytes":
        os.truncate(path, 0)
    elif damage == "other bytes":
        path.write_bytes(random.Random(0).randbytes(size))
    elif damage == "no header":
        overwrite(path, 0, bytes(100))
    elif damage == "half of it":
        os.truncate(path, size // 2)
    else:
        overwrite(path, size // 2, bytes(2 * PAGE_BYTES))
    before = path.read_bytes()

    started = time.perf_counter()
    with closing(SqliteLog(path)) as log:
        assert time.perf_counter() - started < 10
        found = everything(log)
        least = {"no bytes": 0, "other bytes": 0, "no header": 1000, "half of it": 300, "zeros inside": 900}
        assert least[damage] <= len(found) <= (1000 if damage == "no header" else 999)
        assert (tmp_path / "log.db.damaged-1").read_bytes() == before
        assert "log.db.damaged-1" in log.damage.places[0]
        assert log.append([record("n")]) == [Outcome.ACCEPTED]
        assert max(everything(log)) > 1000, "a number is given away twice"
        assert len(fill(log, records(1000))) == 1000
        assert len(everything(log)) == 1001
    with closing(SqliteLog(path)) as log:
        assert len(everything(log)) == 1001
        assert log.damage.places == []


def test_lost_wal_is_noticed_and_its_numbers_are_not_given_away_again(tmp_path: Path):
    with closing(SqliteLog(tmp_path / "log.db")) as log:
        fill(log, records(100))
        copy = crashed_copy(log.path, tmp_path / "copy")
    Path(f"{copy}-wal").unlink()

    with closing(SqliteLog(copy)) as log:
        assert "the newest records" in log.damage.places[0]
        log.append([record("n")])
        assert min(everything(log)) > 100


def test_wal_without_its_file_is_salvaged(tmp_path: Path):
    with closing(SqliteLog(tmp_path / "log.db")) as log:
        fill(log, records(100))
        copy = crashed_copy(log.path, tmp_path / "copy")
    copy.unlink()

    with closing(SqliteLog(copy)) as log:
        assert ids(log) == [one.event_id for one in records(100)]
        assert log.damage.places


def test_salvage_that_was_cut_short_goes_on(tmp_path: Path):
    """Killed after each step: the log is there, whole, once and not twice."""
    path = made(tmp_path / "log.db", records(50))
    salvaged = made(tmp_path / "good" / "log.db", records(50))
    shutil.copy(salvaged, tmp_path / "log.db.salvaged")
    overwrite(path, 0, bytes(100))
    states = []
    for step in range(3):
        folder = tmp_path / f"step{step}"
        folder.mkdir()
        for one in tmp_path.glob("log.db*"):
            shutil.copy(one, folder)
        if step:
            (folder / "log.db").rename(folder / "log.db.damaged-1")
        if step == 2:
            (folder / "log.db.salvaged").rename(folder / "log.db")
        with closing(SqliteLog(folder / "log.db")) as log:
            states.append((ids(log), sorted(one.name for one in folder.glob("*damaged*"))))

    assert states == [([one.event_id for one in records(50)], ["log.db.damaged-1"])] * 3


def test_start_with_many_records_is_quick(memory: Path):
    """100,000 records here; a million take ten times as long, and have ten seconds."""
    path = made(memory / "log.db", [])
    with closing(SqliteLog(path, durability="os")) as log:
        fill(log, records(100_000), 20_000)
        copy = crashed_copy(log.path, memory / "copy")

    started = time.process_time()
    with closing(SqliteLog(copy)) as log:
        took = time.process_time() - started
        assert log.last == 100_000
    assert took < 1.0, f"{took:.2f} s of the processor"


def test_nobody_else_may_read_the_log(tmp_path):
    log = SqliteLog(tmp_path / "log.db")
    log.append(records(1))
    files = [path for path in tmp_path.glob("log.db*") if "lock" not in path.name]
    assert {path.stat().st_mode & 0o077 for path in files} == {0}
    log.close()


# The following were found by tests/fuzz/event_log.py.


def test_a_reader_of_swapped_pages_goes_on_and_repeats_nothing(tmp_path: Path):
    path = made(tmp_path / "log.db", records(200))
    content = bytearray(path.read_bytes())
    leaves = [at for at in range(PAGE_BYTES, len(content), PAGE_BYTES) if content[at] == 13]
    content[leaves[-2] : leaves[-2] + PAGE_BYTES] = content[leaves[1] : leaves[1] + PAGE_BYTES]
    path.write_bytes(content)

    for limit in (3, 1000):
        with closing(SqliteReader(path)) as reader:
            found: list[int] = []
            while page := reader.read(max(found, default=0), limit):
                found += [one.sequence for one in page]
                assert found == sorted(set(found))
            assert found[-1] == 200
    assert reader.has_found_damage


@pytest.mark.parametrize("bit", range(8))
def test_a_bit_of_the_head_of_a_wal_or_of_its_last_salts_costs_no_record(memory: Path, bit: int):
    """A salt that has become a later one made all frames look like those of an earlier generation."""
    with closing(SqliteLog(memory / "log.db")) as log:
        fill(log, records(60), step=20)
        copy = crashed_copy(log.path, memory / "copy")
    size = copy.with_name("log.db-wal").stat().st_size
    last = size - PAGE_BYTES - 24
    for place in [*range(32), *range(last + 8, last + 16)]:
        damaged = memory / f"copy-{place}" / "log.db"
        shutil.copytree(copy.parent, damaged.parent)
        flip(damaged.with_name("log.db-wal"), place, bit)
        with closing(SqliteLog(damaged, reserve_bytes=NO_RESERVE)) as log:
            assert ids(log) == [one.event_id for one in records(60)], place


def test_who_only_reads_does_not_hide_that_the_wal_is_gone(tmp_path: Path):
    with closing(SqliteLog(tmp_path / "log.db")) as log:
        fill(log, records(50))
        copy = crashed_copy(log.path, tmp_path / "copy")
    copy.with_name("log.db-wal").unlink()

    with closing(SqliteReader(copy)) as reader:
        assert everything(reader) == {}
        assert "gone" in reader.damage.places[0]
    with closing(SqliteLog(copy)) as log:
        assert "gone" in log.damage.places[0]
        log.append([record("later")])
        assert min(everything(log)) > 50


def test_a_schema_that_is_no_text_is_damage_as_any_other(tmp_path: Path):
    path = made(tmp_path / "log.db", records(50))
    overwrite(path, place_of(path, b"CREATE TABLE events") + 13, b"\xff" * 6)

    assert refusal(SqliteReader, path).code == "events_blocked"
    with closing(SqliteLog(path)) as log:
        assert ids(log) == [one.event_id for one in records(50)]
        assert log.damage.places
