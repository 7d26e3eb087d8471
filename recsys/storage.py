"""Bytes on stable storage, and the strict JSON that manifests are written in."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recsys.errors import EXIT_IO, RecsysError


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on stable storage."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Put the bytes of a file on stable storage."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Create a file with mode 0600 and put its bytes on stable storage; raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def storage_error(error: OSError, path: Path) -> RecsysError:
    """`storage_full` where there is no room left, `storage_failed` for any other failure to write."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    code = "storage_full" if full else "storage_failed"
    return RecsysError(code, error.strerror or type(error).__name__, str(path), exit_code=EXIT_IO)


def write_atomic(path: Path, data: bytes) -> None:
    """Put a whole file in place of the old one, if any, on stable storage; raises OSError."""
    staging = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        write_synced(staging, data)
        staging.replace(path)
        sync_folder(path.parent)
    finally:
        staging.unlink(missing_ok=True)


def write_folder(folder: Path, files: Mapping[str, bytes], last: str) -> None:
    """Put files in a folder, `last` after all others: where it lies, the rest is whole; raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(files, key=lambda name: name == last):
        write_atomic(folder / name, files[name])


def read_folder(folder: Path, last: str) -> dict[str, bytes] | None:
    """The files that `write_folder` put there, None where it did not finish."""
    if not (folder / last).exists():
        return None
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def json_bytes(document: Any) -> bytes:
    """Sorted, indented UTF-8 JSON; equal documents give equal bytes. Raises ValueError for NaN."""
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def parse_json(raw: bytes, where: str) -> Any:
    """Strict JSON: UTF-8, no duplicate keys, no NaN; raises RecsysError `manifest_invalid` otherwise.

    What is given back can be written again: no number is infinite, no text holds half a character.
    """
    try:
        text = raw.decode("utf-8")
        document = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
        return document
    except (ValueError, RecursionError) as error:
        raise RecsysError("manifest_invalid", f"not strict JSON: {str(error)[:200]}", where) from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
