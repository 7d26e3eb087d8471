"""The choice: the cheapest variant whose measures meet every limit, on the bounds of their intervals.

A limit from below is met where the lower bound reaches it, one from above where the upper bound does not
pass it: a variant that meets a limit only on average is not taken to meet it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recsys.metrics.intervals import Interval

LOWEST, HIGHEST = "lowest", "highest"
LIMITS = {
    "quality_min_ratio": ("quality_ratio", LOWEST),
    "latency_p99_ms": ("latency_p99_ms", HIGHEST),
    "throughput_min_ratio": ("throughput_ratio", LOWEST),
    "explanation_fidelity_min": ("explanation_fidelity", LOWEST),
    "fairness_gap_max": ("fairness_gap", HIGHEST),
}
"""Name of each limit, to the measure that it binds and the side from which it does."""


@dataclass(frozen=True)
class Prices:
    """What a month of a variant costs.

    Attributes:
        cpu_second: price of a second of one core. `gb_month`: of a stored gigabyte (1e9 bytes) for a month.
        texts_per_month: texts that are embedded in a month.
        copies: how many copies are stored: replicas, and versions that are kept.
    """

    cpu_second: float = 1.3e-5
    gb_month: float = 0.023
    texts_per_month: float = 1e8
    copies: float = 10.0


@dataclass(frozen=True)
class Measured:
    """What the choice knows of a variant.

    Attributes:
        name: of the variant.
        measures: interval of each measure that a limit may bind; one that is missing or NaN meets no limit.
        cpu_seconds: of one core, for one text.
        bytes: on disk.
    """

    name: str
    measures: Mapping[str, Interval]
    cpu_seconds: float
    bytes: int

    def cost(self, prices: Prices) -> float:
        """Of a month: computing and storing."""
        computing = self.cpu_seconds * prices.texts_per_month * prices.cpu_second
        return computing + self.bytes / 1e9 * prices.copies * prices.gb_month

    def bound(self, limit: str) -> float:
        """The bound of the interval that this limit is held against; NaN where it was not measured."""
        measure, side = LIMITS[limit]
        interval = self.measures.get(measure)
        if interval is None:
            return math.nan
        return interval.low if side == LOWEST else interval.high

    def meets(self, limit: str, value: float) -> bool:
        """Whether the bound is on the right side of `value`, or on it."""
        bound = self.bound(limit)
        return bound >= value if LIMITS[limit][1] == LOWEST else bound <= value


@dataclass(frozen=True)
class Choice:
    """The answer where some variant meets every limit.

    Attributes:
        chosen: name of the cheapest that does. `cost`: of its month.
        runner_up: the next cheapest that does; None where it is alone.
        binding: the limit without which the answer would be cheapest; None where none costs anything.
        limit_costs: what each limit costs a month: the saving if it alone were dropped.
    """

    chosen: str
    cost: float
    runner_up: str | None
    binding: str | None
    limit_costs: dict[str, float]


@dataclass(frozen=True)
class Infeasible:
    """The answer where no variant meets every limit.

    Attributes:
        nearest: the variant that needs the least relaxing, summed over limits relative to their values;
            None where every variant lacks a measure that is limited.
        relax_to: what each limit that it misses would have to be.
    """

    nearest: str | None
    relax_to: dict[str, float]


def check_limits(limits: Mapping[str, float]) -> None:
    """Refuse what is no limit.

    Raises:
        ValueError: an unknown name or a value out of range, with what is allowed.
    """
    for name, value in limits.items():
        if name not in LIMITS:
            raise ValueError(f"unknown limit {name}: one of {', '.join(LIMITS)}")
        highest = 1.0 if name == "explanation_fidelity_min" else math.inf
        if not 0.0 <= value <= highest:
            raise ValueError(f"{name} must lie in 0..{highest:g}, not {value}")


def choose(
    variants: Sequence[Measured], limits: Mapping[str, float], prices: Prices | None = None
) -> Choice | Infeasible:
    """The cheapest of `variants` that meets all `limits`; of equal cost the first.

    Raises:
        ValueError: no variants, or what `check_limits` refuses.
    """
    check_limits(limits)
    if not variants:
        raise ValueError("there is no variant to choose from")
    prices = prices or Prices()
    order = sorted(variants, key=lambda variant: variant.cost(prices))
    feasible = [variant for variant in order if _meets_all(variant, limits)]
    if not feasible:
        return _nearest(order, limits)
    chosen = feasible[0]
    saved = {}
    for limit in limits:
        rest = {name: value for name, value in limits.items() if name != limit}
        cheapest = next(variant for variant in order if _meets_all(variant, rest))
        saved[limit] = chosen.cost(prices) - cheapest.cost(prices)
    dearest = max(saved, key=saved.__getitem__, default=None)
    return Choice(
        chosen.name,
        chosen.cost(prices),
        feasible[1].name if len(feasible) > 1 else None,
        dearest if dearest is not None and saved[dearest] > 0 else None,
        saved,
    )


def _meets_all(variant: Measured, limits: Mapping[str, float]) -> bool:
    return all(variant.meets(limit, value) for limit, value in limits.items())


def _nearest(variants: Sequence[Measured], limits: Mapping[str, float]) -> Infeasible:
    """Of equal distance the first, which is the cheapest."""
    best, nearest = math.inf, Infeasible(None, {})
    for variant in variants:
        missed = {limit: variant.bound(limit) for limit in limits if not variant.meets(limit, limits[limit])}
        distance = sum(
            abs(bound - limits[limit]) / (abs(limits[limit]) or 1.0) for limit, bound in missed.items()
        )
        if distance < best:
            best, nearest = distance, Infeasible(variant.name, missed)
    return nearest
