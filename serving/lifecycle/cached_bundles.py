"""Verified copies of registered bundles on this machine, and which of them served well.

Where the registry is away, or holds something that must be refused, the newest copy that served well (the
last-known-good one) is what a server starts from. The folder belongs to this user alone: what it says of past
trials is believed. MLflow is imported where a registry is opened, and nowhere else.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Protocol

from msgspec import DecodeError, Meta, Struct
from msgspec.json import decode, encode

from recsys.bundle import Bundle, program_version, read_to_load
from recsys.errors import EXIT_CONFIG, EXIT_UNAVAILABLE, RecsysError
from recsys.storage import storage_error, write_atomic
from recsys.tracking.home_file import is_readable, resolve_in_home
from recsys.versions import Version

NOTES = "notes.json"
YOUNG_S = 3600.0
"""A copy is left alone for so long after its last use: another server may be about to load it."""

_DIGEST = r"^[0-9a-f]{64}$"
_PARSERS = ("lightgbm", "numba", "numpy", "openvino", "polars", "safetensors", "tokenizers")
_MOST_TRIALS = 100

Digest = Annotated[str, Meta(pattern=_DIGEST)]


class Registry(Protocol):
    """The part of `recsys.tracking.reading` that a server needs; every call is bounded in time."""

    def resolve(self, uri: str) -> Version:
        """The version that a model URI means now."""
        ...

    def load(self, version: Version, to: Path) -> Bundle:
        """Bring the version's bundle to the new folder `to`, and verify it."""
        ...


class KnownGood(Struct, frozen=True):
    """A version that served well."""

    digest: Digest
    name: str
    version: int
    alias: str | None = None


class Notes(Struct):
    """What is remembered between starts.

    Attributes:
        program: this program and the libraries that parse bundles; another one has to try them anew.
        passed: digests of bundles that passed a trial, the newest last.
        good: last-known-good version by model URI.
    """

    program: str
    passed: list[Digest]
    good: dict[str, KnownGood]


class CachedBundles:
    """A folder of bundles by digest. Every call may touch the disk: not for the loop's thread."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, or make it.

        Raises:
            RecsysError: `cache_unsafe` (exit 78) where it is not ours alone; `storage_full`.
        """
        self.folder = folder.absolute()
        _make_private(self.folder)
        self._notes = self._read_notes()

    def fetch(self, registry: Registry, wanted: Version) -> Bundle:
        """The verified bundle of a version, from here or from the registry, whole or not at all.

        Raises:
            RecsysError: of `Registry.load`; `manifest_invalid` for a version that names no bundle;
                `artifact_unreadable` for a place that the registry's client trips over.
        """
        if re.fullmatch(_DIGEST, wanted.digest) is None:
            raise RecsysError("manifest_invalid", "registered without the digest of a bundle:", wanted.uri)
        folder = self.folder / wanted.digest
        if folder.exists():
            with suppress(RecsysError):
                return self.open(wanted.digest)
            shutil.rmtree(folder, ignore_errors=True)
        incoming = self.folder / f".incoming-{secrets.token_hex(8)}"
        try:
            bundle = registry.load(wanted, incoming)
            _rename(incoming, folder)
        except OSError as error:
            raise storage_error(error, incoming) from error
        except (RecsysError, MemoryError):
            raise
        except Exception as error:  # of whichever store the version's place names
            raise RecsysError("artifact_unreadable", type(error).__name__, wanted.uri) from error
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        return bundle

    def open(self, digest: str) -> Bundle:
        """A copy that lies here, verified.

        Raises:
            RecsysError: of `read_to_load`; `digest_mismatch` for another bundle than its name says.
        """
        folder = self.path(digest)
        bundle = read_to_load(folder)
        if bundle.digest != digest:
            what = f"expected {digest[:12]}, actual {bundle.digest[:12]} in the cached copy"
            raise RecsysError("digest_mismatch", what, folder.name)
        with suppress(OSError):
            os.utime(folder)
        return bundle

    def path(self, digest: str) -> Path:
        """Where the copy lies, or would."""
        return self.folder / digest

    def has_passed(self, digest: str) -> bool:
        """Whether this program with these libraries has tried these very bytes before."""
        return digest in self._notes.passed

    @property
    def is_new(self) -> bool:
        """Whether nothing was ever tried here: kernels are compiled in the first trial."""
        return not self._notes.passed

    def note_passed(self, digest: str) -> None:
        """Remember a passed trial; raises RecsysError `storage_full`."""
        if digest not in self._notes.passed:
            self._notes.passed = [*self._notes.passed, digest][-_MOST_TRIALS:]
            self._write_notes()

    def known_good(self, uri: str) -> KnownGood | None:
        """The newest version that served well under this model URI."""
        return self._notes.good.get(uri)

    def note_good(self, uri: str, good: KnownGood) -> None:
        """Remember that a version served well; raises RecsysError `storage_full`."""
        if self._notes.good.get(uri) != good:
            self._notes.good[uri] = good
            self._write_notes()

    def prune(self, keep: Collection[str], young_s: float = YOUNG_S) -> None:
        """Remove copies and leftovers that are not young, but those to `keep` and the last-known-good."""
        kept = {*keep, *(good.digest for good in self._notes.good.values())}
        oldest = time.time() - young_s
        for path in self.folder.iterdir():
            with suppress(OSError):
                is_ours = re.fullmatch(_DIGEST, path.name) or path.name.startswith(".")
                if path.is_dir() and is_ours and path.name not in kept and path.stat().st_mtime <= oldest:
                    shutil.rmtree(path, ignore_errors=True)

    def _read_notes(self) -> Notes:
        """The notes; none where they are damaged, and no trials where the program is another."""
        try:
            notes = decode((self.folder / NOTES).read_bytes(), type=Notes)
        except (OSError, DecodeError):
            return Notes(_program(), [], {})
        return notes if notes.program == _program() else Notes(_program(), [], notes.good)

    def _write_notes(self) -> None:
        try:
            write_atomic(self.folder / NOTES, encode(self._notes))
        except OSError as error:
            raise storage_error(error, self.folder) from error


class HomeRegistry:
    """The registry of a home: names are read from its database, and MLflow is there for everything else."""

    def __init__(self, home: Path) -> None:
        """Open MLflow only where the database is none that can be read without it.

        Raises:
            RecsysError: as `open_registry`.
        """
        self._home, self._whole = home, None if is_readable(home) else _open_with_mlflow(home, None)

    def resolve(self, uri: str) -> Version:
        """The version that a model URI means now."""
        return resolve_in_home(self._home, uri) or self._opened().resolve(uri)

    def load(self, version: Version, to: Path) -> Bundle:
        """Bring the version's bundle to the new folder `to`, and verify it."""
        return self._opened().load(version, to)

    def _opened(self) -> Registry:
        if self._whole is None:
            self._whole = _open_with_mlflow(self._home, None)
        return self._whole


def open_registry(home: Path, tracking_uri: str | None = None) -> Registry:
    """The registry of a home or behind a tracking server, which is not called yet.

    MLflow is imported at once for a tracking server, which takes seconds, and when it is needed for a home.

    Raises:
        RecsysError: `missing_extra` (exit 69) where MLflow is not installed, or not enough of it for a home;
            `registry_unavailable` for a home whose database cannot be read.
    """
    return HomeRegistry(home) if tracking_uri is None else _open_with_mlflow(home, tracking_uri)


def _open_with_mlflow(home: Path, tracking_uri: str | None) -> Registry:
    try:
        from recsys.tracking.reading import RegistryReader
    except ModuleNotFoundError as error:
        what = f"module {error.name} is missing: install recsys[serve], or serve a folder"
        raise RecsysError("missing_extra", what, exit_code=EXIT_UNAVAILABLE) from error
    registry = RegistryReader(home, tracking_uri)
    registry.open()
    return registry


def _rename(incoming: Path, folder: Path) -> None:
    try:
        incoming.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another server was faster
            raise


def _make_private(folder: Path) -> None:
    """A folder of ours with mode 0700; what others could have written into is refused, not tidied up."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        unsafe = not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid()
        if unsafe or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            what = "others may write to the folder of cached bundles: own it and chmod 700"
            raise RecsysError("cache_unsafe", what, str(folder), exit_code=EXIT_CONFIG)
        folder.chmod(0o700)
    except OSError as error:
        raise storage_error(error, folder) from error


def _program() -> str:
    """This program, this Python and the libraries that parse what a bundle holds."""
    parts = [program_version(), f"python {platform.python_version()}", sys.platform]
    for name in _PARSERS:
        with suppress(PackageNotFoundError):
            parts.append(f"{name} {version(name)}")
    return ", ".join(parts)
