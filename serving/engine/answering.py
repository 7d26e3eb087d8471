"""Lists of one live model: rank what is given, find what is not, tell what is like an item.

A list rests on what the state knew at its moment; candidates keep their ids as they came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np

from features.reading import Reading
from recsys.cold_start import RUNGS
from recsys.errors import EXIT_NO_INPUT, RecsysError
from recsys.events import Bool, Float32, Float64, Int32, Int64
from recsys.requests import HistoryBatch, Requests, source_mask, source_names
from recsys.retrieval import Seen
from recsys.retrieval.sources import popular_scores
from serving.engine.live_model import Level, LiveModel
from serving.messages import (
    Candidate,
    Interaction,
    RankedItem,
    Ranking,
    RankRequest,
    Reason,
    RecommendRequest,
    Similar,
    SimilarRequest,
)

REASONS = 5
MOST_EXPLAINED = 50
"""Items of a list that get reasons, the first ones: a long list must not hold everybody up."""
AHEAD_S = 300.0
"""A request may name a moment so far ahead of the clock."""

_EVER = np.iinfo(np.int64).max
_NO_ROWS: Int32 = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Scored:
    """One request's candidates with what was found out about them; `matrix` only of the full model."""

    requests: Requests
    scores: Float64
    rung: int
    matrix: Float32 | None


@dataclass(frozen=True)
class Slate:
    """The candidates of a request, each id once, where it stood first.

    Attributes:
        ids: as they came.
        hint: (rows,) the retriever's score, 0 for none.
        source: (rows,) bit mask of the retrievers.
        names: of the retrievers; empty where no candidate names any.
    """

    ids: list[int | str]
    hint: Float64
    source: Int32
    names: list[str]

    @classmethod
    def of(cls, candidates: Sequence[int | str | Candidate]) -> Slate:
        """Plain ids and objects, mixed as they may be."""
        if Candidate not in set(map(type, candidates)):
            ids: list[int | str] = list(candidates)  # type: ignore[arg-type]
            if len(set(ids)) < len(ids):
                ids = list(dict.fromkeys(ids))
            return cls(ids, np.zeros(len(ids)), np.zeros(len(ids), np.int32), [])
        found: dict[int | str, Candidate] = {}
        for each in candidates:
            candidate = each if isinstance(each, Candidate) else Candidate(id=each)
            found.setdefault(candidate.id, candidate)
        hints = [0.0 if each.score is None else each.score for each in found.values()]
        names = [each.source for each in found.values()]
        return cls(list(found), np.array(hints), source_mask(names), names)


def rank(live: LiveModel, request: RankRequest, now: float, level: Level = Level.FULL) -> Ranking:
    """Order the candidates of a request: by score, then by the retriever's, then by row; unknown items too.

    Raises:
        RecsysError: `timestamp_out_of_range`.
    """
    found = Slate.of(request.candidates)
    rows = live.items.find_all(found.ids)
    requests = _request(live, request.user_id, _moment(live, request.timestamp, now), rows, found.source)
    scored = _scored(live, requests, request.history, level)
    order = _ordered(scored.scores, found.hint, rows)[: request.k]
    items = _items(found.ids, found.names, order, scored.scores)
    if request.explain:
        items = _explained(live, scored, order, items)
    reason = _reason(live, requests, rows, level)
    return _ranking(live, items, scored.rung, reason)


def _items(ids: list[int | str], sources: list[str], order: Int64, scores: Float64) -> list[RankedItem]:
    """The items in this order; no sources at all stand for empty ones."""
    places = order.tolist()
    named = map(sources.__getitem__, places) if sources else repeat("")
    ranks = range(1, len(places) + 1)
    return list(map(RankedItem, map(ids.__getitem__, places), scores[order].tolist(), ranks, named))


def _ordered(scores: Float64, hint: Float64, rows: Int32) -> Int64:
    """Places by score, where they are equal by hint, and then by row."""
    order = np.argsort(-scores)
    ranked = scores[order]
    if (ranked[1:] == ranked[:-1]).any():
        order = np.lexsort((rows, -hint, -scores))
    return order


def recommend(live: LiveModel, request: RecommendRequest, now: float, level: Level = Level.FULL) -> Ranking:
    """Find candidates with every retriever, rank them, and do to the list what the version does.

    Raises:
        RecsysError: `timestamp_out_of_range`.
    """
    moment = _moment(live, request.timestamp, now)
    live.begin_day(moment)
    requests = _request(live, request.user_id, moment)
    reading = _with_session(live, live.state.read(requests), requests, request.history)
    allowed = _allowed(live, request.categories)
    found = _retrieved(live, requests, reading.history, request, allowed)
    scored = _scored(live, found, request.history, level)
    ranked = live.reranker(request.diversity).rerank(
        found, scored.scores, request.k, np.array([scored.rung], np.int8)
    )
    names = source_names(ranked.source)
    items = [
        RankedItem(id=live.items[row], score=float(score), rank=place, source=name)
        for place, (row, score, name) in enumerate(
            zip(ranked.item_index.tolist(), ranked.score.tolist(), names, strict=True), start=1
        )
    ]
    if request.explain:
        where = {item: row for row, item in enumerate(found.item_index.tolist())}
        order = np.array([where[row] for row in ranked.item_index.tolist()], np.int64)
        items = _explained(live, scored, order, items)
    return _ranking(live, items, scored.rung, _reason(live, requests, found.item_index, level))


def similar(live: LiveModel, request: SimilarRequest) -> Similar:
    """Items like one item, best first, without itself; empty where nothing is known of it.

    Raises:
        RecsysError: `unknown_item`.
    """
    row = live.items.find(request.item_id)
    if row < 0:
        raise RecsysError("unknown_item", "no such item", exit_code=EXIT_NO_INPUT)
    retriever = live.recommender.retriever
    if request.by == "text":
        text = retriever.text
        scores = text.factors @ text.factors[row]
        scores[~text.known] = -np.inf
        if not text.known[row]:
            scores[:] = -np.inf
    else:
        scores = retriever.collaborative.item_item.csr[row].toarray()[0]
        scores[scores <= 0.0] = -np.inf
    scores[row] = -np.inf
    best = np.lexsort((np.arange(len(scores)), -scores))[: request.k]
    items = [
        RankedItem(id=live.items[each], score=float(scores[each]), rank=place)
        for place, each in enumerate(best[np.isfinite(scores[best])].tolist(), start=1)
    ]
    reason = None if items else "cold_items"
    return Similar(items=items, model=live.name, degraded=reason is not None, degraded_reason=reason)


def _moment(live: LiveModel, asked: float | None, now: float) -> float:
    """The moment that counts: what the version knew cannot be forgotten, nor what will be known be told."""
    if asked is None:
        return max(now, live.as_of)
    if not live.as_of <= asked <= max(now, live.as_of) + AHEAD_S:
        raise RecsysError(
            "timestamp_out_of_range", "a moment lies between the version's as_of and now", "timestamp"
        )
    return asked


def _request(
    live: LiveModel,
    user_id: str | int | None,
    moment: float,
    rows: Int32 = _NO_ROWS,
    source: Int32 | None = None,
) -> Requests:
    """One request with these candidates."""
    user = np.array([live.users.find(user_id)], np.int32)
    return Requests.of(user, np.array([moment]), np.array([_EVER]), (_span(len(rows)), rows), source)


def _span(rows: int) -> Int64:
    return np.array([0, rows], np.int64)


def _with_session(
    live: LiveModel, reading: Reading, requests: Requests, session: Sequence[Interaction]
) -> Reading:
    """The reading with the session's events behind the history, in time order; unknown items drop out."""
    moment = float(requests.timestamp[0])
    known = [
        (min(each.timestamp, moment), live.items.find(each.item_id), live.kind(each.event_type))
        for each in session
    ]
    known = sorted((each for each in known if min(each[1:]) >= 0), key=lambda each: each[0])
    if not known:
        return reading
    moments, items, kinds = (np.array(column) for column in zip(*known, strict=True))
    history = reading.history
    limit = live.state.features.history_limit
    columns = (
        np.concatenate([history.item_index, items.astype(np.int32)])[-limit:],
        np.concatenate([history.type_index, kinds.astype(np.int32)])[-limit:],
        np.concatenate([history.age_s, moment - moments])[-limit:],
    )
    return replace(reading, history=HistoryBatch(_span(len(columns[0])), *columns))


def _scored(live: LiveModel, requests: Requests, session: Sequence[Interaction], level: Level) -> Scored:
    """Scores of the candidates at a level, finite ones."""
    models = live.recommender
    if not requests.rows:
        reading = _with_session(live, live.state.read(requests), requests, session)
        return Scored(requests, np.zeros(0), int(models.rungs(requests, reading.history)[0]), None)
    if level >= Level.POPULARITY:
        return Scored(requests, _popular(live, requests), len(RUNGS) - 1, None)
    reading = _with_session(live, live.state.read(requests), requests, session)
    rung = int(models.rungs(requests, reading.history)[0])
    if level >= Level.COLLABORATIVE:
        scores = models.als_scores(requests, reading.history).astype(np.float64)
        popular = _popular(live, requests)
        below = np.nanmin(scores, initial=0.0) - 1.0 + popular / (1.0 + popular.max(initial=0.0))
        return Scored(requests, np.where(np.isnan(scores), below, scores), rung, None)
    matrix = models.matrix(requests, reading, text=level < Level.NO_TEXT)
    return Scored(requests, models.score_matrix(requests, matrix), rung, matrix)


def _popular(live: LiveModel, requests: Requests) -> Float64:
    """(rows,) decayed counts of the last midnight, 0 for what nobody has touched."""
    live.begin_day(float(requests.timestamp[0]))
    counts = popular_scores(live.recommender.retriever.popularity, requests.timestamp)[0]
    found = counts[np.maximum(requests.item_index, 0)].astype(np.float64)
    return np.where((requests.item_index >= 0) & np.isfinite(found), found, 0.0)


def _allowed(live: LiveModel, categories: Sequence[str] | None) -> Bool | None:
    """(items,) items of these categories."""
    if categories is None:
        return None
    codes = [code for code in map(live.category, categories) if code >= 0]
    return np.isin(live.recommender.category, codes)


def _retrieved(
    live: LiveModel,
    requests: Requests,
    history: HistoryBatch,
    request: RecommendRequest,
    allowed: Bool | None,
) -> Requests:
    """Candidates of every source; seen are the items of the history."""
    seen = np.unique(history.item_index[history.item_index >= 0])
    if request.seen:
        seen = seen[:0]
    return live.recommender.retriever.retrieve(
        requests, history, Seen(_span(len(seen)), seen), allowed=allowed
    )


def _reason(live: LiveModel, requests: Requests, rows: Int64 | np.ndarray, level: Level) -> str | None:
    """Why a list is less than it could be."""
    if level > Level.FULL:
        return "overloaded"
    if not len(live.items):
        return "empty_catalog"
    if requests.user_index[0] < 0:
        return "unknown_user"
    return "cold_items" if len(rows) and rows.max() < 0 else None


def _ranking(live: LiveModel, items: list[RankedItem], rung: int, reason: str | None) -> Ranking:
    return Ranking(
        items=items, rung=RUNGS[rung], model=live.name, degraded=reason is not None, degraded_reason=reason
    )


def _explained(live: LiveModel, scored: Scored, order: Int64, items: list[RankedItem]) -> list[RankedItem]:
    """The first items with the features that moved their scores most; without any below the full model."""
    ranker = live.recommender.ranker
    if scored.matrix is None or ranker is None or not len(items):
        return items
    matrix = scored.matrix[order[:MOST_EXPLAINED]]
    effects = ranker.effects(matrix, ranker.schema_hash)[:, :-1]
    strongest = np.argsort(-np.abs(effects), axis=1, kind="stable")[:, :REASONS]
    explained = [
        RankedItem(
            id=item.id, score=item.score, rank=item.rank, source=item.source,
            reasons=[
                Reason(
                    feature=ranker.features[column],
                    value=None if np.isnan(matrix[place, column]) else float(matrix[place, column]),
                    effect=float(effects[place, column]),
                )
                for column in strongest[place].tolist()
            ],
        )
        for place, item in enumerate(items[:MOST_EXPLAINED])
    ]  # fmt: skip
    return explained + items[MOST_EXPLAINED:]
