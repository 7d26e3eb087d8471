"""How much of the model answers: less of it for who waited long, and less where the rest keeps failing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from msgspec.structs import replace

from recsys.errors import RecsysError
from serving.engine.live_model import Level
from serving.messages import FAILING, OVERLOADED, Ranking
from serving.problems import Refusal

SHARES = ((0.5, Level.FULL), (0.65, Level.NO_TEXT), (0.8, Level.COLLABORATIVE), (0.9, Level.POPULARITY))
"""Share of the deadline that may have passed -> what may still be asked for."""
MOST_FAILURES = 10
PAUSE_S = 5.0

Ask = Callable[[Level], Ranking]
Report = Callable[[str, BaseException], None]


@dataclass
class Breaker:
    """Keeps a level from being asked while it fails.

    Attributes:
        failures: in a row.
        until: moment before which it is not asked.
        pause_s: how long that is.
    """

    failures: int = 0
    until: float = 0.0
    pause_s: float = PAUSE_S

    def note(self, failed: bool, now: float) -> None:
        """Note how one call went; after a pause one failure is enough."""
        self.failures = self.failures + 1 if failed else 0
        if self.failures >= MOST_FAILURES:
            self.until = now + self.pause_s


class Ladder:
    """Asks from the level that there is time for down to the one that answers."""

    def __init__(self, deadline_s: float, report: Report, pause_s: float = PAUSE_S) -> None:
        """Take the deadline, whoever hears of failures, and how long a failing level is left alone."""
        self._deadline_s = deadline_s
        self._report = report
        self._breakers = {level: Breaker(pause_s=pause_s) for level in Level}

    def first(self, waited_s: float) -> Level:
        """The level that there is time for.

        Raises:
            Refusal: `overloaded` where there is none.
        """
        for share, level in SHARES:
            if waited_s <= share * self._deadline_s:
                return level
        raise Refusal("overloaded", f"waited {waited_s * 1e3:.0f} ms")

    def answer(self, ask: Ask, waited_s: float) -> Ranking:
        """The answer of the first level that gives one, marked where it is not the whole model's.

        A level counts as failing when it raises anything but RecsysError, or takes half of the deadline.

        Raises:
            RecsysError: of `ask`, which means the request and not the model.
            Refusal: `overloaded`; `internal_failure` where every level fails.
        """
        first = self.first(waited_s)
        for level in Level:
            answer = self._try(ask, level) if level >= first else None
            if answer is not None and level > Level.FULL:
                reason = OVERLOADED if level == first else FAILING
                return replace(answer, degraded=True, degraded_reason=reason)
            if answer is not None:
                return answer
        raise Refusal("internal_failure")

    def _try(self, ask: Ask, level: Level) -> Ranking | None:
        breaker, start = self._breakers[level], perf_counter()
        if start < breaker.until:
            return None
        try:
            answer = ask(level)
        except RecsysError:
            raise
        except Exception as error:
            self._report("rank_failed", error)
            answer = None
        end = perf_counter()
        breaker.note(answer is None or end - start > self._deadline_s / 2, end)
        return answer
