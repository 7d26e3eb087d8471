"""Bringing a model to where the log of events is, while the log goes on and another model answers.

A worker thread reads batches up to where the other model was when it began. What came meanwhile is handed
over in the loop's thread, by number and a few at a time, while the other model is shown nothing: so nothing
is missed or counted twice.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Protocol

from recsys.errors import EXIT_TEMPORARY, RecsysError
from serving.engine.live_model import LiveModel
from serving.events.log import Stored
from serving.events.parsing import readable_event
from serving.lifecycle.slot import ModelSlot, show
from serving.lifecycle.worker import Worker

BATCH = 256
SPELL_S = 0.001
PAUSE_S = 0.0005
"""The worker pauses so long after each spell: else the loop would wait for the interpreter's lock."""
MOST_HELD = 256
"""So many events may be left for the loop's thread."""
SLICE = 4
"""So many of them are applied before the loop looks at its sockets again."""
FIRST_S = 3.0
"""Where no model answers yet, one that has read for so long is better than none; it goes on reading later."""


class Log(Protocol):
    """The part of an event log that is needed here; called from worker threads."""

    def read(self, after: int, limit: int) -> list[Stored]:
        """Whole records with numbers over `after`, ascending; an empty list is the end."""
        ...


async def catch_up(
    model: LiveModel, log: Log | None, slot: ModelSlot, worker: Worker, limit_s: float
) -> None:
    """Show `model` every event that came to the slot. Swap it in before anything else is awaited.

    Until `slot.go_on` is called, events do not reach the model that the slot holds. Without one, the new
    model reads for three seconds at most.

    Raises:
        RecsysError: `events_blocked` where the log cannot be read; `catch_up_slow` where it takes over
            `limit_s` seconds.
    """
    if log is None:
        return
    what = f"the events since could not be read in {limit_s:g} s"
    late = RecsysError("catch_up_slow", what, exit_code=EXIT_TEMPORARY)
    deadline = time.monotonic() + limit_s
    if slot.current is None:
        deadline = time.monotonic() + min(limit_s, FIRST_S)
        await worker.run(partial(read_on, model, log, None, deadline), limit_s, late)
        return
    while (left := deadline - time.monotonic()) > 0:
        slot.keep_events()
        reading = partial(read_on, model, log, slot.current.sequence, deadline)
        is_there = await worker.run(reading, left, late)
        if is_there and len(slot.kept_after(model.sequence)) <= MOST_HELD:
            slot.hold_events()
            await _take_over(model, slot)
            return
    raise late


async def _take_over(model: LiveModel, slot: ModelSlot) -> None:
    """Show it what the slot has kept, until nothing is left."""
    while rest := slot.kept_after(model.sequence):
        for event, sequence in rest[:SLICE]:
            show(model, event, sequence)
        if len(rest) > SLICE:
            await asyncio.sleep(0)


def read_on(model: LiveModel, log: Log, target: int | None, deadline: float) -> bool:
    """Apply what the log holds behind the model's `sequence`; for a worker thread that owns the model.

    Args:
        model: gets the events.
        log: is read up to the record `target`, or to its end where that is None. The end is where a batch
            is not full, because events may come in all the time.
        target: number of a record.
        deadline: moment of `time.monotonic` at which it stops.

    Returns:
        Whether it came so far before the deadline.
    """
    pause = time.monotonic() + SPELL_S
    while (target is None or model.sequence < target) and (stored := log.read(model.sequence, BATCH)):
        for each in stored:
            show(model, readable_event(each.record), each.sequence)
            if time.monotonic() >= pause:
                time.sleep(PAUSE_S)
                pause = time.monotonic() + SPELL_S
        if target is None and len(stored) < BATCH:
            break
        if time.monotonic() >= deadline:
            return False
    embed_new_texts(model)
    return True


def embed_new_texts(model: LiveModel) -> None:
    """Give new items their embedding, so that they are not without one after a swap."""
    if waiting := model.texts_to_embed():
        found = model.encoder.encode(list(waiting.values()))
        for (row, text), embedding in zip(waiting.items(), found, strict=True):
            model.embedded(row, text, embedding)
