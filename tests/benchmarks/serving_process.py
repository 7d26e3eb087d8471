"""The servers that are measured, each a process with children of its own, on the cores that it is given."""

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
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
START_S = 240.0
MLFLOW_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}


_IDLE_CLASS = "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))"


def cores() -> tuple[int, int]:
    """One core for the server under test, another for the load; equal where there is one only."""
    found = sorted(os.sched_getaffinity(0))
    return found[0], found[-1]


@dataclass(frozen=True)
class Served:
    """A server that answers.

    Attributes:
        port, admin_port: on loopback; admin_port is 0 for a peer.
        pid: of the process that was started.
        ready_s: from its start to the first answer that says ready.
    """

    port: int
    admin_port: int
    pid: int
    ready_s: float

    def ask(self, method: str, path: str, document: Any = None, *, admin: bool = False) -> Any:
        """The answer to one request as JSON; raises RuntimeError for any status but 200."""
        port = self.admin_port if admin else self.port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.closing(connection):
            body = None if document is None else json.dumps(document)
            connection.request(method, path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            text = response.read()
        if response.status != 200:
            raise RuntimeError(f"{method} {path}: {response.status} {text[:500]!r}")
        return json.loads(text) if text else None

    def memory_bytes(self) -> int:
        """Resident bytes of the process alone."""
        line = next(
            line
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines()
            if line.startswith("VmRSS")
        )
        return int(line.split()[1]) * 1024

    def cpu_s(self) -> float:
        """Seconds of processor time that the process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Keep the processors from falling asleep, by work of the idle class, which anything else pushes aside.

    A virtual processor that slept gets its host's attention late: on a crowded host a server that is asked 50
    times a second then takes longer than one that is asked all the time.
    """
    with contextlib.ExitStack() as running:
        for core in sorted(os.sched_getaffinity(0)):
            busy = f"import os; os.sched_setaffinity(0, {{{core}}})\n{_IDLE_CLASS}\nwhile True: pass"
            process = running.enter_context(subprocess.Popen([sys.executable, "-c", busy]))
            running.callback(process.kill)
        yield


@contextlib.contextmanager
def our_server(model: str, home: Path, log: Path, on: Collection[int] | None = None) -> Iterator[Served]:
    """`recsys serve` with its defaults.

    Args:
        model: as `--model`.
        home: with the registry and the copies of bundles.
        log: new file of events.
        on: cores; None for all.
    """
    words = ["serve", "--model", model, "--home", str(home), "--log", str(log), "--json"]
    command = [str(PROGRAMS / "recsys"), *words, "--port", "0", "--admin-port", "0"]
    begin = time.perf_counter()
    with _process(command, on, log.with_suffix(".stderr"), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with process.stdout:
            line = process.stdout.readline()
            assert line, log.with_suffix(".stderr").read_text()[-2000:]
            said = json.loads(line)
            ready_s = _wait(process, said["port"], "/readyz", begin)
            yield Served(said["port"], said["admin_port"], process.pid, ready_s)


@contextlib.contextmanager
def peer_server(
    command: Sequence[str],
    path: str,
    folder: Path,
    on: Collection[int] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Served]:
    """A server of others, which is told its port by the word PORT.

    Args:
        command: program and words.
        path: answers 200 once it is ready.
        folder: for its output.
        on: cores; None for all.
        environment: beside this process's own.
    """
    port = _free_port()
    words = [str(PROGRAMS / command[0]), *(word.replace("PORT", str(port)) for word in command[1:])]
    begin = time.perf_counter()
    with _process(words, on, folder / f"{command[0]}-{port}.log", environment=environment) as process:
        ready_s = _wait(process, port, path, begin)
        yield Served(port, 0, process.pid, ready_s)


@contextlib.contextmanager
def _process(
    command: Sequence[str],
    on: Collection[int] | None,
    output: Path,
    *,
    stdout: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process group, which is ended at last with all that it started."""
    mine = os.sched_getaffinity(0)
    with output.open("wb") as file:
        os.sched_setaffinity(0, mine if on is None else set(on))  # a child keeps the cores of this thread
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={
                    **os.environ,
                    **MLFLOW_QUIET,
                    "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
                    **(environment or {}),
                },
                stdout=file if stdout is None else stdout,
                stderr=file,
                process_group=0,  # a session of its own would also have a priority of its own
            )
        finally:
            os.sched_setaffinity(0, mine)
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
            break


def _wait(process: subprocess.Popen[bytes], port: int, path: str, begin: float) -> float:
    """Seconds since `begin` when this path answers 200 for the first time."""
    while time.perf_counter() < begin + START_S:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            with contextlib.closing(connection):
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    return time.perf_counter() - begin
        time.sleep(0.02)
    raise RuntimeError(f"{process.args!r} was not ready after {START_S:g} s")


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
