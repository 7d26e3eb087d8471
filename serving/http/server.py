"""The process: two listeners in one loop, their sweeping, and an orderly end.

Uvicorn's protocol and parser are used; its server is not, because that one waits for clients without end when
it is told to stop, and ends by the signal instead of with exit code 0.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from email.utils import formatdate
from time import perf_counter
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from recsys.errors import EXIT_UNAVAILABLE, RecsysError
from serving.http.app import App, Phase
from serving.http.connections import SWEEP_S, Connection, Rules
from serving.http.settings import ServerSettings
from serving.problems import Refusal

BACKLOG = 1024
MOST_FILES = 65_536
FILES_OF_OURS = 128
"""Descriptors that are kept free of clients."""
LAST_WORDS_S = 0.5
POLL_S = 0.02
SWITCH_S = 0.0001
"""So long the loop waits until a busy thread lets go, each time that a kernel has ended: a request does that
twenty times. Python's own is fifty times as long."""


class Listener:
    """One socket with its application and its connections."""

    def __init__(self, app: App, listening: socket.socket, settings: ServerSettings) -> None:
        """Take a bound socket; it is closed in the end."""
        self._socket = listening
        self._rules = Rules(settings, app.refused)
        self._state = ServerState()
        self._config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        self._config.timeout_keep_alive = settings.idle_s  # type: ignore[assignment]  # seconds all the same
        self._config.load()
        self._server: asyncio.Server | None = None

    @property
    def connections(self) -> list[Any]:
        """Those that are open."""
        return list(self._state.connections)

    async def start(self) -> None:
        """Begin to listen."""
        self.sweep(perf_counter())
        self._server = await asyncio.get_running_loop().create_server(
            self._connection, sock=self._socket, backlog=BACKLOG
        )

    def sweep(self, now: float) -> None:
        """End what takes too long, and tell the time."""
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        for connection in self.connections:
            connection.expire(now)

    def stop(self) -> None:
        """Take no more connections; those that wait for requests end, the others after their answers."""
        if self._server is not None:
            self._server.close()
        for connection in self.connections:
            connection.shutdown()

    def end(self, *, abruptly: bool) -> None:
        """End what is still open: with a word, or at once."""
        for connection in self.connections:
            if abruptly:
                connection.transport.abort()
            else:
                connection.refuse(Refusal("draining"))

    def _connection(self) -> Connection:
        return Connection(self._rules, config=self._config, server_state=self._state, app_state={})


Background = AbstractAsyncContextManager["asyncio.Future[None]"]
"""What runs beside the listeners; its future ends only by a failure with which serving makes no sense."""


@dataclass(frozen=True)
class Site:
    """All that runs in the loop.

    Attributes:
        listeners: public and admin.
        phase: is told when the end begins.
        settings: the limits.
        background: what starts before the listeners and ends after them.
    """

    listeners: Sequence[Listener]
    phase: Phase
    settings: ServerSettings
    background: Background


def bind(host: str, port: int) -> socket.socket:
    """A socket at this address; port 0 takes a free one.

    It listens from here on: who connects before the loop runs waits a moment, and nobody else can take the
    port meanwhile.

    Raises:
        RecsysError: `address_unavailable`.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _unavailable(error, host, port) from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise _unavailable(error, host, port) from None
    listening.setblocking(False)
    return listening


def room_for_connections(settings: ServerSettings) -> int:
    """How many connections there can be: as asked for, or what the limit of open files leaves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    room = settings.most_connections if soft == resource.RLIM_INFINITY else soft - FILES_OF_OURS
    return max(1, min(settings.most_connections, room))


async def serve(site: Site, started: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT, and then for as long as the settings let it finish.

    Args:
        site: what to serve.
        started: called once requests are taken and signals end this in an orderly way.

    Raises:
        RecsysError: of the background; nothing is served any more.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with site.background as failing:
        for listener in site.listeners:
            await listener.start()
        sweeping = asyncio.create_task(_sweep(site))
        gc.collect()
        gc.freeze()  # what is there now stays: collections need not look at it
        started()
        failing.add_done_callback(lambda _: stop.set())
        await stop.wait()
        await _drain(site)
        sweeping.cancel()
        if failing.done():
            failing.result()


async def _sweep(site: Site) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        for listener in site.listeners:
            listener.sweep(perf_counter())


async def _drain(site: Site) -> None:
    """Finish what was accepted; half-sent requests are told, and then everything is cut off."""
    settings = site.settings
    end = perf_counter() + settings.drain_s - LAST_WORDS_S
    site.phase.draining = True
    await asyncio.sleep(settings.drain_delay_s)
    for listener in site.listeners:
        listener.stop()
    await _wait_for_none(site, end - LAST_WORDS_S)
    for abruptly in (False, True):
        for listener in site.listeners:
            listener.end(abruptly=abruptly)
        await _wait_for_none(site, end)


async def _wait_for_none(site: Site, end: float) -> None:
    while perf_counter() < end and any(listener.connections for listener in site.listeners):
        await asyncio.sleep(POLL_S)


def _unavailable(error: OSError, host: str, port: int) -> RecsysError:
    what = error.strerror or "cannot be bound"
    return RecsysError("address_unavailable", what, f"{host}:{port}", exit_code=EXIT_UNAVAILABLE)


def run(site: Site, started: Callable[[], None]) -> None:
    """`serve` in a new loop, a quick one where uvloop is installed, until the end."""
    sys.setswitchinterval(SWITCH_S)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(site, started))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
