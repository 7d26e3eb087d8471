"""What the unseen window decides, on hand-made rungs."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.compression_answer import LOOKS, settle
from recsys.compression.settings import CompressionConfig

CONFIG = CompressionConfig(limits={"quality_min_ratio": 0.98})


def rung(name: str, size: float, quality: float) -> dict[str, Any]:
    interval = {"mean": quality, "low": quality, "high": quality}
    return {
        "name": name, "kind": "encoder", "quality_ratio": interval, "cpu_seconds": 0.0, "bytes": size * 1e9,
        "throughput_interval": interval, "latency_interval": interval, "explanation_fidelity": interval,
        "fairness_gap": interval,
    }  # fmt: skip


LADDER = [rung("root", 9, 1.0), rung("tiny", 1, 0.9), rung("small", 2, 0.99), rung("middle", 4, 0.99)]


def looks(*confirmed: str):
    asked: list[str] = []

    def confirm(chosen: Any) -> dict[str, Any]:
        asked.append(chosen["name"])
        return {"confirmed": chosen["name"] in confirmed, "missed": ["quality_min_ratio"]}

    return asked, confirm


def test_the_cheapest_that_meets_the_limits_is_asked_first():
    asked, confirm = looks("small", "middle")
    settled = settle(LADDER, CONFIG, confirm)
    assert asked == ["small"]
    assert settled.chosen["name"] == settled.choice["chosen"] == "small"
    assert settled.refuted == []


def test_what_is_refuted_gives_way_to_the_next():
    asked, confirm = looks("middle")
    settled = settle(LADDER, CONFIG, confirm)
    assert asked == ["small", "middle"]
    assert settled.choice["chosen"] == "middle"
    assert settled.confirmation["confirmed"]
    assert [each["name"] for each in settled.refuted] == ["small"]


def test_after_the_last_look_the_answer_stays_unconfirmed():
    asked, confirm = looks()
    settled = settle(LADDER, CONFIG, confirm)
    assert asked == ["small", "middle", "root"]
    assert len(asked) == LOOKS
    assert not settled.confirmation["confirmed"]


@pytest.mark.parametrize("quality", [0.9, 0.5])
def test_nothing_is_asked_where_nothing_is_feasible(quality):
    asked, confirm = looks()
    settled = settle([rung("only", 1, quality)], CONFIG, confirm)
    assert asked == []
    assert settled.chosen is None
    assert settled.choice["infeasible"]["nearest"] == "only"


def test_a_single_variant_is_asked_once():
    asked, confirm = looks()
    settled = settle([rung("only", 1, 1.0)], CONFIG, confirm)
    assert asked == ["only"]
    assert not settled.confirmation["confirmed"]
