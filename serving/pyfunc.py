"""The bundle behind MLflow's own tools: `mlflow models serve` and `mlflow.pyfunc.load_model`.

A thin face over the scorer that every other path uses. It imports neither MLflow nor torch, and verifies the
bundle before anything parses it. Our own batch job and server do not come through here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.bundle import read_bundle
from recsys.events import Float64

if TYPE_CHECKING:
    import pandas as pd

    from recsys.scorer import Scorer

REQUIRED = ("request", "user_id", "item_id")


class BundleModel:
    """Scores a table of one row a (request, item)."""

    def __init__(self, scorer: Scorer) -> None:
        """Take the scorer of a verified bundle."""
        self._scorer = scorer

    def predict(self, frame: pd.DataFrame, params: Mapping[str, Any] | None = None) -> Float64:
        """Score each row against the other rows of its request.

        Args:
            frame: columns `request`, `user_id`, `item_id` (text); optional `source` (retrievers joined by
                "+", missing = none) and `timestamp` (epoch seconds UTC, missing = the bundle's `as_of`).
            params: not used; MLflow passes it.

        Returns:
            (rows,) scores in the order of the rows; empty for an empty table. Higher is better, and only
            scores of one request are comparable.

        Raises:
            ValueError: for a missing column, or a null in a required one.
        """
        self._check(frame)
        rows = len(frame)
        if not rows:
            return np.zeros(0, np.float64)
        ids = {name: frame[name].astype(str).tolist() for name in REQUIRED}
        source = frame["source"].fillna("").astype(str).tolist() if "source" in frame else [""] * rows
        moment = frame["timestamp"].to_numpy(np.float64) if "timestamp" in frame else np.full(rows, np.nan)
        return self._scorer.score(ids["request"], ids["user_id"], ids["item_id"], source, moment)

    @staticmethod
    def _check(frame: pd.DataFrame) -> None:
        if missing := [name for name in REQUIRED if name not in frame]:
            raise ValueError(
                f"missing columns {missing}: give one row a (request, item) with {list(REQUIRED)}"
            )
        if empty := [name for name in REQUIRED if frame[name].isna().any()]:
            raise ValueError(f"null values in {empty}")


def _load_pyfunc(path: str) -> BundleModel:
    """Load the bundle folder at `path`; MLflow calls this by name. Raises what `read_bundle` raises."""
    from serving.scorer import load_scorer

    return BundleModel(load_scorer(read_bundle(Path(path))))
