"""The event log in a Redis or Valkey stream, which several servers share; needs the package `redis`.

An entry's id is its number, given by a counter. One script looks an id up, counts and adds, so that an
append may be sent again, by anybody, and stores nothing twice. How durable that is the server's own
configuration decides: only with `appendonly yes` and `appendfsync always` does it reply after fsync.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, OutOfMemoryError, RedisError, ResponseError
from redis.retry import Retry

from recsys.errors import EXIT_CONFIG, EXIT_USAGE, RecsysError
from serving.events.log import Damage, Durability, Outcome, Record, State, Stored, blocked, full
from serving.events.rows import pack, unpack

TIMEOUT_S = 5.0
RETRY_S = 1.0

_APPEND = """
local outcomes = {}
for i = 1, #ARGV, 3 do
  local known = redis.call('HGET', KEYS[2], ARGV[i])
  if not known then
    local number = string.format('%d', redis.call('INCR', KEYS[3]))
    redis.call('XADD', KEYS[1], number .. '-0', 'row', ARGV[i + 2])
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
    outcomes[#outcomes + 1] = 0
  elseif known == ARGV[i + 1] then
    outcomes[#outcomes + 1] = 1
  else
    outcomes[#outcomes + 1] = 2
  end
end
return {outcomes, tonumber(redis.call('GET', KEYS[3]) or '0')}
"""
_OUTCOMES = (Outcome.ACCEPTED, Outcome.DUPLICATE, Outcome.CONFLICT)


class RedisLog:
    """An `log.EventLog` that other processes may write too. Safe to use from several threads."""

    def __init__(
        self, url: str, *, name: str = "recsys", timeout_s: float = TIMEOUT_S, damage: Damage | None = None
    ) -> None:
        """Connect.

        Args:
            url: `redis://`, `rediss://` or `unix://`, with the password where there is one.
            name: the keys are `{name}:events`, `{name}:event-ids` and `{name}:event-count`.
            timeout_s: of each command.
            damage: where findings are counted; a count of its own by default.

        Raises:
            RecsysError: `events_blocked` where the server cannot be used; `redis_evicts` (exit 78) where it
                may drop what it holds; `usage` (exit 64) for another kind of URL.
        """
        self.damage = Damage() if damage is None else damage
        self.openings = 1
        self.durability: Durability = "os"
        self._is_new = False  # whether there is a connection that the server was not looked at through
        self._client, self._where = _client(url, timeout_s, self._connected)
        self._keys = [f"{{{name}}}:{part}" for part in ("events", "event-ids", "event-count")]
        self._script = self._client.register_script(_APPEND)
        self._turn = threading.Lock()
        self._state: State = "ready"
        self._seen = 0
        self._broken: set[int] = set()
        self._retry_at = 0.0
        try:
            self._verify()
        except BaseException as error:
            self.close()
            if isinstance(error, RedisError):
                raise self._failed(error) from error
            raise

    @property
    def last(self) -> int:
        """Number of the last record, whoever wrote it; 0 for an empty log."""
        try:
            return int(self._client.get(self._keys[2]) or 0)
        except RedisError as error:
            raise self._failed(error) from error

    @property
    def state(self) -> State:
        """What the last call found."""
        return self._state

    def append(self, records: Sequence[Record]) -> list[Outcome]:
        """As `log.EventLog`; no records at all only try to get over an earlier failure.

        A lost connection is made again, and the server looked at again, once.
        """
        with self._turn:
            if self._state == "events_blocked" and time.monotonic() < self._retry_at:
                raise blocked("the server could not be used a moment ago:", self._where)
            try:
                if self._state == "ready":
                    return self._append(records)
            except (redis.ConnectionError, redis.TimeoutError):
                self._client.connection_pool.disconnect()
            except RedisError as error:
                raise self._failed(error) from error
            try:
                self._verify()
                return self._append(records)
            except RedisError as error:
                raise self._failed(error) from error

    def read(self, after: int, limit: int) -> list[Stored]:
        """As `log.EventReader`; also what other servers appended."""
        while True:
            try:
                entries: Any = self._client.xrange(self._keys[0], f"{after + 1}-0", "+", limit)
            except RedisError as error:
                raise self._failed(error) from error
            if not entries:
                return []
            numbered = [(int(name.split(b"-")[0]), fields.get(b"row", b"")) for name, fields in entries]
            whole = [stored for number, row in numbered if (stored := self._verified(number, row))]
            if whole:
                return whole
            after = numbered[-1][0]

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._client.close()

    def _append(self, records: Sequence[Record]) -> list[Outcome]:
        if not records:
            self._client.ping()
            return []
        values: list[str | bytes] = []
        for record in records:
            values += [record.event_id, record.digest, pack(0, record)]
        codes, last = self._script(self._keys, values)
        outcomes = [_OUTCOMES[code] for code in codes]
        self._compare(int(last) - outcomes.count(Outcome.ACCEPTED))
        self._seen = int(last)
        if self._is_new:  # the server may have been started again meanwhile, with other settings
            self._verify()
        return outcomes

    def _connected(self, connection: Any) -> None:
        connection.on_connect()
        self._is_new = True

    def _verify(self) -> None:
        """Learn how durable the server is, and whether it still holds what this process saw there."""
        self._is_new = False
        settings = self._settings("maxmemory", "maxmemory-policy", "appendonly", "appendfsync")
        if settings.get("maxmemory", "0") != "0" and settings["maxmemory-policy"].startswith("allkeys"):
            what = f"maxmemory-policy {settings['maxmemory-policy']} may drop events, set noeviction:"
            raise RecsysError("redis_evicts", what, self._where, exit_code=EXIT_CONFIG)
        is_synced = settings.get("appendonly") == "yes" and settings.get("appendfsync") == "always"
        self.durability = "fsync" if is_synced else "os"
        last = int(self._client.get(self._keys[2]) or 0)
        self._compare(last)
        self._seen = last
        self._state = "ready"

    def _compare(self, last: int) -> None:
        """Count what was there once and is not any more."""
        if last < self._seen:
            lost = self._seen - last
            self.damage.add(f"{self._where} came back without its newest {lost} records", rows=lost)

    def _settings(self, *names: str) -> dict[str, str]:
        """Settings of the server; none where it does not tell."""
        try:
            found: Any = [self._client.config_get(name) for name in names]
        except (NoPermissionError, ResponseError):
            return {}
        pairs = {name: value for one in found for name, value in one.items()}
        return {_text(name): _text(value) for name, value in pairs.items()}

    def _verified(self, number: int, row: bytes) -> Stored | None:
        stored = unpack(row)
        if stored is not None:
            return Stored(number, stored.record)
        if number not in self._broken:
            self._broken.add(number)
            self.damage.add(f"record {number} in {self._where} does not match its checksum", rows=1)
        return None

    def _failed(self, error: RedisError) -> RecsysError:
        if isinstance(error, OutOfMemoryError) or str(error).startswith("OOM"):
            self._state = "storage_full"
            return full("the server has no memory left:", self._where)
        self._state = "events_blocked"
        self._retry_at = time.monotonic() + RETRY_S
        return blocked(f"the server cannot be used ({type(error).__name__}):", self._where)


def _client(url: str, timeout_s: float, connected: Callable[[Any], None]) -> tuple[Any, str]:
    """A client that connects when it is first used, and its address without the password."""
    try:
        client = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
            redis_connect_func=connected,
        )
    except ValueError as error:
        raise RecsysError("usage", str(error), "--redis", exit_code=EXIT_USAGE) from None
    known = client.connection_pool.connection_kwargs
    place = known.get("path") or f"{known.get('host', 'localhost')}:{known.get('port', 6379)}"
    return client, f"{place}/{known.get('db', 0)}"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
