"""The evaluation table: its keys, its slices and the differences, on lists whose figures are known."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from recsys.dataset import Dataset
from recsys.evaluation import (
    Evaluation,
    evaluate_lists,
    evaluate_slates,
    events_so_far,
    history_slices,
    user_slices,
)
from recsys.protocols import Split, slates_from, split, split_at
from recsys.requests import DAY_S, HistoryBatch

ITEMS, WARM_ITEM, COLD_ITEM = 40, 38, 39
CUT = 100.0


@pytest.fixture(scope="module")
def window() -> Split:
    """User n has n past events (0 to 13); each then takes two new items; item 39 has no text."""
    rows = [(user, item, "click", float(user + item)) for user in range(14) for item in range(user)]
    rows += [(user, 20 + user, "click", CUT + 1) for user in range(14)]
    rows += [(user, (WARM_ITEM, COLD_ITEM)[user % 2], "click", CUT + 2) for user in range(14)]
    rows.append((20, 30, "click", 5.0))  # a second user of the past, not asked
    schema = {"user_id": pl.Int64, "item_id": pl.Int64, "event_type": pl.String, "timestamp": pl.Float64}
    titles = [f"item {item}" for item in range(ITEMS - 1)] + [""]
    items = pl.DataFrame({"item_id": range(ITEMS), "title": titles})
    return split_at(Dataset.from_frames(items, pl.DataFrame(rows, schema=schema, orient="row")), CUT)


def lengths_of(window: Split) -> np.ndarray:
    return np.diff(HistoryBatch.of(window.visible.histories, window.requests).offsets)


def lists_at(window: Split, rank: int) -> np.ndarray:
    """Lists of 20 with the user's first answer at this rank and items nobody takes elsewhere."""
    offsets, items = window.positives
    ranked = np.tile(np.arange(20, dtype=np.int32), (len(window.requests), 1))
    ranked[:, rank - 1] = items[offsets[:-1]]
    return ranked


@pytest.fixture(scope="module")
def evaluation(window: Split) -> Evaluation:
    lists = {"full": lists_at(window, 1), "popularity": lists_at(window, 3), "random": lists_at(window, 15)}
    return evaluate_lists(window, lists, lengths_of(window), "time")


@pytest.fixture(scope="module")
def models(evaluation: Evaluation) -> dict:
    return evaluation.models()


def test_every_metric_has_a_mean_between_its_bounds(models):
    assert set(models) == {"full", "popularity", "random"}
    wanted = {f"{metric}_at_{k}" for metric in ("hr", "recall", "ndcg", "mrr") for k in (5, 10, 20)}
    for metrics in models.values():
        assert set(metrics) == wanted | {"novelty_at_10", "coverage_at_10"}
        for figure in metrics.values():
            assert set(figure) == {"mean", "low", "high"}
            assert figure["low"] - 1e-9 <= figure["mean"] <= figure["high"] + 1e-9
    json.dumps(models, allow_nan=False)


def test_figures_are_those_of_the_ranks(models):
    ideal = 1 + 1 / np.log2(3)
    for model, rank in (("full", 1), ("popularity", 3)):
        assert models[model]["ndcg_at_10"]["mean"] == pytest.approx(1 / np.log2(1 + rank) / ideal)
        assert models[model]["mrr_at_5"]["mean"] == pytest.approx(1 / rank)
        assert models[model]["recall_at_5"]["mean"] == pytest.approx(1 / 2)
    assert models["random"]["hr_at_10"]["mean"] == 0.0
    assert models["random"]["hr_at_20"]["mean"] == 1.0
    assert models["random"]["coverage_at_10"]["mean"] == 10 / ITEMS


def test_the_best_baseline_is_never_the_full_model(evaluation):
    assert evaluation.best_baseline == "popularity"


def test_differences_are_full_minus_the_other(evaluation):
    differences = evaluation.differences()
    assert set(differences) == {"popularity", "random"}
    gap = differences["popularity"]["mrr_at_10"]
    assert gap["mean"] == pytest.approx(1 - 1 / 3)
    assert 0 < gap["low"] <= gap["mean"] <= gap["high"]


def test_slices_of_users_and_of_history_add_up_to_the_whole(window, evaluation, models):
    table = evaluation.slice_table()
    assert set(table) == {"user", "history", "item", "item_events"}
    assert {name: entry["units"] for name, entry in table["user"].items()} == {
        "hot": 13,
        "warm": 0,
        "cold": 1,
    }
    assert {name: entry["units"] for name, entry in table["history"].items()} == {
        "0": 1, "1": 1, "2-4": 3, "5-9": 5, "10+": 4,
    }  # fmt: skip
    whole = models["full"]["ndcg_at_10"]["mean"]
    for kind in ("user", "history"):
        parts = [entry for entry in table[kind].values() if entry["units"]]
        means = [entry["models"]["full"]["ndcg_at_10"]["mean"] for entry in parts]
        units = [entry["units"] for entry in parts]
        assert sum(units) == len(window.requests)
        assert np.average(means, weights=units) == pytest.approx(whole)


def test_item_slices_count_each_kind_of_answer_apart(window, evaluation):
    table = evaluation.slice_table()["item"]
    units = {name: entry["units"] for name, entry in table.items()}
    # 20 to 33 and 38 have text; of them only item 30 was taken before the cut; 39 has no text
    assert units == {"hot": 1, "warm": 14, "cold": 7}
    assert table["cold"]["models"]["full"]["recall_at_10"]["mean"] == 0.0
    assert table["hot"]["models"]["full"]["recall_at_10"]["mean"] == 1.0


def test_items_are_banded_by_the_events_that_their_request_may_look_at():
    """Item 0 is taken by user after user; the last event of each is asked for at its own moment."""
    rows = [(user, item, user * 10.0 + place) for user in range(12) for place, item in enumerate((2, 1, 0))]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    items = pl.DataFrame({"item_id": range(3), "title": ["a", "b", "c"]})
    data = Dataset.from_frames(items, events.with_columns(event_type=pl.lit("click")))
    last = split(data, "last")
    assert events_so_far(last).tolist() == list(range(12))
    lists = {"full": np.array([[0, 1]] * 12, np.int32), "popularity": np.array([[1, -1]] * 12, np.int32)}
    found = evaluate_lists(last, lists, np.full(12, 2), "last").slice_table()["item_events"]
    assert {name: entry["units"] for name, entry in found.items()} == {
        "0": 1, "1": 1, "2-4": 3, "5-9": 5, "10+": 2,
    }  # fmt: skip
    assert found["2-4"]["models"]["full"]["recall_at_10"]["mean"] == 1.0
    assert found["2-4"]["models"]["popularity"]["recall_at_10"]["mean"] == 0.0


def test_lists_of_new_items_are_judged_on_new_answers_only(window):
    new = np.tile(np.array([WARM_ITEM, COLD_ITEM], np.int32), (14, 1))
    lists = {"full": lists_at(window, 1), "popularity": lists_at(window, 3)}
    table = evaluate_lists(window, lists, lengths_of(window), "time", {"full": new}).slice_table()
    among = table["item_among_cold"]["0"]
    assert set(among["models"]) == {"full"}
    assert among["units"] == 14  # every user took a new item; most of them two
    counted = [len({20 + user, (WARM_ITEM, COLD_ITEM)[user % 2]} - {30}) for user in range(14)]
    assert among["models"]["full"]["recall_at_10"]["mean"] == pytest.approx(np.mean([1 / n for n in counted]))


def test_hot_warm_and_cold_are_apart_by_the_fitted_log_and_the_history(window):
    users = user_slices(window, np.zeros(len(window.requests), np.int64))
    assert (users["cold"].all(), users["hot"].any(), users["warm"].any()) == (True, False, False)
    ones = user_slices(window, np.ones(len(window.requests), np.int64))
    assert ones["hot"].sum() == 13
    assert ones["warm"].tolist() == [user == 0 for user in range(14)]  # a history, but not in the log


def test_every_history_length_is_in_one_band():
    bands = history_slices(np.arange(200))
    assert sum(mask.astype(int) for mask in bands.values()).tolist() == [1] * 200
    assert bands["5-9"].nonzero()[0].tolist() == [5, 6, 7, 8, 9]


def test_slates_of_one_class_are_left_out_and_a_constant_scorer_gets_one_half():
    items = pl.DataFrame({"item_id": range(4), "title": ["t"] * 4})
    events = pl.DataFrame(
        {"user_id": [0, 1], "item_id": [1, 2], "event_type": ["click"] * 2, "timestamp": [1.0, 2.0]}
    )
    shown = pl.DataFrame(
        {
            "user_id": [0, 0, 1, 2, 1],
            "timestamp": [3.0, DAY_S, DAY_S, DAY_S + 1, DAY_S + 2],
            "shown": [[0, 1], [0, 1, 2], [3, 2], [1, 3], [0, 1]],
            "clicked": [[1], [1], [3], [], [0]],
        }
    )
    window = slates_from(Dataset.from_frames(items, events, shown), DAY_S)
    label = window.requests.label
    scores = {"full": label.copy(), "popularity": np.zeros(len(label)), "random": -label}
    evaluation = evaluate_slates(window, scores, np.array([1, 1, 0, 1]))
    assert evaluation.headline == "auc"
    models = evaluation.models()
    assert set(models["full"]) == {"auc", "mrr", "ndcg_at_5", "ndcg_at_10"}
    assert [models[name]["auc"]["mean"] for name in scores] == [1.0, 0.5, 0.0]
    assert models["popularity"]["auc"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert np.isnan(evaluation.values["full"]["auc"]).tolist() == [False, False, True, False]
    assert evaluation.best_baseline == "popularity"
    assert evaluation.differences()["popularity"]["auc"]["mean"] == pytest.approx(0.5)
    assert {name: entry["units"] for name, entry in evaluation.slice_table()["user"].items()} == {
        "hot": 3, "warm": 0, "cold": 1,
    }  # fmt: skip
