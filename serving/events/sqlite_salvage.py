"""Every whole record of a damaged SQLite event log, in a new file; the damaged one is set aside.

The damaged file is not read as a database: what its pages say of each other may be wrong. It is searched
for the marker of a record, and each record proves itself by its checksum. So a flipped bit costs the record
that it hits, wherever it is. `<log>.salvaged` is complete as soon as it has that name, and is moved into the
log's place by whoever opens the log next, so that a crash at any moment loses nothing.
"""

from __future__ import annotations

import itertools
import mmap
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from recsys.storage import sync_file, sync_folder
from serving.events.log import Damage, Stored
from serving.events.rows import HEAD_BYTES, MARKER, blob_bytes, unpack
from serving.events.sqlite_schema import INDEX, INSERT, PAGE_BYTES, SCHEMA, beside, id_hash

UNSURE_GAP = 1_000_000
"""Numbers left out where it is not known which were given away: none is ever given to a second record."""

WAL_HEAD_BYTES = 32
FRAME_HEAD_BYTES = 24
FRAME_BYTES = FRAME_HEAD_BYTES + PAGE_BYTES

_MARKERS = re.compile(re.escape(MARKER))
_MOST_LOCAL = PAGE_BYTES - 35
_LEAST_LOCAL = (PAGE_BYTES - 12) * 32 // 255 - 23
_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
"""By SQLite's serial type; 0 for the others, which stand for a value themselves."""

_LONGEST_BLOB = 2**24
_MOST_MISSING = 10**9  # more is no count but damage to it
_BATCH = 10_000


def salvage(log: Path, damage: Damage, reason: str) -> None:
    """Put a log with every whole record in the place of a damaged one, and count what is lost.

    Raises:
        OSError, sqlite3.Error: where there is no room or the disk fails; the damaged log is still there.
    """
    making = beside(log, ".making")
    making.unlink(missing_ok=True)
    try:
        count, lost = _make(making, log)
        sync_file(making)
    except BaseException:
        making.unlink(missing_ok=True)
        raise
    making.replace(beside(log, ".salvaged"))
    sync_folder(log.parent)
    aside = finish(log)
    damage.add(f"{reason}: {count} records kept, at least {lost} lost, the old file is {aside}", rows=lost)


def finish(log: Path) -> str:
    """Move a salvaged log, if there is one, into its place; gives the name that the old one has now."""
    salvaged = beside(log, ".salvaged")
    if not salvaged.exists():
        return ""
    aside = _free_name(log)
    for suffix in ("-wal", ""):
        if beside(log, suffix).exists():
            beside(log, suffix).replace(beside(aside, suffix))
    beside(log, "-shm").unlink(missing_ok=True)
    beside(log, ".suspect").unlink(missing_ok=True)
    sync_folder(log.parent)
    salvaged.replace(log)
    sync_folder(log.parent)
    return aside.name


def _free_name(log: Path) -> Path:
    """A name beside the log under which nothing lies yet."""
    names = (beside(log, f".damaged-{number}") for number in itertools.count(1))
    return next(path for path in names if not path.exists() and not beside(path, "-wal").exists())


def whole_records(log: Path) -> Iterator[tuple[Stored, bytes]]:
    """Every record that stands whole somewhere in the file or in its WAL, with its blob; some come twice."""
    with _mapped(log) as file, _mapped(beside(log, "-wal")) as wal:
        frames = _frames(wal)

        def page(number: int) -> bytes:
            if number in frames:
                return wal[frames[number] : frames[number] + PAGE_BYTES]
            return file[(number - 1) * PAGE_BYTES : number * PAGE_BYTES] if number else b""

        for content in (file, wal):
            for found in _MARKERS.finditer(content):
                blob = _blob(content, found.start(), page)
                stored = unpack(blob)
                if stored is not None:
                    yield stored, blob


def _facts(log: Path) -> tuple[int, int]:
    """The last number given away and how many before it were left out, as far as the damaged file says."""
    try:
        with closing(sqlite3.connect(f"{log.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            facts = dict(connection.execute("SELECT name, value FROM facts").fetchall())
            return max(0, int(facts["last"])), max(0, int(facts["gaps"]))
    except (sqlite3.Error, KeyError, TypeError, ValueError):
        return 0, 0


def _make(making: Path, log: Path) -> tuple[int, int]:
    """Make a log of what is whole in another one; gives the numbers of records kept and lost."""
    last, gaps = _facts(log)
    making.touch(0o600)
    with closing(sqlite3.connect(making, isolation_level=None)) as connection:
        count, highest = _fill(connection, log)
        known = last if highest <= last <= highest + _MOST_MISSING else highest
        end = known + UNSURE_GAP
        facts = {"last": end, "gaps": end - count, "open": 0}
        connection.executemany("INSERT INTO facts VALUES (?, ?)", list(facts.items()))
        connection.execute(INDEX)
    return count, max(0, known - gaps - count)


def _fill(connection: sqlite3.Connection, log: Path) -> tuple[int, int]:
    """Insert each record once, whichever copy comes first; gives how many, and the highest number."""
    for pragma in ("synchronous = OFF", "journal_mode = OFF", f"page_size = {PAGE_BYTES}"):
        connection.execute(f"PRAGMA {pragma}")
    for statement in SCHEMA:
        connection.execute(statement)
    numbers: set[int] = set()
    ids: set[str] = set()
    rows: list[tuple[int, bytes, int]] = []
    connection.execute("BEGIN")
    for stored, blob in whole_records(log):
        event_id = stored.record.event_id
        if stored.sequence not in numbers and event_id not in ids:
            numbers.add(stored.sequence)
            ids.add(event_id)
            rows.append((stored.sequence, blob, id_hash(event_id)))
        if len(rows) == _BATCH:
            connection.executemany(INSERT, rows)
            rows.clear()
    connection.executemany(INSERT, rows)
    connection.execute("COMMIT")
    return len(numbers), max(numbers, default=0)


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | bytes]:
    """The bytes of a file; none where it is empty or not there."""
    if not path.exists() or not path.stat().st_size:
        yield b""
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def _frames(wal: mmap.mmap | bytes) -> dict[int, int]:
    """Where the last copy of each page starts in a WAL, by page number."""
    starts = range(WAL_HEAD_BYTES, len(wal) - FRAME_BYTES + 1, FRAME_BYTES)
    return {int.from_bytes(wal[at : at + 4]): at + FRAME_HEAD_BYTES for at in starts}


def _blob(content: mmap.mmap | bytes, start: int, page: Callable[[int], bytes]) -> bytes:
    """The blob whose marker is at `start`, put together from its cell and the pages that it runs over to."""
    size = blob_bytes(content[start : start + HEAD_BYTES])
    if not 0 < size <= _LONGEST_BLOB or not start:
        return b""
    local = _local_bytes(size, content[start - 1])
    parts, missing = [content[start : start + local]], size - local
    number = int.from_bytes(content[start + local : start + local + 4])
    while missing > 0:
        raw = page(number)
        if len(raw) < PAGE_BYTES:
            return b""
        parts.append(raw[4 : 4 + missing])
        missing -= PAGE_BYTES - 4
        number = int.from_bytes(raw[:4])
    return b"".join(parts)


def _local_bytes(size: int, hash_type: int) -> int:
    """How much of a blob of this size stands in the cell itself (SQLite's file format, section 1.6).

    The record's header is its own length, the types of `sequence` and `row`, and the type of `hash`, which
    is the byte before the blob.
    """
    type_of_row, header = 12 + 2 * size, 3
    while type_of_row:
        type_of_row, header = type_of_row >> 7, header + 1
    whole = header + size + _INTEGER_BYTES.get(hash_type, 0)
    if whole <= _MOST_LOCAL:
        return size
    local = _LEAST_LOCAL + (whole - _LEAST_LOCAL) % (PAGE_BYTES - 4)
    return min(size, (local if local <= _MOST_LOCAL else _LEAST_LOCAL) - header)
