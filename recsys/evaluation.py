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
BANDS = ((0, 0), (1, 1), (2, 4), (5, 9), (10, None))
HEADLINE = {"time": "ndcg_at_10", "last": "ndcg_at_10", "slate": "auc"}

PerUnit = dict[str, Float64]
ItemRecall = dict[str, dict[str, PerUnit]]
Json = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Per-unit metrics of several models on one split; units are requests, `clusters` their users.

    `values[model][metric]` is (units,), NaN where the metric is not defined for the unit. `extra` holds
    figures of all lists together (coverage) by model. `slices[kind][name]` is a (units,) mask. `headline`
    is the metric that models are compared by. `item_recall[model][kind][name]` is (units,) recall@10 over
    those positives only that are of the named kind.
    """

    headline: str
    values: dict[str, PerUnit]
    extra: dict[str, dict[str, float]]
    clusters: Int32
    slices: dict[str, dict[str, Bool]]
    item_recall: ItemRecall

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
        """slices.<kind>.<name>: units in it, and the headline of `full` and of the best baseline.

        Kinds of items hold recall@10 on the answers of that kind, by every model that has it.
        """
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
        for kind in dict.fromkeys(kind for kinds in self.item_recall.values() for kind in kinds):
            table[kind] = self._item_slices(kind)
        return table

    def _item_slices(self, kind: str) -> Json:
        found = {model: kinds[kind] for model, kinds in self.item_recall.items() if kind in kinds}
        some = next(iter(found.values()))
        return {
            name: {
                "units": int(np.isfinite(some[name]).sum()),
                "models": {
                    model: {"recall_at_10": self._interval(recall[name])} for model, recall in found.items()
                },
            }
            for name in some
        }

    def _interval(self, values: Float64, mask: Bool | None = None) -> dict[str, float]:
        keep = slice(None) if mask is None else mask
        return asdict(mean_interval(values[keep], self.clusters[keep]))


def evaluate_lists(
    split: Split,
    lists: Mapping[str, Int32],
    history_lengths: Int64,
    protocol: str,
    cold_lists: Mapping[str, Int32] | None = None,
) -> Evaluation:
    """Metrics of top lists.

    Args:
        split: who was asked, and what they took.
        lists: [model] is (requests, 20), -1 padded.
        history_lengths: (requests,) events that each user had.
        protocol: names the headline.
        cold_lists: [model] is (requests, 20), the best among items without fitted events only.
    """
    offsets, items = split.positives
    counts = training_counts(split.train)
    kinds = item_slices(split, counts)
    values: dict[str, PerUnit] = {}
    extra: dict[str, dict[str, float]] = {}
    item_recall: ItemRecall = {}
    for model, ranked in lists.items():
        values[model] = topk_metrics(ranked, offsets, items, CUTOFFS)
        values[model]["novelty_at_10"] = novelty(ranked, counts, 10)
        extra[model] = {"coverage_at_10": coverage(ranked, len(counts), 10)}
        item_recall[model] = {
            kind: {name: _recall_on(ranked, offsets, items, chosen) for name, chosen in masks.items()}
            for kind, masks in kinds.items()
        }
    for model, ranked in (cold_lists or {}).items():
        recall = _recall_on(ranked, offsets, items, counts[items] == 0)
        item_recall[model]["item_among_cold"] = {"0": recall}
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
    return in_bands(history_lengths)


def in_bands(counts: Int64) -> dict[str, Bool]:
    """Which of `counts` lie in each band: 0, 1, 2-4, 5-9, 10+."""
    bands: dict[str, Bool] = {}
    for low, high in BANDS:
        name = str(low) if low == high else f"{low}+" if high is None else f"{low}-{high}"
        bands[name] = (counts >= low) & (counts <= (np.inf if high is None else high))
    return bands


def item_slices(split: Split, counts: Int64) -> dict[str, dict[str, Bool]]:
    """(positives,) masks: `item` by what the fit knew of it, `item_events` by its events so far.

    hot: has events in the fitted log (`counts` (items,) of them); warm: text only; cold: neither.
    """
    items = split.positives[1]
    hot = counts > 0
    warm = ~hot & _has_text(split.train)
    kinds = {"hot": hot, "warm": warm, "cold": ~(hot | warm)}
    return {
        "item": {name: member[items] for name, member in kinds.items()},
        "item_events": in_bands(events_so_far(split)),
    }


def events_so_far(split: Split) -> Int64:
    """(positives,) target events of each positive's item that its request may look at."""
    offsets, items = split.positives
    data = split.visible
    rows = np.flatnonzero(data.is_target[data.events.type_index])
    span = len(data.events) + 1
    keys = np.sort(data.events.item_index[rows].astype(np.int64) * span + rows)
    known = np.repeat(split.requests.known, np.diff(offsets))
    first = items.astype(np.int64) * span
    return np.searchsorted(keys, first + known) - np.searchsorted(keys, first)


def _recall_on(ranked: Int32, offsets: Int64, items: Int32, chosen: Bool) -> Float64:
    """(requests,) recall@10 over the `chosen` (positives,) only; NaN for a request without any."""
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[chosen]
    counts = np.bincount(owner, minlength=len(offsets) - 1)
    return topk_metrics(ranked, lengths_to_offsets(counts), items[chosen], (10,))["recall_at_10"]


def training_counts(train: Dataset) -> Int64:
    """(items,) target events of the fitted log."""
    target = train.events.item_index[train.is_target[train.events.type_index]]
    return np.bincount(target, minlength=len(train.catalogue)).astype(np.int64)


def _has_text(train: Dataset) -> Bool:
    pairs = zip(train.catalogue.title, train.catalogue.description, strict=True)
    return np.array([bool(title or description) for title, description in pairs], np.bool_)
