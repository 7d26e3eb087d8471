"""`recsys events` on the command line."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recsys.errors import EXIT_UNAVAILABLE, EXIT_USAGE, RecsysError

if TYPE_CHECKING:
    from serving.event_log import EventReader

LOG_NAME = "events.db"
"""Name of the log in the home folder, where a server keeps it unless told otherwise."""

UNFINISHED = "now"

events = typer.Typer(name="events", help="The log of the events that a server took.", no_args_is_help=True)


@events.callback(help="The log of the events that a server took.")
def _group() -> None:
    """Keep `export` a command of its own, though it is the only one."""


@events.command()
def export(
    out: Annotated[Path, typer.Argument(help="Folder that the export is written to.")],
    log: Annotated[Path | None, typer.Option(help="Log file; default: events.db in the home.")] = None,
    redis: Annotated[
        str | None, typer.Option(envvar="RECSYS_REDIS_URL", help="Redis or Valkey that has the log.")
    ] = None,
    redis_name: Annotated[str, typer.Option(help="Name of the log there.")] = "recsys",
    jsonl: Annotated[bool, typer.Option("--jsonl", help="JSON lines instead of a dataset.")] = False,
    until: Annotated[
        str | None, typer.Option(help="Last UTC day, YYYY-MM-DD (default: yesterday); now for everything.")
    ] = None,
    home: Annotated[
        Path | None, typer.Option(help="Where everything is kept (RECSYS_HOME, else ./.recsys).")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on standard output.")
    ] = False,
) -> None:
    """Seal the finished days of the event log as a dataset for the night."""
    from serving.event_export import export as run

    day = _day(until)
    with closing(_redis(redis, redis_name) if redis and not log else _file(log, home)) as reader:
        counts = run(reader, out, until=day, unfinished=until == UNFINISHED, jsonl=jsonl)
    document = {"out": str(out.absolute()), **counts}
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n" if as_json else _lines(document))


def _file(log: Path | None, home: Path | None) -> EventReader:
    from serving.sqlite_reader import SqliteReader

    folder = home or Path(os.environ.get("RECSYS_HOME") or ".recsys")
    return SqliteReader(log or folder.expanduser() / LOG_NAME)


def _redis(url: str, name: str) -> EventReader:
    try:
        from serving.redis_log import RedisLog
    except ModuleNotFoundError as error:
        what = f"module {error.name} is missing: install recsys[redis]"
        raise RecsysError("missing_extra", what, exit_code=EXIT_UNAVAILABLE) from error
    return RedisLog(url, name=name)


def _day(text: str | None) -> date | None:
    if text is None or text == UNFINISHED:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise RecsysError(
            "usage", "a day is YYYY-MM-DD, or now:", f"--until {text}", exit_code=EXIT_USAGE
        ) from None


def _lines(document: dict[str, Any]) -> str:
    """Counts for people, one a line; those that are 0 or empty are left out."""
    facts = {key.replace("_", " "): value for key, value in document.items() if value not in (0, [], False)}
    return "".join(f"{key:<20}{_shown(value)}\n" for key, value in facts.items())


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return f"{value:,}" if type(value) is int else str(value)
