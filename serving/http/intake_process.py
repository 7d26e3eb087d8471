"""The process that stores events, as the server sees it: started, asked, and started again where it ends."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count

import msgspec

from recsys.errors import RecsysError
from serving.events.log import Damage, Durability, Stored, blocked
from serving.events.place import LogPlace
from serving.http.intake_frames import (
    SAID,
    Begin,
    News,
    NotOpened,
    Opened,
    Refused,
    Report,
    Take,
    Taken,
    frame,
    next_message,
    receive,
)
from serving.http.settings import ServerSettings
from serving.lifecycle.worker import Worker
from serving.messages import EventsAnswer
from serving.problems import Refusal

AGAIN_S = 1.0
"""Pause before the process is started again."""
START_S = 600.0
"""A damaged log is salvaged meanwhile."""
GRACE_S = 1.0
"""Longer than the process itself waits for the disk."""
END_S = 10.0

Hear = Callable[[int, Sequence[Stored]], None]
Failed = Callable[[str, BaseException], None]


class IntakeProcess:
    """Takes batches for one event log. Used by the loop's thread alone, once `run` runs.

    Attributes:
        damage: what was found broken in the log, also by whoever else reads it and counts it here.
    """

    def __init__(self, place: LogPlace, settings: ServerSettings) -> None:
        """Start the process, and wait until the log in this place is open.

        Raises:
            RecsysError: of the log; `events_blocked` where the process ends by itself.
        """
        self.damage = Damage()
        self._begin = Begin(place, settings.most_batches, settings.events_s)
        self._most, self._held = settings.most_buffered, 0
        self._worker = Worker("intake")
        self._child, self._connection, self._durability = _start(self._begin)
        self._out: asyncio.StreamWriter | None = None
        self._state = "ok"
        self._openings = 0
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[Taken]] = {}

    @property
    def state(self) -> str:
        """Whether events can be stored: ok, blocked or unavailable."""
        return self._state if self._out is not None else "unavailable"

    @property
    def durability(self) -> Durability:
        """What an acknowledgement means."""
        return self._durability

    async def take(self, body: bytes, kind: str) -> EventsAnswer:
        """Store the events of a body; `kind` is its media type.

        Raises:
            Refusal: of `EventIntake.take`; `events_blocked` while the process is not there.
        """
        return (await self._ask(body, kind, is_metarank=False)).answer

    async def take_metarank(self, body: bytes, kind: str) -> tuple[EventsAnswer, int]:
        """Store Metarank's events, and say how many were about users, of whom nothing is kept."""
        taken = await self._ask(body, kind, is_metarank=True)
        return taken.answer, taken.ignored

    async def run(self, hear: Hear, renew: Callable[[], None], failed: Failed) -> None:
        """Pass on what the process says, for ever.

        Args:
            hear: gets what the log holds behind a record, and the number of that one.
            renew: where the log must be opened anew by whoever reads it.
            failed: hears that the process ended, and why it does not start.
        """
        while True:
            await self._listen(hear, renew)
            failed("intake_ended", blocked("the process that stores events ended"))
            while not await self._start_again(failed):
                await asyncio.sleep(AGAIN_S)
            renew()

    def close(self) -> None:
        """Have it put on the disk what it has, and end; a second call does nothing.

        Whoever reads the log should have closed it: the last to go puts everything in one file.
        """
        self._worker.close()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # the loop has a hold on it that `close` waits for
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):  # where the disk hangs, it ends when that ends
            self._child.wait(END_S)

    async def _ask(self, body: bytes, kind: str, *, is_metarank: bool) -> Taken:
        if self._out is None:
            raise Refusal("events_blocked", "send the same events again")
        if self._held + len(body) > self._most:
            raise Refusal("events_busy", "too many batches are under way")
        number = next(self._numbers)
        self._held += len(body)
        self._waiting[number] = answer = asyncio.get_running_loop().create_future()
        try:
            self._out.write(frame(Take(number, kind, is_metarank, body)))
            async with asyncio.timeout(self._begin.events_s + GRACE_S):
                return await answer
        except TimeoutError:
            raise Refusal("events_slow", "send the same events again") from None
        finally:
            self._held -= len(body)
            del self._waiting[number]

    async def _listen(self, hear: Hear, renew: Callable[[], None]) -> None:
        """Until the process is gone."""
        reader, self._out = await asyncio.open_unix_connection(sock=self._connection)
        try:
            while True:
                said = await next_message(reader, SAID)
                if isinstance(said, Report):
                    self._note(said, renew)
                elif isinstance(said, News):
                    hear(said.after, said.stored)
                elif isinstance(said, Taken | Refused):
                    self._settle(said)
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.MsgspecError):
            self._out.transport.abort()
            self._out = None
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(Refusal("events_blocked", "send the same events again"))

    def _note(self, report: Report, renew: Callable[[], None]) -> None:
        self._state = "ok" if report.state == "ready" else "blocked"
        for place in report.damage:
            self.damage.add(place)
        if report.openings != self._openings:
            self._openings = report.openings
            renew()

    def _settle(self, said: Taken | Refused) -> None:
        answer = self._waiting.get(said.number)
        if answer is None or answer.done():
            return
        if isinstance(said, Taken):
            answer.set_result(said)
        else:
            answer.set_exception(Refusal(said.code, said.detail, said.place))

    async def _start_again(self, failed: Failed) -> bool:
        late = blocked(f"the process that stores events did not start in {START_S:g} s")

        def start() -> tuple[subprocess.Popen[bytes], socket.socket, Durability]:
            self._child.kill()
            self._child.wait()
            return _start(self._begin)

        try:
            found = await self._worker.run(start, START_S, late)
        except RecsysError as error:
            failed("intake_not_started", error)
            return False
        self._child, self._connection, self._durability = found
        return True


def _start(begin: Begin) -> tuple[subprocess.Popen[bytes], socket.socket, Durability]:
    """A new process whose log is open."""
    ours, theirs = socket.socketpair()
    with theirs:
        child = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", "serving.http.intake_child", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            process_group=0,  # what a terminal interrupts is the server, which ends this in time
        )
    try:
        ours.sendall(frame(begin))
        said = receive(ours, SAID)
        if isinstance(said, Opened):
            return child, ours, said.durability
    except (EOFError, ConnectionError):
        said = None
    ours.close()
    child.wait()
    if isinstance(said, NotOpened):
        raise RecsysError(said.code, said.what, said.where, exit_code=said.exit_code)
    raise blocked("the process that stores events ended by itself")
