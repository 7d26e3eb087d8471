"""Load for a server on loopback, from a process of its own: at a rate (open loop), or as fast as it goes.

An open-loop request has a moment at which it is meant to be sent, and its latency counts from then, also
where it had to wait for a connection: a slow server cannot slow the clock down. A run is bounded in requests
and in time. It is one thread that waits in `select`, because the timers of event loops are a millisecond
wide.

python -m tests.benchmarks.serving_load PLAN   reads a plan as JSON, and prints one JSON line.
"""

from __future__ import annotations

import gc
import json
import os
import random
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
DRAIN_S = 5.0
"""Answers that are not there so long after the last request was due never come."""
MOST_REQUESTS = 200_000
PLACEHOLDER = b"@@@@@@@@"
"""Where no request may be the same twice, it holds this, and each sending puts eight other letters there."""


@dataclass(frozen=True)
class Stream:
    """Requests of one kind.

    Attributes:
        port: on loopback.
        requests: file of whole HTTP requests, as `write_requests` makes it; sent in turn.
        seconds: for so long requests are due.
        connections: kept alive; an open loop queues behind them.
        rate: requests a second, their gaps as chance has it (Poisson); 0 sends the next when an answer came.
        marks: each answer that is whole must hold these words.
        seed: of the gaps.
    """

    port: int
    requests: str
    seconds: float
    connections: int
    rate: float = 0.0
    marks: tuple[str, ...] = ()
    seed: int = 0


@dataclass
class Heard:
    """What came of a stream.

    Attributes:
        due: requests that were to be sent. `good`: answers with status 200 and all marks.
        unlike: answers with status 200 without a mark. `statuses`: how often which other status came.
        lost: requests without an answer.
        seconds: from the first request to the last answer.
        latency_ms: of the good ones, in the order in which they were due.
    """

    due: int = 0
    good: int = 0
    unlike: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    seconds: float = 0.0
    latency_ms: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.good / self.seconds if self.seconds else 0.0

    @property
    def bad(self) -> int:
        """Requests that were not answered as they should be."""
        return self.due - self.good

    def quantile(self, share: float) -> float:
        """Milliseconds that this share of the good answers took at most; infinite without any."""
        return float(np.quantile(self.latency_ms, share)) if self.latency_ms else float("inf")


def drive(streams: Sequence[Stream], core: int | None = None) -> list[Heard]:
    """Run all streams at once in a process on this core, and wait for its end.

    Raises:
        RuntimeError: the process failed; with what it said.
    """
    plan = json.dumps({"core": core, "streams": [asdict(stream) for stream in streams]})
    limit_s = max(stream.seconds for stream in streams) + DRAIN_S + 30
    command = [sys.executable, "-m", "tests.benchmarks.serving_load", plan]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=limit_s, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-2000:])
    return [Heard(**heard) for heard in json.loads(done.stdout)]


def http_request(path: str, body: bytes) -> bytes:
    """A whole POST of JSON, byte for byte."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def write_requests(path: Path, requests: Sequence[bytes]) -> str:
    """Keep requests for a stream, one after the other behind their lengths; gives the path."""
    path.write_bytes(b"".join(len(each).to_bytes(4, "big") + each for each in requests))
    return str(path)


def _read_requests(path: str) -> list[bytes]:
    data, place, found = Path(path).read_bytes(), 0, []
    while place < len(data):
        start = place + 4
        place = start + int.from_bytes(data[place:start], "big")
        found.append(data[start:place])
    return found


class Connection:
    """One connection with at most one request on its way."""

    def __init__(self, port: int) -> None:
        self.number = -1
        self.since = 0.0
        self._port = port
        self._data = bytearray()
        self._whole = 0
        self._open()

    def _open(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", self._port), timeout=DRAIN_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, number: int, since: float, request: bytes) -> None:
        """Send a request that was due at `since`."""
        self.number, self.since = number, since
        self.socket.sendall(request)

    def receive(self) -> tuple[int, bytes] | None:
        """Status and body once the answer is whole; status 0 where the server hung up."""
        part = b""
        with suppress(ConnectionError):
            part = self.socket.recv(262_144)
        if not part:
            self._data.clear()
            self._whole = 0
            self.socket.close()
            self._open()
            return 0, b""
        self._data += part
        if not self._whole and (end := self._data.find(b"\r\n\r\n")) >= 0:
            self._whole = end + 4 + _length(bytes(self._data[:end]))
        if not self._whole or len(self._data) < self._whole:
            return None
        answer = bytes(self._data[: self._whole])
        self._data.clear()
        self._whole = 0
        return int(answer[9:12]), answer


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ValueError(f"an answer without content-length: {head[:200]!r}")


class Sender:
    """One stream while it runs."""

    def __init__(self, stream: Stream, start: float) -> None:
        self._stream = stream
        self._requests = _read_requests(stream.requests)
        self._is_unique = PLACEHOLDER in self._requests[0]
        self._marks = [mark.encode() for mark in stream.marks]
        self._free = [Connection(stream.port) for _ in range(stream.connections)]
        self.busy: dict[int, Connection] = {}
        self._moments = _moments(stream, start)
        self._waiting: deque[tuple[int, float]] = deque()
        self._next = next(self._moments, None)
        self._salt = random.SystemRandom().randrange(2**16)
        self._start, self._latest = start, start
        self._heard = Heard()
        self._latencies: dict[int, float] = {}

    def due_s(self, now: float) -> float | None:
        """Seconds until the next request is to be sent; None where that does not depend on the time."""
        if self._next is None or (not self._stream.rate and not self._free):
            return None
        return max(0.0, self._next - now)

    @property
    def is_done(self) -> bool:
        """Whether all requests were sent and answered."""
        return self._next is None and not self._waiting and not self.busy

    def send(self, now: float) -> None:
        """Send what is due, as far as connections are free."""
        while self._next is not None and self._next <= now and (self._stream.rate or self._free):
            self._waiting.append((self._heard.due, self._next if self._stream.rate else now))
            self._heard.due += 1
            self._next = next(self._moments, None) if self._heard.due < MOST_REQUESTS else None
            self._send_waiting()
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting and self._free:
            number, since = self._waiting.popleft()
            request = self._requests[number % len(self._requests)]
            if self._is_unique:
                request = request.replace(PLACEHOLDER, b"%04x%04x" % (self._salt, number & 0xFFFF))
            connection = self._free.pop()
            self.busy[connection.socket.fileno()] = connection
            connection.send(number, since, request)

    def receive(self, descriptor: int) -> None:
        """Read what has come on a connection."""
        connection = self.busy[descriptor]
        answer = connection.receive()
        if answer is None:
            return
        self._latest = time.perf_counter()
        del self.busy[descriptor]
        self._free.append(connection)
        status, text = answer
        if status == 200 and all(mark in text for mark in self._marks):
            self._heard.good += 1
            self._latencies[connection.number] = (self._latest - connection.since) * 1e3
        elif status == 200:
            self._heard.unlike += 1
        else:
            self._heard.statuses[str(status)] = self._heard.statuses.get(str(status), 0) + 1

    def close(self) -> Heard:
        """Hang up, and say how it went."""
        heard = self._heard
        heard.lost = len(self._waiting) + len(self.busy)
        heard.seconds = self._latest - self._start
        heard.latency_ms = [round(self._latencies[number], 4) for number in sorted(self._latencies)]
        for connection in (*self._free, *self.busy.values()):
            connection.socket.close()
        return heard


def _moments(stream: Stream, start: float) -> Iterator[float]:
    """When requests are due; without a rate always, up to the end."""
    end = start + stream.seconds
    if not stream.rate:
        while time.perf_counter() < end:
            yield start
        return
    rng = random.Random(stream.seed)
    moment = start + rng.expovariate(stream.rate)
    while moment < end:
        yield moment
        moment += rng.expovariate(stream.rate)


def run(streams: Sequence[Stream]) -> list[Heard]:
    """Send everything, and wait for the answers."""
    start = time.perf_counter() + 0.05
    senders = [Sender(stream, start) for stream in streams]
    end = start + max(stream.seconds for stream in streams) + DRAIN_S
    while not all(sender.is_done for sender in senders):
        now = time.perf_counter()
        if now >= end:
            break
        for sender in senders:
            sender.send(now)
        by_descriptor = {number: sender for sender in senders for number in sender.busy}
        due = [wait for sender in senders if (wait := sender.due_s(time.perf_counter())) is not None]
        ready, _, _ = select.select(list(by_descriptor), [], [], min([*due, 0.1]))
        for descriptor in ready:
            by_descriptor[descriptor].receive(descriptor)
    return [sender.close() for sender in senders]


def main(plan: dict[str, Any]) -> None:
    """Run a plan."""
    if plan["core"] is not None:
        os.sched_setaffinity(0, {plan["core"]})
    streams = [Stream(**each) for each in plan["streams"]]
    gc.disable()
    print(json.dumps([asdict(heard) for heard in run(streams)]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
