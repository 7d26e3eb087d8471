"""Token buckets against the plainest account of what they promise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import EXIT_CONFIG, RecsysError
from serving.http.rates import Buckets
from serving.http.settings import ServerSettings


def test_a_burst_and_then_the_rate():
    buckets = Buckets(per_second=2.0, burst=3.0)
    assert [buckets.take("a", 10.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert buckets.take("a", 10.25) == pytest.approx(0.25)
    assert [buckets.take("a", 10.5) for _ in range(2)] == [0.0, 0.5]
    assert [buckets.take("a", 1000.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert buckets.take("b", 1000.0) == 0.0


@given(st.lists(st.floats(0.0, 3.0), max_size=60), st.floats(0.5, 5.0), st.integers(1, 5))
def test_never_more_than_burst_and_rate_allow(gaps, rate, burst):
    buckets, now, taken = Buckets(rate, burst), 0.0, []
    for gap in gaps:
        now += gap
        if not buckets.take("a", now):
            taken.append(now)
    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + rate * (taken[last] - start) + 1e-6


def test_memory_is_bounded_and_the_last_comers_are_remembered():
    buckets = Buckets(1.0, 1.0, most=100)
    for number in range(1000):
        assert buckets.take(str(number), 0.0) == 0.0
    assert len(buckets) == 100
    assert buckets.take("999", 0.0) > 0.0
    assert buckets.take("0", 0.0) == 0.0


@pytest.mark.parametrize(
    "changes",
    [
        {"port": -1},
        {"port": 70_000},
        {"port": 9000, "admin_port": 9000},
        {"longest_body": 0},
        {"deadline_s": 0.0},
        {"drain_s": 1.0, "drain_delay_s": 1.0},
        {"rate": -1.0},
        {"rate": 1.0, "burst": 0.5},
        {"head_s": float("nan")},
    ],
)
def test_settings_out_of_range_stop_the_start(changes):
    with pytest.raises(RecsysError, match="settings_invalid") as caught:
        ServerSettings(**changes).check()
    assert caught.value.exit_code == EXIT_CONFIG


def test_the_defaults_are_in_range():
    assert ServerSettings().check().host == "127.0.0.1"
