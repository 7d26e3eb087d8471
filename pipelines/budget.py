"""Time to spend and the signals that cut it short."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import FrameType

from pipelines.fitting import Step


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM came."""


class OutOfTimeError(Exception):
    """The budget ended within a trial."""


@dataclass
class Budget:
    """Seconds to spend; only `guarded` steps end early, so that the first trial always finishes."""

    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that are left, negative past the end."""
        return self.began + self.seconds - time.monotonic()

    def guarded(self, step: Step) -> Step:
        """`step` that raises OutOfTimeError where it would begin after the end."""

        def opened(name: str) -> AbstractContextManager[Callable[[int, int], None]]:
            if self.left <= 0:
                raise OutOfTimeError
            return step(name)

        return opened


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise Stopped inside, once; a second one ends the process as usual."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in kept:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped

    kept = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in kept.items():
            signal.signal(each, handler)
