"""Where a log of events lies, in words that another process can be told."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from recsys.errors import EXIT_UNAVAILABLE, RecsysError
from serving.events.log import Damage, EventLog, EventReader


class LogPlace(Struct, frozen=True):
    """A file, or a stream of a store on the network.

    Attributes:
        file: path of the log; empty for one in a store.
        redis: URL of the Redis or Valkey that has it, with the password where there is one.
        name: of the log there.
    """

    file: str = ""
    redis: str = ""
    name: str = "recsys"

    def open(self, *, wait_s: float = 0.0) -> EventLog:
        """The log for writing; raises RecsysError `missing_extra` (exit 69), and of the log.

        Args:
            wait_s: how long another process may still hold a file.
        """
        if self.redis:
            return self._redis(Damage())
        from serving.events.sqlite_log import SqliteLog

        return SqliteLog(Path(self.file), wait_s=wait_s)

    def open_reader(self, damage: Damage | None = None) -> EventReader:
        """The log for reading; findings are counted in `damage`. Raises likewise."""
        damage = Damage() if damage is None else damage
        if self.redis:
            return self._redis(damage)
        from serving.events.sqlite_reader import SqliteReader

        return SqliteReader(Path(self.file), damage)

    def _redis(self, damage: Damage) -> EventLog:
        try:
            from serving.events.redis_log import RedisLog
        except ModuleNotFoundError as error:
            what = f"module {error.name} is missing: install recsys[redis]"
            raise RecsysError("missing_extra", what, exit_code=EXIT_UNAVAILABLE) from error
        return RedisLog(self.redis, name=self.name, damage=damage)
