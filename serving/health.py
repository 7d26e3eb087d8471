"""What the server says about itself."""

from __future__ import annotations

from serving.messages import Answer, ModelName


class Health(Answer, frozen=True, kw_only=True):
    """The process is there and its loop turns."""

    status: str = "ok"


class Readiness(Answer, frozen=True, kw_only=True):
    """Requests may be sent here.

    Attributes:
        events: ok, blocked (no room left) or unavailable (they cannot be stored, or no log is kept).
        durability: fsync, where an answer means that events are on stable storage; os, where the system
            still holds them; none.
        degraded_reason: why not the newest version answers, null where it does.
    """

    ready: bool
    model: ModelName
    events: str
    durability: str
    degraded_reason: str | None = None


class Version(Answer, frozen=True, kw_only=True):
    """Which program, and which model it would answer with now.

    Attributes:
        digest: SHA-256 of the bundle's manifest.
        as_of: epoch seconds, UTC; nothing later was known in training.
    """

    program: str
    model: ModelName | None
    digest: str | None
    as_of: float | None


class Swap(Answer, frozen=True, kw_only=True):
    """What a reload or a rollback did; both name the same version where nothing changed."""

    model: ModelName
    previous: ModelName | None
