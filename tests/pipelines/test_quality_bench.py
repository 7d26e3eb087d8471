"""The quality benchmark: peers against formulas by hand, honest tuning, whole runs on a small world."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import sparse

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))  # behind the packages: a benchmark may have the name of one

import peers  # noqa: E402
import quality  # noqa: E402
import quality_report  # noqa: E402
import quality_window  # noqa: E402
import sequence_peer  # noqa: E402

from recsys.dataset import Dataset  # noqa: E402
from recsys.dataset_folder import load  # noqa: E402
from recsys.requests import HistoryBatch  # noqa: E402
from recsys.simulation import SimulationConfig, simulate  # noqa: E402
from recsys.text.item_text import catalogue_texts  # noqa: E402

ITEMS, USERS = 12, 20


@pytest.fixture(scope="module")
def small() -> Dataset:
    """200 events of 20 users over 12 items; the last item is new and stands in the last event."""
    rng = np.random.default_rng(0)
    item = np.minimum(rng.exponential(3, 200), ITEMS - 2).astype(np.int64)
    item[-1] = ITEMS - 1
    events = {
        "user_id": rng.integers(0, USERS, 200),
        "item_id": item,
        "event_type": ["click"] * 200,
        "timestamp": np.arange(200) * 100.0,
    }
    titles = [
        f"{word} {kind}" for word in ("red", "green", "blue") for kind in ("hat", "shoe", "bag", "belt")
    ]
    items = {"item_id": range(ITEMS), "title": titles, "category": ["hat", "shoe", "bag", "belt"] * 3}
    return Dataset.from_frames(pl.DataFrame(items), pl.DataFrame(events))


@pytest.fixture(scope="module")
def window(small: Dataset) -> quality_window.Window:
    embeddings = np.random.default_rng(1).normal(size=(ITEMS, 5)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return quality_window.Window.of(small, "time", small.catalogue.title, embeddings)


def block_of(name: str, window: quality_window.Window, **point: object) -> np.ndarray:
    peer = next(peer for peer in peers.PEERS if peer.name == name)
    scorer = peer.fit(window.asked, {**peer.grid[0], **point}, 0)
    return scorer(window.asked.requests, window.asked.history)


def test_ease_weights_solve_the_constrained_ridge_problem(rng):
    clicks = sparse.random(30, 7, 0.4, "csr", random_state=rng)
    clicks.data[:] = 3.0
    dense = (clicks.toarray() > 0).astype(float)
    weights = peers.ease_weights(clicks, 2.5)
    assert np.diag(weights).tolist() == [0.0] * 7
    for column in range(7):  # ridge regression of each item on the others, one by one
        others = [row for row in range(7) if row != column]
        X, y = dense[:, others], dense[:, column]
        ridge = np.linalg.solve(X.T @ X + 2.5 * np.eye(6), X.T @ y)
        np.testing.assert_allclose(weights[others, column], ridge, rtol=1e-4, atol=1e-5)


def test_bm25_neighbours_by_hand():
    # Items 0 and 1 share user 0; item 2 has user 1 alone. Users have 2, 1 and 0 items of 3 in all.
    events = {"user_id": [0, 0, 1, 2], "item_id": [0, 1, 2, 3], "event_type": ["click"] * 4}
    events["timestamp"] = [1.0, 2.0, 3.0, 4.0]
    data = Dataset.from_frames(pl.DataFrame({"item_id": range(4), "title": [""] * 4}), pl.DataFrame(events))
    history = HistoryBatch(
        np.array([0, 1]), np.array([0], np.int32), np.array([0], np.int32), np.array([1.0])
    )
    asked = peers.Asked(data, None, history, [""] * 4, np.zeros((4, 2), np.float32))
    scorer = peers.fit_bm25(asked, {"neighbours": 3, "k1": 1.2, "b": 0.75}, 0)
    (scores,) = scorer([None], history)
    # Each item is a document of one term, of average length: 1 × 2.2 / (1.2 + 1) = 1, times the idf.
    idf = np.log(4) - np.log1p(2)
    np.testing.assert_allclose(scores[1], idf**2, rtol=1e-6)
    assert np.isneginf(scores[[2, 3]]).all()


def test_cosine_neighbours_are_the_cosines_of_the_columns(window):
    clicks = np.zeros((USERS, ITEMS))
    np.add.at(clicks, (window.split.train.events.user_index, window.split.train.events.item_index), 1.0)
    norms = np.maximum(np.linalg.norm(clicks, axis=0), 1e-12)
    cosine = (clicks.T @ clicks) / norms / norms[:, None]
    wanted = peers.profile(window.asked.history, ITEMS) @ cosine
    found = block_of("item_knn_cosine", window)
    np.testing.assert_allclose(np.where(np.isfinite(found), found, 0), wanted, rtol=1e-5, atol=1e-5)


def test_both_is_the_weighted_sum_of_its_parts(window):
    parts = {"item_knn_bm25": {"neighbours": 5, "k1": 1.2, "b": 0.5}}
    parts["tfidf"] = {"ngrams": 1, "position_decay": 0.8}
    alone = [peers.normalised(block_of(name, window, **point)) for name, point in parts.items()]
    both = block_of("item_knn_tfidf", window, text_share=0.25, **parts)
    wanted = 0.75 * alone[0] + 0.25 * alone[1]
    np.testing.assert_allclose(np.where(np.isfinite(both), both, 0), wanted, rtol=1e-5)
    assert max(part.max() for part in alone) == 1.0


@pytest.mark.parametrize("name", [peer.name for peer in peers.PEERS if peer.name != "item_knn_tfidf"])
def test_every_peer_scores_every_item_of_every_request(window, name):
    if name == "lightfm":
        pytest.importorskip("lightfm")
    block = block_of(name, window)
    assert block.shape == (len(window.asked.requests), ITEMS)
    assert not np.isnan(block).any()
    assert np.isfinite(block).any()


def test_every_tunable_peer_has_the_same_number_of_points():
    external = sequence_peer.SasRec(None, 1.0).peer()
    assert {len(peer.grid) for peer in (*peers.PEERS, external)} == {peers.GRID_POINTS}


def test_no_peer_sees_labels_or_the_future(window):
    assert np.isnan(window.asked.requests.label).all()
    cut = window.split.requests.timestamp.min()
    assert window.asked.train.events.timestamp.max() < cut
    assert window.inner().asked.train.events.timestamp.max() < window.asked.train.events.timestamp.max()


def test_fallback_orders_the_unknown_below_the_known_by_popularity():
    def scorer(requests, history):
        return np.array([[5.0, -np.inf, 3.0, -np.inf], [-np.inf] * 4], np.float32)

    filled = quality_window.with_fallback(scorer, np.array([1.0, 2.0, 3.0, 9.0], np.float32))(None, None)
    assert np.argsort(-filled, axis=1).tolist() == [[0, 2, 3, 1], [3, 2, 1, 0]]
    assert filled[0, [0, 2]].tolist() == [5.0, 3.0]


def test_tuning_takes_the_best_point_and_stops_with_its_budget(window):
    fitted = []

    def fit(asked, params, seed):
        fitted.append(params["quality"])
        truth = np.zeros((len(asked.requests), ITEMS), np.float32)
        offsets, items = window.split.positives
        truth[np.repeat(np.arange(len(truth)), np.diff(offsets)), items] = params["quality"]
        return lambda requests, history: truth[: len(requests)]

    grid = tuple({"quality": value} for value in (-1.0, 1.0, -0.5))
    peer = peers.Peer("oracle", fit, grid)
    chosen, report = quality.tune(peer, window, {}, quality.Budget(60.0))
    assert chosen == {"quality": 1.0} == report["chosen"]
    assert report["grid"][1]["score"] == max(entry["score"] for entry in report["grid"])
    fitted.clear()
    chosen, report = quality.tune(peer, window, {}, quality.Budget(0.0))
    assert fitted == [-1.0]
    assert "were over" in report["grid"][1]["skipped"]


def test_a_peer_that_cannot_run_is_named_with_its_reason(window):
    external = sequence_peer.SasRec(Path("/no/such/python"), 1.0)
    with pytest.raises(peers.UnavailableError, match="rectools"):
        quality.tune(external.peer(), window, {}, quality.Budget(1.0))


def test_a_process_that_ends_is_named_with_its_last_line(window):
    external = sequence_peer.SasRec(Path(sys.executable), 1.0)  # this Python has no RecTools
    with pytest.raises(peers.UnavailableError, match="No module named"):
        external.fit(window.asked, external.peer().grid[0], 0)
    external.close()


def test_vectors_find_their_requests_in_any_order(window):
    asked = window.asked.requests
    vectors = np.eye(len(asked), 4, dtype=np.float32)
    items = np.arange(ITEMS * 4, dtype=np.float32).reshape(ITEMS, 4)
    items[3] = 0.0
    scorer = sequence_peer.vector_scorer(asked, vectors, items)
    turned = np.arange(len(asked))[::-1]
    np.testing.assert_array_equal(scorer(asked.take(turned), None), scorer(asked, None)[turned])
    block = scorer(asked, None)
    assert np.isneginf(block[:, 3]).all()
    assert np.isneginf(block[4:]).all()  # their vectors are zeros
    np.testing.assert_array_equal(block[1, [0, 1, 2]], items[[0, 1, 2], 1])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quality") / "world"
    simulate(folder, SimulationConfig(users=150, items=90, days=6, seed=3))
    return folder


def test_slates_are_tuned_and_measured_by_the_area_under_the_curve(world):
    data = load(world)[0]
    texts = catalogue_texts(data.catalogue)
    outer = quality_window.Window.of(data, "slate", texts, np.zeros((len(texts), 2), np.float32))
    chosen = {}
    for name in ("item_knn_bm25", "tfidf", "item_knn_tfidf", "als"):
        peer = next(peer for peer in peers.PEERS if peer.name == name)
        options = quality.Options("slate", seeds=(0, 1))
        result = quality.run_peer(peer, (outer.inner(), outer), chosen, options)
        auc = quality_report.metrics_of(result.evaluation)["metrics"]["auc"]
        assert 0.3 < auc["low"] <= auc["mean"] <= auc["high"] < 0.9, name
    assert chosen["item_knn_tfidf"].keys() == {"text_share", "item_knn_bm25", "tfidf"}


def bench(world: Path, out: Path, teacher: Path, *words: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / "quality.py"), str(world), "--out", str(out), *words]
    command += ["--home", str(out / "home"), "--set", f"text.teacher={json.dumps(str(teacher))}"]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    document = json.loads((out / "quality-world-time.json").read_text())
    assert (out / "quality-world-time.md").read_text().strip() == done.stdout.strip()
    return document


@pytest.mark.slow
def test_one_run_names_every_peer_its_grid_and_its_cost(world, tiny_teacher_folder, tmp_path):
    names = ("popularity", "item_knn_bm25", "tfidf", "item_knn_tfidf", "ease", "sasrec")
    document = bench(world, tmp_path, tiny_teacher_folder, "--no-ours", "--peers", *names)
    assert set(document["models"]) == set(names) - {"sasrec"}
    assert "rectools" in document["unavailable"]["sasrec"]
    for name, model in document["models"].items():
        scored = [entry["score"] for entry in model["tuning"]["grid"]]
        assert len(scored) == peers.GRID_POINTS, name
        chosen = next(e for e in model["tuning"]["grid"] if e["point"] == model["tuning"]["chosen"])
        assert chosen["score"] == max(scored), name
        assert 0.0 < model["metrics"]["ndcg_at_10"]["mean"] < 1.0
        assert model["costs"]["peak_memory_mb"] > 50.0


@pytest.mark.slow
def test_ours_stands_in_the_same_table_with_its_difference(world, tiny_teacher_folder, tmp_path):
    small = ["distillation.layers=1", "distillation.max_epochs=1", "finetuning.max_steps=4"]
    small += ["collaborative.embedding_dim=16", "head.epochs=1", "ranker.rounds=20"]
    document = bench(
        world, tmp_path, tiny_teacher_folder, *[f"--set={word}" for word in small], "--peers", "popularity"
    )
    ours, popular = (document["models"][name] for name in ("ours", "popularity"))
    gap = popular["ours_minus_this"]["ndcg_at_10"]
    wanted = ours["metrics"]["ndcg_at_10"]["mean"] - popular["metrics"]["ndcg_at_10"]["mean"]
    assert gap["mean"] == pytest.approx(wanted)
    assert gap["low"] <= gap["mean"] <= gap["high"]


def test_differences_are_paired_and_signed(window):
    def oracle(requests, history):
        block = np.zeros((len(requests), ITEMS), np.float32)
        offsets, items = window.split.positives
        block[np.repeat(np.arange(len(block)), np.diff(offsets)), items] = 1.0
        return block

    best = window.measured(oracle)
    worst = window.measured(lambda requests, history: -oracle(requests, history))
    gap = quality_report.differences(best, worst)
    assert quality_report.metrics_of(best)["metrics"]["ndcg_at_10"]["mean"] == pytest.approx(1.0)
    assert gap["ndcg_at_10"]["mean"] > 0.5
    assert gap["ndcg_at_10"]["low"] > 0.0
    back = quality_report.differences(worst, replace(best))
    assert back["ndcg_at_10"]["mean"] == pytest.approx(-gap["ndcg_at_10"]["mean"])
