"""Whose turn it is: rank requests run one after another, and the loop looks at its sockets in between.

Without that, a hundred requests that came together would run as one block, and nobody else (health,
events, refusals) would be heard meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

from serving.problems import Refusal

HUGE_BODY = 2**17
"""Bytes of a body from which on its work is kept to a share of the time."""
SHARE = 0.2
MOST_HUGE = 32
LULL_S = 0.005
_MEMORY = 0.1

T = TypeVar("T")


class Turns:
    """A line of bounded length and bounded waiting time."""

    def __init__(self, most: int, limit_s: float) -> None:
        """Take how many may wait, and how long at most by the present pace."""
        self._most = most
        self._limit_s = limit_s
        self._line: deque[asyncio.Future[None]] = deque()
        self._taken = False
        self._pace_s = 0.0
        self._last = 0.0
        self._huge = asyncio.Lock()
        self._huge_waiting = 0
        self._huge_from = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether somebody has a turn or waits for one."""
        return self._taken

    def __len__(self) -> int:
        return len(self._line)

    async def lull(self) -> None:
        """Wait for a moment in which nobody wants a turn, so that what can wait holds nobody up.

        Where there is none, as at full load, it ends after `LULL_S`.
        """
        end = perf_counter() + LULL_S
        await asyncio.sleep(0)
        while self._taken and perf_counter() < end:
            await asyncio.sleep(0)

    async def run(self, work: Callable[[], T], size: int) -> T:
        """Run `work` when its turn has come.

        Args:
            work: does not wait for anything.
            size: bytes of the request's body.

        Raises:
            Refusal: `overloaded` where the line is too long.
        """
        if size < HUGE_BODY:
            await self._turn()
            return work()
        return await self._run_huge(work)

    async def _run_huge(self, work: Callable[[], T]) -> T:
        """One at a time, and then a pause: what takes long must not take it from everybody."""
        if self._huge_waiting >= MOST_HUGE:
            raise Refusal("overloaded", "too many large requests")
        self._huge_waiting += 1
        try:
            async with self._huge:
                await asyncio.sleep(self._huge_from - perf_counter())
                await self._turn()
                start = perf_counter()
                try:
                    return work()
                finally:
                    end = perf_counter()
                    self._huge_from = end + (end - start) * (1 / SHARE - 1)
        finally:
            self._huge_waiting -= 1

    async def _turn(self) -> None:
        if not self._taken:
            self._taken = True
            self._last = perf_counter()
            asyncio.get_running_loop().call_soon(self._next)
            return
        if len(self._line) >= self._most or len(self._line) * self._pace_s > self._limit_s:
            raise Refusal("overloaded", "the line is too long")
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        await turn

    def _next(self) -> None:
        """Called once in each round of the loop while somebody wants a turn."""
        while self._line and self._line[0].done():  # given up
            self._line.popleft()
        if not self._line:
            self._taken = False
            return
        now = perf_counter()
        self._pace_s += _MEMORY * (now - self._last - self._pace_s)
        self._last = now
        self._line.popleft().set_result(None)
        asyncio.get_running_loop().call_soon(self._next)
