"""What the process that stores events does: it checks batches, writes them, and says what became of them.

It is a process of its own so that no ranking request waits while events are checked and written, and it gives
way to everybody else. It goes on until the server is gone, and then puts on the disk what it has.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from typing import NoReturn

from recsys.errors import RecsysError
from serving.events.log import EventLog, Stored
from serving.events.writer import EventWriter
from serving.http.intake import EventIntake
from serving.http.intake_frames import (
    BEGIN,
    TAKE,
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
from serving.logs import LineLog
from serving.problems import Refusal

NICE = 15
"""The system prefers who answers requests; beside a process that never rests this one gets 3% of a core."""
REPORT_S = NEWS_S = 0.25
NEWS, LONGEST_NEWS = 256, 2**18
"""So many records are told at once, and so many bytes of theirs."""
HELD_S = 2.0
"""The process of a server that was killed a moment ago may hold the log so long."""


def main(words: list[str]) -> NoReturn:
    """Serve one server, which holds the other end of the socket with this number."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # meant for the server
    os.nice(NICE)
    with ExitStack() as held:
        connection = held.enter_context(socket.socket(fileno=int(words[0])))
        begin = receive(connection, BEGIN)
        try:
            log = held.enter_context(closing(begin.place.open(wait_s=HELD_S)))
        except RecsysError as error:
            connection.sendall(frame(NotOpened(error.code, error.what, error.where, error.exit_code)))
            sys.exit(0)
        connection.sendall(frame(Opened(log.durability)))
        lines = held.enter_context(closing(LineLog(sys.stderr.fileno())))
        writer = held.enter_context(closing(EventWriter(log)))
        settings = ServerSettings(most_batches=begin.most_batches, events_s=begin.events_s)
        asyncio.run(_Service(log, EventIntake(writer, settings), lines).run(connection))
    sys.exit(0)


class _Service:
    """One connection's worth of work."""

    def __init__(self, log: EventLog, intake: EventIntake, lines: LineLog) -> None:
        self._log, self._intake, self._lines = log, intake, lines
        self._told = 0  # findings
        self._last: tuple[str, int] | None = None
        self._new = asyncio.Event()

    async def run(self, connection: socket.socket) -> None:
        """Take batches until the server is gone, and finish them."""
        reader, self._out = await asyncio.open_unix_connection(sock=connection)
        beside = [asyncio.create_task(self._report_on()), asyncio.create_task(self._read_on())]
        tasks: set[asyncio.Task[None]] = set()
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                task = asyncio.create_task(self._take(await next_message(reader, TAKE)))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        for task in beside:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self, take: Take) -> None:
        ignored = 0
        try:
            if take.is_metarank:
                answer, ignored = await self._intake.take_metarank(take.body, take.kind)
            else:
                answer = await self._intake.take(take.body, take.kind)
            said: Taken | Refused = Taken(take.number, answer, ignored)
        except Exception as error:
            refusal = Refusal.of_any(error, self._lines.failure)
            said = Refused(take.number, refusal.code, refusal.detail, refusal.place)
        self._report()
        self._out.write(frame(said))
        self._new.set()

    async def _report_on(self) -> None:
        while True:
            self._report()
            await asyncio.sleep(REPORT_S)

    async def _read_on(self) -> None:
        """Tell what the log holds from now on; also what other servers put there."""
        after: int | None = None
        while True:
            with suppress(RecsysError):  # the report says so
                after = self._log.last if after is None else after
                while found := await asyncio.to_thread(self._log.read, after, NEWS):
                    for news in _cut(found):
                        self._out.write(frame(News(after, news)))
                        after = news[-1].sequence
                        await self._out.drain()
            with suppress(TimeoutError):
                async with asyncio.timeout(NEWS_S):
                    await self._new.wait()
            self._new.clear()

    def _report(self) -> None:
        """Say how the log is, where that is news."""
        found = self._log.damage.places[self._told :]
        now = (self._log.state, self._log.openings)
        if found or now != self._last:
            self._told += len(found)
            self._last = now
            self._out.write(frame(Report(*now, found)))


def _cut(stored: list[Stored]) -> Iterator[list[Stored]]:
    """The records in messages of a bearable size."""
    part, size = list[Stored](), 0
    for each in stored:
        if part and size + len(each.record.payload) > LONGEST_NEWS:
            yield part
            part, size = [], 0
        part.append(each)
        size += len(each.record.payload)
    yield part


if __name__ == "__main__":
    main(sys.argv[1:])
