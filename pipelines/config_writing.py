"""A configuration as TOML: what differs from the defaults, readable by `load_config`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pipelines.config import Config


def toml_of(config: Config) -> str:
    """The settings that differ from the defaults; "" for none. None cannot be written: TOML lacks it."""
    lines: list[str] = []
    _write_section(asdict(config), asdict(Config()), "", lines)
    return "".join(f"{line}\n" for line in lines)


def _write_section(
    tree: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str, lines: list[str]
) -> None:
    """Values of this section first, then its sections: TOML knows no way back to an outer one."""
    changed = {key: value for key, value in tree.items() if value is not None and value != defaults.get(key)}
    values = {key: value for key, value in changed.items() if not isinstance(value, Mapping)}
    if values and prefix:
        lines += [*([""] if lines else []), f"[{prefix.removesuffix('.')}]"]
    lines += [f"{_key(key)} = {_value(value)}" for key, value in values.items()]
    for key, value in changed.items():
        if isinstance(value, Mapping):
            _write_section(value, defaults.get(key, {}), f"{prefix}{_key(key)}.", lines)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _value(value: Any) -> str:
    """A number, a word, a list, or an inline table."""
    if isinstance(value, Mapping):
        pairs = [f"{_key(key)} = {_value(inner)}" for key, inner in value.items() if inner is not None]
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value)
