"""Reading an SQLite event log, also while another process writes it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path

from recsys.errors import EXIT_NO_INPUT, RecsysError
from serving.events.log import Damage, Stored, blocked
from serving.events.rows import unpack
from serving.events.sqlite_schema import beside, legible

_PAGE = (
    "SELECT sequence, row FROM events "
    "WHERE sequence > :after AND +sequence > :after ORDER BY sequence LIMIT :limit"
)
"""In damaged pages rows may stand behind any other; the plus has each of them looked at."""

_BUSY_S = 5.0
_NO_INDEX = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)


class SqliteReader:
    """A connection that cannot write. Safe to use from several threads, which take turns."""

    def __init__(self, path: Path, damage: Damage | None = None) -> None:
        """Open the log.

        Args:
            path: the log.
            damage: where findings are counted; a count of its own by default.

        Raises:
            RecsysError: `no_input` (exit 66) where there is no such file, `events_blocked`.
        """
        if not path.is_file():
            raise RecsysError("no_input", "no such event log:", str(path), exit_code=EXIT_NO_INPUT)
        self.path = path
        self.damage = Damage() if damage is None else damage
        self._found: set[int] = set()
        self._turn = threading.Lock()
        self._connection = _connect(path, self.damage)

    @property
    def last(self) -> int:
        """Number of the last record, 0 for an empty log."""
        rows = self._fetch("SELECT max(sequence), 0 FROM events", {})
        return int(rows[0][0] or 0)

    @property
    def has_found_damage(self) -> bool:
        """Whether a record that was read did not match its checksum."""
        return bool(self._found)

    def read(self, after: int, limit: int) -> list[Stored]:
        """As `log.EventReader`."""
        while rows := self._fetch(_PAGE, {"after": after, "limit": limit}):
            whole = []
            for sequence, row in rows:
                stored = self._verified(sequence, row)
                if stored is not None and sequence > after:
                    whole.append(stored)
                elif stored is not None:
                    self._note(sequence, "stands behind later ones")
                after = max(after, sequence)
            if whole:
                return whole
        return []

    def close(self) -> None:
        """Close the file."""
        with self._turn:
            self._connection.close()

    def _fetch(self, query: str, values: Mapping[str, int]) -> list[tuple[int, bytes]]:
        try:
            with self._turn, legible():
                return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise blocked(f"the log cannot be read ({error}):", self.path) from error

    def _verified(self, sequence: int, row: object) -> Stored | None:
        stored = unpack(row) if isinstance(row, bytes) else None
        if stored is not None and stored.sequence == sequence:
            return stored
        self._note(sequence, "does not match its checksum", rows=1)
        return None

    def _note(self, sequence: int, what: str, *, rows: int = 0) -> None:
        """Count a finding about a record, once."""
        if sequence not in self._found:
            self._found.add(sequence)
            self.damage.add(f"record {sequence} of {self.path.name} {what}", rows=rows)


def _connect(path: Path, damage: Damage) -> sqlite3.Connection:
    """Open without the right to write; where not even the WAL's index can be made, without the WAL."""
    address = path.resolve().as_uri()
    if _has_lost_its_wal(path):
        damage.add(f"the WAL of {path.name} is gone after an unclean end, with the newest records")
        return _unchanging(path)
    try:
        return _opened(f"{address}?mode=ro")
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _NO_INDEX:
            raise blocked(f"the log cannot be read ({error}):", path) from error
    connection = _unchanging(path)
    wal = beside(path, "-wal")
    if wal.exists() and wal.stat().st_size:
        damage.add(f"nothing can be written beside {path.name}, so the records in its WAL are not read")
    return connection


def _has_lost_its_wal(path: Path) -> bool:
    """Whether the log was not closed in order and its WAL is gone.

    Other connections than `_unchanging` would make an empty WAL, and so hide the loss from whoever opens the
    log for writing next.
    """
    wal = beside(path, "-wal")
    if wal.exists():
        return False
    with suppress(sqlite3.Error, RecsysError), closing(_unchanging(path)) as connection:
        found = connection.execute("SELECT value FROM facts WHERE name = 'open'").fetchone()
        return bool(found and found[0]) and not wal.exists()  # a writer may just have come
    return False


def _unchanging(path: Path) -> sqlite3.Connection:
    """A connection to the file alone, which makes nothing beside it."""
    try:
        return _opened(f"{path.resolve().as_uri()}?immutable=1")
    except sqlite3.Error as error:
        raise blocked(f"the log cannot be opened ({error}):", path) from error


def _opened(address: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        address, uri=True, isolation_level=None, check_same_thread=False, timeout=_BUSY_S
    )
    try:
        with legible():
            connection.execute("SELECT max(sequence) FROM events").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection
