"""What a request may know: histories up to a row of the log, the newest events, the slates as requests."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys.events import Events, Histories, Slates, concatenated_ranges, lengths_to_offsets
from recsys.requests import DAY_S, SOURCES, HistoryBatch, Requests, source_mask, source_names

USERS = 4
KEEP = np.array([True, False, True])

rows = st.lists(
    st.tuples(st.integers(0, USERS - 1), st.integers(0, 9), st.integers(0, 2), st.integers(0, 20)),
    max_size=30,
)
asks = st.lists(st.tuples(st.integers(-1, USERS - 1), st.integers(0, 40), st.integers(0, 25)), max_size=10)


def make_events(rows: list[tuple[int, int, int, int]]) -> Events:
    columns = np.array(sorted(rows, key=lambda row: row[3]), np.int64).reshape(-1, 4)
    return Events(
        columns[:, 0].astype(np.int32),
        columns[:, 1].astype(np.int32),
        columns[:, 2].astype(np.int8),
        columns[:, 3].astype(np.float64),
        np.full(len(columns), np.nan, np.float32),
    )


def make_requests(asks: list[tuple[int, int, int]]) -> Requests:
    user, known, moment = np.array(asks, np.int64).reshape(-1, 3).T
    return Requests.of(user, moment, known, (np.zeros(len(asks) + 1, np.int64), np.zeros(0, np.int32)))


def naive_past(events: Events, user: int, known: int) -> list[int]:
    return [
        row
        for row in range(min(known, len(events)))
        if events.user_index[row] == user and KEEP[events.type_index[row]]
    ]


@given(rows, asks)
def test_histories_until_equals_a_loop_over_the_log(rows, asks):
    events = make_events(rows)
    histories = Histories.of(events, USERS, KEEP)
    requests = make_requests(asks)
    start, stop = histories.until(requests.user_index, requests.known)
    assert start.shape == stop.shape == (len(asks),)
    for (user, known, _), first, last in zip(asks, start, stop, strict=True):
        assert histories.sequence[first:last].tolist() == naive_past(events, user, known)


@given(rows, asks, st.integers(1, 5), st.sampled_from([0.0, 1.0, 3.0]))
def test_history_batch_equals_a_loop_over_the_log(rows, asks, limit, delay_s):
    events = make_events(rows)
    requests = make_requests(asks)
    batch = HistoryBatch.of(Histories.of(events, USERS, KEEP), requests, limit=limit, delay_s=delay_s)
    assert len(batch) == len(asks)
    for q, (user, known, moment) in enumerate(asks):
        past = naive_past(events, user, known)
        if delay_s:
            past = [row for row in past if events.timestamp[row] <= moment - delay_s]
        past = past[-limit:]
        own = slice(batch.offsets[q], batch.offsets[q + 1])
        assert batch.item_index[own].tolist() == events.item_index[past].tolist()
        assert batch.type_index[own].tolist() == events.type_index[past].tolist()
        assert batch.age_s[own].tolist() == np.maximum(moment - events.timestamp[past], 0.0).tolist()


def test_more_known_events_than_the_log_has_are_all_of_it():
    histories = Histories.of(make_events([(0, 5, 0, 1), (1, 6, 0, 2)]), USERS, KEEP)
    everything = np.full(2, np.iinfo(np.int64).max)
    start, stop = histories.until(np.array([0, 1], np.int32), everything)
    assert (start.tolist(), stop.tolist()) == ([0, 1], [1, 2])


def test_recency_weights_are_type_times_age_times_place():
    batch = HistoryBatch(
        np.array([0, 2, 2, 3]),
        np.array([7, 8, 7], np.int32),
        np.array([0, 1, 1], np.int32),
        np.array([4.0, 2.0, 0.0]) * DAY_S,
    )
    weights = batch.recency_weights(np.array([1, 3], np.float32), half_life_days=2.0, position_decay=0.5)
    np.testing.assert_allclose(weights, [1 * 1 / 4 * 1 / 2, 3 * 1 / 2 * 1, 3 * 1 * 1])


def test_taken_histories_keep_their_events():
    batch = HistoryBatch(
        np.array([0, 2, 2, 3]), np.array([7, 8, 9], np.int32), np.array([0, 1, 2], np.int32), np.arange(3.0)
    )
    turned = batch.take(np.array([2, 1, 0]))
    assert turned.offsets.tolist() == [0, 1, 1, 3]
    assert turned.item_index.tolist() == [9, 7, 8]
    assert turned.age_s.tolist() == [2.0, 0.0, 1.0]


def test_only_strictly_earlier_events_are_known_at_a_moment():
    events = make_events([(0, 1, 0, 5), (0, 2, 0, 5), (1, 3, 0, 7)])
    assert events.known_at(np.array([4.0, 5.0, 5.5, 7.0, 8.0])).tolist() == [0, 0, 2, 2, 3]
    assert events.known_at(6.0) == 2


def test_a_slate_becomes_a_request_that_knows_what_came_before_it():
    slates = Slates(
        np.array([1, 0], np.int32),
        np.array([5.0, 9.0]),
        np.array([0, 2, 5]),
        np.array([3, 4, 5, 6, 7], np.int32),
        np.array([0, 1, 1, 0, 0], np.bool_),
        np.array([1, 2, 1, 2, 3], np.int16),
        np.full(5, np.nan, np.float32),
        np.arange(2),
    )
    requests = Requests.from_slates(slates, make_events([(0, 1, 0, 5), (1, 2, 0, 6), (0, 2, 0, 9)]))
    assert requests.known.tolist() == [0, 2]  # the events at the very moment of the slate are not known
    assert requests.label.tolist() == [0, 1, 1, 0, 0]
    assert requests.position.tolist() == [1, 2, 1, 2, 3]
    assert requests.request_of_row().tolist() == [0, 0, 1, 1, 1]
    assert requests.rows == 5


def make_candidates() -> Requests:
    offsets = np.array([0, 2, 2, 5])
    requests = Requests.of(
        np.array([0, 1, 2]),
        np.array([1.0, 2.0, 3.0]),
        np.array([4, 5, 6]),
        (offsets, np.array([9, 8, 7, 6, 5])),
        np.array([1, 2, 4, 8, 16], np.int32),
    )
    return requests.labelled(np.array([0, 1, 1, 0, 1]))


def test_taken_requests_keep_their_rows_and_concatenate_to_the_whole():
    whole = make_candidates()
    turned = Requests.concatenate([whole.take(np.array([2])), whole.take(np.array([0, 1]))])
    assert turned.offsets.tolist() == [0, 3, 5, 5]
    assert turned.item_index.tolist() == [7, 6, 5, 9, 8]
    assert turned.source.tolist() == [4, 8, 16, 1, 2]
    assert turned.label.tolist() == [1, 0, 1, 0, 1]
    assert turned.known.tolist() == [6, 4, 5]
    again = turned.take(np.array([1, 2, 0]))
    for column in (
        "user_index",
        "timestamp",
        "known",
        "offsets",
        "item_index",
        "source",
        "label",
        "position",
    ):
        np.testing.assert_array_equal(getattr(again, column), getattr(whole, column))


@given(st.lists(st.sets(st.sampled_from(SOURCES)), max_size=8))
def test_source_names_and_masks_are_inverse(chosen):
    names = ["+".join(name for name in SOURCES if name in some) for some in chosen]
    masks = source_mask(names)
    assert masks.tolist() == [sum(1 << SOURCES.index(name) for name in some) for some in chosen]
    assert source_names(masks) == names


def test_unknown_and_repeated_source_names_set_no_further_bit():
    assert source_mask(["", "nowhere", "als+als", "popular+als"]).tolist() == [0, 0, 1, 513]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=8))
def test_concatenated_ranges_equal_a_loop(pairs):
    starts = np.array([start for start, _ in pairs], np.int64)
    stops = starts + np.array([length for _, length in pairs], np.int64)
    expected = [n for first, last in zip(starts, stops, strict=True) for n in range(first, last)]
    assert concatenated_ranges(starts, stops).tolist() == expected
    assert lengths_to_offsets(stops - starts)[-1] == len(expected)
