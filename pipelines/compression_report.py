"""What `recsys compress` says: the table of variants for the terminal, and the answer in sentences.

The page says the same (`compression_page`); figures are written by the functions here in both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.terminal import table

NONE = "–"
_ROOM = 400  # a recipe is never cut off: its reader copies it

LIMIT_WORDS = {
    "quality_min_ratio": ("quality", "least ratio of quality to the root's"),
    "latency_p99_ms": ("latency", "most milliseconds that one text alone takes, in 99 of 100 cases"),
    "throughput_min_ratio": ("throughput", "least ratio of titles a second to those of the reference"),
    "explanation_fidelity_min": ("explanations", "least likeness of explanations to the root's"),
    "fairness_gap_max": ("fairness", "largest gap between groups of users in what they lose"),
}
"""Name of a limit, to one word for it and to what it limits."""

PRICE_WORDS = {
    "cpu_second": "a second of one core",
    "gb_month": "a gigabyte stored for a month",
    "texts_per_month": "texts embedded in a month",
    "copies": "copies stored",
}


INTERVALS = {
    "throughput_ratio": "throughput_interval",
    "long_throughput_ratio": "long_throughput_interval",
    "latency_p99_ms": "latency_interval",
}
"""Figures that stand alone in a variant's document, to the interval around them."""


def measure(variant: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An interval of a variant, without bounds where they are not known; empty where nothing is."""
    value = variant.get(name)
    if isinstance(value, Mapping):
        return value
    around: Mapping[str, Any] | None = variant.get(INTERVALS.get(name, ""))
    return around or {"mean": value}


def encoders(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The variants that are chosen from, in their order; their numbers are places in it, from 1."""
    return [variant for variant in document["variants"] if variant["kind"] == "encoder"]


def parts(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Compressed parts of the rest of the bundle."""
    return [variant for variant in document["variants"] if variant["kind"] != "encoder"]


def limits(document: Mapping[str, Any]) -> dict[str, float]:
    """Those that are not open."""
    return {name: value for name, value in document["limits"].items() if value is not None}


def number(value: float | None, form: str = ".4f", scale: float = 1.0) -> str:
    """One figure divided by `scale`; a dash where it is missing."""
    if value is None or not math.isfinite(value):
        return NONE
    return format(value / scale, form)


def mean(entry: Mapping[str, Any] | None, form: str = ".4f") -> str:
    """The mean of an interval."""
    return number((entry or {}).get("mean"), form)


def bounds(entry: Mapping[str, Any] | None, form: str = ".4f") -> str:
    """`[low, high]` of an interval, a dash for a missing one; nothing where there is no width or no mean."""
    entry = entry or {}
    low, high = entry.get("low"), entry.get("high")
    if entry.get("mean") is None or "low" not in entry or (low == high and low is not None):
        return ""
    return f"[{number(low, form)}, {number(high, form)}]"


def spoken(entry: Mapping[str, Any] | None, form: str = ".4f") -> str:
    """Mean and bounds."""
    return f"{mean(entry, form)} {bounds(entry, form)}".strip()


def metric_name(headline: str) -> str:
    """As papers write it: `ndcg_at_10` is NDCG@10."""
    return headline.replace("_at_", "@").upper()


def standing_words(variant: Mapping[str, Any], runner_up: str | None) -> str:
    """What a variant is: chosen, runner-up, on the frontier, and which limits it misses."""
    words = [
        word
        for word, true in (
            ("chosen", variant["chosen"]),
            ("runner-up", variant["name"] == runner_up),
            ("frontier", variant["frontier"]),
        )
        if true
    ]
    if variant["missed"]:
        words.append(f"misses {', '.join(_word(name) for name in variant['missed'])}")
    return ", ".join(words)


def answer(document: Mapping[str, Any]) -> list[str]:
    """The choice in sentences, the first of which says it all."""
    choice, variants = document["choice"], encoders(document)
    if choice["infeasible"]:
        return _no_answer(choice["infeasible"], limits(document))
    if choice["chosen"] is None:
        return ["No variant was chosen."]
    costs = {variant["name"]: variant["cost"] for variant in variants}
    meeting = "that meets every limit" if limits(document) else "there is"
    sentences = [
        f"Chosen: {choice['chosen']}, the cheapest of {len(variants)} variants {meeting}, "
        f"at {number(choice['cost'], ',.2f')} a month."
    ]
    if choice["runner_up"] is None:
        sentences.append("There is no runner-up.")
    else:
        cost = number(costs.get(choice["runner_up"]), ",.2f")
        sentences.append(f"Runner-up: {choice['runner_up']}, at {cost} a month.")
    if choice["binding"] is not None:
        saving = number(choice["limit_costs"].get(choice["binding"]), ",.2f")
        sentences.append(
            f"The limit that binds is {choice['binding']}: without it a month would cost {saving} less."
        )
    elif limits(document):
        sentences.append("No limit binds: without any one of them the answer would be as cheap.")
    return sentences


def _no_answer(infeasible: Mapping[str, Any], given: Mapping[str, float]) -> list[str]:
    if infeasible["nearest"] is None:
        return [
            "No variant meets every limit.",
            "None comes near, because each lacks a measure that is limited.",
        ]
    relaxed = " and ".join(
        f"{name} {number(value, '.4g')} (it is {number(given.get(name), '.4g')})"
        for name, value in infeasible["relax_to"].items()
    )
    return [
        "No variant meets every limit.",
        f"Nearest: {infeasible['nearest']}; it would be chosen with {relaxed}.",
    ]


def confirmation(document: Mapping[str, Any]) -> str:
    """The judgement on the unseen window; nothing where there was none."""
    found = document["confirmation"]
    if found is None:
        return ""
    said = "Confirmed" if found["confirmed"] else "Not confirmed"
    return (
        f"{said} on {found['requests']:,} requests of the unseen window: "
        f"quality ratio {spoken(found['quality_ratio'])}, "
        f"explanation fidelity {spoken(found['explanation_fidelity'])}, "
        f"fairness gap {spoken(found['fairness_gap'])} (95 % intervals)."
    )


def refuted(document: Mapping[str, Any]) -> list[str]:
    """The cheaper variants that met every limit in the search, but not on the unseen window."""
    said = []
    for each in document.get("refuted", []):
        missed = " and ".join(_word(name) for name in each["missed"])
        said.append(
            f"Passed over: {each['name']}, cheaper, but on the unseen window it misses {missed}: "
            f"quality ratio {spoken(each['quality_ratio'])}, "
            f"explanation fidelity {spoken(each['explanation_fidelity'])}, "
            f"fairness gap {spoken(each['fairness_gap'])}."
        )
    return said


def written(document: Mapping[str, Any]) -> str:
    """Where the chosen bundle is; nothing where none was written."""
    bundle = document["bundle"]
    return f"Written: {bundle['model']}, {number(bundle['bytes'], ',.1f', 1e6)} MB." if bundle else ""


def limit_rows(document: Mapping[str, Any]) -> list[dict[str, str]]:
    """Each limit with what it says, its value and what it costs a month."""
    costs = document["choice"]["limit_costs"]
    return [
        {
            "name": name,
            "meaning": LIMIT_WORDS.get(name, (name, ""))[1],
            "value": number(value, ".4g"),
            "cost": number(costs.get(name), ",.2f"),
        }
        for name, value in limits(document).items()
    ]


def print_compression(document: Mapping[str, Any], out: Console) -> None:
    """The tables of variants, parts and limits, then the answer."""
    runner_up = document["choice"]["runner_up"]
    rows = [
        [
            variant["name"],
            number(variant["bytes"], ",.1f", 1e6),
            mean(measure(variant, "throughput_ratio"), ".2f"),
            mean(measure(variant, "latency_p99_ms"), ".2f"),
            spoken(variant["quality_ratio"]),
            number(variant["cost"], ",.2f"),
            standing_words(variant, runner_up),
        ]
        for variant in encoders(document)
    ]
    ratio = f"{metric_name(document['headline'])} ratio [95 %]"
    header = ["variant", "MB", "times as fast", "p99 ms", ratio, "a month", "standing"]
    title = f"{document['name']}: variants on {document['data']}, protocol {document['protocol']}"
    _print_whole(table(title, header, rows), out)
    if rows := [_part_row(part) for part in parts(document)]:
        _print_whole(table("parts of the bundle", ["part", "MB", "whole MB", ratio], rows), out)
    if rows := [[row["name"], row["value"], row["cost"]] for row in limit_rows(document)]:
        _print_whole(table("limits", ["limit", "value", "costs a month"], rows), out)
    page = f"Page: {document['page']}" if "page" in document else ""
    said = (*answer(document), *refuted(document), confirmation(document), written(document), page)
    for sentence in said:
        if sentence:
            out.print(sentence, markup=False)


def _print_whole(wide: Table, out: Console) -> None:
    """As wide as it is, whatever the width of the terminal."""
    width = out.width
    out.width = max(width, _ROOM)
    try:
        out.print(wide)
    finally:
        out.width = width


def _part_row(part: Mapping[str, Any]) -> list[str]:
    sizes = (number(part.get(size), ",.1f", 1e6) for size in ("bytes", "whole_bytes"))
    return [part["name"], *sizes, spoken(part["quality_ratio"])]


def _word(limit: str) -> str:
    return LIMIT_WORDS.get(limit, (limit, ""))[0]
