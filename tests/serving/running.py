"""Starting `recsys serve` in a process of its own and talking with it over real sockets."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECSYS = [str(Path(sys.executable).with_name("recsys"))]
JSON = {"content-type": "application/json"}
PATIENCE_S = 300.0
"""For what happens soon on any machine that is not very busy; the first start of all compiles kernels."""


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

    @property
    def intake_pid(self) -> int:
        """The process that stores events."""
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        children = " ".join((thread / "children").read_text() for thread in threads).split()
        commands = {int(each): Path(f"/proc/{each}/cmdline").read_bytes() for each in children}
        (found,) = (each for each, command in commands.items() if b"intake_child" in command)
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


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


def wait_until(is_so: Callable[[], Any], limit_s: float = PATIENCE_S) -> Any:
    """The first result that is true; fails where there is none in time."""
    end = time.monotonic() + limit_s
    while not (found := is_so()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def running(
    model: Path | str | None, folder: Path, *, home: Path, ready: bool = True, **how: Any
) -> Iterator[Running]:
    """Start a server, wait until it is ready, and end it afterwards if it still runs.

    Args:
        model, folder, home, how: as in `start`.
        ready: whether to wait for the model too; without one that is no question.
    """
    process = start(model, folder, home=home, **how)
    try:
        yield wait_for_start(process, folder, ready=ready and model is not None)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def start(
    model: Path | str | None,
    folder: Path,
    *,
    home: Path,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    **settings: Any,
) -> subprocess.Popen[bytes]:
    """The process of a server on free ports.

    Args:
        model: what it serves; None for a damaged bundle, so that it lives and is never ready.
        folder: where its log of events and what it writes to stderr lie.
        home: holds copies of bundles, and notes of those that passed their trial.
        options: further words of the command.
        environment: beside that of the tests.
        settings: of the table `server`, or of another one as `watch__poll_s`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = ["serve", "--model", str(model or damaged_bundle(folder)), "--home", str(home), "--json"]
    if "--redis" not in options:
        words += ["--log", str(folder / "events.db")]
    for name, value in ({"port": 0, "admin_port": 0, "drain_delay_s": 0.1} | settings).items():
        table, _, field = name.rpartition("__")
        words += ["--set", f"{table.replace('__', '.') or 'server'}.{field}={value}"]
    with (folder / "stderr").open("wb") as stderr:
        return subprocess.Popen(
            [*RECSYS, *words, *options],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=stderr,
        )


def with_keys(folder: Path, *lines: str) -> list[str]:
    """Options for a server with a file of these keys."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "keys"
    file.write_text("\n".join(lines))
    file.chmod(0o600)
    return ["--keys", str(file)]


def damaged_bundle(folder: Path) -> Path:
    """A folder whose manifest is empty: it may be written anew, so a server waits for that."""
    (folder / "damaged").mkdir(exist_ok=True)
    (folder / "damaged" / "manifest.json").touch()
    return folder / "damaged"


def wait_for_start(process: subprocess.Popen[bytes], folder: Path, *, ready: bool) -> Running:
    """The server, once it takes requests, and with a model if it has to be ready."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, (folder / "stderr").read_text()
    said = json.loads(line)
    assert said["pid"] == process.pid
    server = Running(process, said["port"], said["admin_port"], folder)

    def answers_well() -> bool:
        assert process.poll() is None, server.log
        with contextlib.suppress(OSError):
            return server.ask("GET", "/readyz" if ready else "/healthz").status == 200
        return False

    try:
        wait_until(answers_well)
    except AssertionError as error:
        raise AssertionError(server.log[-4000:]) from error
    return server


def refused(process: subprocess.Popen[bytes], folder: Path) -> tuple[int, str]:
    """Exit code and last line of a server that does not start."""
    code = process.wait(PATIENCE_S)
    assert process.stdout is not None
    process.stdout.close()
    return code, (folder / "stderr").read_text().strip().splitlines()[-1]


def _no_constant(name: str) -> float:
    raise AssertionError(f"{name} in an answer")
