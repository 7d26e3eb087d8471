"""`recsys events` on the command line."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from recsys.errors import EXIT_USAGE, RecsysError
from serving.commands.opening import (
    HomeOption,
    JsonOption,
    LogOption,
    RedisNameOption,
    RedisOption,
    open_reader,
)

UNFINISHED = "now"

events = typer.Typer(name="events", help="The log of the events that a server took.", no_args_is_help=True)


@events.callback(help="The log of the events that a server took.")
def _group() -> None:
    """Keep `export` a command of its own, though it is the only one."""


@events.command()
def export(
    out: Annotated[Path, typer.Argument(help="Folder that the export is written to.")],
    log: LogOption = None,
    redis: RedisOption = None,
    redis_name: RedisNameOption = "recsys",
    jsonl: Annotated[bool, typer.Option("--jsonl", help="JSON lines instead of a dataset.")] = False,
    until: Annotated[
        str | None, typer.Option(help="Last UTC day, YYYY-MM-DD (default: yesterday); now for everything.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Seal the finished days of the event log as a dataset for the night."""
    from serving.events.export import export as run

    day = _day(until)
    with closing(open_reader(log, redis, redis_name, home)) as reader:
        counts = run(reader, out, until=day, unfinished=until == UNFINISHED, jsonl=jsonl)
    document = {"out": str(out.absolute()), **counts}
    sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n" if as_json else _lines(document))


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
