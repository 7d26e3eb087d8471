"""From the body of a batch to checked events, a piece at a time, in our own words or in Metarank's.

However a body is made, no piece takes long: large ones are cut up before they are parsed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from serving.events.log import Record
from serving.events.parsing import Window, check_events, raw_events
from serving.http.decoding import JSON_LINES_TYPES, LARGE_BODY, fit, parse, try_schema, unparsable
from serving.http.metarank import MetarankEvent, event_document
from serving.messages import KINDS, MOST_EVENTS, Event, InteractionEvent, Rejected
from serving.problems import Refusal

PIECE = 25
LONGEST_WHY = 200

Checked = tuple[int, Event, Record]


class Skipped(NamedTuple):
    """Stands in the place of an event that is not stored.

    Attributes:
        code: of its rejection, None for one that is ignored.
    """

    code: str | None = None
    why: str = ""


class Dialect(NamedTuple):
    """How clients write events.

    Attributes:
        schema: what a large event must fit before it is parsed.
        translate: a decoded event as one of ours, or Skipped.
    """

    schema: Callable[[bytes], type[Any]]
    translate: Callable[[object], object]


@dataclass
class Batch:
    """What is known of a batch so far.

    Attributes:
        good: what can be stored, with places in the batch.
        rejected: what cannot.
        ignored: events of which nothing is kept.
        size: events that were looked at.
    """

    good: list[Checked] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    ignored: int = 0
    size: int = 0

    def add(self, values: Sequence[object], now: float, window: Window | None = None) -> None:
        """Check the next events; `now` in epoch seconds."""
        places, documents = [], []
        for place, value in enumerate(values, self.size):
            if not isinstance(value, Skipped):
                places.append(place)
                documents.append(value)
            elif value.code is None:
                self.ignored += 1
            else:
                self.rejected.append(Rejected(index=place, code=value.code, detail=_short(value.why)))
        good, rejected = check_events(documents, now, window)
        self.good += [(places[number], event, record) for number, event, record in good]
        self.rejected += [replace(each, index=places[each.index]) for each in rejected]
        self.size += len(values)


def pieces(body: bytes, media_type: str, dialect: Dialect) -> Iterator[list[object]]:
    """The events of a body, at most `PIECE` at a time; a bad body may raise behind good pieces.

    Raises:
        Refusal, RecsysError: of `parse` and `raw_events`; `too_many_events`.
    """
    if media_type in JSON_LINES_TYPES:
        lines = [line for line in body.split(b"\n") if line.strip()]
        for part in _cut(lines):
            yield [dialect.translate(value) for value in raw_events(b"\n".join(part), media_type)]
    elif len(body) >= LARGE_BODY:
        for large in _cut(_split(body)):
            yield [_large(bytes(event), media_type, dialect) for event in large]
    else:
        for values in _cut(_decoded(body, media_type)):
            yield [dialect.translate(value) for value in values]


def _cut(events: Sequence[Any]) -> Iterator[Sequence[Any]]:
    if len(events) > MOST_EVENTS:
        raise Refusal("too_many_events", f"{len(events)} events, at most {MOST_EVENTS} at a time")
    for start in range(0, len(events), PIECE):
        yield events[start : start + PIECE]


def _split(body: bytes) -> Sequence[msgspec.Raw | bytes]:
    """The events of a large body as they came.

    Raises:
        Refusal: for what is no JSON.
    """
    try:
        return _SPLITTER.decode(body)
    except msgspec.ValidationError:
        return [body]  # one object
    except (msgspec.DecodeError, RecursionError) as error:
        mended = _HALVES.sub(_without_half, body)
        if mended == body:
            raise unparsable(body, error) from None
    return _split(mended)


def _without_half(found: re.Match[bytes]) -> bytes:
    """Half a character as a NUL, which spoils its event as well, and the others not at all."""
    return b"\\u0000" if found[1] else found[0]


def _large(raw: bytes, media_type: str, dialect: Dialect) -> object:
    if len(raw) >= LARGE_BODY:
        try:
            try_schema(raw, dialect.schema(raw))
        except Refusal as refusal:
            if refusal.status != 422:
                raise
            return Skipped("invalid_event", refusal.detail)
    values = _decoded(raw, media_type)
    return dialect.translate(values if raw.lstrip().startswith(b"[") else values[0])


def _decoded(body: bytes, media_type: str) -> list[Any]:
    """The decoded events: quickly where nothing is odd, and else so that only the odd ones are refused."""
    try:
        document = parse(body)
    except Refusal as refusal:
        if refusal.status != 422:
            raise
        return raw_events(body, media_type)
    return document if isinstance(document, list) else [document]


class _Kind(msgspec.Struct):
    kind: Any = "interaction"


_KIND = msgspec.json.Decoder(_Kind)
_SPLITTER = msgspec.json.Decoder(list[msgspec.Raw])
_HALVES = re.compile(
    rb"\\\\"  # a backslash, so that what follows it is no escape
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


def _our_schema(raw: bytes) -> type[Any]:
    try:
        return KINDS.get(str(_KIND.decode(raw).kind), InteractionEvent)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return InteractionEvent  # against which the same is found again, and told


def _from_metarank(value: object) -> object:
    try:
        document = event_document(fit(value, MetarankEvent))
    except Refusal as refusal:
        timely = refusal.code != "timestamp_out_of_range"
        return Skipped("invalid_event" if timely else refusal.code, refusal.detail)
    except UnicodeEncodeError:
        return Skipped("invalid_event", "the name of a field holds half a character")
    return Skipped() if document is None else document


def _short(why: str) -> str:
    return why[:LONGEST_WHY].encode("utf-8", "replace").decode()


OURS = Dialect(_our_schema, lambda value: value)
METARANK = Dialect(lambda raw: MetarankEvent, _from_metarank)
