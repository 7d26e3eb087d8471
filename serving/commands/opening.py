"""The log of events that a command works on: a file, or a store on the network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys.errors import EXIT_UNAVAILABLE, RecsysError

if TYPE_CHECKING:
    from serving.events.log import EventReader
    from serving.events.redis_log import RedisLog

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


def open_reader(log: Path | None, redis: str | None, redis_name: str, home: Path | None) -> EventReader:
    """The log for reading: the file where one is named, else the store, else the home's file.

    Raises:
        RecsysError: `missing_extra` (exit 69); of the log.
    """
    from serving.events.sqlite_reader import SqliteReader

    if redis and not log:
        return open_redis(redis, redis_name)
    return SqliteReader(log or home_folder(home) / LOG_NAME)


def open_redis(url: str, name: str) -> RedisLog:
    """The log in Redis or Valkey; raises RecsysError `missing_extra` (exit 69), and of the log."""
    try:
        from serving.events.redis_log import RedisLog
    except ModuleNotFoundError as error:
        what = f"module {error.name} is missing: install recsys[redis]"
        raise RecsysError("missing_extra", what, exit_code=EXIT_UNAVAILABLE) from error
    return RedisLog(url, name=name)


def home_folder(given: Path | None) -> Path:
    """Where everything is kept; it need not exist."""
    return (given or Path(os.environ.get("RECSYS_HOME") or ".recsys")).expanduser().absolute()
