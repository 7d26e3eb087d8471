"""The server's figures: printed as a table, and held against what they should be.

    python -m pytest tests/benchmarks/serving.py -s

It needs two cores: the server is kept on one and the load on the other, except where the table says that a
server has both, and neither falls asleep. The first run makes what is served (see `serving_world`), in the
folder that RECSYS_BENCH_HOME names. RECSYS_BENCH_OUT names a file for the figures as JSON,
RECSYS_BENCH_PARTS some of the parts: nightly,process,http,peers,events,starts,flips.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.benchmarks.serving_figures import Figures, Neighbours
from tests.benchmarks.serving_ingest import PLACES, ingest
from tests.benchmarks.serving_process import awake, cores
from tests.benchmarks.serving_ranking import against_peers, in_process, over_http
from tests.benchmarks.serving_starts import flips, nightly, starts
from tests.benchmarks.serving_world import World, large_world, trained_world

PARTS = ("nightly", "process", "http", "peers", "events", "starts", "flips")
COMMAND = "python -m pytest tests/benchmarks/serving.py -s"


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
@pytest.mark.skipif(len(set(cores())) < 2, reason="server and load need a core each")
def test_the_server_is_as_fast_as_it_says(tmp_path: Path) -> None:
    wanted = os.environ.get("RECSYS_BENCH_PARTS", ",".join(PARTS)).split(",")
    assert set(wanted) <= set(PARTS), wanted
    figures, small = Figures(), trained_world()
    for part in wanted:
        print(f"\n{part}", flush=True)
        folder = tmp_path / part
        folder.mkdir()
        others = Neighbours()
        with awake():
            _measure(part, figures, small, folder)
        figures.add(part, "processor time of others meanwhile", others.share(), "%")
        shutil.rmtree(folder)
    table = figures.table(COMMAND)
    print(f"\n{table}\n", flush=True)
    figures.write()
    if misses := figures.misses():
        pytest.fail("\n".join(["not as they should be:", *misses]), pytrace=False)


def _measure(part: str, figures: Figures, small: World, folder: Path) -> None:
    if part == "nightly":
        nightly(figures, small, folder)
    elif part == "process":
        in_process(figures, _worlds(small))
    elif part == "http":
        over_http(figures, small, folder)
    elif part == "peers":
        against_peers(figures, small, folder)
    elif part == "events":
        for place, on in PLACES.items():
            (folder / place).mkdir()
            ingest(figures, small, folder / place, on=on, place=place)
    elif part == "starts":
        starts(figures, _worlds(small), folder)
    else:
        flips(figures, small, folder)


def _worlds(small: World) -> dict[str, World]:
    """Both worlds by the number of their items."""
    return {f"{len(world.items):,}": world for world in (small, large_world(small))}
