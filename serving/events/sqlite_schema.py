"""The tables of an SQLite event log, and the file names that belong to one."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE_BYTES = 4096

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS events"
    "(sequence INTEGER PRIMARY KEY, row BLOB NOT NULL, hash INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS facts(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
)
"""`row` (`event_rows`) comes before `hash`, so that its place in a cell follows from its length.

Facts: `last` is the last number that was given away, `gaps` how many up to it belong to no record of this
file, `open` is 1 as long as the log is open.
"""

INDEX = "CREATE INDEX IF NOT EXISTS events_by_hash ON events(hash)"
INSERT = "INSERT INTO events(sequence, row, hash) VALUES (?, ?, ?)"


def id_hash(event_id: str) -> int:
    """64 bits of an id, as SQLite's signed integer; ids that share them are told apart by the row."""
    return int.from_bytes(hashlib.blake2b(event_id.encode(), digest_size=8).digest(), signed=True)


def beside(log: Path, suffix: str) -> Path:
    """The file that belongs to a log under this suffix.

    SQLite's own: `-wal`, `-shm`. Ours: `.lock`; `.suspect`, empty, where a record was found damaged;
    `.making` and `.salvaged`, a log on its way to replace a damaged one; `.damaged-1` ..., those.
    """
    return log.with_name(log.name + suffix)


@contextmanager
def legible() -> Iterator[None]:
    """Raise sqlite3.DatabaseError also where what SQLite says of a damaged file is no text for Python."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise sqlite3.DatabaseError("the names of its tables are damaged") from error
