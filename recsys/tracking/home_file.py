"""What names mean in a home's own database, read without MLflow, whose import takes as long as a whole start.

Only a database with the tables of a known revision is read here. Of any other, and where anything is strange,
MLflow is asked, as it is for bundles. Nothing is ever written.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from recsys.versions import Version, parse_model_uri, unknown_model, unknown_version

DATABASE = "mlflow.db"
REVISION = "dc11669786a5"
"""Of the tables of MLflow 3.17; a later one migrates them, and then this has to be looked at again."""

_LATEST = "latest"
_WAIT_S = 2.0
_HERE = "workspace = 'default' AND name = ?"


def resolve_in_home(home: Path, uri: str) -> Version | None:
    """What `RegistryReader.resolve` says of a home, None where only that can tell.

    Args:
        home: with the database.
        uri: `models:/NAME@ALIAS` or `models:/NAME/NUMBER`.

    Raises:
        RecsysError: `model_uri_invalid`, `unknown_model`, `unknown_alias` or `unknown_version`.
    """
    name, wanted = parse_model_uri(uri)
    if isinstance(wanted, str) and wanted.lower() == _LATEST:  # not an alias, but a word of MLflow's
        return None
    try:
        with closing(_open(home)) as database:
            return _resolve(database, name, wanted)
    except sqlite3.Error:
        return None


def is_readable(home: Path) -> bool:
    """Whether there is a database that `resolve_in_home` can tell anything of."""
    try:
        with closing(_open(home)) as database:
            return _is_known(database)
    except sqlite3.Error:
        return False


def _open(home: Path) -> sqlite3.Connection:
    path = quote(str(home.absolute() / DATABASE))
    return sqlite3.connect(f"file:{path}?mode=ro", timeout=_WAIT_S, isolation_level=None, uri=True)


def _is_known(database: sqlite3.Connection) -> bool:
    return database.execute("SELECT version_num FROM alembic_version").fetchall() == [(REVISION,)]


def _resolve(database: sqlite3.Connection, name: str, wanted: str | int) -> Version | None:
    database.execute("BEGIN")  # all that follows is of one moment
    if not _is_known(database):
        return None
    if not _rows(database, "SELECT 1 FROM registered_models", name):
        raise unknown_model(name)
    aliases = dict(_rows(database, "SELECT alias, version FROM registered_model_aliases", name))
    number = aliases.get(wanted, -1) if isinstance(wanted, str) else wanted
    version = "AND version = ? AND current_stage != 'Deleted_Internal'"
    found = _rows(database, "SELECT run_id FROM model_versions", name, version, number)
    if not found:
        raise unknown_version(name, wanted, aliases)
    tags = dict(_rows(database, "SELECT key, value FROM model_version_tags", name, "AND version = ?", number))
    return Version(name, number, found[0][0] or "", tags)


def _rows(database: sqlite3.Connection, select: str, name: str, more: str = "", *values: Any) -> list[Any]:
    return database.execute(f"{select} WHERE {_HERE} {more}", (name, *values)).fetchall()
