"""Where versions come from: an alias in a registry, or a folder with one bundle. Every call here blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from recsys.bundle import Bundle, read_manifest, read_to_load
from recsys.errors import RecsysError
from recsys.versions import Version, parse_model_uri
from serving.lifecycle.cached_bundles import CachedBundles, Registry
from serving.messages import ModelName


@dataclass(frozen=True)
class Candidate:
    """A version that could be served.

    Attributes:
        name: for answers.
        digest: of the bundle that it must be.
        version: as registered; None for a folder or a copy.
    """

    name: ModelName
    digest: str
    version: Version | None = None


class Source(Protocol):
    """Says which version is wanted now, and brings its bundle."""

    @property
    def uri(self) -> str:
        """What it is called in notes and messages."""
        ...

    def open(self) -> None:
        """Do what takes long and is needed once, before anybody asks for a version; raises RecsysError."""
        ...

    def resolve(self) -> Candidate:
        """The version that is wanted now; raises RecsysError, `registry_unavailable` among others."""
        ...

    def fetch(self, candidate: Candidate) -> tuple[Bundle, Path]:
        """Its verified bundle, to build one model of, and the folder where it lies; raises RecsysError."""
        ...


class RegistrySource:
    """The version that an alias points to."""

    def __init__(self, uri: str, connect: Callable[[], Registry], cache: CachedBundles) -> None:
        """Take `models:/NAME@ALIAS` or `models:/NAME/NUMBER`, and what opens the registry.

        Raises:
            RecsysError: `model_uri_invalid` (exit 64).
        """
        _, wanted = parse_model_uri(uri)
        self.uri = uri
        self._alias = wanted if isinstance(wanted, str) else None
        self._connect = connect
        self._cache = cache
        self._registry: Registry | None = None

    def open(self) -> None:
        """Import the registry's client; the registry itself is not called."""
        self._opened()

    def resolve(self) -> Candidate:
        """One call to the registry, which is opened where it could not be before."""
        version = self._opened().resolve(self.uri)
        name = ModelName(name=version.name, version=version.number, alias=self._alias)
        return Candidate(name, version.digest, version)

    def fetch(self, candidate: Candidate) -> tuple[Bundle, Path]:
        """From the cache where it lies there."""
        if self._registry is None or candidate.version is None:
            return self._cache.open(candidate.digest), self._cache.path(candidate.digest)
        bundle = self._cache.fetch(self._registry, candidate.version)
        return bundle, self._cache.path(bundle.digest)

    def _opened(self) -> Registry:
        if self._registry is None:
            self._registry = self._connect()
        return self._registry


class FolderSource:
    """One bundle in a folder, which may be replaced by another and then reloaded."""

    def __init__(self, folder: Path) -> None:
        """Take the folder."""
        self.uri = str(folder)
        self._folder = folder

    def open(self) -> None:
        """A folder needs nothing."""

    def resolve(self) -> Candidate:
        """Reads the manifest alone: this is asked every few seconds."""
        manifest, digest = read_manifest(self._folder)
        return Candidate(ModelName(name=manifest.name, version=0), digest)

    def fetch(self, candidate: Candidate) -> tuple[Bundle, Path]:
        """Raises RecsysError `digest_mismatch` where it has been replaced meanwhile."""
        bundle = read_to_load(self._folder)
        if bundle.digest != candidate.digest:
            raise RecsysError("digest_mismatch", "the folder was replaced while it was read:", self.uri)
        return bundle, self._folder
