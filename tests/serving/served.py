"""A real server over one bundle, which tests run as a process; its settings are JSON, in the first word."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

from recsys.bundle import read_bundle
from recsys.errors import RecsysError
from serving.engine.live_model import LiveModel
from serving.events.log import EventLog
from serving.events.sqlite_log import SqliteLog
from serving.events.writer import EventWriter
from serving.health import Swap
from serving.http.intake import EventIntake
from serving.http.keys import check_bind, read_keys
from serving.http.server import bind, room_for_connections, run
from serving.http.settings import ServerSettings
from serving.http.site import Parts, log_to, make_site
from serving.logs import LineLog
from serving.messages import Event, ModelName, RankRequest
from serving.meters import Meters


class OneModel:
    """A slot that never changes."""

    degraded_reason = None

    def __init__(self, current: LiveModel | None) -> None:
        self.current = current


async def no_change() -> Swap:
    raise RecsysError("nothing_to_roll_back", "there is one version only")


def ignore(request: RankRequest | None, seconds: float, *, failed: bool = False) -> None:
    """Nobody watches this model."""


@contextlib.asynccontextmanager
async def background(writer: EventWriter, events: EventLog) -> AsyncIterator[None]:
    try:
        yield
    finally:
        writer.close()
        events.close()


def main() -> None:
    asked = json.loads(sys.argv[1])
    keys_file = asked.pop("keys_file", None)
    settings = ServerSettings(**asked.pop("settings"), keys_file=keys_file and Path(keys_file)).check()
    keys = read_keys(settings.keys_file, os.environ)
    os.environ.pop("RECSYS_API_KEYS", None)
    check_bind(settings.host, keys)
    settings = replace(settings, most_connections=room_for_connections(settings))
    bundle, folder = asked["bundle"], Path(asked["folder"])
    name = ModelName(name="recsys", version=3, alias="champion")
    model = LiveModel.load(read_bundle(Path(bundle)), name) if bundle else None
    meters = Meters()
    log = LineLog(2, meters.lines_dropped)
    log_to(log)
    events = SqliteLog(folder / "events.db")
    writer, numbers = EventWriter(events), itertools.count(1)

    def hear(heard: Sequence[Event]) -> None:
        for event in heard:
            if model is not None:
                model.apply(event, next(numbers))

    intake = EventIntake(writer, hear, settings)
    watched = (no_change, no_change, ignore)
    parts = Parts(OneModel(model), intake, *watched, background(writer, events), meters, log)
    public, admin = bind(settings.host, settings.port), bind("127.0.0.1", settings.admin_port)
    site = make_site(parts, keys, settings, public, admin)
    print(json.dumps([public.getsockname()[1], admin.getsockname()[1]]), flush=True)
    run(site)
    log.close()


if __name__ == "__main__":
    try:
        main()
    except RecsysError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
