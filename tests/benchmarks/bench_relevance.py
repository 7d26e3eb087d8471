"""How fast the relevance head scores: the compiled kernel against vectorised numpy, one request at a
time, in the same run; then a fit. CPU time.

python tests/benchmarks/bench_relevance.py [--requests 500] [--fit-requests 5000]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from recsys.events import Float32
from recsys.relevance import SIMILARITY_UNIT, HistorySlots, ProjectedItems, RelevanceHead
from recsys.relevance_examples import Examples
from recsys.relevance_training import fit_head
from recsys.relevance_weights import HeadConfig
from recsys.requests import HistoryBatch, Requests

ITEMS, TEXT_DIM, CANDIDATES, EVENTS = 20_000, 384, 200, 30


def make_world(requests: int, candidates: int) -> tuple[Requests, HistoryBatch, Float32]:
    """Random unit vectors and random labelled requests with full histories."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(ITEMS, TEXT_DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    numbers = np.arange(requests + 1, dtype=np.int64)
    items = rng.integers(0, ITEMS, requests * candidates).astype(np.int32)
    made = Requests.of(numbers[:-1], numbers[:-1], numbers[:-1], (numbers * candidates, items))
    history = HistoryBatch(
        numbers * EVENTS,
        rng.integers(0, ITEMS, requests * EVENTS).astype(np.int32),
        np.zeros(requests * EVENTS, np.int32),
        rng.exponential(1e6, requests * EVENTS),
    )
    return made.labelled((rng.random(len(items)) < 0.1).astype(np.float32)), history, vectors


def numpy_logits(
    head: RelevanceHead, requests: Requests, history: HistoryBatch, items: ProjectedItems
) -> Float32:
    """The head's formulas as one would write them in numpy: matrices, one request at a time."""
    w = head.weights
    slots = HistorySlots.of(history, head.config.history_limit, len(w.event_type))
    bias = w.age[slots.age] + w.place[slots.place] + w.event_type[slots.event_type]
    out = []
    for q in range(len(requests)):
        item = requests.item_index[requests.offsets[q] : requests.offsets[q + 1]]
        span = slice(slots.offsets[q], slots.offsets[q + 1])
        past = slots.item_index[span]
        u, v = items.candidate[item], items.history[past]
        similarity = items.vectors[item] @ items.vectors[past].T / SIMILARITY_UNIT
        logit = w.attention[0] * similarity + w.attention[1] * (u @ v.T) / len(w.null) + bias[span]
        logit = np.concatenate([logit, np.full((len(item), 1), w.attention[2], np.float32)], axis=1)
        share = np.exp(logit - logit.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        pooled = share[:, :-1] @ v + share[:, -1:] * w.null
        attended = (share[:, :-1] * similarity).sum(1)
        length = np.full(len(item), np.log1p(len(past)), np.float32)
        dense = np.stack([attended, similarity.mean(1), similarity.max(1), similarity[:, -1], length], axis=1)
        hidden = items.hidden[item] + pooled @ w.hidden_pooled + (u * pooled) @ w.hidden_product
        linear = dense @ w.dense + items.prior[item] + (u * pooled) @ w.bilinear
        out.append(linear + np.maximum(hidden, 0) @ w.output)
    return np.concatenate(out)


def timed(run: Callable[[], Any], repeats: int = 3) -> tuple[Any, float]:
    """The result and the least CPU seconds of a few runs."""
    result, best = run(), float("inf")
    for _ in range(repeats):
        began = time.process_time()
        result = run()
        best = min(best, time.process_time() - began)
    return result, best


def measure(requests: int, fit_requests: int) -> dict[str, float]:
    """All figures by name."""
    made, history, vectors = make_world(requests, CANDIDATES)
    head = RelevanceHead.untrained(vectors, np.ones(1, np.float32))
    items, project_s = timed(lambda: head.project(vectors))
    compiled, compiled_s = timed(lambda: head.logits(made, history, items))
    naive, naive_s = timed(lambda: numpy_logits(head, made, history, items))
    np.testing.assert_allclose(compiled, naive, rtol=1e-4, atol=1e-4)
    small, short, _ = make_world(requests, 20)
    _, small_s = timed(lambda: head.logits(small, short, items))
    _, naive_small_s = timed(lambda: numpy_logits(head, small, short, items))
    one = np.zeros(1, np.int64)
    call, past = made.take(one), history.take(one)
    _, call_s = timed(lambda: [head.score(call, past, items) for _ in range(100)])
    shown, seen, vectors = make_world(fit_requests, 20)
    examples = Examples(shown, np.ones(shown.rows, np.float32))
    began = time.process_time()
    _, report = fit_head(
        examples, seen, vectors, np.ones(1, np.float32), HeadConfig(history_limit=EVENTS, patience=9)
    )
    fit_s = time.process_time() - began
    return {
        "rows_per_s_200_candidates": made.rows / compiled_s,
        "over_numpy_200_candidates": naive_s / compiled_s,
        "rows_per_s_20_candidates": small.rows / small_s,
        "over_numpy_20_candidates": naive_small_s / small_s,
        "project_items_per_s": ITEMS / project_s,
        "one_request_of_200_ms": 10 * call_s,
        "fit_rows_per_s": len(report.train_loss) * report.rows / fit_s,
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--fit-requests", type=int, default=5_000)
    options = parser.parse_args()
    figures = measure(options.requests, options.fit_requests)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
