"""The impressions of experiments in an event log, each with what was done on it.

The log is read twice, impressions first, so that the order of arrival plays no part and only what belongs to
an experiment is kept in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from sys import intern

import msgspec

from serving.events.log import EventReader, Record
from serving.events.parsing import event_of
from serving.experiments.experiment import Label
from serving.messages import Event, ImpressionEvent, InteractionEvent

DEFAULT_OUTCOMES = ("click", "purchase")
"""Types of interactions that count."""

_PAGE = 10_000


@dataclass(slots=True)
class Slate:
    """One impression of an experiment; ids are interned texts, for a log names them again and again.

    Attributes:
        shown: items from the first place on.
        acted: those with an outcome, each once, however often and in whatever way.
    """

    impression_id: str
    user_id: str
    timestamp: float
    label: Label
    shown: tuple[str, ...]
    acted: frozenset[str] = frozenset()


@dataclass
class LoggedExperiments:
    """What a log holds of experiments.

    Attributes:
        slates: by experiment.
        outcomes: interactions that count, in the whole log.
        joined: of them, those that name an impression of an experiment and an item in it.
        not_shown: of them, those that name such an impression and an item that is not in it.
        unreadable: records that are no events.
    """

    slates: dict[str, list[Slate]] = field(default_factory=dict)
    outcomes: int = 0
    joined: int = 0
    not_shown: int = 0
    unreadable: int = 0


def read_experiments(reader: EventReader, outcomes: Collection[str] = DEFAULT_OUTCOMES) -> LoggedExperiments:
    """Read a log as far as it reaches now.

    Args:
        reader: of the log.
        outcomes: types of interactions that count.

    Raises:
        RecsysError: of the reader.
    """
    found, last = LoggedExperiments(), reader.last
    slates: dict[str, Slate] = {}
    by_name = defaultdict(list)
    for event in _events(reader, last, "impression", found):
        slate = _slate(event) if isinstance(event, ImpressionEvent) else None
        if slate is not None and slates.setdefault(slate.impression_id, slate) is slate:
            by_name[slate.label.name].append(slate)
    for event in _events(reader, last, "interaction", found):
        if isinstance(event, InteractionEvent) and event.event_type in outcomes:
            _join(event, slates, found)
    found.slates = dict(by_name)
    return found


def _events(reader: EventReader, last: int, kind: str, found: LoggedExperiments) -> Iterator[Event]:
    after = 0
    while after < last and (page := reader.read(after, _PAGE)):
        after = page[-1].sequence
        for stored in page:
            if stored.record.kind == kind and stored.sequence <= last:
                yield from _readable(stored.record, found)


def _readable(record: Record, found: LoggedExperiments) -> Iterator[Event]:
    try:
        yield event_of(record)
    except msgspec.DecodeError:  # of which a validation error is one
        found.unreadable += 1


def _slate(event: ImpressionEvent) -> Slate | None:
    label = None if event.arm is None else Label.parse(event.arm)
    if label is None:
        return None
    shown = tuple(intern(str(item)) for item in event.shown)
    return Slate(event.event_id, intern(str(event.user_id)), event.timestamp, label, shown)


def _join(event: InteractionEvent, slates: dict[str, Slate], found: LoggedExperiments) -> None:
    found.outcomes += 1
    slate = None if event.impression_id is None else slates.get(event.impression_id)
    if slate is None:
        return
    item = intern(str(event.item_id))
    if item in slate.shown:
        slate.acted |= {item}
        found.joined += 1
    else:
        found.not_shown += 1
