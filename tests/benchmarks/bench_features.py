"""How fast the features are: replay against a Python loop in the same run, the matrix, one live
request. CPU time.

python tests/benchmarks/bench_features.py [--events 200000] [--slates 10000]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from features.builder import Features
from features.declaration import Counter
from features.live import LiveState
from features.replay import Replay
from recsys.dataset import Dataset
from recsys.events import Events, Float32, Slates
from recsys.pairs import DensePairs, SparsePairs
from recsys.requests import Requests

DAY_S = 86_400.0
ITEMS, USERS, SHOWN = 20_000, 10_000, 20
DIMENSIONS, NEIGHBOURS = 384, 100
LIVES = (1.0, 7.0, 30.0, 180.0, None)
COUNTERS = (
    Counter("item", "item", "target", LIVES),
    Counter("category", "category", "target", LIVES),
    Counter("user", "user", "target", LIVES),
    Counter("affinity", "user_category", "target", LIVES),
)


def make_world(events: int, slates: int) -> Dataset:
    """A random log: nothing to learn, as much to count as in a real one."""
    rng = np.random.default_rng(0)
    items = pl.DataFrame(
        {
            "item_id": np.arange(ITEMS),
            "title": ["t"] * ITEMS,
            "category": [f"c{i % 20}" for i in range(ITEMS)],
            "subcategory": [f"s{i % 200}" for i in range(ITEMS)],
        }
    )
    log = pl.DataFrame(
        {
            "user_id": rng.integers(0, USERS, events),
            "item_id": (ITEMS * rng.random(events) ** 2).astype(np.int64),
            "event_type": rng.choice(["click", "view", "purchase"], events),
            "timestamp": np.sort(rng.random(events)) * 100 * DAY_S,
        }
    )
    shown = pl.Series((ITEMS * rng.random((slates, SHOWN)) ** 2).astype(np.int64)).arr.to_list()
    times = (0.5 + 0.5 * np.sort(rng.random(slates))) * 100 * DAY_S
    impressions = {"user_id": rng.integers(0, USERS, slates), "timestamp": times, "shown": shown}
    return Dataset.from_frames(items, log, pl.DataFrame(impressions))


def make_pairs() -> dict[str, DensePairs | SparsePairs]:
    """Random scores of the usual sizes."""
    rng = np.random.default_rng(1)
    text, als = (DensePairs(rng.normal(size=(ITEMS, d)).astype(np.float32)) for d in (DIMENSIONS, 64))
    offsets = np.arange(ITEMS + 1, dtype=np.int64) * NEIGHBOURS
    columns = rng.integers(0, ITEMS, ITEMS * NEIGHBOURS).astype(np.int32)
    sparse = SparsePairs(offsets, columns, rng.random(len(columns)).astype(np.float32))
    return {"text": text, "als": als, "item_item": sparse, "transition": sparse}


def loop_over_the_log(data: Dataset, events: Events, slates: Slates) -> Float32:
    """COUNTERS as a user would write them: dictionaries, one row after another."""
    rates = [0.0 if life is None else math.log(2) / (life * DAY_S) for life in LIVES]
    state: dict[tuple[int, ...], list[float]] = {}
    moment: dict[tuple[int, ...], float] = {}
    category = data.catalogue.category.tolist()
    weights = np.where(data.is_target, data.weights, 0).astype(np.float64).tolist()

    def keys(user: int, item: int) -> tuple[tuple[int, ...], ...]:
        return (0, item), (1, category[item]), (2, user), (3, user, category[item])

    out, done = [], 0
    for slate in range(len(slates)):
        now = float(slates.timestamp[slate])
        while done < len(events) and events.timestamp[done] < now:
            weight, then = weights[events.type_index[done]], float(events.timestamp[done])
            if weight:
                for key in keys(int(events.user_index[done]), int(events.item_index[done])):
                    old, elapsed = state.get(key), then - moment.get(key, then)
                    sums = [0.0] * len(rates) if old is None else old
                    state[key] = [
                        s * math.exp(-elapsed * rate) + weight for s, rate in zip(sums, rates, strict=True)
                    ]
                    moment[key] = then
            done += 1
        for row in range(slates.offsets[slate], slates.offsets[slate + 1]):
            line = []
            for key in keys(int(slates.user_index[slate]), int(slates.item_index[row])):
                elapsed = now - moment.get(key, now)
                sums = state.get(key, [0.0] * len(rates))
                line += [s * math.exp(-elapsed * rate) for s, rate in zip(sums, rates, strict=True)]
            out.append(line)
    return np.array(out, np.float32)


def timed(work: Callable[[], Any], repeats: int = 3) -> tuple[Any, float]:
    """The result, and the CPU seconds of the fastest of several runs."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        seconds.append(time.process_time() - start)
    return result, min(seconds)


def measure(events: int, slates: int) -> dict[str, float]:
    """All figures of one run."""
    data = make_world(events, slates)
    requests = Requests.from_slates(data.slates, data.events)
    counters = Features(COUNTERS)
    Replay(data, counters).read(requests.take(np.arange(1)))
    replayed, replay_s = timed(lambda: Replay(data, counters).read(requests).counters)
    looped, loop_s = timed(lambda: loop_over_the_log(data, data.events, data.slates), repeats=1)
    np.testing.assert_array_equal(replayed, looped)

    features, pairs = Features(), make_pairs()
    replay = Replay(data, features)
    scores = {"head": np.zeros(requests.rows, np.float32)}
    reading, read_s = timed(lambda: replay.read(requests))
    _, build_s = timed(lambda: features.build(requests, reading, pairs, scores, data.weights))
    live = LiveState.at(data, data.end, features)
    now = np.array([data.end])
    candidates = (np.array([0, 200]), np.arange(200, dtype=np.int32))
    request = Requests.of(np.array([7]), now, np.array([len(data.events)]), candidates)
    read, live_read_s = timed(lambda: live.read(request), 200)
    _, live_build_s = timed(lambda: features.build(request, read, pairs, {}, data.weights), 200)
    rows = requests.rows
    return {
        "loop_rows_per_s": rows / loop_s,
        "replay_rows_per_s": rows / replay_s,
        "replay_over_loop": loop_s / replay_s,
        "all_states_rows_per_s": rows / read_s,
        "matrix_rows_per_s": rows / build_s,
        "live_read_200_candidates_ms": 1000 * live_read_s,
        "live_matrix_200_candidates_ms": 1000 * live_build_s,
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--slates", type=int, default=10_000)
    options = parser.parse_args()
    figures = measure(options.events, options.slates)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
