"""One client's connection: uvicorn's protocol with the limits that it lacks.

Header and body must come within a time and a size, answers must be taken within a time, and whatever is
wrong with the bytes is answered with a problem document before the connection ends.
"""

from __future__ import annotations

import asyncio
import http
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.http.settings import ServerSettings
from serving.problems import Refusal, problem_bytes, problem_headers

MOST_PIPELINED = 64
LINGER_S = 2.0
SWEEP_S = 0.25

Report = Callable[[Refusal, str], None]


@dataclass(frozen=True)
class Rules:
    """What holds for every connection of one server.

    Attributes:
        settings: the limits.
        report: hears of each refusal that never reaches the application, with the client's address.
    """

    settings: ServerSettings
    report: Report


class Connection(HttpToolsProtocol):
    """A connection under rules."""

    def __init__(self, rules: Rules, **uvicorn: Any) -> None:
        """Take the rules, and from uvicorn's server what its protocol takes."""
        super().__init__(**uvicorn)
        self.rules = rules
        self._head_since: float | None = None
        self._body_since: float | None = None
        self._write_since: float | None = None
        self._linger_since: float | None = None
        self._in_message = False
        self._messages = 0
        self._head_bytes, self._raw_bytes = 0, 0
        self._refusal: Refusal | None = None
        self._deferred: Refusal | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock; one connection too many is told so."""
        super().connection_made(transport)
        self._head_since = perf_counter()
        if len(self.connections) > self.rules.settings.most_connections:
            self.refuse(Refusal("overloaded", "too many connections"))

    def data_received(self, data: bytes) -> None:
        """Parse; bytes after a refusal are thrown away."""
        if self._linger_since is not None or self._deferred is not None:
            return
        if self._head_since is None and not self._in_message:
            self._head_since = perf_counter()
        before = self._messages
        super().data_received(data)
        if self._head_since is not None and self._messages == before:
            self._raw_bytes += len(data)
            if self._raw_bytes > self.rules.settings.longest_head and self._linger_since is None:
                self.refuse(Refusal("head_too_large"))

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer what came whole, although nothing more will come."""
        if self._linger_since is not None or self.cycle is None or self.cycle.response_complete:
            return False
        if self._body_since is not None:
            self.refuse(Refusal("incomplete_body"))
            return True
        self.cycle.keep_alive = False
        return True

    def on_message_begin(self) -> None:
        """Start a request's clock."""
        super().on_message_begin()
        self._in_message = True
        self._messages += 1
        self._head_bytes, self._raw_bytes = 0, 0
        if self._head_since is None:
            self._head_since = perf_counter()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the URL."""
        super().on_url(url)
        if len(self.url) > self.rules.settings.longest_url:
            self._stop(Refusal("url_too_long"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a line of the header."""
        super().on_header(name, value)
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > self.rules.settings.longest_head:
            self._stop(Refusal("head_too_large"))

    def on_headers_complete(self) -> None:
        """Start the body's clock and the application."""
        if len(self.pipeline) >= MOST_PIPELINED:
            self._stop(Refusal("overloaded", f"at most {MOST_PIPELINED} requests ahead of their answers"))
        super().on_headers_complete()
        self._head_since = None
        self._body_since = perf_counter()

    def on_message_complete(self) -> None:
        """Note when the request was whole: its waiting counts from here."""
        self._in_message = False
        self._body_since = None
        self.scope["state"]["whole"] = perf_counter()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on to the next request, or to the refusal that had to wait for its turn."""
        super().on_response_complete()
        if self._deferred is not None and self.cycle.response_complete:
            refusal, self._deferred = self._deferred, None
            self._answer(refusal)

    def send_400_response(self, msg: str) -> None:
        """Called where the bytes are no HTTP, or one of the limits above was passed."""
        refusal, self._refusal = self._refusal or Refusal("bad_request"), None
        self.refuse(refusal)

    def _unsupported_upgrade_warning(self) -> None:
        """An upgrade that nobody wants: the request is answered, and what follows it cannot be read."""
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def refuse(self, refusal: Refusal) -> None:
        """Answer with a problem, after the answers that are still due, and end the connection."""
        due = self.cycle is not None and not self.cycle.response_complete
        if due and self._body_since is None:
            self._deferred = refusal
            self.flow.pause_reading()
        elif self._body_since is not None and not due:
            self._linger()  # this request has its answer already
        else:
            self._answer(refusal)

    def expire(self, now: float) -> None:
        """End the connection where one of its times is over; `now` as of `perf_counter`."""
        settings = self.rules.settings
        unsent = self.transport.get_write_buffer_size() > 0
        self._write_since = (self._write_since or now) if unsent else None
        if _is_over(self._write_since, now, settings.write_s) or _is_over(self._linger_since, now, LINGER_S):
            self.transport.abort()
        elif self._linger_since is not None or self.transport.is_closing():
            return
        elif _is_over(self._head_since, now, settings.head_s):
            self._too_slow(begun=self._in_message)
        elif _is_over(self._body_since, now, settings.body_s):
            self._too_slow(begun=True)

    def _too_slow(self, *, begun: bool) -> None:
        if begun:
            self.refuse(Refusal("request_timeout"))
        else:
            self.transport.close()

    def _stop(self, refusal: Refusal) -> None:
        """Make the parser stop; it calls `send_400_response`."""
        self._refusal = refusal
        raise ValueError(refusal.code)

    def _answer(self, refusal: Refusal) -> None:
        body = problem_bytes(refusal)
        status = http.HTTPStatus(refusal.status)
        lines = [b"HTTP/1.1 %d %s" % (status.value, status.phrase.encode())]
        headers = [
            *problem_headers(refusal),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines += [b"%s: %s" % header for header in headers]
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        self.rules.report(refusal, self.client[0] if self.client else "")
        self._linger()

    def _linger(self) -> None:
        """Half-close and read on for a moment: a reset would take the answer from the client again."""
        self._linger_since = perf_counter()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()


async def sweep(connections: Iterable[Any]) -> None:
    """End what takes too long, for ever."""
    while True:
        await asyncio.sleep(SWEEP_S)
        now = perf_counter()
        for connection in list(connections):
            connection.expire(now)


def _is_over(since: float | None, now: float, limit_s: float) -> bool:
    return since is not None and now - since > limit_s
