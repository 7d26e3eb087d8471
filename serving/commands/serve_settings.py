"""The settings of a server: defaults, a TOML file, and single ones given on the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec

from recsys.errors import EXIT_CONFIG, RecsysError
from serving.http.settings import ServerSettings
from serving.lifecycle.health_budget import HealthBudget
from serving.lifecycle.shadow import ShadowSettings
from serving.lifecycle.watch import WatchSettings


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a TOML file may hold: a table of each."""

    server: ServerSettings = msgspec.field(default_factory=ServerSettings)
    watch: WatchSettings = msgspec.field(default_factory=WatchSettings)
    shadow: ShadowSettings = msgspec.field(default_factory=ShadowSettings)


TABLES: Mapping[str, type] = {"server": ServerSettings, "watch": WatchSettings, "shadow": ShadowSettings}


def read_settings(path: Path | None, given: Mapping[str, Any], overrides: Sequence[str]) -> Settings:
    """The settings of a server.

    Args:
        path: of a TOML file with tables `server`, `watch` (with `watch.budget`) and `shadow`; None for none.
        given: fields of `server` from the command line's own options; they win over the file.
        overrides: `TABLE.FIELD=VALUE`, which win over everything.

    Raises:
        RecsysError: `settings_invalid` (exit 78), naming what is wrong.
    """
    document = _read(path)
    _check_names(document, str(path or ""))
    document.setdefault("server", {}).update(given)
    for each in overrides:
        _override(document, each)
    try:
        settings = msgspec.convert(document, Settings, strict=False, dec_hook=_path)
    except (msgspec.ValidationError, ValueError) as error:
        raise _wrong(str(error), str(path or "")) from None
    settings.server.check()
    return settings


def known_fields() -> list[str]:
    """Every `TABLE.FIELD` that can be set."""
    found = [f"{table}.{field.name}" for table, kind in TABLES.items() for field in fields(kind)]
    budget = [f"watch.budget.{field.name}" for field in fields(HealthBudget)]
    return sorted([*(name for name in found if name != "watch.budget"), *budget])


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _wrong(error.strerror or "cannot be read", str(path)) from None
    except ValueError as error:
        raise _wrong(str(error), str(path)) from None
    return document


def _check_names(document: Mapping[str, Any], where: str, table: str = "") -> None:
    for name, value in document.items():
        full = f"{table}{name}"
        if isinstance(value, dict) and any(known.startswith(f"{full}.") for known in known_fields()):
            _check_names(value, where, f"{full}.")
        elif full not in known_fields():
            raise _wrong(f"there is no setting {full!r}: one of {', '.join(known_fields())}", where)


def _override(document: dict[str, Any], text: str) -> None:
    name, equals, value = text.partition("=")
    if not equals or name not in known_fields():
        raise _wrong(f"--set takes TABLE.FIELD=VALUE with one of {', '.join(known_fields())}; got", text)
    *tables, field = name.split(".")
    for table in tables:
        document = document.setdefault(table, {})
    document[field] = value


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise NotImplementedError


def _wrong(what: str, where: str) -> RecsysError:
    return RecsysError("settings_invalid", what, where, exit_code=EXIT_CONFIG)
