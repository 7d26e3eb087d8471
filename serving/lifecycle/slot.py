"""Where the model that answers stands, and the one before it.

Used by the loop's thread alone: a swap is one assignment between two requests, so that each answer is of one
model. Nothing here loads a model or reads a log.
"""

from __future__ import annotations

from collections import deque

from recsys.errors import RecsysError
from serving.engine.live_model import LiveModel
from serving.messages import Event

MOST_KEPT = 100_000


class ModelSlot:
    """The current model and the previous one; the one before that is let go.

    Attributes:
        degraded_reason: why not the newest version stands here; None where it does.
        failed: events that the current model could make nothing of, since the start.
    """

    def __init__(self) -> None:
        """Start without a model."""
        self.degraded_reason: str | None = None
        self.failed = 0
        self._current: LiveModel | None = None
        self._previous: LiveModel | None = None
        self._kept: deque[tuple[Event | None, int]] | None = None
        self._held: int | None = None

    @property
    def current(self) -> LiveModel | None:
        """The model that answers, None before the first."""
        return self._current

    @property
    def previous(self) -> LiveModel | None:
        """The model to go back to. It stands still: it has to be caught up before it answers again."""
        return self._previous

    @property
    def sequence(self) -> int:
        """Number of the last event that came here; 0 without a model."""
        if self._held is not None:
            return self._held
        return self._current.sequence if self._current is not None else 0

    def swap(self, model: LiveModel, degraded_reason: str | None = None) -> None:
        """Let `model` answer from now on; it knows every event that came here.

        Args:
            model: may be the previous one, or the current one.
            degraded_reason: why it is not the newest version.
        """
        if model is not self._current:
            self._previous, self._current = self._current, model
        self.degraded_reason = degraded_reason

    def drop_previous(self) -> None:
        """Let the model before go: there is no way back from here."""
        self._previous = None

    def to_go_back_to(self) -> LiveModel:
        """The previous model; raises RecsysError `nothing_to_roll_back`."""
        if self._previous is None:
            raise RecsysError("nothing_to_roll_back", "this server holds no version before the current one")
        return self._previous

    def apply(self, event: Event | None, sequence: int) -> None:
        """Show the current model an event of the log, once; the numbers ascend. None is one without sense."""
        if self._current is None or sequence <= self.sequence:
            return
        if self._kept is not None:
            self._kept.append((event, sequence))
        if self._held is not None:
            self._held = sequence
        else:
            self.failed += not show(self._current, event, sequence)

    def settle(self) -> None:
        """Have the current model put what it was shown into its tables: else a request waits for that."""
        if self._current is not None:
            self._current.state.settle()

    def keep_events(self) -> None:
        """Keep what comes from now on for a model that is being caught up."""
        self._kept = deque(maxlen=MOST_KEPT)

    def kept_after(self, sequence: int) -> list[tuple[Event | None, int]]:
        """What came since `keep_events` with a higher number, in the order it came; it is kept on."""
        return [entry for entry in self._kept or () if entry[1] > sequence]

    def hold_events(self) -> None:
        """Keep what comes from the current model, so that another one can come up to it."""
        self._held = self.sequence

    def go_on(self) -> None:
        """Stop keeping and holding; what was held reaches the model that is current now."""
        kept, self._kept, self._held = self._kept or (), None, None
        for event, sequence in kept:
            self.apply(event, sequence)


def show(model: LiveModel, event: Event | None, sequence: int) -> bool:
    """Let a model take an event in; False where it cannot, which must not stop the ones behind it."""
    try:
        if event is not None:
            model.apply(event, sequence)
            return True
    except Exception:  # noqa: S110 - an id or a type that this version's tables have no place for
        pass
    model.sequence = max(model.sequence, sequence)
    return False
