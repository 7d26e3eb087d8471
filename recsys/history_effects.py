"""What each event of a history does to a recommendation: the score without it against the score with it.

Two models explain alike where they order the same events alike; `fidelity` is that, request by request.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import rankdata

from recsys.events import Bool, Float64, Int64, concatenated_ranges, lengths_to_offsets
from recsys.recommender import Recommender, State
from recsys.requests import HistoryBatch, Requests

FEWEST_EVENTS = 3
MOST_EVENTS = 20


@dataclass(frozen=True)
class _Given:
    """The state of requests whose reading is known already."""

    reading: Any

    def read(self, requests: Requests) -> Any:
        """The reading, whoever asks."""
        return self.reading


def explainable(history: HistoryBatch) -> Int64:
    """Numbers of the requests with enough events to put them in an order (three)."""
    return np.flatnonzero(history.lengths >= FEWEST_EVENTS)


def history_effects(
    models: Recommender, requests: Requests, rows: Int64, state: State, *, threads: int = 1
) -> list[Float64]:
    """For each request, what leaving out each of its newest 20 events takes from one candidate's score.

    The event is taken from the history that sequence model, head, fold-in and similarities read; counters
    keep it. The other candidates stay, because features compare with them.

    Args:
        models: with a ranker.
        requests: with candidates; keep them few.
        rows: (requests,) the row that is explained, one a request.
        state: what the requests may know.
        threads: of the ranker.

    Returns:
        An array a request, newest event last; empty for a request without history.
    """
    found = []
    for number in range(len(requests)):
        one = requests.take(np.array([number]))
        reading: Any = state.read(one)
        length = len(reading.history.item_index)
        kept = np.arange(max(0, length - MOST_EVENTS), length)
        copies = np.zeros(1 + len(kept), np.int64)
        histories = _without_each(reading.history, kept)
        altered = replace(reading.take(one, copies), history=histories)
        asked = one.take(copies)
        scores = models.score(asked, _Given(altered), threads=threads)
        explained = scores.reshape(len(copies), -1)[:, int(rows[number] - requests.offsets[number])]
        found.append(explained[0] - explained[1:])
    return found


def _without_each(history: HistoryBatch, places: Int64) -> HistoryBatch:
    """The one history whole, then without each of `places`."""
    length = len(history.item_index)
    keep: Bool = np.ones((1 + len(places), length), np.bool_)
    keep[1 + np.arange(len(places)), places] = False
    rows = np.broadcast_to(np.arange(length), keep.shape)[keep]
    return HistoryBatch(
        lengths_to_offsets(keep.sum(axis=1)),
        history.item_index[rows],
        history.type_index[rows],
        history.age_s[rows],
    )


def fidelity(found: list[Float64], reference: list[Float64]) -> Float64:
    """(requests,) Spearman's rank correlation of effects, ties at their mean rank.

    NaN where the reference tells no event from another; 0 where only `found` does not.
    """
    return np.array([_rank_correlation(mine, other) for mine, other in zip(found, reference, strict=True)])


def _rank_correlation(mine: Float64, other: Float64) -> float:
    if len(other) < 2 or np.ptp(other) == 0:
        return float("nan")
    if np.ptp(mine) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(mine), rankdata(other))[0, 1])


def few_candidates(requests: Requests, scores: Float64, most: int) -> tuple[Requests, Int64]:
    """The best `most` candidates of each request, and the row of the best one; (requests,) rows.

    Requests keep their order; every one has a candidate.
    """
    order = np.lexsort((-scores, requests.request_of_row()))
    lengths = np.minimum(requests.lengths, most)
    chosen = order[concatenated_ranges(requests.offsets[:-1], requests.offsets[:-1] + lengths)]
    keep = np.zeros(requests.rows, np.bool_)
    keep[chosen] = True
    small = requests.with_rows(keep)
    best = order[requests.offsets[:-1]]
    return small, (np.cumsum(keep) - 1)[best]
