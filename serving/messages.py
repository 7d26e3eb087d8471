"""What goes over the wire: requests, answers and events, from which decoding and OpenAPI both come.

Ids come back as they came in. Moments are epoch seconds, UTC, in every message.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

MOST_CANDIDATES = 1000
MOST_ITEMS = 1000
MOST_EVENTS = 1000
LONGEST_ID = 256
LONGEST_TEXT = 4096
LONGEST_HISTORY = 200
OVERLOADED = "overloaded"
FAILING = "model_failing"
"""Reasons why less than the whole model answered: for want of time, or because it errs or dawdles."""

Text = Annotated[str, Meta(max_length=LONGEST_TEXT)]
Name = Annotated[str, Meta(min_length=1, max_length=LONGEST_ID)]
Number = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Id = Name | Number
Moment = Annotated[float, Meta(ge=0.0, le=253402300799.0, description="epoch seconds, UTC")]
Count = Annotated[int, Meta(ge=1, le=MOST_ITEMS)]


class Message(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """What a client sends: unknown fields are refused."""


class Answer(Struct, frozen=True, kw_only=True):
    """What the server sends."""


class Candidate(Message, frozen=True, kw_only=True):
    """An item to be ranked.

    Attributes:
        id: of the item.
        source: retrievers that proposed it, joined by "+", as the night publishes them; "" for none.
        score: of the retriever; decides the order where nothing better can be had.
    """

    id: Id
    source: Annotated[str, Meta(max_length=LONGEST_ID)] = ""
    score: float | None = None


class Interaction(Message, frozen=True, kw_only=True):
    """What the user did a moment ago and the log may not hold yet."""

    item_id: Id
    timestamp: Moment
    event_type: Name = "click"


class RankRequest(Message, frozen=True, kw_only=True):
    """Order these candidates for this user.

    Attributes:
        user_id: null for somebody unknown.
        candidates: items, plain ids or objects; duplicates collapse into the first.
        history: of the session, any order; it is read behind what the log holds, and not kept.
        k: how many to give back; null for all.
        explain: say which features moved the scores of the first 50 items.
        timestamp: the moment that counts; null for now.
    """

    user_id: Id | None = None
    candidates: Annotated[list[Id | Candidate], Meta(max_length=MOST_CANDIDATES)]
    history: Annotated[list[Interaction], Meta(max_length=LONGEST_HISTORY)] = []
    k: Count | None = None
    explain: bool = False
    timestamp: Moment | None = None


class RecommendRequest(Message, frozen=True, kw_only=True):
    """Find items for this user and order them.

    Attributes:
        user_id, history, k, explain, timestamp: as in a rank request.
        categories: items of these only; null for all.
        seen: whether items of the user's history may come.
        diversity: 0 for the best scores, towards 1 the less alike; null for what the version was made with.
    """

    user_id: Id | None = None
    history: Annotated[list[Interaction], Meta(max_length=LONGEST_HISTORY)] = []
    k: Count = 10
    categories: Annotated[list[Name], Meta(max_length=100)] | None = None
    seen: bool = False
    diversity: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    explain: bool = False
    timestamp: Moment | None = None


class SimilarRequest(Message, frozen=True, kw_only=True):
    """Find items like this one, by text or by who took both."""

    item_id: Id
    k: Count = 10
    by: Literal["text", "behaviour"] = "text"


class Reason(Answer, frozen=True, kw_only=True):
    """How much one feature moved a score."""

    feature: str
    value: float | None
    effect: float


class RankedItem(Answer, frozen=True, gc=False):
    """An item in its place, 1-based.

    Hundreds are made a request: by position, which costs a third, and the collector need not look at them.
    """

    id: Id
    score: float
    rank: int
    source: str = ""
    reasons: list[Reason] | UnsetType = UNSET


class ModelName(Answer, frozen=True, kw_only=True):
    """The version that answered; `alias` is null where a number was asked for."""

    name: str
    version: int
    alias: str | None = None


class Ranking(Answer, frozen=True, kw_only=True):
    """A list, best first.

    Attributes:
        rung: on what evidence it rests: personal, folded_in, content, category or popular.
        degraded: whether it was made with less than the whole model, or for want of knowledge.
        degraded_reason: which; null where not degraded.
        request_id: becomes the `event_id` of the impression, where this list is shown.
        arm: of a running experiment: goes into the impression as it is; null outside of one.
    """

    items: list[RankedItem]
    rung: str
    model: ModelName
    degraded: bool = False
    degraded_reason: str | None = None
    request_id: str = ""
    arm: str | None = None


class Similar(Answer, frozen=True, kw_only=True):
    """Items like one item, best first."""

    items: list[RankedItem]
    model: ModelName
    degraded: bool = False
    degraded_reason: str | None = None


class InteractionEvent(Message, frozen=True, kw_only=True):
    """Something that a user did with an item.

    Attributes:
        event_id: names this event for ever: the same id with another payload is refused.
        impression_id, position: of the slate where it was shown, where there was one.
        value: a rating or a price.
    """

    event_id: Name
    user_id: Id
    item_id: Id
    event_type: Name
    timestamp: Moment
    value: float | None = None
    impression_id: Name | None = None
    position: Annotated[int, Meta(ge=1, le=32767)] | None = None
    kind: Literal["interaction"] = "interaction"


class ImpressionEvent(Message, frozen=True, kw_only=True):
    """A slate that was shown.

    Attributes:
        shown: items from the first place on.
        propensity: probability of each being there, as `recommend` gave it.
        arm: of an experiment, as the answer named it (`experiment.Label`).
    """

    event_id: Name
    user_id: Id
    timestamp: Moment
    shown: Annotated[list[Id], Meta(min_length=1, max_length=MOST_ITEMS)]
    propensity: (
        Annotated[list[Annotated[float, Meta(gt=0.0, le=1.0)]], Meta(max_length=MOST_ITEMS)] | None
    ) = None
    arm: Name | None = None
    kind: Literal["impression"] = "impression"


class ItemEvent(Message, frozen=True, kw_only=True):
    """A new item, or other words for one that is known."""

    event_id: Name
    item_id: Id
    timestamp: Moment
    title: Text
    description: Text = ""
    category: Name | None = None
    subcategory: Name | None = None
    created_at: Moment | None = None
    kind: Literal["item"] = "item"


Event = InteractionEvent | ImpressionEvent | ItemEvent
KINDS: dict[str, type[InteractionEvent] | type[ImpressionEvent] | type[ItemEvent]] = {
    "interaction": InteractionEvent,
    "impression": ImpressionEvent,
    "item": ItemEvent,
}
"""Events by `kind`; one without is an interaction."""


class Rejected(Answer, frozen=True, kw_only=True):
    """An event that was not taken, by its place in the batch."""

    index: int
    code: str
    detail: str


class EventsAnswer(Answer, frozen=True, kw_only=True):
    """What became of a batch: accepted and duplicate both mean on stable storage."""

    accepted: int
    duplicate: int
    rejected: list[Rejected]


class Problem(Answer, frozen=True, kw_only=True):
    """RFC 9457: what went wrong, for people and machines."""

    type: str
    title: str
    status: int
    code: str
    detail: str = ""
    errors: list[dict[str, Any]] = []
    request_id: str = ""
