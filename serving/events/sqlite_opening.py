"""Opening an SQLite event log for writing: what a crash or a fault left is cut off or set aside first."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from recsys.storage import sync_file, sync_folder
from serving.events.log import Damage, Durability, blocked
from serving.events.sqlite_probe import Findings, probe
from serving.events.sqlite_salvage import UNSURE_GAP, finish, salvage
from serving.events.sqlite_schema import INDEX, PAGE_BYTES, SCHEMA, beside

CACHE_KIB = 65_536
LONGEST_IDLE_WAL = 64 * 2**20
_BUSY_S = 5.0
_SYNCHRONOUS: dict[Durability, str] = {"fsync": "FULL", "os": "OFF"}


def open_writer(log: Path, durability: Durability, damage: Damage) -> sqlite3.Connection:
    """A connection to a log that was verified and whose WAL is empty; the log is made where there is none.

    Only one process may be in here for one log.

    Raises:
        OSError, sqlite3.Error: where the disk is full or fails; nothing is lost by that.
        RecsysError: `events_blocked` where another program keeps the log from being written,
            `not_an_event_log`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    finish(log)
    findings = Findings()
    if log.exists() or beside(log, "-wal").exists():
        findings = probe(log)
    if findings.damage:
        salvage(log, damage, findings.damage)
    elif findings.loose_bytes:
        _cut(log, findings.loose_bytes, damage)
    connection = _connect(log, durability)
    try:
        _make_current(connection, log)
        _count(connection, findings, damage)
    except BaseException:
        connection.close()
        raise
    return connection


def note_end(connection: sqlite3.Connection) -> bool:
    """Note that the log is closed in order; whether that could be written."""
    try:
        connection.execute("UPDATE facts SET value = 0 WHERE name = 'open'")
    except sqlite3.Error:
        return False
    return True


def mark_suspect(log: Path) -> None:
    """Have the log salvaged when it is opened next."""
    beside(log, ".suspect").touch()
    sync_folder(log.parent)


def _connect(log: Path, durability: Durability) -> sqlite3.Connection:
    if not log.exists():
        log.touch(0o600)  # it names people; the files beside it get its mode
    connection = sqlite3.connect(log, isolation_level=None, check_same_thread=False, timeout=_BUSY_S)
    for pragma in (
        f"page_size = {PAGE_BYTES}",
        "journal_mode = WAL",
        f"synchronous = {_SYNCHRONOUS[durability]}",
        f"cache_size = -{CACHE_KIB}",
        f"journal_size_limit = {LONGEST_IDLE_WAL}",
    ):
        try:
            connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
    return connection


def _make_current(connection: sqlite3.Connection, log: Path) -> None:
    """Make the tables where there are none, and have everything in the file itself and on stable storage.

    The copy from the WAL to the file writes each page again. So it also mends what a failed fsync left:
    pages that the system takes for written, and that are not.
    """
    for statement in (*SCHEMA, INDEX):
        connection.execute(statement)
    connection.execute("INSERT OR IGNORE INTO facts VALUES ('last', 0), ('gaps', 0), ('open', 0)")
    connection.execute("UPDATE facts SET value = 1 WHERE name = 'open'")
    (is_busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if is_busy:
        raise blocked("another program is reading the log and does not end:", log)
    sync_folder(log.parent)


def _cut(log: Path, loose_bytes: int, damage: Damage) -> None:
    """Cut off what stands behind the last page; SQLite would make pages of it."""
    os.truncate(log, log.stat().st_size - loose_bytes)
    sync_file(log)
    damage.add(f"{loose_bytes} bytes behind the end of {log.name}", dropped=loose_bytes)


def _count(connection: sqlite3.Connection, findings: Findings, damage: Damage) -> None:
    """Count what a crash took; numbers that may be among it are not given away again."""
    if findings.torn_bytes:
        damage.add(f"{findings.torn_bytes} bytes behind the end of the WAL", dropped=findings.torn_bytes)
    if findings.is_cut:
        values = {"by": UNSURE_GAP}
        connection.execute("UPDATE facts SET value = value + :by WHERE name IN ('last', 'gaps')", values)
        damage.add("the WAL of an unclean end is gone, with the newest records")
