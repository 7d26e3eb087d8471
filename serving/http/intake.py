"""Batches of events on their way from a body to the disk.

A batch is checked a piece at a time, so that small ones do not wait for large ones.
"""

from __future__ import annotations

import asyncio
import time

from serving.events.log import Outcome
from serving.events.writer import EventWriter
from serving.http.batches import METARANK, OURS, Batch, Dialect, pieces
from serving.http.settings import ServerSettings
from serving.messages import EventsAnswer, Rejected
from serving.problems import Refusal


class EventIntake:
    """Takes batches for one event log."""

    def __init__(self, writer: EventWriter, settings: ServerSettings) -> None:
        """Take the writer of the log and the limits."""
        self._writer = writer
        self._most, self._limit_s = settings.most_batches, settings.events_s
        self._batches = 0

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
        batch, now = Batch(), time.time()
        self._batches += 1
        try:
            for values in pieces(body, kind, dialect):
                batch.add(values, now)
                await asyncio.sleep(0)
            return batch
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
