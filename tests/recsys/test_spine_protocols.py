"""Splits: who is asked, when, knowing what, and what they really did next."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from recsys.dataset import Dataset
from recsys.errors import RecsysError
from recsys.protocols import (
    Split,
    everyone_at,
    parse_protocol,
    positives_of,
    slates_from,
    split,
    split_at,
    split_last,
    split_rolling,
    time_cut,
    with_both_classes,
    with_labels,
)
from recsys.requests import DAY_S, HistoryBatch, Requests

Row = tuple[str, int, str, float]


def make_dataset(rows: list[Row], impressions: list[tuple[str, float, list[int], list[int]]] = ()) -> Dataset:
    schema = {"user_id": pl.String, "item_id": pl.Int64, "event_type": pl.String, "timestamp": pl.Float64}
    shown = pl.DataFrame(
        list(impressions),
        schema={
            "user_id": pl.String,
            "timestamp": pl.Float64,
            "shown": pl.List(pl.Int64),
            "clicked": pl.List(pl.Int64),
        },
        orient="row",
    )
    items = pl.DataFrame({"item_id": range(10), "title": ["t"] * 10})
    return Dataset.from_frames(items, pl.DataFrame(rows, schema=schema, orient="row"), shown)


def answers(window: Split) -> dict[str, list[int]]:
    """What each asked user did next, by user id."""
    offsets, items = window.positives
    users = window.train.users.take(window.requests.user_index).to_list()
    return {user: items[offsets[q] : offsets[q + 1]].tolist() for q, user in enumerate(users)}


def clicks(*rows: tuple[str, int, float]) -> list[Row]:
    return [(user, item, "click", moment) for user, item, moment in rows]


LOG = clicks(
    ("u", 0, 1), ("v", 1, 2), ("u", 2, 3), ("w", 3, 4), ("u", 4, 5), ("v", 0, 6), ("w", 3, 7), ("u", 5, 8),
    ("x", 6, 8), ("v", 1, 9), ("v", 7, 9), ("u", 4, 10),
)  # fmt: skip


def test_time_asks_at_the_cut_whoever_does_something_new_after_it():
    window = split(make_dataset(LOG), "time", share=0.35)
    assert answers(window) == {"u": [5], "v": [7], "x": [6]}  # w, and u's 4, v's 1 are repeats
    assert window.requests.timestamp.tolist() == [8.0] * 3
    assert window.requests.known.tolist() == [7] * 3
    assert window.train.events.timestamp.max() == 7.0
    assert window.visible is window.train


def test_events_at_the_moment_of_the_cut_are_the_future():
    data = make_dataset(clicks(*[(f"u{n}", n % 10, float(n >= 5)) for n in range(12)]))
    cut = time_cut(data, 0.25)
    assert cut == 1.0
    window = split_at(data, cut)
    assert len(window.train.events) == 5
    assert len(answers(window)) == 7


def test_time_counts_targets_only_and_a_view_is_no_answer():
    views = [("u", 9, "view", 20.0 + n) for n in range(50)]
    window = split(make_dataset([*LOG, *views]), "time", share=0.35)
    assert answers(window) == {"u": [5], "v": [7], "x": [6]}


def test_a_view_before_the_cut_leaves_the_item_new():
    window = split_at(make_dataset([*LOG, ("x", 6, "view", 1.5)]), 8.0)
    assert answers(window)["x"] == [6]


def test_a_window_ends_before_its_end():
    assert answers(split_at(make_dataset(LOG), 8.0, until=9.0)) == {"u": [5], "x": [6]}


def test_last_hides_the_last_event_of_users_with_three():
    window = split(make_dataset(LOG), "last")
    assert answers(window) == {"u": [4], "v": [7]}
    assert window.requests.timestamp.tolist() == [10.0, 9.0]
    assert window.requests.known.tolist() == [11, 10]
    assert len(window.train.events) == len(LOG) - 2
    assert len(window.visible.events) == len(LOG)


def test_last_breaks_ties_in_time_by_the_order_of_the_log():
    window = split(make_dataset(clicks(("u", 1, 5), ("u", 2, 5), ("v", 3, 5), ("u", 4, 5))), "last")
    assert answers(window) == {"u": [4]}
    history = HistoryBatch.of(window.visible.histories, window.requests)
    assert history.item_index.tolist() == [1, 2]  # all but the hidden one are known
    assert window.train.events.item_index.tolist() == [1, 2, 3]


def test_last_asks_long_histories_for_more_of_their_newest_events():
    log = clicks(*(("u", item, item) for item in range(9)), *(("v", item, item + 0.5) for item in range(3)))
    data = make_dataset(log)
    window = split_last(data, most=3, one_in=4)
    assert window.positives[1].tolist() == [7, 8, 2]  # two of nine, one of three
    assert window.requests.timestamp.tolist() == [7.0, 8.0, 2.5]
    history = HistoryBatch.of(window.visible.histories, window.requests)
    assert np.diff(history.offsets).tolist() == [7, 8, 2]  # an event asked for is history of the next
    fitted = window.train.events
    assert len(fitted) == len(log) - 3
    assert split_last(data, most=9, one_in=1).positives[1].tolist() == [2, 3, 4, 5, 6, 7, 8, 2]


def test_last_lets_no_slate_of_training_show_the_hidden_answer():
    shown = [("u", 9.5, [4, 8], [4]), ("u", 2.0, [2, 8], [2]), ("w", 9.5, [4, 8], [4])]
    data = make_dataset(LOG, shown)
    window = split(data, "last")
    taken = window.train.slates
    assert data.users.take(taken.user_index).to_list() == ["u", "w"]
    assert taken.timestamp.tolist() == [2.0, 9.5]


SHOWN = [
    ("u", 0.5 * DAY_S, [1, 2], [1]),
    ("v", 1.2 * DAY_S, [3, 4, 5], [4, 5]),
    ("u", 1.2 * DAY_S, [1, 2], []),
    ("w", 1.9 * DAY_S, [6, 7], [7]),
]


def test_slate_hides_the_last_calendar_day_of_impressions():
    log = clicks(("u", 1, 0.6 * DAY_S), ("v", 4, 1.2 * DAY_S), ("v", 5, 1.3 * DAY_S))
    window = split(make_dataset(log, SHOWN), "slate")
    assert window.requests.timestamp.tolist() == [1.2 * DAY_S, 1.2 * DAY_S, 1.9 * DAY_S]
    assert window.requests.known.tolist() == [1, 1, 3]
    assert window.requests.item_index.tolist() == [3, 4, 5, 1, 2, 6, 7]
    assert window.requests.label.tolist() == [0, 1, 1, 0, 0, 0, 1]
    assert window.positives[0].tolist() == [0, 2, 2, 3]
    assert window.positives[1].tolist() == [4, 5, 7]
    assert window.train.slates.timestamp.tolist() == [0.5 * DAY_S]
    assert window.train.events.timestamp.max() < DAY_S
    assert len(window.visible.events) == 3


SMALL = clicks(("u", 1, 1.0), ("u", 2, 2.0))


@pytest.mark.parametrize(
    ("rows", "impressions", "protocol"),
    [
        ([], [], "time"),
        (SMALL, [], "time"),
        (clicks(*[("u", 1, float(n)) for n in range(20)]), [], "time"),  # nothing new after the cut
        ([], [], "last"),
        (SMALL, [], "last"),
        (LOG, [], "slate"),
        (LOG, SHOWN[1:], "slate"),  # one day only
    ],
)
def test_a_log_too_small_is_refused(rows, impressions, protocol):
    with pytest.raises(RecsysError, match=r"^nothing_to_test: "):
        split(make_dataset(rows, impressions), protocol)


def test_a_log_of_one_moment_cannot_be_split_by_time():
    rows = clicks(*((f"u{place}", place % 3, 100.0) for place in range(20)))
    with pytest.raises(RecsysError, match=r"^nothing_to_test: no event lies before the cut"):
        split(make_dataset(rows), "time")


def test_slates_are_needed_on_both_sides_of_the_cut():
    data = make_dataset(LOG, SHOWN)
    for cut in (0.0, 5 * DAY_S):
        with pytest.raises(RecsysError, match="both sides"):
            slates_from(data, cut)


def test_everyone_is_asked_about_what_came_strictly_before():
    data = make_dataset(LOG)
    requests = everyone_at(np.array([3, 0], np.int32), 9.0, data.events)
    assert requests.user_index.tolist() == [3, 0]
    assert requests.known.tolist() == [9, 9]
    assert requests.rows == 0


def make_candidates() -> Requests:
    offsets = np.array([0, 3, 3, 5, 7])
    return Requests.of(np.arange(4), np.zeros(4), np.zeros(4), (offsets, np.array([1, 2, 3, 2, 4, 5, 6])))


POSITIVES = (np.array([0, 2, 3, 4, 6]), np.array([3, 9, 1, 7, 5, 6], np.int32))


def test_candidates_are_labelled_by_their_own_request_only():
    labelled = with_labels(make_candidates(), POSITIVES, 10)
    assert labelled.label.tolist() == [0, 0, 1, 0, 0, 1, 1]
    assert with_both_classes(labelled).tolist() == [0]


def test_positives_follow_their_requests():
    offsets, items = positives_of(POSITIVES, np.array([3, 1]))
    assert (offsets.tolist(), items.tolist()) == ([0, 2, 3], [5, 6, 1])


def test_an_unknown_protocol_is_a_usage_error_that_names_the_known():
    assert parse_protocol("last") == "last"
    with pytest.raises(RecsysError, match="use one of time, last, slate, not later") as caught:
        parse_protocol("later")
    assert caught.value.exit_code == 64


def test_rolling_asks_at_each_moment_for_all_that_follows():
    data = make_dataset(LOG)
    window = split_rolling(data, [4.0, 8.0, 10.5])
    assert window.train.events.timestamp.max() < 4.0
    assert window.visible is data
    assert window.requests.timestamp.tolist() == [4.0] * 4 + [8.0] * 3
    one, two = split_at(data, 4.0), split_at(data, 8.0)
    np.testing.assert_array_equal(window.positives[1], np.concatenate([one.positives[1], two.positives[1]]))
    np.testing.assert_array_equal(window.requests.known[4:], two.requests.known)
    assert (data.events.timestamp[window.requests.known - 1] < window.requests.timestamp).all()
    with pytest.raises(RecsysError, match="nothing_to_test"):
        split_rolling(data, [10.5, 11.0])
