"""Requests that a model answers before anybody waits for it, so that its first answers are not slow ones.

What is asked for the first time can take seconds: kernels are compiled or read, and explanations lay the
trees out once more. All of that would happen in the loop's thread, and hold everybody up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from recsys.bundle import Bundle
from serving.engine.answering import rank, recommend, similar
from serving.engine.live_model import Level, LiveModel
from serving.messages import (
    MOST_CANDIDATES,
    Candidate,
    ImpressionEvent,
    InteractionEvent,
    ItemEvent,
    RankRequest,
    RecommendRequest,
    SimilarRequest,
)

MOST_REQUESTS = 64

_UNUSED_ID = 2**62


class RecentRequests:
    """The last few rank requests, without the moments they named."""

    def __init__(self) -> None:
        """Start without any."""
        self._requests: deque[RankRequest] = deque(maxlen=MOST_REQUESTS)

    def note(self, request: RankRequest) -> None:
        """Remember a request."""
        self._requests.append(request)

    def list(self) -> list[RankRequest]:
        """All of them, oldest first; of now, and without explanations."""
        return [replace(request, timestamp=None, explain=False) for request in self._requests]


def golden_requests(bundle: Bundle) -> list[RankRequest]:
    """The bundle's own golden requests: what there is before anybody asked anything."""
    golden = bundle.golden()
    if golden is None:
        return []
    found: dict[str, RankRequest] = {}
    rows: Iterable[tuple[str, str | int, str | int, str]]
    rows = zip(golden.request, golden.user_id, golden.item_id, golden.source, strict=True)
    for number, user, item, source in rows:
        request = found.setdefault(number, RankRequest(user_id=user, candidates=[]))
        if len(request.candidates) < MOST_CANDIDATES:
            request.candidates.append(Candidate(id=item, source=source))
    return list(found.values())


def warm_up(model: LiveModel, requests: Sequence[RankRequest], now: float) -> None:
    """Answer them all; for a worker thread that owns the model. Raises whatever a request raises.

    One of them is also asked for in every other way. That is as of the model's own moment, from which the
    days are counted on when it reads the log: its state stays as it is.
    """
    model.state.get_ready()
    asked = [request for request in requests if request.candidates]
    for request in asked:
        rank(model, request, now)
    if asked:
        _ask_for_everything(model, asked[0], model.as_of)


def take_in_events(model: LiveModel, requests: Sequence[RankRequest]) -> None:
    """Show the model an event of each kind and answer again: for a model that is thrown away afterwards."""
    known = [(request, _item(model, request)) for request in requests if request.user_id is not None]
    request, item = next((pair for pair in known if pair[1] is not None), (None, None))
    if request is None or item is None or request.user_id is None:
        return
    user, moment, fresh = request.user_id, model.as_of, _UNUSED_ID
    for event in (
        ItemEvent(event_id="1", item_id=fresh, timestamp=moment, title="a word"),
        ImpressionEvent(event_id="2", user_id=user, timestamp=moment, shown=[item]),
        InteractionEvent(event_id="3", user_id=user, item_id=item, event_type="click", timestamp=moment),
        InteractionEvent(event_id="4", user_id=user, item_id=fresh, event_type="click", timestamp=moment),
    ):
        model.apply(event, model.sequence + 1)
    for row, text in model.texts_to_embed().items():
        model.embedded(row, text, model.encoder.encode([text])[0])
    rank(model, request, moment)
    _ask_for_everything(model, request, moment)


def _ask_for_everything(model: LiveModel, request: RankRequest, moment: float) -> None:
    for level in Level:
        rank(model, request, moment, level)
    rank(model, replace(request, explain=True), moment)
    for diversity in (None, 0.5):
        recommend(model, RecommendRequest(user_id=request.user_id, diversity=diversity), moment)
    item = _item(model, request)
    if item is not None:
        similar(model, SimilarRequest(item_id=item, by="text"))
        similar(model, SimilarRequest(item_id=item, by="behaviour"))


def _item(model: LiveModel, request: RankRequest) -> str | int | None:
    """A candidate that the model knows."""
    ids = [each.id if isinstance(each, Candidate) else each for each in request.candidates]
    return next((each for each in ids if model.items.find(each) >= 0), None)
