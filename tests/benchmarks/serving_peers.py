"""What a user would write instead: two tables merged into the candidates, LightGBM, and FastAPI in front.

The trees are those of the version that is measured, and so is the number of columns. The values in the tables
are made up, because how long it takes does not depend on them.

uvicorn --factory tests.benchmarks.serving_peers:make_app   with RECSYS_BENCH_BUNDLE naming a bundle.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
import polars as pl
from fastapi import FastAPI
from pydantic import BaseModel

BUNDLE = "RECSYS_BENCH_BUNDLE"
ITEM_COLUMNS = ("item_", "category_", "subcategory_")
"""How the columns that depend on the item alone begin; the item's table also gets those of user and item."""


class Glue:
    """Feature tables in memory and a booster."""

    def __init__(self, bundle: Path, *, threads: int | None = None) -> None:
        """Take trees and ids from a bundle's folder; `threads` None leaves it to LightGBM."""
        self._booster = lgb.Booster(model_file=str(bundle / "ranker.txt"))
        self._columns = self._booster.feature_name()
        self._options = {} if threads is None else {"num_threads": threads}
        mine = [name for name in self._columns if name.startswith("user_")]
        rest = [name for name in self._columns if not name.startswith("user_")]
        self.users = _table(bundle / "users.parquet", "user_id", mine)
        self.items = _table(bundle / "items.parquet", "item_id", rest)

    def rank(self, user_id: str, candidates: Sequence[str]) -> pd.DataFrame:
        """The candidates with their scores, best first."""
        frame = pd.DataFrame({"user_id": user_id, "item_id": candidates})
        frame = frame.merge(self.users, on="user_id", how="left").merge(self.items, on="item_id", how="left")
        frame["score"] = self._booster.predict(frame[self._columns], **self._options)
        return frame.sort_values("score", ascending=False)


def _table(file: Path, name: str, columns: Sequence[str]) -> pd.DataFrame:
    ids = pl.read_parquet(file, columns=[name])[name].cast(pl.String).to_list()
    values = np.random.default_rng(len(ids)).normal(size=(len(ids), len(columns)))
    table = pd.DataFrame(values, columns=list(columns))
    table.insert(0, name, ids)
    return table


class RankIn(BaseModel):
    """A request."""

    user_id: str
    candidates: list[str]


class RankedItemOut(BaseModel):
    """An item in its place."""

    id: str
    score: float
    rank: int


class RankOut(BaseModel):
    """An answer."""

    items: list[RankedItemOut]
    model: str


def make_app() -> FastAPI:
    """The application, as the tutorial would have it."""
    glue, app = Glue(Path(os.environ[BUNDLE])), FastAPI()

    @app.get("/healthz")
    def healthz() -> dict[str, Any]:
        return {"ok": True}

    @app.post("/rank")
    def rank(request: RankIn) -> RankOut:
        frame = glue.rank(request.user_id, request.candidates)
        pairs = zip(frame["item_id"], frame["score"], strict=True)
        items = [
            RankedItemOut(id=item, score=score, rank=place)
            for place, (item, score) in enumerate(pairs, start=1)
        ]
        return RankOut(items=items, model="glue")

    return app
