"""The log of events that a command works on: a file, or a store on the network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from serving.events.log import EventReader
    from serving.events.place import LogPlace

LOG_NAME = "events.db"
"""Name of the log in the home folder, where a server keeps it unless told otherwise."""

LogOption = Annotated[Path | None, typer.Option(help="Log file; default: events.db in the home.")]
RedisOption = Annotated[
    str | None, typer.Option(envvar="RECSYS_REDIS_URL", help="Redis or Valkey that has the log.")
]
RedisNameOption = Annotated[str, typer.Option(help="Name of the log there.")]
HomeOption = Annotated[
    Path | None, typer.Option(help="Where everything is kept (RECSYS_HOME, else ./.recsys).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


def log_place(log: Path | None, redis: str | None, redis_name: str, home: Path | None) -> LogPlace:
    """The file where one is named, else the store, else the home's file."""
    from serving.events.place import LogPlace

    if redis and not log:
        return LogPlace(redis=redis, name=redis_name)
    return LogPlace(file=str((log or home_folder(home) / LOG_NAME).absolute()))


def open_reader(log: Path | None, redis: str | None, redis_name: str, home: Path | None) -> EventReader:
    """The log for reading, see `log_place`; raises RecsysError `missing_extra` (exit 69), and of the log."""
    return log_place(log, redis, redis_name, home).open_reader()


def home_folder(given: Path | None) -> Path:
    """Where everything is kept; it need not exist."""
    return (given or Path(os.environ.get("RECSYS_HOME") or ".recsys")).expanduser().absolute()
