"""Rungs against limits: the frontier, what each costs, and the answer, as plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.downstream import Verdict
from pipelines.rungs import measured_of
from recsys.compression.choice import Choice, Measured, choose
from recsys.compression.settings import CompressionConfig

Rung = Mapping[str, Any]

LOOKS = 3
"""Variants that are shown the unseen window at most: with each look its bounds promise a little less."""

UNSEEN_LIMITS = ("quality_min_ratio", "explanation_fidelity_min", "fairness_gap_max")
"""What another window can tell anew; speeds are those of the machine, whatever is asked."""


@dataclass(frozen=True)
class Settled:
    """What came of the choice on the unseen window.

    Attributes:
        choice: among what was not refuted.
        chosen: its rung, None where no variant is feasible.
        confirmation: of that rung; None where it was not asked for.
        refuted: name and confirmation of the cheaper ones that the unseen window spoke against.
    """

    choice: dict[str, Any]
    chosen: Rung | None
    confirmation: dict[str, Any] | None
    refuted: list[dict[str, Any]]


def settle(
    rungs: Sequence[Rung], config: CompressionConfig, confirm: Callable[[Rung], dict[str, Any]]
) -> Settled:
    """Choose, confirm, and choose again without what was refuted, up to three times.

    The cheapest of those that meet the limits is the one most often by luck, so that it can fail on
    another window: then the next one answers.
    """
    refuted: list[dict[str, Any]] = []
    while True:
        names = {each["name"] for each in refuted}
        left = [rung for rung in rungs if rung["name"] not in names]
        choice = answer(left, config)
        chosen = next((rung for rung in left if rung["name"] == choice["chosen"]), None)
        found = confirm(chosen) if chosen is not None else None
        others = sum(rung["kind"] == "encoder" for rung in left) > 1
        if chosen is None or found is None or found["confirmed"] or not others or len(refuted) + 1 == LOOKS:
            return Settled(choice, chosen, found, refuted)
        refuted.append({"name": chosen["name"], **found})


def answer(rungs: Sequence[Rung], config: CompressionConfig) -> dict[str, Any]:
    """The choice among the encoders."""
    variants = [measured_of(rung) for rung in rungs if rung["kind"] == "encoder"]
    found = choose(variants, open_limits(config), config.prices)
    empty: dict[str, Any] = {
        "chosen": None,
        "runner_up": None,
        "binding": None,
        "limit_costs": {},
        "cost": None,
    }
    if isinstance(found, Choice):
        return {**empty, **vars(found), "infeasible": None}
    return {**empty, "infeasible": {"nearest": found.nearest, "relax_to": found.relax_to}}


def open_limits(config: CompressionConfig) -> dict[str, float]:
    """The limits that are not set to infinity."""
    return {name: value for name, value in config.limits.items() if math.isfinite(value)}


def marked(rungs: Sequence[Rung], chosen: str | None, config: CompressionConfig) -> list[dict[str, Any]]:
    """Rungs with their price of a month, the limits that they miss, and marks of frontier and choice."""
    encoders = [rung for rung in rungs if rung["kind"] == "encoder"]
    costs = {rung["name"]: measured_of(rung).cost(config.prices) for rung in encoders}
    best = frontier([(costs[rung["name"]], rung["quality_ratio"]["mean"]) for rung in encoders])
    front = {rung["name"] for rung, on in zip(encoders, best, strict=True) if on}
    limits = open_limits(config)
    found = []
    for rung in rungs:
        document = dict(rung)
        if rung["kind"] == "encoder":
            missed = [name for name, value in limits.items() if not measured_of(rung).meets(name, value)]
            document |= {
                "cost": costs[rung["name"]],
                "missed": missed,
                "feasible": not missed,
                "frontier": rung["name"] in front,
                "chosen": rung["name"] == chosen,
            }
        found.append(document)
    return found


def frontier(points: Sequence[tuple[float, float | None]]) -> list[bool]:
    """Which of (cost, quality) no other has cheaper or equal with as much quality, one of them better."""
    known = [(cost, -math.inf if quality is None else quality) for cost, quality in points]
    return [
        not any(other[0] <= cost and other[1] >= quality and other != (cost, quality) for other in known)
        for cost, quality in known
    ]


def confirmation(chosen: Rung, seen: Verdict, requests: int, config: CompressionConfig) -> dict[str, Any]:
    """The chosen variant on a window that the search never saw, held against the same limits."""
    names = ("quality_ratio", "explanation_fidelity", "fairness_gap")
    measures = {name: getattr(seen, name) for name in names}
    again = Measured(chosen["name"], measures, chosen["cpu_seconds"], chosen["bytes"])
    limits = {name: value for name, value in open_limits(config).items() if name in UNSEEN_LIMITS}
    missed = [name for name, value in limits.items() if not again.meets(name, value)]
    return {
        "confirmed": not missed,
        "missed": missed,
        "requests": requests,
        "quality": asdict(seen.quality),
        **{name: asdict(interval) for name, interval in measures.items()},
    }
