"""What `recsys evaluate` says: one document for machines, tables for people."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from pipelines.ablation import print_ablation
from pipelines.off_policy import print_off_policy
from pipelines.reranking import print_reranking
from pipelines.terminal import Terminal, table


def evaluation_document(
    name: str, seeds: Sequence[int], evaluated: dict[str, Any], terminal: Terminal
) -> dict[str, Any]:
    """The evaluation of the data set `name` with what it cost: seconds in all and by step, peak memory."""
    return {
        "data": name,
        "seeds": list(seeds),
        **evaluated,
        "seconds": terminal.elapsed(),
        "peak_memory_mb": peak_memory_mb(),
        "step_seconds": terminal.seconds,
    }


def peak_memory_mb() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def print_evaluation(document: dict[str, Any], out: Console) -> None:
    """The table of models, the difference to the best baseline, the slices."""
    headline = document["headline"]
    first = next(iter(document["models"].values()))
    wanted = ("auc", "mrr", "ndcg_at_5", "ndcg_at_10") if "auc" in first else _LIST_COLUMNS
    shown = [name for name in wanted if name in first]
    order = sorted(document["models"], key=lambda name: -(document["models"][name][headline]["mean"]))
    rows = [[name, *(_figure(document["models"][name].get(m)) for m in shown)] for name in order]
    out.print(table(f"{document['data']}, protocol {document['protocol']}", ["model", *shown], rows))
    best = document["best_baseline"]
    gap = document["differences"][best][headline]
    out.print(
        f"full - {best}, {headline}: {gap['mean']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}] (paired 95 %)"
    )
    people = {kind: entries for kind, entries in document["slices"].items() if not kind.startswith("item")}
    out.print(table("slices", ["slice", "requests", "full", best], _slice_rows(people, ["full", best])))
    things = {kind: entries for kind, entries in document["slices"].items() if kind.startswith("item")}
    if things:
        names = [name for name in order if name in _ITEM_COLUMNS or name == best]
        heading = "recall@10 by the answer: kind of item, its events so far, and ranked among new items only"
        out.print(table(heading, ["answers", "requests", *names], _slice_rows(things, names)))
    if "ablation" in document:
        print_ablation(document["ablation"], out)
    if "reranking" in document:
        print_reranking(document["reranking"], out)
    if "off_policy" in document:
        print_off_policy(document["off_policy"], out)


_ITEM_COLUMNS = ("full", "item_knn", "als", "text_neighbours", "popularity")
_LIST_COLUMNS = ("hr_at_10", "recall_at_10", "ndcg_at_10", "mrr_at_10", "coverage_at_10", "novelty_at_10")


def _figure(entry: dict[str, float] | None) -> str:
    if entry is None:
        return ""
    if entry["low"] == entry["high"]:
        return f"{entry['mean']:.4f}"
    half = (entry["high"] - entry["low"]) / 2
    return f"{entry['mean']:.4f} ±{half:.4f}"


def _slice_rows(slices: dict[str, Any], models: Sequence[str]) -> list[list[str]]:
    return [
        [f"{kind.replace('_', ' ')} {name}", f"{entry['units']:,}"]
        + [_only(entry["models"][model]) if model in entry["models"] else "" for model in models]
        for kind, entries in slices.items()
        for name, entry in entries.items()
        if entry["units"]
    ]


def _only(model: dict[str, dict[str, float]]) -> str:
    return _figure(next(iter(model.values())))
