"""The evaluation table: every model's metrics with intervals, differences and slices.

Models are handed in as top lists (or slate scores) over one split; nothing here fits or scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.dataset import Dataset
from recsys.events import Bool, Float64, Int32, Int64, lengths_to_offsets
from recsys.metrics.beyond import coverage, novelty
from recsys.metrics.intervals import mean_interval, paired_interval
from recsys.metrics.slate import slate_metrics
from recsys.metrics.topk import topk_metrics
from recsys.protocols import Split
from recsys.ranked import top_ranked
from recsys.requests import Requests

CUTOFFS = (5, 10, 20)
HISTORY_BANDS = ((0, 0), (1, 1), (2, 4), (5, 9), (10, None))
HEADLINE = {"time": "ndcg_at_10", "last": "ndcg_at_10", "slate": "auc"}

PerUnit = dict[str, Float64]
Json = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Per-unit metrics of several models on one split; units are requests, `clusters` their users.

    `values[model][metric]` is (units,), NaN where the metric is not defined for the unit. `extra` holds
    figures of all lists together (coverage) by model. `slices[kind][name]` is a (units,) mask. `headline`
    is the metric that models are compared by.
    """

    headline: str
    values: dict[str, PerUnit]
    extra: dict[str, dict[str, float]]
    clusters: Int32
    slices: dict[str, dict[str, Bool]]
    item_recall: dict[str, dict[str, Float64]]

    @property
    def best_baseline(self) -> str:
        """The model other than `full` with the highest mean headline."""
        others = {name: np.nanmean(v[self.headline]) for name, v in self.values.items() if name != "full"}
        return max(others, key=lambda name: others[name])

    def models(self) -> Json:
        """models.<model>.<metric>.{mean, low, high}, coverage without an interval of its own."""
        table: Json = {}
        for model, metrics in self.values.items():
            table[model] = {name: self._interval(values) for name, values in metrics.items()}
            for name, value in self.extra.get(model, {}).items():
                table[model][name] = {"mean": value, "low": value, "high": value}
        return table

    def differences(self) -> Json:
        """Paired difference of `full` to each other model in every metric."""
        full = self.values["full"]
        return {
            model: {
                name: asdict(paired_interval(full[name], values, self.clusters))
                for name, values in metrics.items()
            }
            for model, metrics in self.values.items()
            if model != "full"
        }

    def slice_table(self) -> Json:
        """slices.<kind>.<name>: units in it, and the headline of `full` and of the best baseline."""
        models = ("full", self.best_baseline)
        table: Json = {}
        for kind, masks in self.slices.items():
            table[kind] = {}
            for name, mask in masks.items():
                found = {
                    model: {self.headline: self._interval(self.values[model][self.headline], mask)}
                    for model in models
                }
                table[kind][name] = {"units": int(mask.sum()), "models": found}
        if self.item_recall:
            table["item"] = self._item_slices(models)
        return table

    def _item_slices(self, models: tuple[str, ...]) -> Json:
        names = self.item_recall["full"]
        return {
            name: {
                "units": int(np.isfinite(names[name]).sum()),
                "models": {
                    model: {"recall_at_10": self._interval(self.item_recall[model][name])} for model in models
                },
            }
            for name in names
        }

    def _interval(self, values: Float64, mask: Bool | None = None) -> dict[str, float]:
        keep = slice(None) if mask is None else mask
        return asdict(mean_interval(values[keep], self.clusters[keep]))


def evaluate_lists(
    split: Split, lists: Mapping[str, Int32], history_lengths: Int64, protocol: str
) -> Evaluation:
    """Metrics of top lists; `lists[model]` is (requests, 20), -1 padded. `history_lengths` is (requests,)."""
    offsets, items = split.positives
    catalogue = len(split.train.catalogue)
    counts = _training_counts(split.train)
    kinds = {"hot": counts > 0, "warm": (counts == 0) & _has_text(split.train)}
    kinds["cold"] = ~(kinds["hot"] | kinds["warm"])
    values: dict[str, PerUnit] = {}
    extra: dict[str, dict[str, float]] = {}
    item_recall: dict[str, PerUnit] = {}
    for model, ranked in lists.items():
        values[model] = topk_metrics(ranked, offsets, items, CUTOFFS)
        values[model]["novelty_at_10"] = novelty(ranked, counts, 10)
        extra[model] = {"coverage_at_10": coverage(ranked, catalogue, 10)}
        item_recall[model] = {
            kind: _recall_on(ranked, offsets, items, member) for kind, member in kinds.items()
        }
    return Evaluation(
        HEADLINE[protocol],
        values,
        extra,
        split.requests.user_index,
        {"user": user_slices(split, history_lengths), "history": history_slices(history_lengths)},
        item_recall,
    )


def evaluate_slates(
    split: Split, scores: Mapping[str, NDArray[np.floating]], history_lengths: Int64
) -> Evaluation:
    """Metrics of slate scores; `scores[model]` is (rows,). Slates of one class only are left out."""
    requests = split.requests
    values = {m: slate_metrics(s, requests.label, requests.offsets) for m, s in scores.items()}
    slices = {"user": user_slices(split, history_lengths), "history": history_slices(history_lengths)}
    return Evaluation("auc", values, {}, requests.user_index, slices, {})


def headline_values(
    requests: Requests, scores: Float64, positives: tuple[Int64, Int32], protocol: str
) -> Float64:
    """(requests,) the headline metric of candidates ranked by `scores` (rows,).

    `positives` is (offsets, item_index); slates are judged by their labels instead.
    """
    if protocol == "slate":
        return slate_metrics(scores, requests.label, requests.offsets)[HEADLINE[protocol]]
    ranked = top_ranked(requests, scores, 10, np.zeros(len(requests), np.int8)).table(10)
    return topk_metrics(ranked, *positives, (10,))[HEADLINE[protocol]]


def user_slices(split: Split, history_lengths: Int64) -> dict[str, Bool]:
    """hot: has events in the fitted log; warm: a history, but not there; cold: nothing known."""
    train = split.train
    fitted = train.events.user_index[train.is_target[train.events.type_index]]
    trained = np.bincount(fitted, minlength=len(train.users)) > 0
    hot = trained[split.requests.user_index] & (history_lengths > 0)
    warm = ~hot & (history_lengths > 0)
    return {"hot": hot, "warm": warm, "cold": history_lengths == 0}


def history_slices(history_lengths: Int64) -> dict[str, Bool]:
    """Requests by how many events their user had."""
    bands: dict[str, Bool] = {}
    for low, high in HISTORY_BANDS:
        name = str(low) if low == high else f"{low}+" if high is None else f"{low}-{high}"
        bands[name] = (history_lengths >= low) & (history_lengths <= (np.inf if high is None else high))
    return bands


def _recall_on(ranked: Int32, offsets: Int64, items: Int32, member: Bool) -> Float64:
    """(requests,) recall@10 over those positives only that are members; NaN for a request without any."""
    chosen = member[items]
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[chosen]
    counts = np.bincount(owner, minlength=len(offsets) - 1)
    return topk_metrics(ranked, lengths_to_offsets(counts), items[chosen], (10,))["recall_at_10"]


def _training_counts(train: Dataset) -> Int64:
    target = train.events.item_index[train.is_target[train.events.type_index]]
    return np.bincount(target, minlength=len(train.catalogue)).astype(np.int64)


def _has_text(train: Dataset) -> Bool:
    pairs = zip(train.catalogue.title, train.catalogue.description, strict=True)
    return np.array([bool(title or description) for title, description in pairs], np.bool_)
