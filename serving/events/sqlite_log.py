"""The event log in one SQLite file: WAL, one writer, on stable storage before an append returns."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from recsys.errors import RecsysError
from recsys.locks import lock
from serving.events.log import Damage, Durability, Outcome, Record, State, Stored, blocked, full, sort_out
from serving.events.rows import pack, unpack
from serving.events.sqlite_opening import mark_suspect, note_end, open_writer
from serving.events.sqlite_probe import Unsound, is_damage
from serving.events.sqlite_reader import SqliteReader
from serving.events.sqlite_schema import INSERT, beside, id_hash

RESERVE_BYTES = 64 * 2**20
RETRY_S = 1.0
_KNOWN = "SELECT sequence, row FROM events WHERE hash IN (SELECT value FROM json_each(?))"


class SqliteLog:
    """An `log.EventLog`. Appends take turns; reads have a connection of their own."""

    def __init__(
        self,
        path: Path,
        *,
        reserve_bytes: int = RESERVE_BYTES,
        durability: Durability = "fsync",
        wait_s: float = 0.0,
    ) -> None:
        """Open the log, or make it.

        A damaged log is salvaged. One that cannot be written now (no room, a failing disk) is opened all the
        same, and `append` raises until that has changed; so is a file that may only be read, for good.

        Args:
            path: the file; others of its name with a suffix lie beside it.
            reserve_bytes: `append` is refused when no more room than this is left on the volume.
            durability: `os` leaves out fsync.
            wait_s: how long another process may still hold the log.

        Raises:
            RecsysError: `lock_held` (exit 75) where another process writes this log; `not_an_event_log`.
        """
        self.path = path
        self.durability = durability
        self.damage = Damage()
        self.openings = 0
        self._reserve, self._wait_s = reserve_bytes, wait_s
        self._turn = threading.Lock()  # of appends; taken before the other where both are
        self._opening = threading.Lock()  # of the reader
        self._held = ExitStack()
        self._is_locked = False
        self._writer: sqlite3.Connection | None = None
        self._reader: SqliteReader | None = None
        self._last = 0
        self._retry_at = 0.0
        self._reason = ""
        self._is_full = False
        self._is_suspect = False
        self._is_read_only = _is_read_only(path)
        if not self._is_read_only:
            failure = self._open()
            if isinstance(failure, RecsysError) and failure.code in ("lock_held", "not_an_event_log"):
                self.close()
                raise failure

    @property
    def last(self) -> int:
        """Number of the last record, 0 for an empty log."""
        return self._reading().last

    @property
    def state(self) -> State:
        """As `log.EventLog`."""
        if not self._is_read_only and (self._is_full or self._room() <= self._reserve):
            return "storage_full"
        return "events_blocked" if self._writer is None else "ready"

    def append(self, records: Sequence[Record]) -> list[Outcome]:
        """As `log.EventLog`; no records at all only try to get over an earlier failure."""
        with self._turn:
            if self._is_read_only:
                raise blocked("the log cannot be written:", self.path)
            writer = self._ready_writer()
            try:
                outcomes = self._commit(writer, records) if records or self._is_full else []
                self._is_full = False
                return outcomes
            except sqlite3.Error as error:
                raise self._failed(writer, error) from error

    def read(self, after: int, limit: int) -> list[Stored]:
        """As `log.EventReader`."""
        reader = self._reading()
        found = reader.read(after, limit)
        if reader.has_found_damage and not self._is_suspect:
            self._suspect()
        return found

    def close(self) -> None:
        """Close the files and let go of the lock; a second call does nothing."""
        with self._turn, self._opening:
            writer, reader = self._writer, self._reader
            self._writer = self._reader = None
            self._reason, self._retry_at = "it is closed", float("inf")
            is_orderly = writer is not None and note_end(writer)
            # The last connection to go removes the WAL, which must stay where the end could not be noted.
            for connection in (reader, writer) if is_orderly else (writer, reader):
                if connection is not None:
                    connection.close()
            self._held.close()

    def _open(self) -> Exception | None:
        """Open the log for writing, or return why that failed, to try again later."""
        with self._opening:
            if self._reader is not None:
                self._reader.close()
            self._reader, self._is_suspect = None, False
            try:
                self._lock()
                writer = open_writer(self.path, self.durability, self.damage)
                (self._last,) = writer.execute("SELECT value FROM facts WHERE name = 'last'").fetchone()
                self._writer = writer
                self.openings += 1
            except (OSError, sqlite3.Error, RecsysError) as error:
                self._reason = str(error)
                self._retry_at = time.monotonic() + RETRY_S
                return error
        return None

    def _lock(self) -> None:
        if not self._is_locked:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(lock(beside(self.path, ".lock"), wait_s=self._wait_s))
            self._is_locked = True

    def _reading(self) -> SqliteReader:
        with self._opening:
            if self._reader is None and self._retry_at == float("inf"):
                raise blocked("the log is closed:", self.path)
            if self._reader is None:
                self._reader = SqliteReader(self.path, self.damage)
            return self._reader

    def _suspect(self) -> None:
        """Have the log salvaged when it is opened next, after a restart or a failure."""
        self._is_suspect = True
        if not self._is_read_only:
            with suppress(OSError):
                mark_suspect(self.path)

    def _ready_writer(self) -> sqlite3.Connection:
        """The connection to write with; opens the log again after a failure."""
        if self._room() <= self._reserve:
            raise full("less room than the reserve is left for", self.path)
        if self._writer is None and time.monotonic() >= self._retry_at:
            self._open()
        if self._writer is None:
            raise blocked(f"the log is not written, {self._reason}:", self.path)
        return self._writer

    def _commit(self, writer: sqlite3.Connection, records: Sequence[Record]) -> list[Outcome]:
        hashes = {record.event_id: id_hash(record.event_id) for record in records}
        writer.execute("BEGIN IMMEDIATE")
        try:
            outcomes, fresh = sort_out(records, _known(writer, list(hashes.values())))
            last = self._last + len(fresh)
            numbered = enumerate(fresh, self._last + 1)
            rows = [(number, pack(number, record), hashes[record.event_id]) for number, record in numbered]
            writer.executemany(INSERT, rows)
            if rows or self._is_full:
                writer.execute("UPDATE facts SET value = ? WHERE name = 'last'", (last,))
            writer.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                writer.execute("ROLLBACK")
            raise
        self._last = last
        return outcomes

    def _failed(self, writer: sqlite3.Connection, error: sqlite3.Error) -> RecsysError:
        """Let go of a connection that cannot be trusted any more; a full disk leaves it as it was."""
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL and not writer.in_transaction:
            self._is_full = True
            return full("the volume is full at", self.path)
        if is_damage(error):
            self._suspect()
        with suppress(RecsysError):
            self._reading()  # as long as somebody reads, the WAL stays when the writer goes
        self._writer, self._reason = None, f"it failed ({error}) and is opened again"
        writer.close()
        return blocked(f"the log failed ({error}):", self.path)

    def _room(self) -> int:
        """Bytes that can still be written: on the volume, and to a file of this process."""
        volume = os.statvfs(self.path.parent)
        room = volume.f_bavail * volume.f_frsize
        most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if most != resource.RLIM_INFINITY:
            files = (self.path, beside(self.path, "-wal"))
            room = min(room, most - max(file.stat().st_size if file.exists() else 0 for file in files))
        return room


def _known(writer: sqlite3.Connection, hashes: list[int]) -> dict[str, bytes]:
    """Digests by id of what is stored under these hashes."""
    known = {}
    for sequence, row in writer.execute(_KNOWN, (json.dumps(hashes),)):
        stored = unpack(row)
        if stored is None or stored.sequence != sequence:
            raise Unsound(f"record {sequence} does not match its checksum")
        known[stored.record.event_id] = stored.record.digest
    return known


def _is_read_only(path: Path) -> bool:
    """Whether the file is there and this process may not write it, or nothing beside it."""
    return path.exists() and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))
