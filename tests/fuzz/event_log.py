"""A damaged event log: whole records come back as they were, nothing goes without being told, it lives on.

The bytes are a program of damage to one of two logs: one closed in order, one crashed with a WAL. What the
damage left whole in a file without a WAL must be read again.
"""

from __future__ import annotations

import hashlib
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from recsys.errors import RecsysError
from serving.events.log import EventReader, Outcome, Record
from serving.events.rows import pack
from serving.events.sqlite_log import SqliteLog
from serving.events.sqlite_reader import SqliteReader
from serving.events.sqlite_schema import PAGE_BYTES, beside
from tests.fuzz.memory import private_folder

SIZES = (40, 900, 9000, 40, 40, 300, 5000, 40)
"""Of payloads, in turn: some run over to further pages."""

MOST_STEPS = 6
CODES = {"events_blocked", "no_input", "not_an_event_log"}


@dataclass(frozen=True)
class Made:
    """A log as it was before the damage: its files by suffix, its records by number."""

    files: dict[str, bytes]
    records: dict[int, Record]


_folder = cache(private_folder)


def check(data: bytes) -> None:
    """Damage a log, read it as it is, open it, write to it, and open it again."""
    made = _logs()[data[0] % 2 if data else 0]
    log = _folder() / "log.db"
    for path in _folder().iterdir():
        path.unlink()
    files = _damaged(made.files, data[1:])
    for suffix, content in files.items():
        beside(log, suffix).write_bytes(content)
    with suppress(_ToldError), closing(_told(SqliteReader, log)) as reader:
        _check_subset(_everything(reader), made)
    with suppress(_ToldError):
        found = _opened(log, made, files)
        again = _reopened(log)
        assert again == found


def _opened(log: Path, made: Made, files: dict[str, bytes]) -> dict[int, Record]:
    """What the log holds once it was opened, repaired and written to."""
    with closing(_told(SqliteLog, log, reserve_bytes=0, durability="os")) as opened:
        found = _everything(opened)
        _check_subset(found, made)
        damage = opened.damage
        assert damage.rows_lost >= 0
        assert damage.bytes_dropped >= 0
        lost = made.records.keys() - found.keys()
        assert damage.places or not lost or not _is_noticeable(made, files), f"{lost} are gone in silence"
        if "-wal" not in made.files and "-wal" not in files:
            for number in lost:
                blob = pack(number, made.records[number])
                assert blob not in files.get("", b""), f"{number} is whole and was not found"
        new = _record("after the damage", 100)
        known = [made.records[number] for number in sorted(found)]
        outcomes = _told(opened.append, [*known, new])
        assert outcomes == [Outcome.DUPLICATE] * len(known) + [Outcome.ACCEPTED]
        found = _everything(opened)
        assert new in found.values()
        return found


def _reopened(log: Path) -> dict[int, Record]:
    """What it holds when it is opened once more, which finds nothing to repair."""
    with closing(SqliteLog(log, reserve_bytes=0, durability="os")) as opened:
        assert opened.damage.places == []
        return _everything(opened)


class _ToldError(Exception):
    """The log was refused by name."""


def _told(action, *arguments, **options):
    """The result; a documented error ends the check."""
    try:
        return action(*arguments, **options)
    except RecsysError as error:
        assert error.code in CODES, error
        raise _ToldError from None


def _everything(log: EventReader) -> dict[int, Record]:
    """Every record by its number, in ascending order."""
    found: dict[int, Record] = {}
    while page := _told(log.read, max(found, default=0), 7):
        numbers = [each.sequence for each in page]
        assert numbers == sorted(set(numbers))
        assert numbers[0] > max(found, default=0)
        found |= {each.sequence: each.record for each in page}
    return found


def _check_subset(found: dict[int, Record], made: Made) -> None:
    for number, record in found.items():
        assert record == made.records.get(number), f"{number} is not what was stored"
    assert len({record.event_id for record in found.values()}) == len(found)


def _is_noticeable(made: Made, files: dict[str, bytes]) -> bool:
    """Whether the damage can be told from a new log, or from a crash, which may leave any start of a WAL."""
    wal, was = files.get("-wal"), made.files.get("-wal", b"")
    return bool(files) and not (wal is not None and was.startswith(wal) and wal != was)


def _damaged(files: dict[str, bytes], program: bytes) -> dict[str, bytes]:
    """The files after the steps of a program; each takes six bytes, some read bytes behind."""
    changed = {suffix: bytearray(content) for suffix, content in files.items()}
    for _ in range(MOST_STEPS):
        if len(program) < 6:
            break
        what, length, program = program[0], program[1], program[2:]
        place, program = int.from_bytes(program[:4]), program[4:]
        suffix = sorted(changed)[(what >> 4) % len(changed)] if changed else ""
        program = _damage(changed, suffix, what % 10, place, length, program)
    return {suffix: bytes(content) for suffix, content in changed.items()}


def _damage(
    files: dict[str, bytearray], suffix: str, what: int, place: int, length: int, program: bytes
) -> bytes:
    """One step; gives what is left of the program."""
    if suffix not in files:
        return program
    content = files[suffix]
    place %= len(content) + 1
    page = place // PAGE_BYTES * PAGE_BYTES
    if what == 0:
        content[place : place + 1] = bytes(each ^ 1 << length % 8 for each in content[place : place + 1])
    elif what == 1:
        content[place : place + length] = program[:length][: max(0, len(content) - place)]
        return program[length:]
    elif what == 2:
        del content[place:]
    elif what == 3:
        content += program[:length] * (1 + place % 50)
        return program[length:]
    elif what == 4:
        content[place : place + 16 * length] = bytes(min(16 * length, len(content) - place))
    elif what == 5:
        other = length % (len(content) // PAGE_BYTES + 1) * PAGE_BYTES
        content[page : page + PAGE_BYTES] = content[other : other + PAGE_BYTES]
    elif what == 6:
        del content[place : place + length]
    elif what == 7 and length > 200:
        del files[suffix]
    elif what == 8:
        content[place:place] = program[:length]
        return program[length:]
    elif what == 9:
        small = length % 100
        content[small : small + 1] = bytes([place % 256])
    return program


@cache
def _logs() -> tuple[Made, Made]:
    """The log that was closed, and the one that crashed."""
    records = [_record(f"event {number}", SIZES[number % len(SIZES)]) for number in range(24)]
    numbered = dict(enumerate(records, 1))
    path = _folder() / "made.db"
    with closing(SqliteLog(path, reserve_bytes=0, durability="os")) as log:
        log.append(records[:14])
    with closing(SqliteLog(path, reserve_bytes=0, durability="os")) as log:
        log.append(records[14:20])
        log.append(records[20:])
        crashed = {suffix: beside(path, suffix).read_bytes() for suffix in ("", "-wal")}
    closed = {"": path.read_bytes()}
    return Made(closed, numbered), Made(crashed, numbered)


def _record(event_id: str, size: int) -> Record:
    payload = (event_id + "-" + "x" * size).encode()
    return Record(event_id, "interaction", hashlib.sha256(payload).digest(), 1.5e9, 1.6e9, payload)
