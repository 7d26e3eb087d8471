"""A look at an SQLite event log before it is written: what is damaged, and what stands behind its end.

Nothing here changes a file: the connection cannot write, so it leaves the WAL as a crash left it.
"""

from __future__ import annotations

import sqlite3
import struct
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from recsys.errors import RecsysError
from serving.events.rows import unpack
from serving.events.sqlite_salvage import FRAME_BYTES, WAL_HEAD_BYTES
from serving.events.sqlite_schema import INDEX, PAGE_BYTES, SCHEMA, beside, legible

CHECKED_BYTES = 512 * 2**20
"""Up to here the index is held against the rows at the start: three seconds for a million of them."""

WALKED_BYTES = 2**31
"""Up to here all pages are walked through: a second a million. In larger logs reading finds the damage."""

TAIL_ROWS = 1000
CHECK_CACHE_KIB = 65_536
_MOST_GENERATIONS = 2**20
_STATEMENTS = tuple(statement.replace("IF NOT EXISTS ", "") for statement in (*SCHEMA, INDEX))


@dataclass(frozen=True)
class Findings:
    """What a look at the files says.

    Attributes:
        damage: why the log must be salvaged, "" for a sound one.
        loose_bytes: bytes behind the last page of the file.
        torn_bytes: bytes in the WAL of writes that never ended, so were never acknowledged.
        is_cut: the log was not closed in order, and the WAL that a crash leaves behind is gone.
    """

    damage: str = ""
    loose_bytes: int = 0
    torn_bytes: int = 0
    is_cut: bool = False


def probe(log: Path) -> Findings:
    """Look at a log that exists and that no other process writes.

    Raises:
        RecsysError: `not_an_event_log` for a sound database of something else.
        sqlite3.Error: where the disk fails.
    """
    had_wal = beside(log, "-wal").exists()
    if beside(log, ".suspect").exists():
        return Findings("a record did not match its checksum when it was read")
    if not log.exists():
        return Findings("the file is gone, its WAL is there")
    # Without a WAL an ordinary connection would make an empty one, and a second look find nothing amiss.
    address = f"{log.resolve().as_uri()}?{'mode=ro' if had_wal else 'immutable=1'}"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=5)) as connection, legible():
            return _look(connection, log, had_wal=had_wal)
    except sqlite3.DatabaseError as error:
        if is_damage(error) or _code(error) == sqlite3.SQLITE_ERROR:  # a sound log gives no error here
            return Findings(f"SQLite says: {error}")
        raise


class Unsound(sqlite3.DatabaseError):
    """A record that does not match its checksum, met while writing."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error means wrong bytes in the file, and no lack of room, right or luck."""
    return isinstance(error, Unsound) or _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _look(connection: sqlite3.Connection, log: Path, *, had_wal: bool) -> Findings:
    connection.text_factory = _text
    found = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_schema") if sql}
    if not found.intersection(_STATEMENTS) and found:
        raise RecsysError("not_an_event_log", "this database holds something else:", str(log))
    torn, has_ended = _behind_the_end(log)
    if has_ended:
        return Findings("its WAL is broken before its end")
    if found != set(_STATEMENTS) or not _has_our_header(log):
        return Findings("its header or its tables are not those of a log")
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    loose = max(0, log.stat().st_size - pages * PAGE_BYTES)
    facts = dict(connection.execute("SELECT name, value FROM facts").fetchall())
    damage = _wrong(connection, facts, log)
    return Findings(damage, loose, torn, bool(facts.get("open")) and not had_wal)


def _has_our_header(log: Path) -> bool:
    """Whether the fixed parts of the file's header are as SQLite writes them for a log (section 1.3)."""
    with log.open("rb") as file:
        head = file.read(100)
    versions, encoding = head[18:20], head[56:60]
    return (
        head[:18] == b"SQLite format 3\0" + PAGE_BYTES.to_bytes(2)
        and versions in (b"\1\1", b"\2\2")
        and head[20:24] == b"\x00\x40\x20\x20"
        and encoding == b"\0\0\0\1"
    )


def _wrong(connection: sqlite3.Connection, facts: dict[str, object], log: Path) -> str:
    """Why the content cannot be trusted, "" where it can."""
    size = log.stat().st_size
    verdict = _verdict(connection, size)
    if verdict != "ok":
        return f"its pages are damaged: {verdict[:100]}"
    last, gaps = facts.get("last"), facts.get("gaps")
    if not isinstance(last, int) or not isinstance(gaps, int) or "open" not in facts:
        return "its facts are incomplete"
    query = "SELECT sequence, row FROM events ORDER BY sequence DESC LIMIT ?"
    for sequence, row in connection.execute(query, (TAIL_ROWS,)):
        stored = unpack(row) if isinstance(row, bytes) else None
        if stored is None or stored.sequence != sequence:
            return f"record {sequence} does not match its checksum"
    count = last - gaps
    if size <= WALKED_BYTES:
        (count,) = connection.execute("SELECT count(*) FROM events").fetchone()
    return "" if count == last - gaps else f"it holds {count} records, and has counted {last - gaps}"


def _verdict(connection: sqlite3.Connection, size: int) -> str:
    """What SQLite says of its pages, `ok` where it is not asked."""
    if size > WALKED_BYTES:
        return "ok"
    check = "integrity_check" if size <= CHECKED_BYTES else "quick_check"
    connection.execute(f"PRAGMA cache_size = -{CHECK_CACHE_KIB}")
    return str(connection.execute(f"PRAGMA {check}(1)").fetchone()[0])


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _behind_the_end(log: Path) -> tuple[int, bool]:
    """Bytes of the WAL behind its last whole transaction, and whether a later one had ended there too.

    Frames of an earlier generation, which a WAL that is used again has at its end, do not count: they are
    told by the salts, of which the first goes up by one a generation and the second is drawn anew (SQLite's
    WAL format, sections 1 and 4). Where the header is damaged, no frame is taken for an earlier one.
    """
    wal = beside(log, "-wal")
    if not wal.exists():
        return 0, False
    frames = _whole_frames(log)
    with wal.open("rb") as file:
        head = file.read(WAL_HEAD_BYTES)
        file.seek(WAL_HEAD_BYTES + frames * FRAME_BYTES)
        rest = file.read()
    if len(head) < WAL_HEAD_BYTES:
        return len(head), False
    torn, has_ended, is_whole = 0, False, _is_whole_head(head)
    for at in range(0, len(rest), FRAME_BYTES):
        frame = rest[at : at + FRAME_BYTES]
        age = int.from_bytes(head[16:20]) - int.from_bytes(frame[8:12])
        is_of_now = age == 0 or frame[12:16] == head[20:24]
        if is_whole and not is_of_now and 0 < age <= _MOST_GENERATIONS and len(frame) == FRAME_BYTES:
            continue
        torn += len(frame)
        has_ended |= frame[4:8] != bytes(4) and (not frames or is_of_now)
    return torn, has_ended


def _is_whole_head(head: bytes) -> bool:
    """Whether the header of a WAL matches its own checksum (SQLite's WAL format, sections 1 and 2)."""
    words = struct.unpack(">6I" if head[3] & 1 else "<6I", head[:24])
    first = second = 0
    for one, other in zip(words[::2], words[1::2], strict=True):
        first = (first + one + second) % 2**32
        second = (second + other + first) % 2**32
    return struct.pack(">2I", first, second) == head[24:32]


def _whole_frames(log: Path) -> int:
    """Frames of whole transactions in the WAL, as SQLite found and noted in the WAL's index (section 2.1)."""
    index = beside(log, "-shm")
    return int.from_bytes(index.read_bytes()[16:20], sys.byteorder) if index.exists() else 0
