"""Replay = live state = a naive loop over the log, to the last bit, for any log, moment and delay."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from features import live_files
from features.builder import Features
from features.catalogue import default_features
from features.declaration import Counter, State
from features.live import LiveState
from features.reading import Reading
from features.replay import Replay
from features.streams import weights_of
from recsys.dataset import Dataset
from recsys.errors import RecsysError
from recsys.requests import Requests

DAY = 86_400.0
USERS, ITEMS = 4, 6
CATEGORIES = ["a", "b", None, "a", "b", "c"]
SUBCATEGORIES = ["x", "y", "x", None, "y", "z"]
CREATED = [0.0, 3 * DAY, None, 9 * DAY, None, 1 * DAY]
TYPES = ["click", "view", "purchase", "dismiss"]
EXTRA = (
    Counter("pair_shown", "user_item", "shown", (1.0, None)),
    Counter("pair", "user_item", "any", (2.0,)),
)

moments = st.integers(0, 12).map(lambda step: step * DAY / 2)
event_rows = st.tuples(
    st.integers(0, USERS - 1), st.integers(0, ITEMS - 1), st.sampled_from(TYPES), st.none() | moments
)
slate_rows = st.tuples(
    st.integers(0, USERS - 1), moments, st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=4)
)
logs = st.tuples(st.lists(event_rows, max_size=25), st.lists(slate_rows, max_size=8))
delays = st.sampled_from([0.0, DAY / 2, 0.7 * DAY])


def make_dataset(log) -> Dataset:
    events, slates = log
    items = pl.DataFrame(
        {
            "item_id": range(ITEMS),
            "title": ["t"] * ITEMS,
            "category": CATEGORIES,
            "subcategory": SUBCATEGORIES,
            "created_at": CREATED,
        }
    )
    event_frame = pl.DataFrame(
        events,
        schema={
            "user_id": pl.Int64,
            "item_id": pl.Int64,
            "event_type": pl.String,
            "timestamp": pl.Float64,
        },
        orient="row",
    )
    slate_frame = pl.DataFrame(
        slates,
        schema={"user_id": pl.Int64, "timestamp": pl.Float64, "shown": pl.List(pl.Int64)},
        orient="row",
    )
    return Dataset.from_frames(items, event_frame, slate_frame, pl.DataFrame({"user_id": range(USERS)}))


def make_features(delay: float) -> Features:
    return Features((*default_features(delay), *EXTRA), history_limit=3, history_delay_s=delay)


def make_requests(users, times, known) -> Requests:
    """Every item, a repeated one and an unknown one, for each user at each moment."""
    candidates = [*range(ITEMS), 0, -1]
    offsets = np.arange(len(times) + 1, dtype=np.int64) * len(candidates)
    rows = np.tile(np.array(candidates, np.int32), len(times))
    return Requests.of(np.array(users, np.int32), np.array(times), np.array(known, np.int64), (offsets, rows))


@dataclass
class Naive:
    """The definition, written as loops over the whole log for every single number."""

    data: Dataset

    def counters(self, features: Features, requests: Requests) -> np.ndarray:
        owner = requests.request_of_row()
        table = [
            [
                self.state(state, requests, int(owner[row]), int(requests.item_index[row]))
                for state in features.plan.states
            ]
            for row in range(requests.rows)
        ]
        return np.array(table, np.float32).reshape(requests.rows, len(features.plan))

    def state(self, state: State, requests: Requests, request: int, item: int) -> float:
        user, now = int(requests.user_index[request]), float(requests.timestamp[request])
        known = int(requests.known[request])
        if state.mark == "created":
            created = CREATED[item] if item >= 0 else None
            return math.nan if created is None else max(now - created, 0.0) / DAY
        if state.mark == "slate_share":
            return self.slate_share(state, requests, request, item)
        if state.mark == "categories":
            raise ValueError("compared apart: it is read from the history")
        key = self.key(state.key, user, item)
        if key is None:
            return math.nan
        rows = [
            (moment, weight)
            for moment, weight, who, what in self.rows(state, now, known)
            if self.key(state.key, who, what) == key
        ]
        if state.mark in ("first", "last"):
            found = rows[0 if state.mark == "first" else -1] if rows else (math.nan, 0)
            return max(now - found[0], 0.0) / DAY if rows else math.nan
        rate = 0.0 if state.half_life_days is None else math.log(2) / (state.half_life_days * DAY)
        total, last = 0.0, now
        for moment, weight in rows:
            total = total * math.exp(-(moment - last) * rate) + weight if total else weight
            last = moment
        return total * math.exp(-max(now - last, 0.0) * rate)

    def slate_share(self, state: State, requests: Requests, request: int, item: int) -> float:
        shown = requests.item_index[requests.offsets[request] : requests.offsets[request + 1]].tolist()
        kinds = [self.key(state.key, 0, other) for other in shown]
        kind = self.key(state.key, 0, item)
        return math.nan if kind is None else np.float32(kinds.count(kind) / len(kinds))

    def rows(self, state: State, now: float, known: int):
        if state.stream == "shown":
            slates = self.data.slates
            for slate in range(len(slates) if slates else 0):
                if slates.timestamp[slate] < now - state.delay_s:
                    for row in range(slates.offsets[slate], slates.offsets[slate + 1]):
                        yield slates.timestamp[slate], 1.0, slates.user_index[slate], slates.item_index[row]
            return
        events, weights = self.data.events, weights_of(self.data)[state.stream]
        for row in range(known):
            young = state.delay_s > 0 and events.timestamp[row] > now - state.delay_s
            weight = weights[events.type_index[row]]
            if weight and not young:
                yield events.timestamp[row], weight, events.user_index[row], events.item_index[row]

    def key(self, key: str, user: int, item: int):
        category = CATEGORIES[item] if item >= 0 else None
        subcategory = SUBCATEGORIES[item] if item >= 0 else None
        parts = {
            "global": ("all",),
            "user": (None if user < 0 else int(user),),
            "item": (None if item < 0 else int(item),),
            "category": (category,),
            "subcategory": (subcategory,),
            "user_category": (None if user < 0 else int(user), category),
            "user_subcategory": (None if user < 0 else int(user), subcategory),
            "user_item": (None if user < 0 else int(user), None if item < 0 else int(item)),
        }[key]
        return None if None in parts else parts

    def history(self, features: Features, user: int, now: float, known: int):
        events = self.data.events
        found = [
            (events.item_index[row], events.type_index[row], max(now - events.timestamp[row], 0.0))
            for row in range(known)
            if events.user_index[row] == user
            and self.data.is_target[events.type_index[row]]
            and not (features.history_delay_s > 0 and events.timestamp[row] > now - features.history_delay_s)
        ]
        return found[-features.history_limit :]


def check_against_naive(data: Dataset, features: Features, requests: Requests, reading: Reading) -> None:
    naive = Naive(data)
    columns = [c for c, state in enumerate(features.plan.states) if state.mark != "categories"]
    plan = [features.plan.states[c] for c in columns]
    owner = requests.request_of_row()
    for row in range(requests.rows):
        expected = [naive.state(s, requests, int(owner[row]), int(requests.item_index[row])) for s in plan]
        np.testing.assert_array_equal(reading.counters[row, columns], np.array(expected, np.float32))
    distinct = features.plan.column[State("user", "catalogue", "categories")]
    for request in range(len(requests)):
        user, now = int(requests.user_index[request]), float(requests.timestamp[request])
        expected = naive.history(features, user, now, int(requests.known[request]))
        rows = slice(reading.history.offsets[request], reading.history.offsets[request + 1])
        found = zip(
            reading.history.item_index[rows],
            reading.history.type_index[rows],
            reading.history.age_s[rows],
            strict=True,
        )
        assert list(found) == expected
        categories = {CATEGORIES[item] for item, _, _ in expected} - {None}
        counters = reading.counters[requests.offsets[request] : requests.offsets[request + 1], distinct]
        assert (counters == len(categories)).all()


def assert_same_reading(first: Reading, second: Reading) -> None:
    np.testing.assert_array_equal(first.counters, second.counters)
    for name in ("offsets", "item_index", "type_index", "age_s"):
        np.testing.assert_array_equal(getattr(first.history, name), getattr(second.history, name))


@settings(max_examples=40)
@given(
    log=logs, delay=delays, users=st.lists(st.integers(-1, USERS - 1), min_size=1, max_size=3), data=st.data()
)
def test_replay_equals_a_naive_loop(log, delay, users, data):
    dataset = make_dataset(log)
    features = make_features(delay)
    times = [data.draw(moments) for _ in users]
    known = [data.draw(st.integers(0, len(dataset.events))) for _ in users]
    requests = make_requests(users, times, known)
    check_against_naive(dataset, features, requests, Replay(dataset, features).read(requests))


def feed(live: LiveState, dataset: Dataset, events: range, slates: range) -> None:
    """Apply these rows of the log; events and slates of one source stay in order."""
    log = dataset.events
    for row in events:
        live.update(
            int(log.user_index[row]),
            int(log.item_index[row]),
            int(log.type_index[row]),
            float(log.timestamp[row]),
        )
    for slate in slates:
        shown = dataset.slates.item_index[dataset.slates.offsets[slate] : dataset.slates.offsets[slate + 1]]
        live.show(int(dataset.slates.user_index[slate]), shown, float(dataset.slates.timestamp[slate]))


@settings(max_examples=60)
@given(log=logs, delay=delays, start=moments, reload=st.booleans(), data=st.data())
def test_live_state_equals_replay_at_every_later_moment(log, delay, start, reload, data):
    dataset = make_dataset(log)
    features = make_features(delay)
    replay = Replay(dataset, features)
    slate_times = dataset.slates.timestamp if dataset.slates is not None else np.zeros(0)
    live = LiveState.at(dataset, start, features)
    event, slate = int(dataset.events.known_at(start)), int(np.searchsorted(slate_times, start))
    for now in sorted(data.draw(st.lists(moments.filter(lambda m: m >= start), min_size=1, max_size=4))):
        strictly, ties = (int(np.searchsorted(dataset.events.timestamp, now, s)) for s in ("left", "right"))
        known = data.draw(st.integers(max(strictly, event), max(ties, event)))
        shown = int(np.searchsorted(slate_times, now, "right"))
        feed(live, dataset, range(event, known), range(slate, shown))
        event, slate = known, shown
        if reload:
            live = LiveState.from_files(live.to_files())
        requests = make_requests(range(-1, USERS), [now] * (USERS + 1), [known] * (USERS + 1))
        assert_same_reading(live.read(requests), replay.read(requests))


@settings(max_examples=60)
@given(log=logs, delay=delays, data=st.data())
def test_the_order_in_which_events_arrive_does_not_matter(log, delay, data):
    events, slates = log
    dated = [event for event in events if event[3] is not None]
    distinct = [(user, item, kind, moment + place) for place, (user, item, kind, moment) in enumerate(dated)]
    dataset = make_dataset((distinct, slates))
    features = make_features(delay)
    live = LiveState.at(dataset, float(np.min(dataset.events.timestamp, initial=0.0)) - DAY, features)
    for row in data.draw(st.permutations(range(len(dataset.events)))):
        feed(live, dataset, range(row, row + 1), range(0))
    count = 0 if dataset.slates is None else len(dataset.slates)
    for slate in data.draw(st.permutations(range(count))):
        feed(live, dataset, range(0), range(slate, slate + 1))
    end = 8 * DAY
    known = len(dataset.events)
    requests = make_requests(range(-1, USERS), [end] * (USERS + 1), [known] * (USERS + 1))
    found, expected = live.read(requests), Replay(dataset, features).read(requests)
    np.testing.assert_allclose(found.counters, expected.counters, rtol=1e-6)
    for name in ("offsets", "item_index", "type_index", "age_s"):
        np.testing.assert_array_equal(getattr(found.history, name), getattr(expected.history, name))


def test_live_state_reads_a_batch_of_moments_one_after_another():
    log = ([(0, 1, "click", 0.0)], [(0, DAY, [1, 2]), (0, 2 * DAY, [2])])
    dataset = make_dataset(log)
    features = make_features(0.0)
    live = LiveState.at(dataset, 0.5 * DAY, features)
    feed(live, dataset, range(0), range(2))
    requests = make_requests([0, 0, 1], [3 * DAY, 0.9 * DAY, 1.5 * DAY], [1, 1, 1])
    assert_same_reading(live.read(requests), Replay(dataset, features).read(requests))


def test_nothing_that_comes_later_moves_a_reading():
    rng = np.random.default_rng(0)
    events = [
        (int(rng.integers(USERS)), int(rng.integers(ITEMS)), TYPES[int(rng.integers(4))], float(t) * 1000)
        for t in range(200)
    ]
    slates = [(int(rng.integers(USERS)), float(t) * 1000, [0, 1, 2]) for t in range(0, 200, 5)]
    features = make_features(0.0)
    now = 100_000.0
    requests = make_requests([0, 1, 2], [now] * 3, [100] * 3)
    before = Replay(make_dataset((events, slates)), features).read(requests)
    altered = [e if e[3] < now else (3 - e[0], 5 - e[1], "purchase", e[3]) for e in events]
    other_slates = [s if s[1] < now else (3 - s[0], s[1], [5, 4]) for s in slates]
    after = Replay(make_dataset((altered, other_slates)), features).read(requests)
    assert_same_reading(before, after)


def test_the_own_click_and_slate_of_a_row_are_not_in_its_features():
    past = ([(0, 1, "click", 0.0)], [(0, 0.0, [1, 2])])
    own = ([*past[0], (0, 2, "click", DAY)], [*past[1], (0, DAY, [2, 3])])
    features = make_features(0.0)
    without, with_own = make_dataset(past), make_dataset(own)
    request = make_requests([0], [DAY], [int(with_own.events.known_at(DAY))])
    assert_same_reading(Replay(without, features).read(request), Replay(with_own, features).read(request))


def test_a_delayed_counter_sees_an_event_once_it_is_exactly_that_old():
    features = Features([Counter("n", "item", "any", (None,), delay_s=60.0)])
    replay = Replay(make_dataset(([(0, 1, "click", 100.0)], [])), features)
    requests = make_requests([0, 0], [159.0, 160.0], [1, 1])
    counts = replay.read(requests).counters[:, 0].reshape(2, -1)[:, 1]
    assert counts.tolist() == [0.0, 1.0]


def test_live_state_takes_late_events_and_new_users_and_items():
    dataset = make_dataset(([(0, 1, "click", 0.0), (0, 1, "click", 2 * DAY)], []))
    features = make_features(0.0)
    live = LiveState.at(dataset, 3 * DAY, features)
    click = dataset.event_types.index("click")
    live.update(0, 1, click, 1 * DAY)
    live.add_items(np.array([0]), np.array([-1]), np.array([math.nan]))
    live.update(USERS + 7, ITEMS, click, 3 * DAY)
    in_order = make_dataset(([(0, 1, "click", t * DAY) for t in (0.0, 1.0, 2.0)], []))
    request = make_requests([0], [4 * DAY], [3])
    column = features.plan.column[State("item", "target", "count", 1.0)]
    expected = Replay(in_order, features).read(request).counters[:ITEMS, column]
    np.testing.assert_allclose(live.read(request).counters[:ITEMS, column], expected, rtol=1e-6)
    new = Requests.of(
        np.array([USERS + 7]), np.array([4 * DAY]), np.array([0]), (np.array([0, 1]), np.array([ITEMS]))
    )
    reading = live.read(new)
    assert reading.history.item_index.tolist() == [ITEMS]
    assert reading.counters[0, features.plan.column[State("user", "target")]] == 1.0
    category = features.plan.column[State("category", "target", "count", 7.0)]
    assert reading.counters[0, category] == pytest.approx(0.5 ** (1 / 7))


def test_live_state_refuses_an_event_type_it_does_not_know():
    live = LiveState.at(make_dataset(([(0, 1, "click", 0.0)], [])), DAY, make_features(0.0))
    with pytest.raises(ValueError, match="event type 99"):
        live.update(0, 1, 99, DAY)


def test_live_histories_keep_the_last_events_of_a_busy_user():
    dataset = make_dataset(([(0, 1, "click", 0.0)], []))
    features = make_features(0.0)
    live = LiveState.at(dataset, 1.0, features)
    click = dataset.event_types.index("click")
    for step in range(1, 50):
        live.update(0, step % ITEMS, click, float(step))
        live.update(1, 0, click, float(step))
        request = make_requests([0], [100.0], [0])
        expected = [s % ITEMS if s else 1 for s in range(max(0, step - 2), step + 1)]
        assert live.read(request).history.item_index.tolist() == expected


def test_getting_ready_changes_nothing():
    live = LiveState.at(make_dataset(([(0, 1, "click", 0.0)], [])), DAY, make_features(0.0))
    before = live.to_files()
    live.get_ready()
    assert live.to_files() == before


def test_a_saved_state_is_filled_whole_however_many_rows_at_a_time(monkeypatch):
    dataset = make_dataset(([(user, 1 + user % 2, "click", 60.0 * user) for user in range(USERS)], []))
    files = LiveState.at(dataset, 10.0 * DAY, make_features(0.0)).to_files()
    for rows in (1, 3, 4096):
        monkeypatch.setattr(live_files, "_ROWS", rows)
        assert LiveState.from_files(files).to_files() == files


def test_tables_that_are_shorter_than_their_keys_are_refused():
    dataset = make_dataset(([(0, 1, "click", 60.0)], []))
    files = LiveState.at(dataset, 10.0 * DAY, make_features(0.0)).to_files()
    arrays = load(files[live_files.ARRAYS])
    short = {name: array[:-1] if name == "table0.last" else array for name, array in arrays.items()}
    with pytest.raises(RecsysError, match="live_state_format"):
        LiveState.from_files({**files, live_files.ARRAYS: save(short)})
