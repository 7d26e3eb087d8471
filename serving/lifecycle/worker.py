"""One background thread at a time for calls that block, and a bound on how long anybody waits for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
IDLE_S = 5.0
"""A thread without calls ends after so long: whoever starts one is held up until it runs."""
CLOSE_S = 1.0


class Worker:
    """Runs blocking calls for a loop. A call that hangs keeps its thread, never the loop or the process."""

    def __init__(self, name: str) -> None:
        """Name the threads."""
        self._name = name
        self._busy = False
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._turn = threading.Lock()  # of handing a call over, and of ending for want of calls
        self._thread: threading.Thread | None = None

    async def run(self, call: Callable[[], T], limit_s: float, late: Exception) -> T:
        """What `call` gives or raises, from another thread.

        Args:
            call: may go on after it was given up; its result is then dropped.
            limit_s: seconds to wait.
            late: raised after them, and where the call before this one still hangs.
        """
        if self._busy:
            raise late
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._busy = True

        def settle(result: Any, error: BaseException | None) -> None:
            self._busy = False
            if not done.done():
                done.set_result(result) if error is None else done.set_exception(error)

        def work() -> None:
            result, raised = None, None
            try:
                result = call()
            except BaseException as error:  # what Rust panics raise is no Exception
                raised = error if isinstance(error, Exception) else RuntimeError(repr(error)[:300])
            with suppress(RuntimeError):  # the loop is gone
                loop.call_soon_threadsafe(settle, result, raised)

        self._hand_over(work)
        try:
            async with asyncio.timeout(limit_s):  # wait_for of Python 3.11 can lose a cancellation
                return await done
        except TimeoutError as error:
            raise late from error

    def close(self) -> None:
        """End the thread, unless a call hangs in it; no other call may follow."""
        with self._turn:
            thread = self._thread
            if thread is not None:
                self._calls.put(None)
        if thread is not None and not self._busy:
            thread.join(CLOSE_S)

    def _hand_over(self, work: Callable[[], None]) -> None:
        with self._turn:
            self._calls.put(work)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            call = None
            with suppress(Empty):
                call = self._calls.get(timeout=IDLE_S)
            if call is not None:
                call()
                continue
            with self._turn:
                if self._calls.empty():
                    self._thread = None
                    return
