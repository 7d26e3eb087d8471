"""Declarations as plain JSON values, and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

from features.declaration import Declaration

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(Declaration)}


def to_record(declaration: Declaration) -> dict[str, Any]:
    """The declaration as plain JSON values, `kind` first."""
    return {"kind": type(declaration).__name__, **asdict(declaration)}


def from_record(record: dict[str, Any]) -> Declaration:
    """Inverse of `to_record`.

    Raises:
        KeyError: `kind` is none of ours.
        TypeError: a parameter is unknown or missing.
    """
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items() if k != "kind"}
    declaration: Declaration = _KINDS[record["kind"]](**values)
    return declaration
