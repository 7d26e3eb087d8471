"""Requests that a model answers before anybody waits for it, so that its first answers are not slow ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from recsys.bundle import Bundle
from serving.engine.answering import rank
from serving.engine.live_model import LiveModel
from serving.messages import MOST_CANDIDATES, Candidate, RankRequest

MOST_REQUESTS = 64


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
    """Answer them all; for a worker thread that owns the model. Raises whatever a request raises."""
    for request in requests:
        if request.candidates:
            rank(model, request, now)
