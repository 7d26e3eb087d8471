"""The ranker: LightGBM LambdaRank over the feature matrix, saved as text with its feature schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import lightgbm as lgb
import numpy as np

from recsys.errors import RecsysError
from recsys.events import Float32, Float64, Int64
from recsys.requests import Requests


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


@dataclass(frozen=True)
class RankerReport:
    """How the fit went: trees kept, rows used, validation NDCG@10 and total gain by feature."""

    trees: int
    rows: int
    validation_ndcg_at_10: float
    gain: dict[str, float]


class Ranker:
    """A fitted booster together with the feature names it was fitted on."""

    def __init__(self, booster: lgb.Booster, features: Sequence[str], schema_hash: str) -> None:
        self.booster = booster
        self.features = tuple(features)
        self.schema_hash = schema_hash

    @property
    def trees(self) -> int:
        """How many trees are added up."""
        return int(self.booster.num_trees())

    def with_trees(self, count: int) -> Ranker:
        """The ranker of the first `count` trees, which is what boosting had after so many rounds.

        Raises:
            ValueError: `count` is not in 1..trees.
        """
        if not 1 <= count <= self.trees:
            raise ValueError(f"the ranker can keep 1..{self.trees} trees, not {count}")
        text = self.booster.model_to_string(num_iteration=count)
        return Ranker(lgb.Booster(model_str=text), self.features, self.schema_hash)

    def score(self, matrix: Float32, schema_hash: str, *, threads: int = 1) -> Float64:
        """Scores (rows,), higher is better; log-odds-like, comparable within a request only.

        Raises:
            RecsysError: `feature_mismatch` when `schema_hash` is not the one of the fit.
        """
        if schema_hash != self.schema_hash:
            raise RecsysError(
                "feature_mismatch", "the matrix has other features than the ranker was fitted on"
            )
        if not len(matrix):
            return np.zeros(0)
        scores = self.booster.predict(matrix, num_threads=threads, raw_score=True)
        return np.asarray(scores, np.float64)

    def to_files(self) -> dict[str, bytes]:
        """Model text and schema for the bundle."""
        schema = {"features": list(self.features), "schema_hash": self.schema_hash}
        return {
            "ranker.txt": self.booster.model_to_string().encode(),
            "ranker.json": json.dumps(schema, indent=1).encode(),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Ranker:
        """Parse verified bytes (a damaged LightGBM text can kill the process: check digests first).

        Raises:
            RecsysError: `feature_mismatch` when the model text has other features than the schema.
        """
        schema = json.loads(files["ranker.json"])
        booster = lgb.Booster(model_str=files["ranker.txt"].decode())
        if booster.feature_name() != schema["features"]:
            raise RecsysError("feature_mismatch", "model text and feature schema disagree", "ranker.txt")
        return cls(booster, schema["features"], schema["schema_hash"])


def split_requests(requests: Requests, share: float) -> tuple[Int64, Int64]:
    """Numbers of the fitting and the validation requests.

    The newest `share` validates. Where many requests share a moment, every n-th user does instead.
    """
    count = len(requests)
    order = np.argsort(requests.timestamp, kind="stable")
    held = max(1, round(count * share)) if count > 1 else 0
    if len(np.unique(requests.timestamp)) < count * share:
        every = max(2, round(1 / share))
        _, user = np.unique(requests.user_index, return_inverse=True)
        chosen = user % every == 0
        return np.flatnonzero(~chosen), np.flatnonzero(chosen)
    return np.sort(order[: count - held]), np.sort(order[count - held :])


def fit_ranker(
    matrix: Float32,
    requests: Requests,
    names: Sequence[str],
    schema_hash: str,
    config: RankerConfig,
    *,
    seed: int = 0,
) -> tuple[Ranker, RankerReport]:
    """Fit on labelled requests; `matrix` (rows, features) is aligned with the candidate rows.

    The newest requests tell how many trees there should be; so many are then fitted on all of them.
    Positions enter as LightGBM's position bias where every row has one. Labels are 0 or more.

    Raises:
        RecsysError: `no_training_rows` when fewer than two requests hold both classes.
    """
    if len(requests) < 2 or not len(matrix):
        raise RecsysError("no_training_rows", "the log has too few requests with a positive to fit a ranker")
    order, parameters = _shuffled(requests, seed), _parameters(config, seed)
    trees, ndcg = _trees_wanted(matrix, requests, order, names, config, parameters)
    every = np.arange(len(requests), dtype=np.int64)
    booster = lgb.train(
        parameters, _lgb_dataset(matrix, requests, every, order, names), num_boost_round=trees
    )
    gain = dict(zip(names, booster.feature_importance("gain").tolist(), strict=True))
    ranked = dict(sorted(gain.items(), key=lambda pair: -pair[1]))
    return Ranker(booster, names, schema_hash), RankerReport(booster.num_trees(), len(matrix), ndcg, ranked)


def _trees_wanted(
    matrix: Float32,
    requests: Requests,
    order: Int64,
    names: Sequence[str],
    config: RankerConfig,
    parameters: dict[str, object],
) -> tuple[int, float]:
    """How many trees rank the validation requests best, and their NDCG@10 there."""
    fit, held = split_requests(requests, config.validation_share)
    train = _lgb_dataset(matrix, requests, fit, order, names)
    valid = _lgb_dataset(matrix, requests, held, order, names, reference=train)
    history: dict[str, dict[str, list[float]]] = {}
    booster = lgb.train(
        parameters,
        train,
        num_boost_round=config.rounds,
        valid_sets=[valid],
        valid_names=["validation"],
        callbacks=[
            lgb.early_stopping(config.patience, verbose=False),
            lgb.record_evaluation(history),
        ],
    )
    return booster.best_iteration, float(max(history["validation"]["ndcg@10"]))


def _shuffled(requests: Requests, seed: int) -> Int64:
    """(rows,) row numbers, those of each request in its own places in random order.

    LightGBM's NDCG takes tied scores in row order. Slates come in the order they were shown in, which
    knows the clicks' position bias: early stopping would end at the first tree, which ties the most.
    """
    owner = requests.request_of_row()
    return np.lexsort((np.random.default_rng(seed).random(len(owner)), owner))


def _parameters(config: RankerConfig, seed: int) -> dict[str, object]:
    return {
        "objective": "lambdarank",
        "metric": "ndcg",
        "eval_at": [10],
        "learning_rate": config.learning_rate,
        "num_leaves": config.leaves,
        "min_data_in_leaf": config.min_data_in_leaf,
        "feature_fraction": config.feature_fraction,
        "bagging_fraction": config.bagging_fraction,
        "bagging_freq": 1,
        "lambda_l2": config.regularization,
        "max_bin": config.bins,
        "lambdarank_truncation_level": config.truncation,
        "num_threads": config.threads,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }


def _lgb_dataset(
    matrix: Float32,
    requests: Requests,
    chosen: Int64,
    order: Int64,
    names: Sequence[str],
    reference: lgb.Dataset | None = None,
) -> lgb.Dataset:
    keep = np.zeros(len(requests), np.bool_)
    keep[chosen] = True
    rows = order[np.repeat(keep, np.diff(requests.offsets))]
    position = requests.position[rows]
    shown = len(rows) > 0 and bool((position > 0).all())
    return lgb.Dataset(
        matrix[rows],
        label=requests.label[rows],
        group=np.diff(requests.offsets)[keep],
        position=position if shown and reference is None else None,
        feature_name=list(names),
        reference=reference,
        free_raw_data=True,
    )
