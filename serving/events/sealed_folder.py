"""A folder of exported files that is replaced as one: readers see the old export or the new one.

A manifest holds the SHA-256 of each file. Files that somebody else put into the folder stay in it.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recsys.errors import RecsysError
from recsys.locks import lock
from recsys.storage import json_bytes, parse_json, storage_error, sync_folder, write_synced

MANIFEST = "manifest.json"
_HERE = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE


def seal(folder: Path, write: Callable[[Path], Mapping[str, Any]]) -> bool:
    """Replace what an earlier export left in a folder; the same bytes change nothing.

    Args:
        folder: made if absent.
        write: puts files, on stable storage, into the empty folder that it is given, and returns what the
            manifest says beside `files`.

    Returns:
        Whether anything changed.

    Raises:
        RecsysError: `lock_held` (exit 75); `not_an_export` for a folder with other things and no manifest;
            `storage_full`, `storage_failed` (exit 74), and what `write` raises: the folder is as it was.
    """
    folder = folder.absolute()
    staging, old = (folder.with_name(f".{folder.name}.{name}") for name in ("staging", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock(folder.with_name(f".{folder.name}.lock")):
            if old.exists() and not folder.exists():
                old.rename(folder)
            _remove(staging, old)
            try:
                return _replace(folder, staging, old, write)
            finally:
                _remove(staging, old)
    except OSError as error:
        raise storage_error(error, folder) from error


def verify_sealed(folder: Path) -> dict[str, Any]:
    """The manifest of an export whose files are as they were written.

    Raises:
        RecsysError: `manifest_invalid`, `digest_mismatch` naming the file.
    """
    try:
        document = parse_json((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))
        files: dict[str, dict[str, Any]] = document["files"]
        for name, expected in files.items():
            if _described(folder / name) != expected:
                raise RecsysError("digest_mismatch", "not the file of the manifest:", str(folder / name))
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise RecsysError(
            "manifest_invalid", f"no whole export ({type(error).__name__}):", str(folder)
        ) from error
    return dict(document)


def _replace(folder: Path, staging: Path, old: Path, write: Callable[[Path], Mapping[str, Any]]) -> bool:
    ours = _names(folder)
    staging.mkdir()
    document = dict(write(staging))
    files = {path.name: _described(path) for path in sorted(staging.iterdir())}
    manifest = json_bytes(document | {"format_version": 1, "files": files})
    write_synced(staging / MANIFEST, manifest)
    if _is_whole(folder, manifest):
        return False
    for path in folder.iterdir() if folder.exists() else ():
        if path.name not in ours:
            os.link(path, staging / path.name, follow_symlinks=False)
    sync_folder(staging)
    _exchange(staging, folder, old)
    sync_folder(folder.parent)
    return True


def _names(folder: Path) -> set[str]:
    """Files in the folder that the last export wrote, its manifest included."""
    if not folder.exists() or not any(folder.iterdir()):
        return set()
    if not (folder / MANIFEST).exists() or any(path.is_dir() for path in folder.iterdir()):
        what = "the folder holds something else, take another one:"
        raise RecsysError("not_an_export", what, str(folder))
    document = parse_json((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))
    return {MANIFEST, *(document.get("files", {}) if isinstance(document, dict) else {})}


def _is_whole(folder: Path, manifest: bytes) -> bool:
    try:
        verify_sealed(folder)
        return (folder / MANIFEST).read_bytes() == manifest
    except (RecsysError, OSError):
        return False


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def _exchange(staging: Path, folder: Path, old: Path) -> None:
    """Put a folder in the place of another, in one step of the kernel where the file system can."""
    if not folder.exists():
        staging.rename(folder)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        if not libc.renameat2(_HERE, os.fsencode(staging), _HERE, os.fsencode(folder), _EXCHANGE):
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    folder.rename(old)
    staging.rename(folder)


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
