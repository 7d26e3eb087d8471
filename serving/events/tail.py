"""The log as a server reads it while another process writes it."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from serving.events.log import Damage, EventReader, Stored
from serving.events.place import LogPlace
from serving.events.sqlite_opening import mark_suspect
from serving.events.sqlite_reader import SqliteReader


class LogTail:
    """Reads what lies at a place now: it is opened when it is first read, and again once it was renewed.

    Safe to use from several threads.
    """

    def __init__(self, place: LogPlace, damage: Damage) -> None:
        """Take the place, of which nothing need be there yet, and where findings are counted."""
        self._place, self._damage = place, damage
        self._turn = threading.Lock()
        self._reader: EventReader | None = None
        self._is_suspect = False

    def read(self, after: int, limit: int) -> list[Stored]:
        """As `log.EventReader`; damage that it finds has the log salvaged when it is opened next."""
        with self._turn:
            if self._reader is None:
                self._reader = self._place.open_reader(self._damage)
            found = self._reader.read(after, limit)
            if isinstance(self._reader, SqliteReader) and self._reader.has_found_damage:
                self._suspect()
            return found

    def renew(self) -> None:
        """Open the log anew: whoever writes it may have put another file in its place."""
        self.close()
        self._is_suspect = False

    def close(self) -> None:
        """Close what is open; a second call does nothing."""
        with self._turn:
            if self._reader is not None:
                self._reader.close()
            self._reader = None

    def _suspect(self) -> None:
        if not self._is_suspect:
            self._is_suspect = True
            with suppress(OSError):
                mark_suspect(Path(self._place.file))
