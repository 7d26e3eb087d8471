"""The files of a bundle: which names and types are let in, and what is read of them, held against digests.

Each is read once. No file is parsed here, and none that is let in can run code: only data formats are.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from recsys.array_files import Bytes
from recsys.errors import RecsysError
from recsys.storage import parse_json

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
"""The one file that may lie beside what the manifest lists: it signs the manifest, so it cannot be in it."""

EXTENSIONS = frozenset({".json", ".safetensors", ".npy", ".parquet", ".txt", ".xml", ".bin"})
LONGEST_NAME = 200
CODE_FILES = frozenset({"modules.json"})
CODE_KEYS = frozenset({"auto_map", "_attn_implementation_internal", "trust_remote_code", "loader_module"})

_NAME = re.compile(r"[A-Za-z0-9._/-]+")
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileEntry(BaseModel):
    """What one file must be: the SHA-256 of its bytes and their number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    sha256: _Digest
    size: Annotated[int, Field(ge=0)]


def check_name(name: str) -> None:
    """Refuse a name that leads out of its folder, or a file of a type that could hold code."""
    parts = name.split("/")
    plain = _NAME.fullmatch(name) is not None and len(name) <= LONGEST_NAME
    if not plain or any(part in ("", ".", "..") for part in parts):
        raise RecsysError("manifest_invalid", f"file name not allowed: {name[:80]!r}", MANIFEST)
    if PurePosixPath(name).suffix not in EXTENSIONS or parts[-1] in CODE_FILES:
        allowed = " ".join(sorted(EXTENSIONS))
        raise RecsysError("artifact_policy_violation", f"only data files are let in ({allowed})", name)


def check_content(name: str, data: bytes | Bytes) -> None:
    """Refuse the two allowed types that can still ask a careless loader to run something."""
    if name.endswith(".npy") and _holds_objects(bytes(data)):
        raise RecsysError("artifact_policy_violation", "not a plain array of numbers", name)
    if PurePosixPath(name).name == "config.json":
        document = parse_json(bytes(data), name)
        if found := sorted(CODE_KEYS & set(document if isinstance(document, dict) else ())):
            raise RecsysError("artifact_policy_violation", f"asks for code with {found[0]!r}", name)


def _holds_objects(data: bytes) -> bool:
    """Whether an npy file holds Python objects, or is no npy file of format 1 or 2 at all."""
    stream = io.BytesIO(data)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        _, _, dtype = readers[np.lib.format.read_magic(stream)](stream)
    except Exception:  # a damaged header can end numpy's reading of it in many ways
        return True
    return bool(dtype.hasobject)


def list_tree(folder: Path) -> set[str]:
    """Names of all files below `folder`; refuses links and special files."""
    found: set[str] = set()
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(place, name)
            relative = path.relative_to(folder).as_posix()
            _check_plain(path.lstat(), relative)
            if name in files:
                if relative not in (MANIFEST, SIGNATURE):
                    check_name(relative)
                found.add(relative)
    return found


def _check_plain(status: os.stat_result, name: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        return
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise RecsysError("manifest_invalid", "links and special files are not allowed:", repr(name[:80]))


def read_file(folder: Path, name: str, limit: int) -> bytes:
    """The bytes of one plain file; refuses one of more than `limit` bytes without reading it all."""
    with _opened(folder, name) as file:
        data = file.read(limit + 1)
    if name in (MANIFEST, SIGNATURE) and len(data) > limit:
        raise RecsysError("manifest_invalid", f"larger than {limit} bytes", name)
    return data


@contextmanager
def _opened(folder: Path, name: str) -> Iterator[io.BufferedReader]:
    """A plain file, open for reading."""
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise RecsysError("manifest_invalid", f"cannot be opened ({error.strerror}):", name) from error
    with os.fdopen(descriptor, "rb") as file:
        _check_plain(os.fstat(file.fileno()), name)
        yield file


def read_verified(folder: Path, name: str, entry: FileEntry) -> bytes:
    """The bytes of a file, once they are known to be what the manifest promises."""
    data = read_file(folder, name, entry.size)
    _check_digest(name, entry, hashlib.sha256(data).hexdigest(), len(data))
    check_content(name, data)
    return data


def read_verified_array(folder: Path, name: str, entry: FileEntry) -> Bytes:
    """Likewise, as an array that nobody else holds."""
    with _opened(folder, name) as file:
        there = os.fstat(file.fileno()).st_size  # a manifest may promise more than memory can hold
        data = np.empty(min(entry.size, there), np.uint8)
        found, more = file.readinto(data.data), file.read(1)
    digest = hashlib.sha256(data.data)
    digest.update(more)
    _check_digest(name, entry, digest.hexdigest(), found + len(more))
    check_content(name, data)
    return data


def _check_digest(name: str, entry: FileEntry, digest: str, size: int) -> None:
    """Refuse other bytes than promised."""
    if size != entry.size or digest != entry.sha256:
        found = "more" if size > entry.size else str(size)
        raise RecsysError(
            "digest_mismatch",
            f"expected {entry.sha256[:12]} ({entry.size} bytes), actual {digest[:12]} ({found}) in",
            name,
        )
