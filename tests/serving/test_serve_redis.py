"""Two servers over one log in Redis: what one of them takes counts at the other, and outlives both."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from serving.events.parsing import event_of
from serving.messages import Event
from tests.serving.expected import are_close, asked, embed, model_of, ranked
from tests.serving.running import Running, wait_until
from tests.serving.test_redis_log import RedisServer

redis_log = pytest.importorskip("serving.events.redis_log", reason="the package redis is not installed")
ITEMS = [f"i{number:02d}" for number in range(40)]


@pytest.fixture
def store() -> Iterator[RedisServer]:
    folder = Path(tempfile.mkdtemp(prefix="redis"))  # names of sockets may have 107 characters
    server = RedisServer(folder)
    yield server
    server.stop(signal.SIGKILL)
    shutil.rmtree(folder)


def click(number: int, user: str, moment: float) -> dict[str, Any]:
    event = {"event_id": f"e{number}", "user_id": user, "item_id": ITEMS[number], "event_type": "click"}
    return event | {"timestamp": moment}


def events(store: RedisServer) -> list[Event]:
    with closing(redis_log.RedisLog(store.url, name="shop")) as log:
        return [event_of(each.record) for each in log.read(0, 100)]


def test_what_one_server_takes_counts_at_the_other(hosted, bundle_folder, store, tmp_path):
    options = ["--redis", store.url, "--redis-name", "shop"]
    moment = time.time() + 60.0

    def wait_for(server: Running, user: str) -> None:
        """Until it answers as the engine does for the log as it is now."""
        model = model_of(bundle_folder)
        for number, event in enumerate(events(store), 1):
            model.apply(event, number)
        embed(model)
        expected = ranked(model, user, ITEMS, moment)
        wait_until(lambda: are_close(asked(server, user, ITEMS, moment), expected))

    with hosted(bundle_folder, tmp_path / "one", options=options, deadline_s=10.0) as one:
        with hosted(bundle_folder, tmp_path / "two", options=options, deadline_s=10.0) as two:
            assert two.ask("GET", "/readyz").json["durability"] == "fsync"
            first, second = (click(number, "newcomer", moment - 60.0 + number) for number in (3, 8))
            assert one.post("/v1/events", first).json["accepted"] == 1
            assert two.post("/v1/events", first).json["duplicate"] == 1
            wait_for(two, "newcomer")
            assert two.post("/v1/events", second).json["accepted"] == 1
            assert two.stop(signal.SIGKILL) == -signal.SIGKILL
        wait_for(one, "newcomer")
        assert len(events(store)) == 2
        store.stop(signal.SIGKILL)
        assert one.post("/v1/events", click(9, "newcomer", moment)).status == 503
        assert asked(one, "newcomer", ITEMS, moment)
        store.start()
        wait_until(lambda: one.post("/v1/events", click(9, "newcomer", moment)).status == 200)
        wait_for(one, "newcomer")
        assert one.stop() == 0
    with hosted(bundle_folder, tmp_path / "three", options=options, deadline_s=10.0) as three:
        assert len(events(store)) == 3
        wait_for(three, "newcomer")
