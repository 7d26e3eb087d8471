"""Batches of events on their way from a body to the disk, without holding up anybody else.

A batch is checked a piece at a time, and only one piece in a round of the loop.
"""

from __future__ import annotations

import asyncio
import time
from time import perf_counter

from serving.events.log import Outcome
from serving.events.parsing import Window
from serving.events.writer import EventWriter
from serving.http.batches import METARANK, OURS, Batch, Dialect, pieces
from serving.http.settings import ServerSettings
from serving.http.turns import SHARE
from serving.messages import EventsAnswer, Rejected
from serving.problems import Refusal

LONG_S = 0.005
"""After a piece that took longer, others have the loop for a while."""


class EventIntake:
    """Takes batches for one event log."""

    def __init__(
        self,
        writer: EventWriter,
        settings: ServerSettings,
        window: Window | None = None,
    ) -> None:
        """Take the writer of the log, the limits, and the moments that are taken."""
        self._writer = writer
        self._most, self._limit_s = settings.most_batches, settings.events_s
        self._window = window
        self._batches = 0
        self._piece = asyncio.Lock()

    async def take(self, body: bytes, kind: str) -> EventsAnswer:
        """Store the events of a body; `kind` is its media type.

        Raises:
            RecsysError: of the log, and for a body that cannot be read.
            Refusal: likewise; `events_busy`; `events_slow` (some may be stored: send the same ones again).
        """
        return await self._stored(await self._checked(body, kind, OURS))

    async def take_metarank(self, body: bytes, kind: str) -> tuple[EventsAnswer, int]:
        """Store Metarank's events, and say how many were about users, of whom nothing is kept."""
        batch = await self._checked(body, kind, METARANK)
        return await self._stored(batch), batch.ignored

    async def _checked(self, body: bytes, kind: str, dialect: Dialect) -> Batch:
        if self._batches >= self._most:
            raise Refusal("events_busy", "too many batches are under way")
        batch, now, waiting = Batch(), time.time(), pieces(body, kind, dialect)
        self._batches += 1
        try:
            while True:
                async with self._piece:
                    await asyncio.sleep(0)
                    begin = perf_counter()
                    values = next(waiting, None)
                    if values is None:
                        return batch
                    batch.add(values, now, self._window)
                    await _rest(perf_counter() - begin)
        finally:
            self._batches -= 1

    async def _stored(self, batch: Batch) -> EventsAnswer:
        outcomes = await self._written(batch)
        conflicts = [
            Rejected(index=place, code="id_conflict", detail="this event_id was used for another event")
            for (place, _, _), outcome in zip(batch.good, outcomes, strict=True)
            if outcome == Outcome.CONFLICT
        ]
        return EventsAnswer(
            accepted=outcomes.count(Outcome.ACCEPTED),
            duplicate=outcomes.count(Outcome.DUPLICATE),
            rejected=sorted([*batch.rejected, *conflicts], key=lambda each: each.index),
        )

    async def _written(self, batch: Batch) -> list[Outcome]:
        future = self._writer.submit([record for _, _, record in batch.good])
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._limit_s)
        except TimeoutError:
            raise Refusal("events_slow", "send the same events again") from None


async def _rest(spent_s: float) -> None:
    if spent_s > LONG_S:
        await asyncio.sleep(spent_s * (1 / SHARE - 1))
