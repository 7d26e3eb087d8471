"""A model bundle: one folder of data files and the manifest that says what each of them must be.

Everything here is names, bytes and digests. What is verified is what is parsed: `read_bundle` reads each
file once, checks it, and hands out those same bytes; `read_to_load` does so for a reader that takes them.
No file of a bundle is ever opened by a component, and none of them can run code: only data formats are let
in. A LightGBM text must not reach its parser before that (a damaged one kills the process), which is why
nothing here parses a model.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from recsys.array_files import Handover
from recsys.bundle_files import (
    EXTENSIONS,
    LONGEST_NAME,
    MANIFEST,
    SIGNATURE,
    FileEntry,
    check_content,
    check_name,
    list_tree,
    read_file,
    read_verified,
    read_verified_array,
)
from recsys.errors import EXIT_NO_INPUT, RecsysError
from recsys.golden import GOLDEN, Golden
from recsys.storage import json_bytes, parse_json, storage_error, sync_folder, write_synced

__all__ = [
    "ENCODER",
    "EXTENSIONS",
    "LONGEST_NAME",
    "MANIFEST",
    "SIGNATURE",
    "Bundle",
    "Manifest",
    "parse_manifest",
    "program_version",
    "read_bundle",
    "read_manifest",
    "read_to_load",
    "write_bundle",
]

FORMAT_VERSION = 1
ENCODER = "encoder"
"""`kind` in the metadata of a bundle that holds a text encoder and nothing else."""

LARGEST_MANIFEST = 4 * 2**20
LARGEST_SIGNATURE = 4096


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
    raw, manifest, names = _open_manifest(folder)
    files = {name: read_verified(folder, name, entry) for name, entry in sorted(manifest.files.items())}
    return _bundle(folder, raw, manifest, names, MappingProxyType(files))


def read_to_load(folder: Path) -> Bundle:
    """Likewise, to build one model of it: `files` is a `Handover`, whose tables go as they are used.

    So nobody holds a table twice, as the bytes of its file and as numbers.
    """
    raw, manifest, names = _open_manifest(folder)
    files = {name: read_verified_array(folder, name, entry) for name, entry in sorted(manifest.files.items())}
    return _bundle(folder, raw, manifest, names, Handover(files))


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest of a folder and the digest of the bundle that it promises; none of its files is read.

    Raises:
        RecsysError: `manifest_invalid` or `artifact_policy_violation`, as `read_bundle`.
    """
    raw, manifest, _ = _open_manifest(folder)
    return manifest, hashlib.sha256(raw).hexdigest()


def _open_manifest(folder: Path) -> tuple[bytes, Manifest, set[str]]:
    """The manifest as it was read and as it was parsed, and the names of all files, which it lists."""
    names = list_tree(folder)
    if MANIFEST not in names:
        raise RecsysError("manifest_invalid", "no manifest.json", str(folder), exit_code=EXIT_NO_INPUT)
    raw = read_file(folder, MANIFEST, LARGEST_MANIFEST)
    manifest = parse_manifest(raw)
    _check_names_match(names - {MANIFEST, SIGNATURE}, set(manifest.files))
    return raw, manifest, names


def _bundle(
    folder: Path, raw: bytes, manifest: Manifest, names: set[str], files: Mapping[str, bytes]
) -> Bundle:
    signature = read_file(folder, SIGNATURE, LARGEST_SIGNATURE) if SIGNATURE in names else None
    return Bundle(manifest, files, hashlib.sha256(raw).hexdigest(), raw, signature)


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
        check_content(name, data)
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
        check_name(name)
        twin = seen.setdefault(name.casefold(), name)
        if twin != name or name.casefold() == MANIFEST:
            raise RecsysError("manifest_invalid", f"two files of one name: {name}", twin)


def _check_names_match(present: set[str], listed: set[str]) -> None:
    if extra := sorted(present - listed):
        raise RecsysError("manifest_invalid", "file is not in the manifest:", extra[0])
    if missing := sorted(listed - present):
        raise RecsysError("manifest_invalid", "file of the manifest is missing:", missing[0])


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
