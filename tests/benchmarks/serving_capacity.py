"""How many rank calls a second a server can be asked for: tried in steps, each for ten seconds."""

from __future__ import annotations

from dataclasses import dataclass

from tests.benchmarks.serving_figures import middle
from tests.benchmarks.serving_load import Heard, Stream, drive
from tests.benchmarks.serving_process import cores
from tests.benchmarks.serving_requests import WHOLE

SERVER_CORE, LOAD_CORE = cores()
CONNECTIONS = 32
CLOSED_CONNECTIONS = 4
"""So many keep the server busy without a queue that would count as overload."""
STEP_S, STEP, FIRST_STEP, LAST_STEP = 10.0, 0.05, 18, 8
"""A rate is tried for so long; rates are multiples of a share of what a closed loop gets at best."""
DEGRADED_SHARE = 0.001


@dataclass(frozen=True)
class Capacity:
    """Rank calls a second.

    Attributes:
        held: the highest rate that was held, 0 where none was.
        closed: what a closed loop gets at best.
    """

    held: float
    closed: float

    @property
    def half(self) -> float:
        """Half of what was held, or would have been tried next."""
        return (self.held or self.closed * STEP * (LAST_STEP - 1)) / 2


def rank_stream(port: int, requests: str, seconds: float, rate: float = 0.0, seed: int = 0) -> Stream:
    """Rank calls: open loop at a rate, closed loop without."""
    connections = CONNECTIONS if rate else CLOSED_CONNECTIONS
    return Stream(port, requests, seconds, connections, rate, WHOLE, seed)


def capacity(port: int, requests: str) -> Capacity:
    """The highest rate that is held, found by going up or down from the first one."""
    closed = max(drive([rank_stream(port, requests, 2.0)], LOAD_CORE)[0].rate for _ in range(3))
    place, tried = FIRST_STEP, dict[int, bool]()
    while place not in tried and place >= LAST_STEP:
        rate = closed * STEP * place
        heard = drive([rank_stream(port, requests, STEP_S, rate, seed=place)], LOAD_CORE)[0]
        tried[place] = is_held(heard)
        print(f"    {rate:.0f}/s: {'held' if tried[place] else 'not held'}, {told(heard)}", flush=True)
        place += 1 if tried[place] else -1
    return Capacity(closed * STEP * max((each for each, held in tried.items() if held), default=0), closed)


def is_held(heard: Heard) -> bool:
    """Whether all was answered, by the whole model but for one in a thousand, and the lag did not grow."""
    is_whole = not heard.statuses and not heard.lost and heard.unlike <= DEGRADED_SHARE * heard.due
    fifth = len(heard.latency_ms) // 5
    if not is_whole or fifth < 10:
        return False
    first, last = heard.latency_ms[:fifth], heard.latency_ms[-fifth:]
    return middle(last) <= 2.0 * middle(first) + 5.0


def told(heard: Heard) -> str:
    """A run in a few words."""
    bad = f", {heard.unlike} lesser, {heard.lost} lost, {heard.statuses}" if heard.bad else ""
    return f"p50 {heard.quantile(0.5):.2f} ms, p99 {heard.quantile(0.99):.2f} ms{bad}"
