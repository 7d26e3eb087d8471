"""From the body of a request to records for the log: each event is taken or rejected by itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from recsys.errors import RecsysError
from recsys.limits import MAX_ID_BYTES
from serving.events.log import Record
from serving.messages import (
    KINDS,
    MOST_EVENTS,
    Event,
    ImpressionEvent,
    InteractionEvent,
    Rejected,
)

LONGEST_DETAIL = 200
MOST_DEPTH = 32
JSON_LINES = frozenset({"application/x-ndjson", "application/jsonl", "application/x-jsonlines"})

_LARGEST_VALUE = 3.4e38
_SMALLEST_PROPENSITY = 1.2e-38
"""The models keep both in 32 bits."""

_IDS = frozenset({"event_id", "user_id", "item_id", "impression_id", "shown"})
_LIMITED = _IDS | {"event_type"}
"""What the dataset layout takes up to 512 bytes of."""

_ENCODER = msgspec.json.Encoder(order="sorted")


@dataclass(frozen=True)
class Window:
    """How far from now an event may have happened, in seconds."""

    back_s: float = 30 * 86400.0
    ahead_s: float = 300.0


@dataclass(frozen=True)
class Unreadable:
    """A line that is not JSON; stands in the place of its event."""

    why: str


class _EventError(Exception):
    """An event that is rejected."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail


def raw_events(body: bytes, content_type: str) -> list[object]:
    """The decoded events of a body, in order; nothing is known of them yet.

    Args:
        body: a JSON array, one JSON object, or JSON lines.
        content_type: JSON lines where it says so (`JSON_LINES`), whatever parameters it has.

    Returns:
        Decoded values; `Unreadable` for each line that cannot be decoded. Empty lines are left out.

    Raises:
        RecsysError: `invalid_json`, `invalid_utf8`, `duplicate_key` or `too_deep` (400) for what is not JSON
            lines; `too_many_events` (413).
    """
    if content_type.split(";")[0].strip().lower() in JSON_LINES:
        lines = [line for line in body.split(b"\n") if line.strip()]
        _limit(len(lines))
        return [_line(line) for line in lines]
    document = _decode(body)
    events: list[object] = document if isinstance(document, list) else [document]
    _limit(len(events))
    return events


def check_events(
    raw: list[object], now: float, window: Window | None = None
) -> tuple[list[tuple[int, Event, Record]], list[Rejected]]:
    """Tell the events that can be stored from those that cannot.

    Args:
        raw: what `raw_events` gave.
        now: epoch seconds, UTC; becomes `ingest_ts`.
        window: moments that are taken; `Window()` by default.

    Returns:
        The good ones with their places in `raw`, and a rejection for each of the others, in order of place.
        Codes: `unknown_kind`, `timestamp_out_of_range`, `invalid_id` (a NUL, half a character or over 512
        bytes), `invalid_event` (everything else).
    """
    window = window or Window()
    good, rejected = [], []
    for place, value in enumerate(raw):
        try:
            event = _event(value, now, window)
            good.append((place, event, _checked_record(event, now)))
        except _EventError as wrong:
            rejected.append(Rejected(index=place, code=wrong.code, detail=_short(wrong.detail)))
    return good, rejected


def record_of(event: Event, now: float) -> Record:
    """The event as the log keeps it: equal events give equal payloads, however they were spelt."""
    payload = _ENCODER.encode(event)
    digest = hashlib.sha256(payload).digest()
    return Record(event.event_id, event.kind, digest, event.timestamp, now, payload)


def event_of(record: Record) -> Event:
    """Inverse of `record_of`; raises msgspec.ValidationError for a record of something else."""
    return msgspec.json.decode(record.payload, type=KINDS[record.kind])


def readable_event(record: Record) -> Event | None:
    """`event_of`, None for a record that this program cannot read: another one may have written it."""
    try:
        return event_of(record)
    except (KeyError, msgspec.MsgspecError):
        return None


def _limit(events: int) -> None:
    if events > MOST_EVENTS:
        raise RecsysError("too_many_events", f"{events} events, at most {MOST_EVENTS} at a time")


def _line(raw: bytes) -> object:
    try:
        return _decode(raw)
    except RecsysError as error:
        return Unreadable(f"{error.code}: {error.what}")


def _decode(raw: bytes) -> object:
    """Strict JSON, but for numbers beyond 64 bits and halves of characters: those spoil only their event."""
    try:
        document = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise RecsysError("invalid_utf8", f"at byte {error.start}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise RecsysError("invalid_json", str(error)[:LONGEST_DETAIL]) from None
    for depth, _ in enumerate(_levels(document), 1):
        if depth > MOST_DEPTH:
            raise _too_deep()
    return document


def _levels(document: Any) -> Iterator[list[Any]]:
    """The objects and arrays of a document, level by level."""
    level = [document]
    while level := [value for value in level if isinstance(value, dict | list)]:
        yield level
        level = [inner for value in level for inner in _inside(value)]


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise RecsysError("duplicate_key", "a key stands twice in one object")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _too_deep() -> RecsysError:
    return RecsysError("too_deep", f"at most {MOST_DEPTH} levels")


def _event(value: object, now: float, window: Window) -> Event:
    if isinstance(value, Unreadable):
        raise _EventError("invalid_json", value.why)
    if not isinstance(value, dict):
        raise _EventError("invalid_event", "an event is a JSON object")
    kind = value.get("kind", "interaction")
    if not isinstance(kind, str) or kind not in KINDS:
        raise _EventError("unknown_kind", f"kind: one of {', '.join(KINDS)}")
    _check_moment(value.get("timestamp"), now, window)
    try:
        event: Event = msgspec.convert(value, KINDS[kind], strict=True)
    except msgspec.ValidationError as error:
        raise _EventError("invalid_event", str(error)) from None
    except UnicodeEncodeError:
        raise _EventError("invalid_event", "the name of a field holds half a character") from None
    _check_numbers(event)
    return event


def _check_moment(moment: object, now: float, window: Window) -> None:
    """Refuse a number out of the window; what is no number is refused by the schema."""
    if isinstance(moment, bool) or not isinstance(moment, int | float):
        return
    if not now - window.back_s <= moment <= now + window.ahead_s:
        raise _EventError(
            "timestamp_out_of_range",
            f"timestamp: from {window.back_s:g} s before now to {window.ahead_s:g} s after, "
            "in seconds since 1970-01-01 UTC",
        )


def _check_numbers(event: Event) -> None:
    if isinstance(event, InteractionEvent):
        if event.value is not None and not abs(event.value) <= _LARGEST_VALUE:
            raise _EventError(
                "invalid_event", f"value: a number from -{_LARGEST_VALUE:g} to {_LARGEST_VALUE:g}"
            )
    elif isinstance(event, ImpressionEvent) and event.propensity is not None:
        if len(event.propensity) != len(event.shown):
            raise _EventError("invalid_event", "propensity: as many numbers as there are shown items")
        if min(event.propensity) < _SMALLEST_PROPENSITY:
            raise _EventError("invalid_event", f"propensity: numbers from {_SMALLEST_PROPENSITY:g} to 1")


def _checked_record(event: Event, now: float) -> Record:
    """The record, once its texts are known to be whole; plain ASCII without NUL needs no second look."""
    try:
        record = record_of(event, now)
    except UnicodeEncodeError:
        _check_texts(event)
        raise
    if not record.payload.isascii() or b"\\u0000" in record.payload:
        _check_texts(event)
    return record


def _check_texts(event: Event) -> None:
    for name, value in msgspec.structs.asdict(event).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                _check_text(name, text)


def _check_text(name: str, text: str) -> None:
    code = "invalid_id" if name in _IDS else "invalid_event"
    if "\0" in text or any("\ud800" <= sign <= "\udfff" for sign in text):
        raise _EventError(code, f"{name}: NUL and halves of characters are not allowed")
    if name in _LIMITED and len(text.encode()) > MAX_ID_BYTES:
        raise _EventError(code, f"{name}: at most {MAX_ID_BYTES} bytes of UTF-8")


def _short(detail: str) -> str:
    return detail[:LONGEST_DETAIL].encode("utf-8", "replace").decode()
