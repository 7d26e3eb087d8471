"""One JSON line for each request and each failure: no user ids, no keys, no bodies, no paths of requests.

A thread writes the lines. When nobody reads them the newest are dropped and counted: a full pipe never
makes a request wait.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

MOST_LINES = 20_000
PERIOD_S = 0.2
LONGEST_WAIT_S = 2.0

_ENCODER = msgspec.json.Encoder()


class LineLog:
    """Writes dictionaries as lines of JSON to a file descriptor, in the background."""

    def __init__(self, descriptor: int, dropped: Callable[[int], None] | None = None) -> None:
        """Start the thread.

        Args:
            descriptor: open for writing; stays open.
            dropped: hears how many lines were lost.
        """
        self._descriptor = descriptor
        self._report_dropped = dropped
        self._lines: deque[dict[str, Any]] = deque()
        self._lost, self._told = 0, 0
        self._closing = threading.Event()
        self._salt = secrets.token_bytes(16)
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    def write(self, line: dict[str, Any]) -> None:
        """Take a line; it is written within a fraction of a second, or dropped."""
        if len(self._lines) >= MOST_LINES:
            self._lost += 1
        else:
            self._lines.append(line)

    def request(self, route: str, status: int, seconds: float, request_id: str, client: str) -> None:
        """Take a line about one request; `client` must be hashed already."""
        self.write(
            {
                "time": time.time(),
                "event": "request",
                "route": route,
                "status": status,
                "ms": round(seconds * 1e3, 3),
                "request_id": request_id,
                "client": client,
            }
        )

    def failure(self, what: str, error: BaseException) -> None:
        """Take a line about a failure: its type and where it arose, without its words, which may hold ids."""
        frames = traceback.extract_tb(error.__traceback__)
        where = [f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in frames[-8:]]
        self.write(
            {"time": time.time(), "event": what, "error": type(error).__name__, "where": where},
        )

    def hashed(self, client: str) -> str:
        """A name for a client that means nothing outside of this process' log."""
        return hashlib.blake2b(client.encode(), key=self._salt, digest_size=8).hexdigest()

    def close(self) -> None:
        """Write what is left, for two seconds at most."""
        self._closing.set()
        self._thread.join(LONGEST_WAIT_S)

    def _run(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(PERIOD_S)
            try:
                self._flush()
            except OSError:  # nobody is there to read it, nor to be told
                self._lines.clear()

    def _flush(self) -> None:
        while self._lines:
            count = min(len(self._lines), 500)
            _write_all(self._descriptor, _ENCODER.encode_lines([self._lines.popleft() for _ in range(count)]))
        if self._lost > self._told and self._report_dropped:
            told, self._told = self._told, self._lost
            self._report_dropped(self._told - told)


class LineHandler(logging.Handler):
    """Turns the records of Python's logging into lines; a traceback is told by its type and place."""

    def __init__(self, log: LineLog) -> None:
        """Take the log to write to."""
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record."""
        if record.exc_info and record.exc_info[1]:
            self._log.failure(record.name, record.exc_info[1])
            return
        text = record.getMessage()[:200].encode("utf-8", "replace").decode()
        self._log.write(
            {"time": record.created, "event": record.name, "level": record.levelname, "text": text}
        )


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
