"""Effects of history events: against scores by hand, and fidelity against scipy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from recsys.events import lengths_to_offsets
from recsys.history_effects import (
    MOST_EVENTS,
    explainable,
    few_candidates,
    fidelity,
    history_effects,
)
from recsys.requests import HistoryBatch, Requests


def requests_of(lengths: list[int]) -> Requests:
    rows = sum(lengths)
    return Requests(
        np.arange(len(lengths), dtype=np.int32),
        np.zeros(len(lengths)),
        np.zeros(len(lengths), np.int64),
        lengths_to_offsets(np.array(lengths)),
        np.arange(rows, dtype=np.int32),
        np.zeros(rows, np.int32),
        np.full(rows, np.nan, np.float32),
        np.zeros(rows, np.int32),
    )


def history_of(lengths: list[int]) -> HistoryBatch:
    items = np.concatenate([np.arange(1, length + 1) for length in lengths]).astype(np.int32)
    count = len(items)
    return HistoryBatch(
        lengths_to_offsets(np.array(lengths)), items, np.zeros(count, np.int32), np.zeros(count)
    )


@dataclass(frozen=True)
class Past:
    """A reading, and the state that gives it."""

    history: HistoryBatch
    all_requests: Requests

    def read(self, requests: Requests) -> Past:
        rows = np.searchsorted(self.all_requests.user_index, requests.user_index)
        return Past(self.history.take(rows), requests)

    def take(self, requests: Requests, numbers: Any) -> Past:
        return Past(self.history.take(numbers), requests.take(numbers))


class SquaredSum:
    """Scores a candidate by its number and the square of the sum of the history's items."""

    def score(self, requests: Requests, state: Any, *, threads: int = 1) -> np.ndarray:
        history = state.read(requests).history
        items = history.item_index.astype(float)
        sums = np.array(
            [items[a:b].sum() for a, b in zip(history.offsets[:-1], history.offsets[1:], strict=True)]
        )
        return sums[requests.request_of_row()] ** 2 + requests.item_index


def test_an_effect_is_the_score_with_the_event_minus_the_score_without_it():
    requests, lengths = requests_of([3, 2, 4]), [3, 0, 5]
    state = Past(history_of(lengths), requests)
    found = history_effects(SquaredSum(), requests, np.array([1, 3, 8]), state)
    for effects, length in zip(found, lengths, strict=True):
        events = np.arange(1, length + 1)
        assert effects.tolist() == [events.sum() ** 2 - (events.sum() - event) ** 2 for event in events]


def test_only_the_newest_events_of_a_long_history_are_left_out_in_turn():
    requests = requests_of([1])
    long = MOST_EVENTS + 7
    state = Past(history_of([long]), requests)
    (effects,) = history_effects(SquaredSum(), requests, np.array([0]), state)
    total = long * (long + 1) / 2
    newest = np.arange(8, long + 1)
    assert effects.tolist() == [total**2 - (total - event) ** 2 for event in newest]


def test_fidelity_is_spearmans_correlation_with_ties():
    rng = np.random.default_rng(0)
    mine = [rng.integers(0, 4, 9).astype(float) for _ in range(20)]
    other = [rng.integers(0, 4, 9).astype(float) for _ in range(20)]
    wanted = [spearmanr(a, b).statistic for a, b in zip(mine, other, strict=True)]
    np.testing.assert_allclose(fidelity(mine, other), wanted, atol=1e-12)


def test_a_reference_that_tells_nothing_apart_is_left_out_and_a_flat_variant_is_not():
    flat, ordered = np.zeros(4), np.arange(4.0)
    found = fidelity([ordered, flat, np.zeros(1)], [flat, ordered, np.zeros(1)])
    assert np.isnan(found[0])
    assert found[1] == 0.0
    assert np.isnan(found[2])


def test_only_requests_with_three_events_can_be_explained():
    assert explainable(history_of([2, 3, 0, 8])).tolist() == [1, 3]


@pytest.mark.parametrize("most", [1, 2, 10])
def test_few_candidates_keeps_the_best_in_place(most):
    rng = np.random.default_rng(1)
    requests = requests_of([4, 1, 6])
    scores = rng.permutation(11).astype(float)
    small, best = few_candidates(requests, scores, most)
    for number in range(3):
        rows = slice(requests.offsets[number], requests.offsets[number + 1])
        items, own = requests.item_index[rows], scores[rows]
        wanted = set(items[np.argsort(-own)[:most]].tolist())
        kept = small.item_index[small.offsets[number] : small.offsets[number + 1]]
        assert set(kept.tolist()) == wanted
        assert (np.diff(kept) > 0).all()
        assert small.item_index[best[number]] == items[np.argmax(own)]
