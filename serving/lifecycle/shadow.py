"""How far another version would have answered differently: tried on some requests, after they were answered.

Clients never wait for it and never see it. It works while nobody else wants the loop, and lets go of requests
that it cannot come to in time. It judges nothing: whether different is better is for an experiment to say.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from msgspec.structs import replace

from serving.engine.answering import rank
from serving.lifecycle.slot import ModelSlot
from serving.messages import FAILING, OVERLOADED, Answer, RankedItem, Ranking, RankRequest

IDLE_S = 0.002
"""So long it waits before it looks again whether the loop is free."""


@dataclass(frozen=True)
class ShadowSettings:
    """What is tried.

    Attributes:
        share: of the rank requests.
        most_waiting: requests that wait; more are dropped.
        longest_s: a request that has waited so long is dropped: the log has gone on since.
        seed: of the choice.
    """

    share: float = 0.1
    most_waiting: int = 64
    longest_s: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a share that is none, and a line that has no end."""
        if not 0.0 <= self.share <= 1.0:
            raise ValueError("share must be from 0 to 1")
        if self.most_waiting < 1 or not 0.0 < self.longest_s < math.inf:
            raise ValueError("most_waiting must be at least 1, and longest_s a number of seconds over 0")


class ShadowFigures(Answer, frozen=True, kw_only=True):
    """How the other version compares, since the server started or the version changed.

    Attributes:
        requests: that both answered.
        dropped: that came at a busy time. `errors`: that the other version failed at.
        first_changed: share whose first item is another.
        rank_correlation: mean of Spearman's over the lists of two items or more, 1 for the same order.
        largest_difference: of two scores of one item.
    """

    requests: int = 0
    dropped: int = 0
    errors: int = 0
    first_changed: float | None = None
    rank_correlation: float | None = None
    largest_difference: float | None = None


class _Asked(NamedTuple):
    """A request that was answered: with what, for which moment, and when."""

    request: RankRequest
    answer: Ranking
    now: float
    at: float


class Shadow:
    """Compares the model of a slot with the answers that clients got."""

    def __init__(
        self, slot: ModelSlot, is_busy: Callable[[], bool], settings: ShadowSettings | None = None
    ) -> None:
        """Take the slot of the other version, and what says that somebody else wants the loop."""
        self._slot, self._is_busy = slot, is_busy
        self._settings = settings or ShadowSettings()
        self._waiting: asyncio.Queue[_Asked] = asyncio.Queue(self._settings.most_waiting)
        self._choice = random.Random(self._settings.seed)
        self._forget()

    def offer(self, request: RankRequest, answer: Ranking, now: float) -> None:
        """Maybe try this request too; call it once the answer is on its way.

        Args:
            request: as it was asked.
            answer: of the current version. One that is made with less than the whole model does not count.
            now: the moment it was answered for, epoch seconds.
        """
        if self._slot.current is None or answer.degraded_reason in (OVERLOADED, FAILING):
            return
        if self._choice.random() >= self._settings.share:
            return
        try:
            self._waiting.put_nowait(_Asked(request, answer, now, time.monotonic()))
        except asyncio.QueueFull:
            self._dropped += 1

    async def run(self) -> None:
        """Try what was offered, for ever."""
        while True:
            asked = await self._waiting.get()
            while self._is_busy() and not self._is_late(asked):
                await asyncio.sleep(IDLE_S)
            if self._is_late(asked):
                self._dropped += 1
            else:
                self._try(asked)
            await asyncio.sleep(0)

    def figures(self) -> ShadowFigures:
        """What was found so far; None for what rests on nothing yet."""
        return ShadowFigures(
            requests=self._requests,
            dropped=self._dropped,
            errors=self._errors,
            first_changed=self._changed / self._requests if self._requests else None,
            rank_correlation=self._correlation / self._correlated if self._correlated else None,
            largest_difference=self._largest if self._requests else None,
        )

    def _forget(self) -> None:
        self._digest = ""
        self._requests = self._dropped = self._errors = self._changed = self._correlated = 0
        self._correlation = self._largest = 0.0

    def _is_late(self, asked: _Asked) -> bool:
        return time.monotonic() - asked.at > self._settings.longest_s

    def _try(self, asked: _Asked) -> None:
        model = self._slot.current
        if model is None:
            return
        if self._digest not in ("", model.digest):
            self._forget()
        self._digest = model.digest
        try:
            other = rank(model, replace(asked.request, k=None, explain=False), asked.now)
        except Exception:  # counted: whatever it is, no client has to do with it
            self._errors += 1
            return
        self._compare(asked.answer.items, other.items)

    def _compare(self, ours: list[RankedItem], others: list[RankedItem]) -> None:
        self._requests += 1
        if not ours or not others:
            return
        self._changed += ours[0].id != others[0].id
        found = {item.id: item for item in others}
        pairs = [(item, found[item.id]) for item in ours if item.id in found]
        difference = max((abs(our.score - other.score) for our, other in pairs), default=0.0)
        self._largest = max(self._largest, difference)
        if len(pairs) > 1:
            self._correlated += 1
            self._correlation += rank_correlation([other.rank for _, other in pairs])


def rank_correlation(ranks: list[int]) -> float:
    """Spearman's correlation of 1, 2, 3 ... with the order of `ranks`, at least two and all different.

    Spearman 1904: 1 - 6 Σ d² / (n (n² - 1)), d the difference of two places.
    """
    count = len(ranks)
    place = {rank: number for number, rank in enumerate(sorted(ranks))}
    squares = sum((number - place[rank]) ** 2 for number, rank in enumerate(ranks))
    return 1.0 - 6.0 * squares / (count * (count**2 - 1))
