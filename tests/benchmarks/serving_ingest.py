"""Events: how many a second become durable, and what ranking notices of it."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.serving_capacity import LOAD_CORE, SERVER_CORE, capacity, rank_stream
from tests.benchmarks.serving_figures import Figures, middle
from tests.benchmarks.serving_load import Heard, Stream, drive
from tests.benchmarks.serving_process import our_server
from tests.benchmarks.serving_requests import BATCH, event_bodies, our_bodies, rank_calls, request_file
from tests.benchmarks.serving_world import World

EVENTS_A_SECOND = 5000.0
CONNECTIONS = 8
WINDOW_S, WINDOWS = 10.0, 5
MARKS = (f'"accepted":{BATCH},',)


def ingest(figures: Figures, world: World, folder: Path, *, on: set[int] | None, place: str) -> None:
    """Durable events a second, and the p99 of ranking at half of capacity with and without events.

    Args:
        figures: to add to.
        world: served.
        folder: for files.
        on: cores of the server. `place`: what they are called.
    """
    part = f"events, {place}"
    ranks = request_file(folder, "ranks", "/v1/rank", our_bodies(rank_calls(world)))
    batches = request_file(folder, "batches", "/v1/events", event_bodies(world))
    with our_server(world.uri, world.home, folder / "events.db", on) as server:

        def events(seconds: float, rate: float = 0.0, seed: int = 0) -> Stream:
            return Stream(server.port, batches, seconds, CONNECTIONS, rate / BATCH, MARKS, seed)

        alone = [drive([events(5.0)], LOAD_CORE)[0] for _ in range(3)]
        note = f"closed loop, {CONNECTIONS} connections, batches of {BATCH}, fsync, median of 3 times 5 s"
        durable = middle([heard.rate * BATCH for heard in alone])
        figures.add(part, "durable events", durable, "/s", at_least=EVENTS_A_SECOND, note=note)
        figures.add(part, "batches not taken whole", sum(heard.bad for heard in alone), at_most=0)
        half = capacity(server.port, ranks).half
        quiet: list[Heard] = []
        busy: list[tuple[Heard, Heard]] = []
        for seed in range(WINDOWS):
            stream = rank_stream(server.port, ranks, WINDOW_S, half, seed)
            quiet.append(drive([stream], LOAD_CORE)[0])
            ranked, stored = drive([stream, events(WINDOW_S, EVENTS_A_SECOND, seed)], LOAD_CORE)
            busy.append((ranked, stored))
    _tell(figures, part, half, quiet, busy)


def _tell(
    figures: Figures, part: str, half: float, quiet: list[Heard], busy: list[tuple[Heard, Heard]]
) -> None:
    note = f"{half:.0f} calls/s, median of {WINDOWS} windows of {WINDOW_S:.0f} s in turn"
    before = middle([heard.quantile(0.99) for heard in quiet])
    meanwhile = middle([ranked.quantile(0.99) for ranked, _ in busy])
    figures.add(part, "p99 of ranking without events", before, "ms", note=note)
    stored = middle([heard.rate * BATCH for _, heard in busy])
    figures.add(part, f"p99 of ranking with {stored:.0f} events/s", meanwhile, "ms", note=note)
    figures.add(part, "p99 with events against without", meanwhile / before, "x", at_most=1.2)
    p50 = middle([ranked.quantile(0.5) for ranked, _ in busy]) / middle(
        [heard.quantile(0.5) for heard in quiet]
    )
    figures.add(part, "p50 with events against without", p50, "x")
    figures.add(part, "events stored meanwhile", stored, "/s", at_least=0.97 * EVENTS_A_SECOND)
    bad = sum(ranked.bad for ranked, _ in busy), sum(heard.bad for heard in quiet)
    figures.add(part, "calls not answered in full", sum(bad), note=f"{bad[0]} with events, {bad[1]} without")
    p99 = middle([heard.quantile(0.99) for _, heard in busy])
    figures.add(part, "p99 of a batch meanwhile", p99, "ms")


PLACES: dict[str, set[int] | None] = {"server on one core": {SERVER_CORE}, "server on both cores": None}
