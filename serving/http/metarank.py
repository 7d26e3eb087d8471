"""Metarank's two shapes, so that its clients need little change: read into our messages, answers out of ours.

A session stands in for a user who is not named. Times are milliseconds, as numbers or texts, or ISO 8601 with
a zone. Fields that this engine makes nothing of are let through and forgotten.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from serving.messages import (
    MOST_CANDIDATES,
    MOST_EVENTS,
    Answer,
    Candidate,
    EventsAnswer,
    Id,
    ModelName,
    Name,
    Ranking,
    RankRequest,
    Rejected,
)
from serving.problems import Refusal

RELEVANCY = ("relevancy", "relevance")
TITLES = ("title", "name")
LAST_MOMENT = 253402300799.0

_MILLISECONDS = re.compile(r"[0-9]{1,15}")

Time = Annotated[str, Meta(max_length=40)] | Annotated[float, Meta(ge=0.0)]


class Field(Struct, frozen=True):
    """A named value."""

    name: Name
    value: Any = None


class Item(Struct, frozen=True):
    """A candidate; the field `relevancy` is the score that it came with."""

    id: Id
    fields: list[Field] = []
    relevancy: float | None = None


class MetarankRequest(Struct, frozen=True, kw_only=True):
    """Order these items for this user."""

    items: Annotated[list[Item], Meta(max_length=MOST_CANDIDATES)]
    id: Name | None = None
    user: Id | None = None
    session: Id | None = None
    timestamp: Time | None = None
    fields: list[Field] = []


class Feature(Answer, frozen=True, kw_only=True):
    """A value that moved a score."""

    name: str
    value: float | None


class MetarankItem(Answer, frozen=True, kw_only=True):
    """An item in its place."""

    item: Id
    score: float
    features: list[Feature] | UnsetType = UNSET


class MetarankAnswer(Answer, frozen=True, kw_only=True):
    """Items, best first; what Metarank does not know comes after what it does."""

    took: int
    items: list[MetarankItem]
    model: ModelName
    degraded: bool = False
    degraded_reason: str | None = None


class MetarankEvent(Struct, frozen=True, kw_only=True):
    """Any of Metarank's four events.

    Attributes:
        ranking: the ranking that an interaction belongs to.
        type: of an interaction.
        fields: of an item, its title, description and category are kept.
    """

    event: Literal["ranking", "interaction", "item", "user"]
    id: Name
    timestamp: Time
    user: Id | None = None
    session: Id | None = None
    item: Id | None = None
    items: Annotated[list[Item], Meta(max_length=MOST_CANDIDATES)] = []
    type: Name | None = None
    ranking: Name | None = None
    fields: list[Field] = []


MetarankEvents = Annotated[list[MetarankEvent], Meta(max_length=MOST_EVENTS)]


class MetarankFeedback(Answer, frozen=True, kw_only=True):
    """What became of a batch.

    Attributes:
        accepted: events on stable storage, those that were there already included.
        status: ok, or rejected where some were not taken.
        ignored: events about users, of whom nothing is kept.
        rejected: index and code of those that were not taken.
    """

    accepted: int
    status: str
    tookMillis: int  # noqa: N815 - Metarank's name
    updated: int
    ignored: int
    rejected: list[Rejected]


def rank_request(message: MetarankRequest, *, explain: bool) -> RankRequest:
    """The same request in our words, at the server's own moment.

    Raises:
        Refusal: `timestamp_out_of_range`.
    """
    if message.timestamp is not None:
        moment(message.timestamp)
    return RankRequest(
        user_id=message.user if message.user is not None else message.session,
        candidates=[Candidate(id=item.id, score=_relevancy(item)) for item in message.items],
        explain=explain,
    )


def metarank_answer(ranking: Ranking, took_ms: int) -> MetarankAnswer:
    """A ranking in Metarank's words."""
    items = [
        MetarankItem(
            item=item.id,
            score=item.score,
            features=UNSET
            if item.reasons is UNSET
            else [Feature(name=reason.feature, value=reason.value) for reason in item.reasons],
        )
        for item in ranking.items
    ]
    return MetarankAnswer(
        took=took_ms,
        items=items,
        model=ranking.model,
        degraded=ranking.degraded,
        degraded_reason=ranking.degraded_reason,
    )


def metarank_feedback(answer: EventsAnswer, ignored: int, took_ms: int) -> MetarankFeedback:
    """What became of a batch in Metarank's words."""
    return MetarankFeedback(
        accepted=answer.accepted + answer.duplicate,
        status="rejected" if answer.rejected else "ok",
        tookMillis=took_ms,
        updated=answer.accepted,
        ignored=ignored,
        rejected=answer.rejected,
    )


def event_document(event: MetarankEvent) -> dict[str, Any] | None:
    """The event as a client of ours would send it, None for one about a user.

    What is missing stays away, so that the check of our own events names it.

    Raises:
        Refusal: `timestamp_out_of_range`.
    """
    user = event.user if event.user is not None else event.session
    document: dict[str, Any] = {"event_id": event.id, "timestamp": moment(event.timestamp), "user_id": user}
    if event.event == "interaction":
        document |= {
            "kind": "interaction",
            "item_id": event.item,
            "event_type": event.type,
            "impression_id": event.ranking,
        }
    elif event.event == "ranking":
        document |= {"kind": "impression", "shown": [item.id for item in event.items]}
    elif event.event == "item":
        del document["user_id"]
        document |= {"kind": "item", "item_id": event.item, **_words(event.fields)}
    else:
        return None
    return {name: value for name, value in document.items() if value is not None}


def moment(time: str | float) -> float:
    """Epoch seconds of a Metarank time; raises Refusal `timestamp_out_of_range`."""
    seconds = float(time) / 1e3 if not isinstance(time, str) else _of_text(time)
    if not 0.0 <= seconds <= LAST_MOMENT:
        raise Refusal("timestamp_out_of_range", "milliseconds since 1970, or ISO 8601", ("timestamp",))
    return seconds


def _of_text(time: str) -> float:
    if _MILLISECONDS.fullmatch(time):
        return int(time) / 1e3
    try:
        parsed = datetime.fromisoformat(time)
    except ValueError:
        return -1.0
    return parsed.timestamp() if parsed.tzinfo else -1.0


def _relevancy(item: Item) -> float | None:
    values = [field.value for field in item.fields if field.name in RELEVANCY]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return item.relevancy if item.relevancy is not None or not numbers else numbers[0]


def _words(fields: list[Field]) -> dict[str, Any]:
    words: dict[str, Any] = {}
    for field in fields:
        value = field.value[0] if isinstance(field.value, list) and field.value else field.value
        if field.name in TITLES:
            words.setdefault("title", value)
        elif field.name in ("description", "category", "subcategory"):
            words[field.name] = value
    return words
