"""How fast trees are added up and explained: our kernels against LightGBM, one thread each, in the same run.

python tests/benchmarks/bench_trees.py [--rounds 300] [--leaves 31] [--features 60]

Slates of 200 rows, which share a third of their columns, as candidates share what is known of their user.
Fails where slates are scored less than 4 times as fast, or 20 rows are explained less than 3 times as fast.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import lightgbm as lgb
import numpy as np

from recsys.events import Float32
from recsys.forest import Forest

SLATES, ROWS, EXPLAINED = 60, 200, 20


def make_slates(features: int) -> list[Float32]:
    """Random slates with some values missing."""
    rng = np.random.default_rng(0)
    slates = []
    for _ in range(SLATES):
        slate = rng.normal(size=(ROWS, features)).astype(np.float32)
        slate[:, : features // 3] = slate[0, : features // 3]
        slate[rng.random(slate.shape) < 0.05] = np.nan
        slates.append(slate)
    return slates


def fitted(features: int, rounds: int, leaves: int) -> lgb.Booster:
    """Trees over rows like those of the slates."""
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(20_000, features)).astype(np.float32)
    label = np.tanh(matrix[:, :20]).sum(axis=1) + matrix[:, 0] * matrix[:, -1] + rng.normal(size=len(matrix))
    parameters = {"verbosity": -1, "num_leaves": leaves, "learning_rate": 0.05, "num_threads": 2}
    return lgb.train(parameters, lgb.Dataset(matrix, label=label), num_boost_round=rounds)


def interleaved(ours: Callable[[int], Any], theirs: Callable[[int], Any]) -> tuple[float, float]:
    """Median milliseconds of both, call by call in turn."""
    ours(0), theirs(0)
    taken: tuple[list[float], list[float]] = [], []
    for number in range(SLATES):
        for work, seconds in zip((ours, theirs), taken, strict=True):
            begin = time.perf_counter()
            work(number)
            seconds.append(time.perf_counter() - begin)
    return tuple(float(np.median(seconds)) * 1e3 for seconds in taken)  # type: ignore[return-value]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--leaves", type=int, default=31)
    parser.add_argument("--features", type=int, default=60)
    asked = parser.parse_args(arguments)
    booster = fitted(asked.features, asked.rounds, asked.leaves)
    forest, slates = Forest.parse(booster.model_to_string()), make_slates(asked.features)
    few = [slate[:EXPLAINED] for slate in slates]
    for slate in slates[:3]:
        expected = booster.predict(slate, raw_score=True, num_threads=1)
        np.testing.assert_array_equal(forest.score(slate), expected)
    scored = interleaved(
        lambda number: forest.score(slates[number]),
        lambda number: booster.predict(slates[number], raw_score=True, num_threads=1),
    )
    explained = interleaved(
        lambda number: forest.effects(few[number]),
        lambda number: booster.predict(few[number], pred_contrib=True, num_threads=1),
    )
    figures = {
        "trees": len(forest),
        "score_ms": dict(zip(("ours", "lightgbm"), scored, strict=True)),
        "explain_ms": dict(zip(("ours", "lightgbm"), explained, strict=True)),
        "times_as_fast": {"score": scored[1] / scored[0], "explain": explained[1] / explained[0]},
    }
    print(json.dumps(figures, indent=1))
    ratios = figures["times_as_fast"]
    if ratios["score"] < 4.0 or ratios["explain"] < 3.0:  # type: ignore[index]
        raise SystemExit("not as fast as it should be")


if __name__ == "__main__":
    main()
