"""The ranker's training rows: whose requests they are."""

from __future__ import annotations

import numpy as np
import polars as pl

from pipelines.fitting import fewer_strangers
from recsys.dataset import Dataset
from recsys.protocols import Split, split_at


def window(known: int, strangers: int) -> Split:
    """`known` users have an event before the cut at 100, `strangers` none; all have one after it."""
    rows = [(f"k{user}", 0, float(user)) for user in range(known)]
    rows += [("earlier", 0, 99.0)]
    rows += [(f"k{user}", 1, 100.0 + user) for user in range(known)]
    rows += [(f"s{user}", 1, 150.0 + user) for user in range(strangers)]
    schema = {"user_id": pl.String, "item_id": pl.Int64, "timestamp": pl.Float64}
    events = pl.DataFrame(rows, schema=schema, orient="row").with_columns(event_type=pl.lit("click"))
    items = pl.DataFrame({"item_id": [0, 1], "title": ["a", "b"]})
    return split_at(Dataset.from_frames(items, events), 100.0)


def asked(found: Split, numbers: np.ndarray) -> list[str]:
    return found.train.users.take(found.requests.user_index[numbers]).to_list()


def test_requests_without_history_are_kept_in_proportion():
    found = window(known=8, strangers=20)
    kept = asked(found, fewer_strangers(found, 0.25, seed=1))
    assert sorted(user for user in kept if user.startswith("k")) == [f"k{user}" for user in range(8)]
    assert sum(user.startswith("s") for user in kept) == 2
    assert kept == asked(found, fewer_strangers(found, 0.25, seed=1))
    assert {tuple(asked(found, fewer_strangers(found, 0.25, seed=seed))) for seed in range(9)} != {
        tuple(kept)
    }


def test_few_strangers_and_strangers_alone_all_stay():
    few = window(known=8, strangers=2)
    assert len(fewer_strangers(few, 0.25)) == len(few.requests)
    alone = window(known=0, strangers=5)
    assert len(fewer_strangers(alone, 0.25)) == 5
