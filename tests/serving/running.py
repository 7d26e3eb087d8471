"""Starting the server of `served.py` in a process of its own and talking with it over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Got:
    """An answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body, parse_constant=_no_constant)

    def problem(self, status: int, code: str) -> dict[str, Any]:
        """The problem document, once it is what every failure must be."""
        document: dict[str, Any] = self.json
        assert (self.status, document["code"], document["status"]) == (status, code, status), self.body
        assert self.headers["content-type"] == "application/problem+json"
        assert len(self.body) <= 8192
        assert not any(trace in self.body for trace in (b"Traceback", b'File "', b".py", b"/tmp", b"/home"))
        assert ("retry-after" in self.headers) == (status in (429, 503, 507))
        return document


@dataclass(frozen=True)
class Running:
    """A server process."""

    process: subprocess.Popen[bytes]
    port: int
    admin_port: int
    folder: Path

    @property
    def log(self) -> str:
        """What it wrote to stderr."""
        return (self.folder / "stderr").read_text()

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        admin: bool = False,
    ) -> Got:
        """Ask over a connection of its own."""
        connection = self.connection(admin=admin)
        with contextlib.closing(connection):
            return exchange(connection, method, path, body, headers)

    def post(self, path: str, document: Any, **headers: str) -> Got:
        """Send JSON."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", path, json.dumps(document).encode(), JSON | named)

    def connection(self, *, admin: bool = False) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.admin_port if admin else self.port, timeout=15)

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=15)

    def raw(self, *pieces: bytes, pause_s: float = 0.0) -> list[Got]:
        """Send bytes as they are and read answers until the server ends the connection."""
        with self.socket() as connection:
            for piece in pieces:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(piece)
                time.sleep(pause_s)
            return answers(read_all(connection))

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(15)


def exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Got:
    connection.request(method, path, body, dict(headers or {}))
    response = connection.getresponse()
    content = response.read()
    return Got(response.status, {name.lower(): value for name, value in response.getheaders()}, content)


def read_all(connection: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def answers(data: bytes) -> list[Got]:
    """All answers in a stream of bytes."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        length = int(headers.get("content-length", 0))
        found.append(Got(int(first.split()[1]), headers, data[:length]))
        data = data[length:]
    return found


@contextlib.contextmanager
def running(
    bundle: Path | None,
    folder: Path,
    *,
    keys: str | None = None,
    environment: Mapping[str, str] | None = None,
    **settings: Any,
) -> Iterator[Running]:
    """Start a server on free ports, and end it afterwards if it still runs."""
    process = start(bundle, folder, keys=keys, environment=environment, **settings)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "stderr").read_text()
        server = Running(process, *json.loads(line), folder)
        wait_for_health(server)
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def start(
    bundle: Path | None,
    folder: Path,
    *,
    keys: str | None = None,
    environment: Mapping[str, str] | None = None,
    **settings: Any,
) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    asked = {
        "bundle": bundle and str(bundle),
        "folder": str(folder),
        "settings": {"port": 0, "admin_port": 0, "drain_delay_s": 0.1, **settings},
    }
    if keys is not None:
        file = folder / "keys"
        file.write_text(keys)
        file.chmod(0o600)
        asked["keys_file"] = str(file)
    with (folder / "stderr").open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.serving.served", json.dumps(asked)],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=stderr,
        )


def wait_for_health(server: Running) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if server.ask("GET", "/healthz").status == 200:
                return
        time.sleep(0.02)
    raise AssertionError(server.log)


def _no_constant(name: str) -> float:
    raise AssertionError(f"{name} in an answer")
