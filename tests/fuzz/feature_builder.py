"""Features of a live state: any order of events, slates, items and requests, at any moment, by anybody.

The bytes are a program of what happens. Each matrix has the schema's width and nothing infinite, a request
alone has the features it has among others, and a state that was saved and loaded reads the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import polars as pl

from features.builder import Features
from features.catalogue import default_features
from features.live import LiveState
from recsys.dataset import Dataset
from recsys.events import lengths_to_offsets
from recsys.pairs import DensePairs, SparsePairs
from recsys.requests import Requests

DAY_S = 86_400.0
AS_OF = 20 * DAY_S
USERS, ITEMS = 4, 6
TYPES = ("click", "view", "purchase", "dismiss")
MOMENTS = (0.0, 5e-324, 1.0, AS_OF, AS_OF + 1e-6, AS_OF + 3600.0, 1.7637e9, 2.0**53, 253402300799.0)
SCORES = (0.0, -0.0, 1.0, -1.0, 0.25, 30.0, -30.0, 1e-30, 1e30, np.nan)
MOST_STEPS = 16


@dataclass
class Program:
    """Bytes that are read one after another; zeros behind their end."""

    data: bytes
    place: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether all of them were read."""
        return self.place >= len(self.data)

    def number(self, below: int) -> int:
        """A number from 0 on."""
        self.place += 1
        return (self.data[self.place - 1] if self.place <= len(self.data) else 0) % below

    def moment(self) -> float:
        """An odd moment, or one some half days or seconds from the start."""
        way, step = self.number(len(MOMENTS) + 6), self.number(256)
        if way < len(MOMENTS):
            return MOMENTS[way]
        return max(0.0, AS_OF + (step - 40) * (DAY_S / 2, 1.0, 1e-3)[way % 3])


def check(data: bytes) -> None:
    """Let happen what the bytes say, with and without a delay of the features."""
    program = Program(data)
    live = LiveState.from_files(_start(program.number(3)))
    users = USERS
    for _ in range(MOST_STEPS):
        if program.has_ended:
            break
        what = program.number(10)
        if what < 5:
            users = _act(live, program, users, many=what == 4)
        elif what == 5:
            _add_items(live, program)
        elif what == 6:
            live = _reloaded(live, program, users)
        else:
            _build(live, _requests(live, program, users), program)
    _build(live, _requests(live, program, users), program)


def _act(live: LiveState, program: Program, users: int, *, many: bool) -> int:
    """An event, many of them, or a slate, of somebody known or the next one; gives how many are known."""
    user, moment = program.number(users + 1), program.moment()
    types = len(live.weights["any"])
    kind = program.number(types + 2)
    items = [program.number(len(live.items)) for _ in range(1 + program.number(4))]
    if kind == types + 1:
        live.show(user, np.array(items, np.int32), moment)
    elif kind == types:
        _update_with_unknown_type(live, user, types, moment)
    else:
        for item in items * (80 if many else 1):
            live.update(user, item, kind, moment)
    return max(users, user + 1)


def _update_with_unknown_type(live: LiveState, user: int, kind: int, moment: float) -> None:
    try:
        live.update(user, 0, kind, moment)
    except ValueError:
        return
    raise AssertionError("an event of no type was taken")


def _add_items(live: LiveState, program: Program) -> None:
    count = 1 + program.number(3)
    codes = np.array([[program.number(8) - 1 for _ in range(count)] for _ in range(2)], np.int32)
    created = np.array([np.nan if program.number(2) else program.moment() for _ in range(count)])
    live.add_items(codes[0], codes[1], created)


def _requests(live: LiveState, program: Program, users: int) -> Requests:
    """Up to three requests of known and unknown users, for known and unknown items, some of them twice."""
    count = program.number(4)
    moments = [program.moment() for _ in range(count)]
    if program.number(2):
        moments = moments[:1] * count
    asking = [program.number(users + 3) - 1 for _ in range(count)]
    lengths = np.array([program.number(6) for _ in range(count)], np.int64)
    items = [program.number(len(live.items) + 3) - 1 for _ in range(int(lengths.sum()))]
    source = np.array([program.number(256) * program.number(9) for _ in items], np.int32)
    known = np.zeros(count, np.int64)
    candidates = (lengths_to_offsets(lengths), np.array(items, np.int32))
    return Requests.of(np.array(asking, np.int32), np.array(moments, np.float64), known, candidates, source)


def _build(live: LiveState, requests: Requests, program: Program) -> None:
    features, reading = live.features, live.read(requests)
    names = ("head", "als_user", "sequence")[: program.number(4)]
    scores = {
        name: np.array([SCORES[program.number(len(SCORES))] for _ in range(requests.rows)], np.float32)
        for name in names
    }
    pairs = _pairs(len(live.items)) if program.number(2) else {}
    weights = _world().weights
    matrix = features.build(requests, reading, pairs, scores, weights)
    assert matrix.shape == (requests.rows, len(features.schema))
    assert matrix.dtype == np.float32
    infinite = np.isinf(matrix).any(axis=0)
    assert not infinite.any(), np.array(features.schema.names)[infinite]
    for number in range(len(requests)):
        rows = slice(requests.offsets[number], requests.offsets[number + 1])
        one = np.array([number])
        own = {name: values[rows] for name, values in scores.items()}
        again = features.build(requests.take(one), reading.take(requests, one), pairs, own, weights)
        np.testing.assert_array_equal(again, matrix[rows])


def _reloaded(live: LiveState, program: Program, users: int) -> LiveState:
    """The state after it was saved and loaded, which reads the same and is saved as the same bytes."""
    requests = _requests(live, program, users)
    files = live.to_files()
    other = LiveState.from_files(files)
    assert other.to_files() == files
    first, second = live.read(requests), other.read(requests)
    np.testing.assert_array_equal(first.counters, second.counters)
    for name in ("offsets", "item_index", "type_index", "age_s"):
        np.testing.assert_array_equal(getattr(first.history, name), getattr(second.history, name))
    return other


@cache
def _world() -> Dataset:
    """A short log of few people."""
    draws = np.random.default_rng(3)
    items = {
        "item_id": range(ITEMS),
        "title": ["t"] * ITEMS,
        "category": ["a", "b", None, "a", "b", "c"],
        "subcategory": ["x", "y", "x", None, "y", "z"],
        "created_at": [0.0, 3 * DAY_S, None, 9 * DAY_S, None, 1 * DAY_S],
    }
    count = 30
    events = {
        "user_id": draws.integers(0, USERS, count),
        "item_id": draws.integers(0, ITEMS, count),
        "event_type": [TYPES[number % len(TYPES)] for number in range(count)],
        "timestamp": np.sort(draws.random(count) * AS_OF),
    }
    slates = {
        "user_id": draws.integers(0, USERS, 8),
        "timestamp": np.sort(draws.random(8) * AS_OF),
        "shown": [draws.permutation(ITEMS)[:4].tolist() for _ in range(8)],
    }
    users = pl.DataFrame({"user_id": range(USERS)})
    return Dataset.from_frames(pl.DataFrame(items), pl.DataFrame(events), pl.DataFrame(slates), users)


@cache
def _start(which: int) -> dict[str, bytes]:
    """The files of a state without a delay, with one of half a day, or with a short history."""
    delay_s, limit = ((0.0, 150), (DAY_S / 2, 3), (0.0, 3))[which]
    features = Features(default_features(delay_s), history_limit=limit, history_delay_s=delay_s)
    return LiveState.at(_world(), AS_OF, features).to_files()


@cache
def _pairs(items: int) -> dict[str, DensePairs | SparsePairs]:
    """Of the items so far; of one nothing is known."""
    draws = np.random.default_rng(4)
    offsets = np.arange(items + 1, dtype=np.int64) * 3
    columns = np.concatenate([np.sort(draws.permutation(items)[:3]) for _ in range(items)]).astype(np.int32)
    sparse = SparsePairs(offsets, columns, draws.random(items * 3).astype(np.float32))
    text, als = (DensePairs(draws.normal(size=(items, dim)).astype(np.float32)) for dim in (16, 8))
    text.factors[1] = 0.0
    return {"text": text, "als": als, "item_item": sparse, "ease": text, "transition": sparse}
