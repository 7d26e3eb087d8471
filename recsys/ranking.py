"""The ranker: LightGBM's trees over the feature matrix, saved as its text with the feature schema.

`ranker_training` fits it. LightGBM itself is imported where trees are cut off only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from recsys.errors import RecsysError
from recsys.events import Float32, Float64
from recsys.forest import Forest

if TYPE_CHECKING:
    import lightgbm as lgb


@dataclass(frozen=True)
class RankerConfig:
    """LightGBM settings.

    Attributes:
        learning_rate: shrinkage of each tree.
        leaves: leaves a tree.
        rounds: most trees; early stopping usually ends sooner.
        patience: rounds without a better validation NDCG before stopping.
        min_data_in_leaf: fewest rows a leaf.
        feature_fraction: share of features a tree may use. `bagging_fraction`: share of rows.
        regularization: L2 term on leaf values.
        bins: histogram bins a feature.
        truncation: pairs are formed with items down to this predicted rank.
        threads: LightGBM threads in training.
        validation_share: newest share of the requests kept for early stopping.
    """

    learning_rate: float = 0.05
    leaves: int = 31
    rounds: int = 400
    patience: int = 30
    min_data_in_leaf: int = 200
    feature_fraction: float = 0.5
    bagging_fraction: float = 0.8
    regularization: float = 10.0
    bins: int = 127
    truncation: int = 20
    threads: int = 2
    validation_share: float = 0.15


class Ranker:
    """Fitted trees together with the digest of the feature schema that they were fitted on."""

    def __init__(self, text: str, schema_hash: str) -> None:
        """Parse LightGBM's text.

        Raises:
            RecsysError: of `Forest.parse`.
        """
        self.text = text
        self.schema_hash = schema_hash
        self.forest = Forest.parse(text)

    @property
    def features(self) -> tuple[str, ...]:
        """Column names in the order of the fit."""
        return self.forest.features

    @property
    def trees(self) -> int:
        """How many trees are added up."""
        return len(self.forest)

    @cached_property
    def booster(self) -> lgb.Booster:
        """The same trees in LightGBM; only a text that `Forest.parse` took gets here."""
        import lightgbm

        return lightgbm.Booster(model_str=self.text)

    def with_trees(self, count: int) -> Ranker:
        """The ranker of the first `count` trees, which is what boosting had after so many rounds.

        Raises:
            ValueError: `count` is not in 1..trees.
        """
        if not 1 <= count <= self.trees:
            raise ValueError(f"the ranker can keep 1..{self.trees} trees, not {count}")
        return Ranker(self.booster.model_to_string(num_iteration=count), self.schema_hash)

    def score(self, matrix: Float32, schema_hash: str, *, threads: int = 1) -> Float64:
        """Scores (rows,), higher is better; log-odds-like, comparable within a request only.

        Raises:
            RecsysError: `feature_mismatch` when `schema_hash` is not the one of the fit.
        """
        self._check(schema_hash)
        return self.forest.score(matrix, threads=threads)

    def effects(self, matrix: Float32, schema_hash: str) -> Float64:
        """(rows, features + 1) by how much each feature moved each score, and last where all start.

        A row adds up to its score (see `tree_effects`); these are LightGBM's own contributions.

        Raises:
            RecsysError: `feature_mismatch`, as `score`.
        """
        self._check(schema_hash)
        return self.forest.effects(matrix)

    def to_files(self) -> dict[str, bytes]:
        """Model text and schema for the bundle."""
        schema = {"features": list(self.features), "schema_hash": self.schema_hash}
        return {"ranker.txt": self.text.encode(), "ranker.json": json.dumps(schema, indent=1).encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Ranker:
        """Parse verified bytes.

        Raises:
            RecsysError: `ranker_invalid` for a damaged text, `feature_mismatch` when it has other features
                than the schema.
        """
        schema = json.loads(files["ranker.json"])
        ranker = cls(files["ranker.txt"].decode(errors="replace"), schema["schema_hash"])
        if list(ranker.features) != schema["features"]:
            raise RecsysError("feature_mismatch", "model text and feature schema disagree", "ranker.txt")
        return ranker

    def _check(self, schema_hash: str) -> None:
        if schema_hash != self.schema_hash:
            raise RecsysError(
                "feature_mismatch", "the matrix has other features than the ranker was fitted on"
            )
