"""A model bundle: one folder of data files and the manifest that says what each of them must be.

Everything here is names, bytes and digests. What is verified is what is parsed: `read_bundle` reads each
file once, checks it, and hands out those same bytes. No file of a bundle is ever opened by a component, and
none of them can run code: only data formats are let in. A LightGBM text must not reach its parser before
that (a damaged one kills the process), which is why nothing here parses a model.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from recsys.errors import EXIT_NO_INPUT, RecsysError
from recsys.golden import GOLDEN, Golden
from recsys.storage import json_bytes, parse_json, storage_error, sync_folder, write_synced

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
"""The one file that may lie beside what the manifest lists: it signs the manifest, so it cannot be in it."""

FORMAT_VERSION = 1
EXTENSIONS = frozenset({".json", ".safetensors", ".npy", ".parquet", ".txt", ".xml", ".bin"})
ENCODER = "encoder"
"""`kind` in the metadata of a bundle that holds a text encoder and nothing else."""

LONGEST_NAME = 200
LARGEST_MANIFEST = 4 * 2**20
LARGEST_SIGNATURE = 4096
CODE_FILES = frozenset({"modules.json"})
CODE_KEYS = frozenset({"auto_map", "_attn_implementation_internal", "trust_remote_code", "loader_module"})

_NAME = re.compile(r"[A-Za-z0-9._/-]+")
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileEntry(BaseModel):
    """What one file must be: the SHA-256 of its bytes and their number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    sha256: _Digest
    size: Annotated[int, Field(ge=0)]


class Manifest(BaseModel):
    """What a bundle holds and what it was made from.

    Attributes:
        name: registered name that the bundle was trained for.
        as_of: epoch seconds, UTC; nothing after this moment was known in training.
        feature_schema: hash of the feature names, order and types that the ranker expects.
        created_by: program and version that wrote it.
        golden: name of the file with golden requests and their scores, None where there is none.
        files: every file but the manifest itself.
        metadata: anything else, plain JSON.
        format_version: of this manifest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    name: Annotated[str, Field(min_length=1, max_length=200)]
    as_of: Annotated[float, Field(allow_inf_nan=False)]
    feature_schema: str
    created_by: str
    golden: str | None
    files: dict[str, FileEntry]
    metadata: dict[str, JsonValue]
    format_version: Annotated[int, Field(ge=FORMAT_VERSION, le=FORMAT_VERSION)] = FORMAT_VERSION

    def to_bytes(self) -> bytes:
        """Sorted, indented UTF-8 JSON; equal manifests give equal bytes."""
        return json_bytes(self.model_dump())


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        manifest: its manifest.
        files: verified bytes by name, all that the manifest lists and nothing else.
        digest: SHA-256 of `manifest.json`, which fixes every byte of the bundle but the signature.
        manifest_bytes: `manifest.json` as it was read, which is what a signature signs.
        signature: `manifest.sig` as it was read, not yet checked (see `recsys.signing`); None without one.
    """

    manifest: Manifest
    files: Mapping[str, bytes]
    digest: str
    manifest_bytes: bytes
    signature: bytes | None = None

    @property
    def is_encoder(self) -> bool:
        """Whether it holds a text encoder alone."""
        return self.manifest.metadata.get("kind") == ENCODER

    def golden(self) -> Golden | None:
        """The golden requests, None where the bundle has none."""
        if self.manifest.golden is None:
            return None
        return Golden.from_files({GOLDEN: self.files[self.manifest.golden]})


def write_bundle(folder: Path, files: Mapping[str, bytes], metadata: Mapping[str, Any]) -> Manifest:
    """Write a bundle that is seen whole or not at all.

    Files go to a sibling folder, are synced, and the folder is renamed. Folders get mode 0700, files 0600.

    Args:
        folder: where it shall lie; must not exist, because bundles are never changed.
        files: bytes by relative POSIX name, without the manifest.
        metadata: `name`, `as_of`, `feature_schema`; `golden` (default: `golden.json` where it is among the
            files); every other key is kept as it is and must be plain JSON.

    Raises:
        RecsysError: `artifact_policy_violation` or `manifest_invalid` for what the policy forbids;
            `bundle_exists`; `storage_full`.
    """
    manifest = _describe(files, metadata)
    if folder.exists():
        raise RecsysError(
            "bundle_exists", "a bundle is never overwritten: choose another folder", str(folder)
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.parent / f".{folder.name}.{secrets.token_hex(8)}"
    try:
        _write_tree(staging, {**files, MANIFEST: manifest.to_bytes()})
        staging.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise storage_error(error, folder) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def read_bundle(folder: Path) -> Bundle:
    """Read and verify a whole bundle; whether a signature is needed and holds is for `recsys.signing`.

    Raises:
        RecsysError: `manifest_invalid` for a missing or malformed manifest, a forbidden name, a link or
            another special file, a missing or extra file; `artifact_policy_violation` for a file type that
            could hold code; `digest_mismatch`, with both digest prefixes, for other bytes than promised.
    """
    names = _list_tree(folder)
    if MANIFEST not in names:
        raise RecsysError("manifest_invalid", "no manifest.json", str(folder), exit_code=EXIT_NO_INPUT)
    raw = _read_file(folder, MANIFEST, LARGEST_MANIFEST)
    manifest = parse_manifest(raw)
    _check_names_match(names - {MANIFEST, SIGNATURE}, set(manifest.files))
    files = {name: _read_verified(folder, name, entry) for name, entry in sorted(manifest.files.items())}
    signature = _read_file(folder, SIGNATURE, LARGEST_SIGNATURE) if SIGNATURE in names else None
    return Bundle(manifest, MappingProxyType(files), hashlib.sha256(raw).hexdigest(), raw, signature)


def parse_manifest(raw: bytes) -> Manifest:
    """Parse and check a manifest; raises RecsysError `manifest_invalid` or `artifact_policy_violation`."""
    try:
        manifest = Manifest.model_validate(parse_json(raw, MANIFEST))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:80] for part in first["loc"])
        raise RecsysError("manifest_invalid", f"{where}: {first['msg']}", MANIFEST) from None
    _check_names(manifest.files)
    if manifest.golden is not None and manifest.golden not in manifest.files:
        raise RecsysError("manifest_invalid", f"golden names no file: {manifest.golden[:80]!r}", MANIFEST)
    return manifest


def program_version() -> str:
    """Name and version of this program, for manifests."""
    try:
        return f"recsys {version('recsys')}"
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "recsys (not installed)"


def _describe(files: Mapping[str, bytes], metadata: Mapping[str, Any]) -> Manifest:
    _check_names(files)
    for name, data in files.items():
        _check_content(name, data)
    known = {name: metadata[name] for name in ("name", "as_of", "feature_schema")}
    golden = metadata.get("golden", GOLDEN if GOLDEN in files else None)
    entries = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        for name, data in sorted(files.items())
    }
    extra = {key: value for key, value in metadata.items() if key not in known and key != "golden"}
    document = {**known, "golden": golden, "files": entries, "metadata": extra}
    return parse_manifest(
        json_bytes({**document, "created_by": program_version(), "format_version": FORMAT_VERSION})
    )


def _check_names(names: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        _check_name(name)
        twin = seen.setdefault(name.casefold(), name)
        if twin != name or name.casefold() == MANIFEST:
            raise RecsysError("manifest_invalid", f"two files of one name: {name}", twin)


def _check_name(name: str) -> None:
    parts = name.split("/")
    plain = _NAME.fullmatch(name) is not None and len(name) <= LONGEST_NAME
    if not plain or any(part in ("", ".", "..") for part in parts):
        raise RecsysError("manifest_invalid", f"file name not allowed: {name[:80]!r}", MANIFEST)
    if PurePosixPath(name).suffix not in EXTENSIONS or parts[-1] in CODE_FILES:
        allowed = " ".join(sorted(EXTENSIONS))
        raise RecsysError("artifact_policy_violation", f"only data files are let in ({allowed})", name)


def _check_names_match(present: set[str], listed: set[str]) -> None:
    if extra := sorted(present - listed):
        raise RecsysError("manifest_invalid", "file is not in the manifest:", extra[0])
    if missing := sorted(listed - present):
        raise RecsysError("manifest_invalid", "file of the manifest is missing:", missing[0])


def _check_content(name: str, data: bytes) -> None:
    """Refuse the two allowed types that can still ask a careless loader to run something."""
    if name.endswith(".npy") and _holds_objects(data):
        raise RecsysError("artifact_policy_violation", "not a plain array of numbers", name)
    if PurePosixPath(name).name == "config.json":
        document = parse_json(data, name)
        if found := sorted(CODE_KEYS & set(document if isinstance(document, dict) else ())):
            raise RecsysError("artifact_policy_violation", f"asks for code with {found[0]!r}", name)


def _holds_objects(data: bytes) -> bool:
    """Whether an npy file holds Python objects, or is no npy file of format 1 or 2 at all."""
    stream = io.BytesIO(data)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        _, _, dtype = readers[np.lib.format.read_magic(stream)](stream)
    except (ValueError, KeyError):
        return True
    return bool(dtype.hasobject)


def _list_tree(folder: Path) -> set[str]:
    """Names of all files below `folder`; refuses links and special files."""
    found: set[str] = set()
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(place, name)
            relative = path.relative_to(folder).as_posix()
            _check_plain(path.lstat(), relative)
            if name in files:
                if relative not in (MANIFEST, SIGNATURE):
                    _check_name(relative)
                found.add(relative)
    return found


def _check_plain(status: os.stat_result, name: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        return
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise RecsysError("manifest_invalid", "links and special files are not allowed:", repr(name[:80]))


def _read_file(folder: Path, name: str, limit: int) -> bytes:
    """The bytes of one plain file; refuses one of more than `limit` bytes without reading it all."""
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise RecsysError("manifest_invalid", f"cannot be opened ({error.strerror}):", name) from error
    with os.fdopen(descriptor, "rb") as file:
        _check_plain(os.fstat(file.fileno()), name)
        data = file.read(limit + 1)
    if name in (MANIFEST, SIGNATURE) and len(data) > limit:
        raise RecsysError("manifest_invalid", f"larger than {limit} bytes", name)
    return data


def _read_verified(folder: Path, name: str, entry: FileEntry) -> bytes:
    data = _read_file(folder, name, entry.size)
    digest = hashlib.sha256(data).hexdigest()
    if len(data) != entry.size or digest != entry.sha256:
        size = "more" if len(data) > entry.size else str(len(data))
        raise RecsysError(
            "digest_mismatch",
            f"expected {entry.sha256[:12]} ({entry.size} bytes), actual {digest[:12]} ({size}) in",
            name,
        )
    _check_content(name, data)
    return data


def _write_tree(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(mode=0o700)
    folders = {folder}
    for name, data in files.items():
        path = folder / name
        for parent in reversed(path.relative_to(folder).parents):
            (folder / parent).mkdir(mode=0o700, exist_ok=True)
            folders.add(folder / parent)
        write_synced(path, data)
    for place in folders:
        sync_folder(place)
