"""What each route does: from a call to a reply. Models, logs and registries come in; nothing is made here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from recsys.bundle import program_version
from serving.engine.answering import rank, recommend, similar
from serving.engine.live_model import Level, LiveModel
from serving.experiments.answer import answer_in
from serving.experiments.experiment import Arm
from serving.health import Health, Readiness, Version
from serving.http.app import Answerer, Call, Reply
from serving.http.decoding import JSON_LINES_TYPES, JSON_TYPES, decode_message, media_type
from serving.http.metarank import MetarankRequest, metarank_answer, metarank_feedback, rank_request
from serving.http.services import Services, Side
from serving.messages import (
    OVERLOADED,
    EventsAnswer,
    Ranking,
    RankRequest,
    RecommendRequest,
    SimilarRequest,
)
from serving.meters import MEDIA_TYPE
from serving.problems import Refusal

ListRequest = RankRequest | RecommendRequest
T = TypeVar("T")

_ENCODER = msgspec.json.Encoder()


class PublicHandlers:
    """Answers the public routes."""

    def __init__(self, services: Services) -> None:
        """Take what to work with."""
        self._services = services

    @property
    def by_name(self) -> Mapping[str, Answerer]:
        """The functions by the names of their routes."""
        return {
            "rank": self.rank,
            "recommend": self.recommend,
            "similar": self.similar,
            "events": self.events,
            "metarank_rank": self.metarank_rank,
            "metarank_feedback": self.metarank_feedback,
            "healthz": self.healthz,
            "readyz": self.readyz,
            "version": self.version,
            "metrics": self.metrics,
            "openapi": self.openapi,
        }

    async def rank(self, call: Call) -> Reply:
        """Order candidates."""
        return await self._in_turn(call, RankRequest, lambda request: self._list(call, request))

    async def recommend(self, call: Call) -> Reply:
        """Find items and order them."""
        return await self._in_turn(call, RecommendRequest, lambda request: self._list(call, request))

    async def similar(self, call: Call) -> Reply:
        """Find items like one."""
        return await self._in_turn(call, SimilarRequest, lambda request: similar(self._model(), request))

    async def metarank_rank(self, call: Call) -> Reply:
        """Order items as Metarank does; in no experiment, for its answer has no place for a label."""
        name = self._model().name
        if call.parameter not in (name.name, name.alias):
            raise Refusal("unknown_model", "the path ends in the name or the alias of what is served")

        def work(request: MetarankRequest) -> Any:
            asked = rank_request(request, explain=_is_asked(call.query, b"explain"))
            ranking = self._of_side(call, asked, self._services.main)
            return metarank_answer(ranking, round((perf_counter() - call.since) * 1e3))

        return await self._in_turn(call, MetarankRequest, work)

    async def events(self, call: Call) -> Reply:
        """Store events."""
        kind = media_type(call.headers, JSON_TYPES | JSON_LINES_TYPES)
        answer = await self._services.intake.take(await call.read(), kind)
        self._services.meters.events(answer)
        _refuse_if_all_bad(answer)
        return reply(answer)

    async def metarank_feedback(self, call: Call) -> Reply:
        """Store Metarank's events."""
        kind = media_type(call.headers, JSON_TYPES | JSON_LINES_TYPES)
        answer, ignored = await self._services.intake.take_metarank(await call.read(), kind)
        self._services.meters.events(answer)
        if not ignored:
            _refuse_if_all_bad(answer)
        took_ms = round((perf_counter() - call.since) * 1e3)
        return reply(metarank_feedback(answer, ignored, took_ms))

    async def healthz(self, call: Call) -> Reply:
        """Say that the loop turns."""
        return reply(Health())

    async def readyz(self, call: Call) -> Reply:
        """Say whether requests may come."""
        if self._services.phase.draining:
            raise Refusal("draining")
        slot, intake = self._services.main.slot, self._services.intake
        return reply(
            Readiness(
                ready=True,
                model=self._model().name,
                events=intake.state,
                durability=intake.durability,
                degraded_reason=slot.degraded_reason,
            )
        )

    async def version(self, call: Call) -> Reply:
        """Say which program and model this is."""
        model = self._services.main.slot.current
        return reply(
            Version(
                program=program_version(),
                model=model.name if model else None,
                digest=model.digest if model else None,
                as_of=model.as_of if model else None,
            )
        )

    async def metrics(self, call: Call) -> Reply:
        """Give the counters."""
        self._services.meters.waiting(len(self._services.turns))
        return Reply(self._services.meters.exposition(), headers=[(b"content-type", MEDIA_TYPE)])

    async def openapi(self, call: Call) -> Reply:
        """Give the document."""
        return Reply(self._services.openapi)

    def _model(self) -> LiveModel:
        return _model_of(self._services.main)

    async def _in_turn(self, call: Call, kind: type[T], work: Callable[[T], Any]) -> Reply:
        """Read, wait for a turn, and do the work in one go, so that one version answers the whole of it."""
        media_type(call.headers)
        body = await call.read()

        def run() -> Reply:
            self._services.main.ladder.first(perf_counter() - call.since)
            return reply(work(decode_message(body, kind)))

        return await self._services.turns.run(run, len(body))

    def _list(self, call: Call, request: ListRequest) -> Ranking:
        """The list that a request gets, by its assignment where an experiment runs."""
        main, challenge = self._services.main, self._services.challenge
        if challenge is None or challenge.side.slot.current is None:
            return self._of_side(call, request, main)
        sides = {Arm.CONTROL: main, Arm.TREATMENT: challenge.side}
        return answer_in(
            challenge.experiment,
            request.user_id,
            call.request_id,
            request.k,
            lambda arm: self._of_side(call, request, sides[arm]),
        )

    def _of_side(self, call: Call, request: ListRequest, side: Side) -> Ranking:
        model, now = _model_of(side), time.time()

        def ask(level: Level) -> Ranking:
            if isinstance(request, RankRequest):
                return rank(model, request, now, level)
            return recommend(model, request, now, level)

        begin = perf_counter()
        ranking = side.ladder.answer(ask, begin - call.since)
        seconds = perf_counter() - begin
        if ranking.degraded_reason is not None:
            self._services.meters.degraded(ranking.degraded_reason)
        if ranking.degraded_reason != OVERLOADED:
            side.observe(request if isinstance(request, RankRequest) else None, ranking, now, seconds)
        return replace(ranking, request_id=call.request_id)


def _model_of(side: Side) -> LiveModel:
    model = side.slot.current
    if model is None:
        raise Refusal("not_ready")
    return model


def reply(answer: Any) -> Reply:
    """A message as JSON."""
    return Reply(_ENCODER.encode(answer))


def _is_asked(query: bytes, name: bytes) -> bool:
    return name + b"=true" in query.split(b"&")


def _refuse_if_all_bad(answer: EventsAnswer) -> None:
    if answer.rejected and not answer.accepted + answer.duplicate:
        raise Refusal("all_rejected", f"{len(answer.rejected)} events", rejected=answer.rejected)
