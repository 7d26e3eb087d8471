"""What a durable log of events is, whichever store holds it; the stores are in `sqlite_log` and `redis_log`.

A log knows nothing of what an event means: it keeps bytes under an id, once, in one order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol

from msgspec import Struct

from recsys.errors import EXIT_IO, RecsysError

Durability = Literal["fsync", "os"]
"""`fsync`: on stable storage before `append` returns. `os`: outlives the process, not the machine."""

State = Literal["ready", "storage_full", "events_blocked"]
"""What `append` would do now; the last two are also the codes that it raises."""


class Outcome(StrEnum):
    """What became of a record: the first two mean stored, a conflict means not stored."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"


class Record(Struct, frozen=True, gc=False):
    """One event as the log keeps it.

    Attributes:
        event_id: the same id with the same digest is a duplicate, with another one a conflict.
        kind: key of `messages.KINDS`.
        digest: SHA-256 of `payload`, 32 bytes.
        event_ts: when it happened, epoch seconds, UTC.
        ingest_ts: when it came in, epoch seconds, UTC; not part of what is compared.
        payload: canonical JSON.
    """

    event_id: str
    kind: str
    digest: bytes
    event_ts: float
    ingest_ts: float
    payload: bytes


class Stored(Struct, frozen=True, gc=False):
    """A record in its place; numbers ascend from 1, and are never given to a second record."""

    sequence: int
    record: Record


@dataclass
class Damage:
    """What a log found broken since it was opened.

    Attributes:
        rows_lost: records that were there once and cannot be read any more.
        bytes_dropped: bytes at the end of a file that are no part of any record.
        places: one line for each finding, where it was and where the evidence lies.
    """

    rows_lost: int = 0
    bytes_dropped: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str, *, rows: int = 0, dropped: int = 0) -> None:
        """Count one finding."""
        self.rows_lost += rows
        self.bytes_dropped += dropped
        self.places.append(place)


class EventReader(Protocol):
    """The part of a log that only reads."""

    damage: Damage

    @property
    def last(self) -> int:
        """Number of the last record, 0 for an empty log."""
        ...

    def read(self, after: int, limit: int) -> list[Stored]:
        """At most `limit` whole records with numbers over `after`, ascending; only an empty list is the end.

        Damaged records are left out and counted in `damage`.

        Raises:
            RecsysError: `events_blocked` where the store cannot be read.
        """
        ...

    def close(self) -> None:
        """Give back files and connections; a second call does nothing."""
        ...


class EventLog(EventReader, Protocol):
    """A log with one order, where each id stands at most once.

    Attributes:
        durability: what an acknowledgement means.
        openings: how often it was opened; who reads it from elsewhere opens it anew after each.
    """

    durability: Durability
    openings: int

    @property
    def state(self) -> State:
        """What `append` would do now."""
        ...

    def append(self, records: Sequence[Record]) -> list[Outcome]:
        """Store what is new, and say of each record what became of it; durable when it returns.

        After an error some of the records may be stored: send the same ones again.

        Raises:
            RecsysError: `storage_full` (goes away by itself once there is room), `events_blocked` (nothing is
                acknowledged until the store was opened again and its end verified, which later calls try).
        """
        ...


def blocked(what: str, where: object = "") -> RecsysError:
    """The error of a log that it is not safe to go on with (exit 74)."""
    return RecsysError("events_blocked", what, str(where), exit_code=EXIT_IO)


def full(what: str, where: object = "") -> RecsysError:
    """The error of a log without room (exit 74)."""
    return RecsysError("storage_full", what, str(where), exit_code=EXIT_IO)


def sort_out(records: Sequence[Record], known: Mapping[str, bytes]) -> tuple[list[Outcome], list[Record]]:
    """What becomes of each record, and the ones to be stored.

    Args:
        records: a batch, which may hold an id more than once; its first record counts.
        known: digest by id, for those ids of the batch that are stored already.
    """
    seen = dict(known)
    outcomes, fresh = [], []
    for record in records:
        digest = seen.get(record.event_id)
        if digest is None:
            seen[record.event_id] = record.digest
            fresh.append(record)
            outcomes.append(Outcome.ACCEPTED)
        else:
            outcomes.append(Outcome.DUPLICATE if digest == record.digest else Outcome.CONFLICT)
    return outcomes, fresh
