"""Fitting the ranker: LightGBM LambdaRank, early stopping on the newest requests, then all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import lightgbm as lgb
import numpy as np

from recsys.errors import RecsysError
from recsys.events import Float32, Int64
from recsys.ranking import Ranker, RankerConfig
from recsys.requests import Requests


@dataclass(frozen=True)
class RankerReport:
    """How the fit went: trees kept, rows used, validation NDCG@10 and total gain by feature."""

    trees: int
    rows: int
    validation_ndcg_at_10: float
    gain: dict[str, float]


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
    return Ranker(booster.model_to_string(), schema_hash), RankerReport(
        booster.num_trees(), len(matrix), ndcg, ranked
    )


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
    rows = order[np.repeat(keep, requests.lengths)]
    position = requests.position[rows]
    shown = len(rows) > 0 and bool((position > 0).all())
    return lgb.Dataset(
        matrix[rows],
        label=requests.label[rows],
        group=requests.lengths[keep],
        position=position if shown and reference is None else None,
        feature_name=list(names),
        reference=reference,
        free_raw_data=True,
    )
