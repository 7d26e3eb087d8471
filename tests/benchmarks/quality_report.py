"""What a quality run found, as one JSON document and as a Markdown table."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from recsys.dataset import Dataset
from recsys.evaluation import Evaluation
from recsys.events import Bool, Float64
from recsys.metrics import mean_interval, paired_interval

PACKAGES = (
    "recsys",
    "numpy",
    "scipy",
    "implicit",
    "lightfm-next",
    "scikit-learn",
    "lightgbm",
    "torch",
    "openvino",
)
LIST_METRICS = ("hr_at_10", "ndcg_at_10", "recall_at_10", "mrr_at_10")
SLATE_METRICS = ("auc", "mrr", "ndcg_at_5", "ndcg_at_10")
ITEM_SLICES = (("item", "hot"), ("item", "warm"), ("item_among_cold", "0"))


def metrics_of(evaluation: Evaluation) -> dict[str, Any]:
    """Means with intervals: the metrics, the headline by kind of user, recall@10 by kind of item."""
    values, clusters = evaluation.values["full"], evaluation.clusters
    wanted = SLATE_METRICS if "auc" in values else LIST_METRICS
    headline = values[evaluation.headline]
    items = evaluation.item_recall.get("full", {})
    return {
        "metrics": {name: interval(values[name], clusters) for name in wanted},
        "coverage_at_10": evaluation.extra.get("full", {}).get("coverage_at_10"),
        "users": {name: interval(headline, clusters, mask) for name, mask in user_masks(evaluation).items()},
        "items": {
            f"{kind} {name}": interval(items[kind][name], clusters)
            for kind, name in ITEM_SLICES
            if name in items.get(kind, {})
        },
    }


def interval(values: Float64, clusters: Any, mask: Bool | None = None) -> dict[str, float]:
    """Mean, bounds and number of the units that are known."""
    keep = ~np.isnan(values) if mask is None else mask & ~np.isnan(values)
    return {**asdict(mean_interval(values[keep], clusters[keep])), "units": int(keep.sum())}


def user_masks(evaluation: Evaluation) -> dict[str, Bool]:
    """Users by what the fit knew of them, hot and warm ones also together."""
    masks = evaluation.slices["user"]
    return {**masks, "hot and warm": masks["hot"] | masks["warm"]}


def differences(ours: Evaluation, peer: Evaluation) -> dict[str, Any]:
    """Paired ours - peer: the metrics, the headline on hot and warm users, recall@10 by kind of item."""
    clusters, known = ours.clusters, user_masks(ours)["hot and warm"]
    a, b = ours.values["full"], peer.values["full"]
    wanted = SLATE_METRICS[:1] if "auc" in a else LIST_METRICS[:2]
    found = {name: asdict(paired_interval(a[name], b[name], clusters)) for name in wanted}
    head = ours.headline
    found[f"{head} hot and warm"] = asdict(paired_interval(a[head][known], b[head][known], clusters[known]))
    items, theirs = ours.item_recall.get("full", {}), peer.item_recall.get("full", {})
    for kind, name in ITEM_SLICES:
        if name in items.get(kind, {}) and name in theirs.get(kind, {}):
            pair = paired_interval(items[kind][name], theirs[kind][name], clusters)
            found[f"{kind} {name}"] = asdict(pair)
    return found


def document_of(
    data: Dataset, options: Any, results: Mapping[str, Any], unavailable: Mapping[str, str], **more: Any
) -> dict[str, Any]:
    """Everything in plain values; `results` holds each model's evaluation, costs and tuning."""
    some = next(iter(results.values())).evaluation
    models = {
        name: {**metrics_of(found.evaluation), "costs": found.costs, "tuning": found.tuning}
        for name, found in results.items()
    }
    if "ours" in results:
        ours = results["ours"].evaluation
        for name, found in results.items():
            if name != "ours":
                models[name]["ours_minus_this"] = differences(ours, found.evaluation)
    return {
        "data": data.name,
        "digest": digest_of(data),
        "requests": len(some.clusters),
        "users": len(np.unique(some.clusters)),
        "headline": some.headline,
        **{name: value for name, value in asdict(options).items() if name != "peer_python"},
        "models": models,
        "unavailable": dict(unavailable),
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        **more,
    }


def digest_of(data: Dataset) -> str:
    """SHA-256 of the ids and the log."""
    digest = hashlib.sha256()
    for ids in (data.catalogue.ids, data.users):
        digest.update("\n".join(map(str, ids.values.to_list())).encode())
    events = data.events
    for column in (events.user_index, events.item_index, events.type_index, events.timestamp):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def machine() -> str:
    """Processor, cores and system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def versions() -> dict[str, str]:
    """Of the packages that decide the figures, where installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def markdown(document: Mapping[str, Any]) -> str:
    """The table, best first, and below it what was tuned and what was left out."""
    head, slate = document["headline"], document["protocol"] == "slate"
    models = document["models"]
    order = sorted(models, key=lambda name: -models[name]["metrics"][head]["mean"])
    columns = ["model", *(columns_of(slate)), "ours − this", "fit s", "score s", "peak MB"]
    lines = [
        f"**{document['data']}, protocol {document['protocol']}**: {document['requests']:,} requests of "
        f"{document['users']:,} users, seeds {' '.join(map(str, document['seeds']))}; {document['machine']}; "
        f"{document['date'][:10]}. Each figure ± half its 95 % interval.",
        "",
        _line(columns),
        _line(["---", *["---:"] * (len(columns) - 1)]),
        *(
            _line([_bold(name), *_figures(models[name], head, slate), *_costs(models[name])])
            for name in order
        ),
        "",
        *(_tuned(name, models[name]["tuning"]) for name in order if models[name]["tuning"]),
        *(f"- `{name}` is left out: {why}" for name, why in document["unavailable"].items()),
    ]
    return "\n".join(lines) + "\n"


def columns_of(slate: bool) -> tuple[str, ...]:
    """Headings of the figures."""
    if slate:
        return ("AUC", "MRR", "NDCG@10", "AUC hot and warm users")
    return ("HR@10", "NDCG@10", "NDCG@10 hot and warm users", "new items: recall@10", "among new items")


def _figures(model: Mapping[str, Any], head: str, slate: bool) -> list[str]:
    metrics, users, items = model["metrics"], model["users"], model["items"]
    known = users["hot and warm"]
    if slate:
        found = [metrics["auc"], metrics["mrr"], metrics["ndcg_at_10"], known]
    else:
        new = [items.get(name) for name in ("item warm", "item_among_cold 0")]
        found = [metrics["hr_at_10"], metrics["ndcg_at_10"], known, *new]
    gap = model.get("ours_minus_this", {}).get(head)
    return [*map(_figure, found), _gap(gap)]


def _costs(model: Mapping[str, Any]) -> list[str]:
    costs = model["costs"]
    names = ("fit_seconds", "score_seconds", "peak_memory_mb")
    return [f"{costs[name]:,.0f}" if costs.get(name) is not None else "" for name in names]


def _figure(entry: Mapping[str, Any] | None) -> str:
    if entry is None or not entry["units"] or entry["low"] is None:
        return ""
    return f"{entry['mean']:.4f} ±{(entry['high'] - entry['low']) / 2:.4f}"


def _gap(entry: Mapping[str, Any] | None) -> str:
    if entry is None or entry["low"] is None:
        return ""
    return f"{entry['mean']:+.4f} [{entry['low']:+.4f}, {entry['high']:+.4f}]"


def _tuned(name: str, tuning: Mapping[str, Any]) -> str:
    points = []
    for entry in tuning["grid"]:
        found = f"{entry['score']:.4f}" if "score" in entry else f"skipped, {entry['skipped']}"
        mark = " ← chosen" if entry["point"] == tuning["chosen"] else ""
        points.append(f"{_point(entry['point'])}: {found}{mark}")
    return f"- `{name}`, {tuning['seconds']:.0f} s on the inner split: " + "; ".join(points)


def _point(point: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in point.items())


def _bold(name: str) -> str:
    return f"**{name}**" if name == "ours" else name


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
