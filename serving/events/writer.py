"""The one thread that writes the event log: what came meanwhile goes to the disk together.

Nothing here waits for the log except that thread, so that a slow disk never holds up who hands records in.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

from recsys.errors import EXIT_TEMPORARY, RecsysError
from serving.events.log import EventLog, Outcome, Record

BATCH_EVENTS = 256
WAIT_S = 0.005
QUEUE_EVENTS = 10_000
QUEUE_BYTES = 64 * 2**20
RETRY_S = 1.0


@dataclass(frozen=True)
class _Job:
    """Records that were handed in together, and the promise to say what became of them."""

    records: Sequence[Record]
    future: Future[list[Outcome]]
    size: int
    came_at: float = field(default_factory=time.monotonic)


class EventWriter:
    """A queue and a thread around a log, which stays the caller's to close."""

    def __init__(
        self,
        log: EventLog,
        *,
        batch_events: int = BATCH_EVENTS,
        wait_s: float = WAIT_S,
        queue_events: int = QUEUE_EVENTS,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        """Start the thread.

        Args:
            log: where to; nobody else appends to it from now on.
            batch_events: most records of one append.
            wait_s: how long records wait for others to share their append.
            queue_events: most records that wait or are being written.
            queue_bytes: most bytes of theirs.
        """
        self.log = log
        self._batch_events = batch_events
        self._wait_s = wait_s
        self._queue_events = queue_events
        self._queue_bytes = queue_bytes
        self._changed = threading.Condition()
        self._jobs: deque[_Job] = deque()
        self._waiting = 0  # events of these jobs
        self._events = 0  # those, and what is being written
        self._bytes = 0
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="event-writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Records that wait or are being written."""
        return self._events

    def submit(self, records: Sequence[Record]) -> Future[list[Outcome]]:
        """Hand records in; returns at once.

        The future gives their outcomes when they are durable, or raises what `EventLog.append` raised; then
        some of them may be stored, and the same ones can be sent again. One that is cancelled before its turn
        is not written.

        Raises:
            RecsysError: `events_busy` (exit 75) where too much waits, or the writer is being closed.
        """
        future: Future[list[Outcome]] = Future()
        if not records:
            future.set_result([])
            return future
        job = _Job(records, future, sum(len(record.payload) for record in records))
        with self._changed:
            if self._is_closing:
                raise _busy("the event log is being closed")
            too_many = self._events + len(records) > self._queue_events
            if self._events and (too_many or self._bytes + job.size > self._queue_bytes):
                raise _busy(f"{self._events} events are waiting to be written")
            self._jobs.append(job)
            self._waiting += len(records)
            self._events += len(records)
            self._bytes += job.size
            if len(self._jobs) == 1 or self._is_full():  # else it waits for more, and need not be woken
                self._changed.notify()
        return future

    def close(self) -> None:
        """Write what waits and end the thread; a second call does nothing."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            jobs = self._next()
            if jobs:
                self._write(jobs)
            elif self._is_closing and not self._jobs:
                return
            else:
                self._try_log()

    def _next(self) -> list[_Job]:
        """The jobs of the next append; none where the writer is closing, or a failed log is to be tried."""
        nap_s = None if self.log.state == "ready" else RETRY_S
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._is_closing, nap_s)
            if self._jobs:
                rest_s = self._jobs[0].came_at + self._wait_s - time.monotonic()
                self._changed.wait_for(self._is_full, max(0.0, rest_s))
            jobs: list[_Job] = []
            while self._jobs and (not jobs or self._fits(jobs)):
                jobs.append(self._jobs.popleft())
            self._waiting -= _events(jobs)
            return jobs

    def _is_full(self) -> bool:
        return self._is_closing or self._waiting >= self._batch_events

    def _fits(self, jobs: list[_Job]) -> bool:
        return _events(jobs) + len(self._jobs[0].records) <= self._batch_events

    def _try_log(self) -> None:
        """Get a failed log to go on, so that its state tells the truth also when nobody sends."""
        with suppress(RecsysError):
            self.log.append([])

    def _write(self, jobs: list[_Job]) -> None:
        taken = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        records = [record for job in taken for record in job.records]
        outcomes: list[Outcome] = []
        failure: Exception | None = None
        try:
            for start in range(0, len(records), self._batch_events):
                outcomes += self.log.append(records[start : start + self._batch_events])
        except Exception as error:  # whatever it is, somebody waits for the answer
            failure = error
        with self._changed:
            self._events -= _events(jobs)
            self._bytes -= sum(job.size for job in jobs)
        place = 0
        for job in taken:
            if failure is not None:
                job.future.set_exception(failure)
            else:
                job.future.set_result(outcomes[place : place + len(job.records)])
                place += len(job.records)


def _events(jobs: Sequence[_Job]) -> int:
    return sum(len(job.records) for job in jobs)


def _busy(what: str) -> RecsysError:
    return RecsysError("events_busy", what, exit_code=EXIT_TEMPORARY)
