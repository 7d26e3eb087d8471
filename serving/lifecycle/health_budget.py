"""How a model that has just been swapped in behaves: it goes again when it errs or dawdles too much."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Verdict = Literal["watching", "good", "too_many_errors", "too_slow"]

MOST_REMEMBERED = 500


@dataclass(frozen=True)
class HealthBudget:
    """What a new model may do wrong in its first requests.

    Attributes:
        requests: so many are watched. Enough that one in a hundred shows, few enough that a small shop is
            through in an hour.
        error_share: share of them that may fail. The fallback answers for them, but a model that passed its
            trial and then fails at one in fifty requests is not the one that was tried.
        slow_factor: a request is slow at so many times the median of the model before. Two would roll back
            versions that do twice the work on purpose.
        slow_floor_s: and not below this: on a busy machine short requests vary by more than a factor.
        slow_share: share of the requests that may be slow. Pauses of the machine hit fewer, a slow model
            hits most.
    """

    requests: int = 500
    error_share: float = 0.02
    slow_factor: float = 3.0
    slow_floor_s: float = 0.02
    slow_share: float = 0.2

    def __post_init__(self) -> None:
        """Refuse budgets that nothing could pass or fail."""
        if self.requests < 1 or not 0 <= self.error_share < 1 or not 0 < self.slow_share < 1:
            raise ValueError("a health budget needs requests >= 1 and shares from 0 to 1")


class HealthCheck:
    """The first requests of one model against a budget."""

    def __init__(self, budget: HealthBudget, before_s: Sequence[float] = ()) -> None:
        """Take the budget and the latencies of the model before; without any, only the floor counts."""
        self._budget = budget
        usual = median(before_s) if before_s else 0.0
        self.slow_s = max(budget.slow_floor_s, budget.slow_factor * usual)
        self.seen = self.errors = self.slow = 0

    def note(self, seconds: float, *, failed: bool) -> Verdict:
        """Count one request; the verdict falls as soon as the rest could not change it for the better."""
        self.seen += 1
        self.errors += failed
        self.slow += seconds > self.slow_s
        if self.errors > self._budget.error_share * self._budget.requests:
            return "too_many_errors"
        if self.slow > self._budget.slow_share * self._budget.requests:
            return "too_slow"
        return "good" if self.seen >= self._budget.requests else "watching"


class Latencies:
    """The last few hundred latencies of the model that answers."""

    def __init__(self) -> None:
        """Start without any."""
        self._seconds: deque[float] = deque(maxlen=MOST_REMEMBERED)

    def note(self, seconds: float) -> None:
        """Remember one."""
        self._seconds.append(seconds)

    def take(self) -> list[float]:
        """All of them, oldest first; they are forgotten."""
        found = list(self._seconds)
        self._seconds.clear()
        return found
