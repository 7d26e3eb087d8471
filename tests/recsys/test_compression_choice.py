"""The constrained choice, on tables small enough to answer by hand."""

from __future__ import annotations

import math

import pytest

from recsys.compression.choice import Choice, Infeasible, Measured, Prices, choose
from recsys.metrics.intervals import Interval

PRICES = Prices(cpu_second=1.0, gb_month=1.0, texts_per_month=1.0, copies=1.0)  # cost = seconds + gigabytes


def variant(name: str, cost: float, quality=(1.0, 1.0), latency=(1.0, 1.0), **others) -> Measured:
    measures = {
        "quality_ratio": Interval(sum(quality) / 2, *quality),
        "latency_p99_ms": Interval(sum(latency) / 2, *latency),
        **{measure: Interval(value, value, value) for measure, value in others.items()},
    }
    return Measured(name, measures, cpu_seconds=cost - 0.5, bytes=500_000_000)


LADDER = [
    variant("teacher", 10.0, quality=(1.0, 1.0), latency=(9.0, 9.5)),
    variant("int8", 4.0, quality=(0.99, 1.01), latency=(3.0, 3.5)),
    variant("three layers", 2.0, quality=(0.97, 1.0), latency=(1.5, 2.0)),
    variant("table", 1.0, quality=(0.6, 0.7), latency=(0.1, 0.1)),
]


def test_without_limits_the_cheapest_wins_and_no_limit_binds():
    answer = choose(LADDER, {}, PRICES)
    assert answer == Choice("table", 1.0, "three layers", None, {})


def test_the_cheapest_that_meets_the_limits_wins_and_each_limit_has_its_price():
    answer = choose(LADDER, {"quality_min_ratio": 0.98, "latency_p99_ms": 5.0}, PRICES)
    assert answer == Choice(
        "int8", 4.0, None, "quality_min_ratio", {"quality_min_ratio": 3.0, "latency_p99_ms": 0}
    )


def test_limits_are_held_against_bounds_and_not_against_means():
    lucky = variant("lucky", 1.0, quality=(0.90, 1.10))
    safe = variant("safe", 3.0, quality=(0.99, 1.0))
    assert choose([lucky, safe], {"quality_min_ratio": 0.98}, PRICES).chosen == "safe"
    slow = variant("slow now and then", 1.0, latency=(1.0, 8.0))
    assert choose([slow, safe], {"latency_p99_ms": 5.0}, PRICES).chosen == "safe"


def test_a_bound_on_the_limit_meets_it():
    assert choose(LADDER, {"quality_min_ratio": 0.97, "latency_p99_ms": 2.0}, PRICES).chosen == "three layers"


def test_infeasible_names_the_nearest_variant_and_what_to_relax():
    limits = {"quality_min_ratio": 0.995, "latency_p99_ms": 3.4}
    answer = choose(LADDER, limits, PRICES)  # misses by .025; int8 by .005 + .029, the teacher by 1.8
    assert answer == Infeasible("three layers", {"quality_min_ratio": 0.97})
    assert choose(LADDER, limits | answer.relax_to, PRICES).chosen == "three layers"
    both = choose(LADDER[:2], limits, PRICES)
    assert both == Infeasible("int8", {"quality_min_ratio": 0.99, "latency_p99_ms": 3.5})
    assert choose(LADDER[:2], limits | both.relax_to, PRICES).chosen == "int8"


def test_what_was_not_measured_meets_no_limit():
    unknown = variant("unknown", 0.6)
    known = variant("known", 2.0, fairness_gap=0.1)
    assert choose([unknown, known], {"fairness_gap_max": 0.2}, PRICES).chosen == "known"
    nan = Measured("nan", {"fairness_gap": Interval(math.nan, math.nan, math.nan)}, 1.0, 1)
    assert choose([unknown, nan], {"fairness_gap_max": 0.2}, PRICES) == Infeasible(None, {})


def test_cost_is_computing_and_storing():
    prices = Prices(cpu_second=2e-5, gb_month=0.02, texts_per_month=1e6, copies=5)
    one = Measured("one", {}, cpu_seconds=0.003, bytes=90_000_000)
    assert one.cost(prices) == pytest.approx(0.003 * 1e6 * 2e-5 + 0.09 * 5 * 0.02)


def test_equal_costs_keep_the_order_of_the_table():
    twins = [variant("first", 2.0), variant("second", 2.0)]
    answer = choose(twins, {"quality_min_ratio": 0.9}, PRICES)
    assert (answer.chosen, answer.runner_up) == ("first", "second")


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"speed": 1.0}, "quality_min_ratio, latency_p99_ms"),
        ({"explanation_fidelity_min": 1.2}, "0..1"),
        ({"quality_min_ratio": -0.1}, "0..inf"),
        ({"quality_min_ratio": math.nan}, "0..inf"),
    ],
)
def test_what_is_no_limit_is_refused_with_what_is_allowed(limits, words):
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        choose(LADDER, limits, PRICES)
