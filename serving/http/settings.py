"""The limits that a server runs under. Where a registry or a log lies is not known here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from recsys.errors import EXIT_CONFIG, RecsysError


@dataclass(frozen=True)
class ServerSettings:
    """Addresses and limits; every wait is bounded.

    Attributes:
        host, port: where clients come in; port 0 takes a free one.
        admin_port: loopback port of reload and rollback; 0 takes a free one.
        keys_file: API keys; None for those of RECSYS_API_KEYS, or none.
        longest_body: bytes of a request's body.
        longest_head: bytes of a request line with its header.
        longest_url: bytes of a URL.
        most_connections: open at once.
        most_waiting: rank requests that wait for their turn.
        most_batches: batches of events that are being checked.
        most_buffered: bytes of all bodies that are being read; also of the batches that wait for the disk.
        deadline_s: what has waited so long is refused; sooner, it is answered with less of the model.
        head_s, body_s: a header, a body must be there after so long.
        idle_s: a connection without a request is closed after so long.
        write_s: an answer must be taken after so long.
        events_s: a batch must be on the disk after so long.
        drain_s: the server is gone so long after SIGTERM.
        drain_delay_s: part of it in which it still takes requests, so that balancers can look away.
        rate: requests a second of one client, 0 for any number. `burst`: so many at once.
        most_failures: wrong keys of one address at once; it gets as many back a minute.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    admin_port: int = 8001
    keys_file: Path | None = None
    longest_body: int = 2**20
    longest_head: int = 2**14
    longest_url: int = 2**13
    most_connections: int = 2000
    most_waiting: int = 256
    most_batches: int = 64
    most_buffered: int = 2**26
    deadline_s: float = 0.1
    head_s: float = 10.0
    body_s: float = 10.0
    idle_s: float = 75.0
    write_s: float = 10.0
    events_s: float = 5.0
    drain_s: float = 10.0
    drain_delay_s: float = 1.0
    rate: float = 0.0
    burst: float = 100.0
    most_failures: int = 10

    def check(self) -> ServerSettings:
        """The settings themselves; raises RecsysError `settings_invalid` for one out of its range."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not _LEAST.get(field.name, 0) <= value < float("inf"):
                raise _wrong(f"{field.name} is no number from {_LEAST.get(field.name, 0)} on")
        if max(self.port, self.admin_port) > 65535 or (self.port and self.port == self.admin_port):
            raise _wrong("port and admin_port are two different numbers up to 65535")
        if self.drain_delay_s >= self.drain_s:
            raise _wrong("drain_delay_s is not shorter than drain_s")
        if self.rate > 0 and self.burst < 1:
            raise _wrong("burst is below 1")
        return self


_LEAST: dict[str, float] = {
    "longest_body": 1024,
    "longest_head": 1024,
    "longest_url": 256,
    "most_connections": 1,
    "most_waiting": 1,
    "most_batches": 1,
    "most_buffered": 1024,
    "most_failures": 1,
    "deadline_s": 0.001,
    "head_s": 0.1,
    "body_s": 0.1,
    "idle_s": 0.1,
    "write_s": 0.1,
    "events_s": 0.1,
    "drain_s": 0.1,
}


def _wrong(what: str) -> RecsysError:
    return RecsysError("settings_invalid", what, exit_code=EXIT_CONFIG)
