"""Bodies of requests and batches of events: what is taken is what was sent, all else is refused by name."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, NoReturn

import msgspec

from recsys.errors import RecsysError
from serving.events.log import Stored
from serving.events.parsing import LONGEST_DETAIL, Window, check_events, event_of
from serving.events.rows import pack, unpack
from serving.http.batches import METARANK, OURS, Batch, Dialect, pieces
from serving.http.decoding import JSON_LINES_TYPES, JSON_TYPES, LARGE_BODY, decode_message, media_type
from serving.http.metarank import MetarankRequest, rank_request
from serving.messages import RankRequest, RecommendRequest, SimilarRequest
from serving.problems import CODES, LONGEST_PROBLEM, Refusal, problem_bytes

MESSAGES = (RankRequest, RecommendRequest, SimilarRequest, MetarankRequest)
TYPES = ("application/json", "application/x-ndjson")
NOW = 1_763_700_000.0
WINDOW = Window()
PADDING = b" " * LARGE_BODY
"""Means nothing in JSON, and sends a body on the way of large ones."""


def check(data: bytes) -> None:
    """A body, as every kind of message and of batch; its start as a content type too."""
    with suppress(Refusal):
        allowed = JSON_TYPES | JSON_LINES_TYPES
        assert media_type({b"content-type": data[:80]}, allowed) in allowed
    for kind in MESSAGES:
        _check_message(data, kind)
    for dialect in (OURS, METARANK):
        for media in TYPES:
            _check_batch(data, media, dialect)


def _check_message(body: bytes, kind: type[Any]) -> None:
    message = _decoded(body, kind)
    assert _decoded(body + PADDING, kind) == message, "the size of a body decides what is in it"
    if message is None:
        return
    assert decode_message(msgspec.json.encode(message), kind) == message
    if isinstance(message, MetarankRequest):
        try:
            translated = rank_request(message, explain=True)
        except Refusal as refusal:
            _check_refusal(refusal)
        else:
            assert decode_message(msgspec.json.encode(translated), RankRequest) == translated


def _decoded(body: bytes, kind: type[Any]) -> Any:
    """The message, None where it is refused."""
    try:
        return decode_message(body, kind)
    except Refusal as refusal:
        _check_refusal(refusal)
        return None


def _check_refusal(error: Refusal | RecsysError) -> None:
    refusal = error if isinstance(error, Refusal) else Refusal.of(error)
    assert refusal.code in CODES, refusal.code
    assert 400 <= refusal.status < 500
    document = problem_bytes(refusal)
    assert len(document) <= LONGEST_PROBLEM
    json.loads(document.decode(), parse_constant=_no_constant)


def _check_batch(body: bytes, media: str, dialect: Dialect) -> None:
    batch = _taken(body, media, dialect)
    if media in JSON_TYPES:
        _check_same(batch, _taken(body + PADDING, media, dialect))
    if batch is None:
        return
    places = sorted([*(place for place, _, _ in batch.good), *(each.index for each in batch.rejected)])
    assert len(set(places)) == len(places) == batch.size - batch.ignored
    assert all(0 <= place < batch.size for place in places)
    for each in batch.rejected:
        assert each.code in CODES
        assert len(each.detail) <= LONGEST_DETAIL
        msgspec.json.encode(each)
    for _, event, record in batch.good:
        assert -WINDOW.back_s <= event.timestamp - NOW <= WINDOW.ahead_s
        assert event_of(record) == event
        assert unpack(pack(7, record)) == Stored(7, record)
        again, rejected = check_events([json.loads(record.payload)], NOW)
        assert rejected == []
        assert again[0][2] == record, "the same event has another record"


def _check_same(small: Batch | None, large: Batch | None) -> None:
    """The same events are stored; of a large event less is read before it is rejected."""
    assert (small.good if small else []) == (large.good if large else []), "the size of a body counts"
    if small and large:
        assert {each.index for each in small.rejected} == {each.index for each in large.rejected}
        assert small.ignored == large.ignored


def _taken(body: bytes, media: str, dialect: Dialect) -> Batch | None:
    """The batch, None where it is refused."""
    batch = Batch()
    try:
        for values in pieces(body, media, dialect):
            batch.add(values, NOW, None)
    except (Refusal, RecsysError) as error:
        _check_refusal(error)
        return None
    return batch


def _no_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} in an answer")
