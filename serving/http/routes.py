"""The table of routes: what the server answers to, what OpenAPI says of it, and what the tests go through.

Which function answers is found by `name`; nothing here calls anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.health import Health, Readiness, Swap, Version
from serving.http.decoding import JSON_LINES_TYPES, JSON_TYPES
from serving.http.door import ANY, OPEN
from serving.http.examples import (
    EVENTS,
    ITEMS,
    METARANK_ANSWER,
    METARANK_EVENT,
    METARANK_REQUEST,
    MODEL,
    RANKING,
)
from serving.http.metarank import MetarankAnswer, MetarankEvent, MetarankFeedback, MetarankRequest
from serving.lifecycle.shadow import ShadowFigures
from serving.messages import (
    EventsAnswer,
    ImpressionEvent,
    InteractionEvent,
    ItemEvent,
    Ranking,
    RankRequest,
    RecommendRequest,
    Similar,
    SimilarRequest,
)

_BODY = ("invalid_json", "body_too_large", "unsupported_media_type", "invalid_value")
_RANK = (*_BODY, "overloaded")
_STORE = (*_BODY, "events_blocked", "storage_full")


@dataclass(frozen=True)
class Route:
    """One thing that the server answers to.

    Attributes:
        name: of the function that answers.
        method: GET or POST; what answers to GET answers to HEAD.
        path: exact, or with one parameter in braces as its last step.
        scope: of keys that may use it; `open` for everybody, `any` for every key.
        summary: one line.
        requests: messages that the body may hold; empty where none is read.
        batch: whether the body is one of them or a list.
        answer: message of a 200; None where it is no JSON.
        media_types: of the body.
        answer_type: of a 200.
        example, answer_example: of both; plain JSON.
        problems: codes beside those that every route may give.
        query: parameters of the URL, each true or false.
    """

    name: str
    method: str
    path: str
    scope: str
    summary: str
    requests: Sequence[type] = ()
    batch: bool = False
    answer: type | None = None
    media_types: frozenset[str] = JSON_TYPES
    answer_type: str = "application/json"
    example: Any = None
    answer_example: Any = None
    problems: Sequence[str] = ()
    query: Sequence[str] = ()

    @property
    def parameter(self) -> str | None:
        """Name of the path's parameter."""
        return self.path.partition("{")[2].rstrip("}") or None


PUBLIC: tuple[Route, ...] = (
    Route(
        "rank",
        "POST",
        "/v1/rank",
        "rank",
        "Order these candidates for this user",
        requests=(RankRequest,),
        answer=Ranking,
        example={"user_id": "u1", "candidates": ["i7", {"id": "i42", "source": "als+popular"}], "k": 2},
        answer_example=RANKING,
        problems=("too_many_candidates", *_RANK),
    ),
    Route(
        "recommend",
        "POST",
        "/v1/recommend",
        "rank",
        "Find items for this user and order them",
        requests=(RecommendRequest,),
        answer=Ranking,
        example={"user_id": "u1", "k": 2, "categories": ["kitchen"], "diversity": 0.3},
        answer_example=RANKING,
        problems=_RANK,
    ),
    Route(
        "similar",
        "POST",
        "/v1/similar",
        "rank",
        "Find items like this one",
        requests=(SimilarRequest,),
        answer=Similar,
        example={"item_id": "i42", "k": 2, "by": "text"},
        answer_example={"items": ITEMS, "model": MODEL, "degraded": False, "degraded_reason": None},
        problems=("unknown_item", *_RANK),
    ),
    Route(
        "events",
        "POST",
        "/v1/events",
        "events",
        "Store what happened: a JSON array, one object, or JSON lines; durable before the answer",
        requests=(InteractionEvent, ImpressionEvent, ItemEvent),
        batch=True,
        answer=EventsAnswer,
        media_types=JSON_TYPES | JSON_LINES_TYPES,
        example=EVENTS,
        answer_example={"accepted": 2, "duplicate": 1, "rejected": []},
        problems=("all_rejected", "too_many_events", *_STORE),
    ),
    Route(
        "metarank_rank",
        "POST",
        "/rank/{model}",
        "rank",
        "Metarank's ranking call; the model is the served one by its name or its alias",
        requests=(MetarankRequest,),
        answer=MetarankAnswer,
        example=METARANK_REQUEST,
        answer_example=METARANK_ANSWER,
        problems=("unknown_model", "too_many_candidates", *_RANK),
        query=("explain",),
    ),
    Route(
        "metarank_feedback",
        "POST",
        "/feedback",
        "events",
        "Metarank's events: one, a JSON array, or JSON lines",
        requests=(MetarankEvent,),
        batch=True,
        answer=MetarankFeedback,
        media_types=JSON_TYPES | JSON_LINES_TYPES,
        example=METARANK_EVENT,
        answer_example={
            "accepted": 1,
            "status": "ok",
            "tookMillis": 4,
            "updated": 1,
            "ignored": 0,
            "rejected": [],
        },
        problems=("all_rejected", "too_many_events", *_STORE),
    ),
    Route(
        "healthz",
        "GET",
        "/healthz",
        OPEN,
        "Whether the process lives",
        answer=Health,
        answer_example={"status": "ok"},
    ),
    Route(
        "readyz",
        "GET",
        "/readyz",
        OPEN,
        "Whether requests may be sent here",
        answer=Readiness,
        answer_example={
            "ready": True,
            "model": MODEL,
            "events": "ok",
            "durability": "fsync",
            "degraded_reason": None,
        },
        problems=("not_ready", "draining"),
    ),
    Route(
        "version",
        "GET",
        "/version",
        ANY,
        "Which program and which model",
        answer=Version,
        answer_example={
            "program": "recsys 0.1.0",
            "model": MODEL,
            "digest": "0" * 64,
            "as_of": 1763700000.0,
        },
    ),
    Route("metrics", "GET", "/metrics", "metrics", "Counters for Prometheus", answer_type="text/plain"),
    Route("openapi", "GET", "/openapi.json", ANY, "This document", answer_type="application/json"),
)

ADMIN: tuple[Route, ...] = (
    Route(
        "reload",
        "POST",
        "/admin/reload",
        "admin",
        "Take the version that the alias names now",
        answer=Swap,
        answer_example={"model": MODEL, "previous": MODEL | {"version": 6}},
        problems=("reload_running", "digest_mismatch", "golden_mismatch", "registry_unavailable"),
    ),
    Route(
        "rollback",
        "POST",
        "/admin/rollback",
        "admin",
        "Go back to the version before",
        answer=Swap,
        answer_example={"model": MODEL | {"version": 6}, "previous": MODEL},
        problems=("nothing_to_roll_back",),
    ),
    Route(
        "shadow",
        "GET",
        "/admin/shadow",
        "admin",
        "How the version that is tried beside would have answered",
        answer=ShadowFigures,
        answer_example={
            "requests": 512,
            "dropped": 3,
            "errors": 0,
            "first_changed": 0.21,
            "rank_correlation": 0.93,
            "largest_difference": 0.4,
        },
        problems=("no_shadow",),
    ),
)


class Table:
    """Routes by path and method."""

    def __init__(self, routes: Sequence[Route]) -> None:
        """Take the routes."""
        self._exact: dict[str, dict[str, Route]] = {}
        self._open: dict[str, dict[str, Route]] = {}
        for route in routes:
            paths = self._open if route.parameter else self._exact
            methods = paths.setdefault(route.path.partition("{")[0], {})
            methods[route.method] = route
            if route.method == "GET":
                methods["HEAD"] = route

    def find(self, path: str) -> tuple[Mapping[str, Route], str]:
        """Routes of a path by method, and the value of its parameter; none for an unknown path."""
        methods = self._exact.get(path)
        if methods is not None:
            return methods, ""
        start, slash, value = path.rpartition("/")
        return (self._open.get(start + slash, {}), value) if value else ({}, "")
