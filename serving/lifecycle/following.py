"""Showing events as the log grows to the models that answer: what anybody stored, each event once.

Events come back from the log and are not handed over by whoever stored them: so they come with their numbers,
in one order, and also from other servers that write to the same log. Whoever has read a part of it already
tells; what lies before that is read here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from recsys.errors import EXIT_TEMPORARY, RecsysError
from serving.events.log import Stored
from serving.events.parsing import readable_event
from serving.lifecycle.catching_up import Log
from serving.lifecycle.slot import ModelSlot
from serving.lifecycle.worker import Worker
from serving.messages import Event

BATCH = 256
SLICE, LONG_SLICE = 32, 64
"""So many events are applied before others have their turn; more of a full batch, behind which more wait."""
PERIOD_S = 0.25
"""The log is looked at so often where nobody tells anything."""
LIMIT_S = 10.0
MOST_NEWS = 64
"""Parts that were told and not shown yet; of more, the first are read from the log."""


async def _next_round() -> None:
    await asyncio.sleep(0)


class Follower:
    """Shows the current model of each slot what the log holds behind its `sequence`."""

    def __init__(
        self,
        log: Log,
        slots: Sequence[ModelSlot],
        failed: Callable[[str, BaseException], None],
        pause: Callable[[], Awaitable[None]] = _next_round,
    ) -> None:
        """Take the log and the slots.

        Args:
            log: is read from where the slots stand.
            slots: whose models follow.
            failed: hears of a log that cannot be read.
            pause: lets others have their turn.
        """
        self._log, self._slots, self._failed, self._pause = log, slots, failed, pause
        self._worker = Worker("events")
        self._new = asyncio.Event()
        self._news: deque[tuple[int, Sequence[Stored]]] = deque(maxlen=MOST_NEWS)

    def hear(self, after: int, stored: Sequence[Stored]) -> None:
        """Take everything that the log holds behind the record `after`, up to the last of these."""
        self._news.append((after, stored))
        self._new.set()

    async def run(self) -> None:
        """Follow for ever."""
        look = True
        while True:
            try:
                while await self.step(look=look):
                    pass
            except RecsysError as error:
                self._failed("events_unread", error)
                await asyncio.sleep(PERIOD_S)
            look = not await self._wait()

    def close(self) -> None:
        """End the thread that reads."""
        self._worker.close()

    async def step(self, *, look: bool = True) -> int:
        """Show one batch, and say how many records it held; 0 at the end of the log or without a model.

        Args:
            look: into the log, where nothing was told.

        Raises:
            RecsysError: `events_blocked` where the log cannot be read.
        """
        reached = [slot.sequence for slot in self._slots if slot.current is not None]
        if not reached:
            return 0
        found = self._heard(min(reached))
        if not found and (look or self._news):
            late = RecsysError(
                "events_blocked", f"the log did not answer in {LIMIT_S:g} s", exit_code=EXIT_TEMPORARY
            )
            found = await self._worker.run(
                lambda: _events(self._log.read(min(reached), BATCH)), LIMIT_S, late
            )
        many = SLICE if len(found) < BATCH else LONG_SLICE
        for place, (event, sequence) in enumerate(found):
            for slot in self._slots:
                slot.apply(event, sequence)
            if place % many == many - 1 or place == len(found) - 1:
                for slot in self._slots:
                    slot.settle()
                await self._pause()
        return len(found)

    def _heard(self, after: int) -> list[tuple[Event | None, int]]:
        """The first part of what was told that reaches from `after` on; nothing where a part is missing."""
        while self._news and self._news[0][0] <= after:
            _, stored = self._news.popleft()
            if stored[-1].sequence > after:
                return _events(stored)
        return []

    async def _wait(self) -> bool:
        """Until something was told, which it returns, or for a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(PERIOD_S):  # wait_for of Python 3.11 can lose a cancellation
                await self._new.wait()
        was_told = self._new.is_set()
        self._new.clear()
        return was_told


def _events(stored: Sequence[Stored]) -> list[tuple[Event | None, int]]:
    return [(readable_event(each.record), each.sequence) for each in stored]
