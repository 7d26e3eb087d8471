"""Reading the registry: what names mean, what was measured, and the bytes of bundles.

It is all that a server and the night need. At a tracking server it works with `mlflow-skinny` alone; for a
home's own database `local_home` needs the rest of MLflow.

MLflow is used to resolve names and to move bytes, and for nothing that parses a model: `fetch` brings the
bundle's files and nothing else of the version, and `recsys.bundle` verifies them. Every wait is bounded
(under ten seconds in front of a dead server). No global MLflow state is read or set, so a process may hold
several registries, and nothing is ever written to the current folder.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import ModuleType

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts, list_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException, RestException

from recsys.bundle import Bundle, read_bundle
from recsys.errors import EXIT_UNAVAILABLE, RecsysError
from recsys.storage import storage_error
from recsys.versions import Version, parse_model_uri, unknown_model, unknown_version

MODEL_FILES = frozenset(
    {
        "MLmodel",
        "conda.yaml",
        "data",
        "input_example.json",
        "python_env.yaml",
        "registered_model_meta",
        "requirements.txt",
        "serving_input_example.json",
    }
)
"""What a version may hold: our bundle in `data`, and MLflow's own description of it."""

BUNDLE = "data/bundle"

_MISSING = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})


class RegistryReader:
    """Versions and aliases, in a SQLite file or behind a tracking server."""

    def __init__(self, home: Path, tracking_uri: str | None = None) -> None:
        """Open the registry; nothing is read or created before the first call.

        Args:
            home: folder of everything the program keeps; local artifacts lie in `home/artifacts`.
            tracking_uri: MLflow tracking URI; default is the SQLite file `home/mlflow.db`.

        Raises:
            RecsysError: `missing_extra` (exit 69) where a database is to be read and only `mlflow-skinny` is
                installed.
        """
        self.home = home.absolute()
        self.uri = tracking_uri or f"sqlite:///{self.home}/mlflow.db"
        self._remote = self.uri.startswith(("http://", "https://"))
        self._local = None if self._remote else _local_home()
        self._failures: tuple[type[Exception], ...] = (MlflowException,)
        if self._local is not None:
            self._failures += (self._local.SQLAlchemyError,)

    @cached_property
    def client(self) -> MlflowClient:
        """The client; on first use the tables of a local database are made by one process at a time."""
        if self._local is None:
            return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._local.open_home(self.home, self.uri)

    def open(self) -> None:
        """Make the client, a home's tables with it, which takes seconds; a tracking server is not called.

        Raises:
            RecsysError: `registry_unavailable` for a database that cannot be read.
        """
        with self._calls():
            _ = self.client

    def check(self) -> None:
        """Reach the registry and, on first use, create its tables; raises `registry_unavailable`.

        Called before hours of training, so that a dead registry is known at once.
        """
        with self._calls():
            self.client.search_experiments(max_results=1)

    def resolve(self, uri: str) -> Version:
        """The version that `models:/NAME@ALIAS` or `models:/NAME/NUMBER` means now; one call.

        Raises:
            RecsysError: `model_uri_invalid` (exit 64); `unknown_model`, `unknown_alias` or `unknown_version`
                (exit 66), saying what there is; `registry_unavailable` (exit 69).
        """
        name, wanted = parse_model_uri(uri)
        with self._calls():
            try:
                if isinstance(wanted, int):
                    return version_of(self.client.get_model_version(name, str(wanted)))
                return version_of(self.client.get_model_version_by_alias(name, wanted))
            except MlflowException as error:
                if not self._is_missing(error):
                    raise
                raise unknown_version(name, wanted, self.aliases(name)) from None

    def aliases(self, name: str) -> dict[str, int]:
        """Version number by alias; raises RecsysError `unknown_model`."""
        with self._calls():
            try:
                found = self.client.get_registered_model(name).aliases
            except MlflowException as error:
                if not self._is_missing(error):
                    raise
                raise unknown_model(name) from None
        return {alias: int(number) for alias, number in sorted(found.items())}

    def list_versions(self, name: str) -> list[Version]:
        """All versions of `name`, newest first; empty for an unknown name."""
        with self._calls():
            found = self.client.search_model_versions(f"name = '{name}'")
        return sorted((version_of(one) for one in found), key=lambda version: -version.number)

    def metrics(self, version: Version) -> dict[str, float]:
        """The figures that the version's training run logged."""
        with self._calls():
            return dict(self.client.get_run(version.run_id).data.metrics)

    def fetch(self, version: Version, to: Path) -> Path:
        """Bring the version's bundle to the new folder `to`, whole or not at all; not yet verified.

        Raises:
            RecsysError: `artifact_policy_violation` where the version carries code or anything else that
                is not ours; `bundle_exists`; `storage_full`; `registry_unavailable`.
        """
        if to.exists():
            raise RecsysError(
                "bundle_exists", "a bundle is never overwritten: choose another folder", str(to)
            )
        to.parent.mkdir(parents=True, exist_ok=True)
        with (
            self._calls(),
            tempfile.TemporaryDirectory(dir=to.parent, prefix=f".{to.name}.") as staging,
        ):
            location = self.client.get_model_version_download_uri(version.name, str(version.number))
            self._check_model_files(version, location)
            bundle = f"{location.rstrip('/')}/{BUNDLE}"
            fetched = Path(download_artifacts(bundle, dst_path=staging, tracking_uri=self.uri))
            _make_private(fetched)
            fetched.rename(to)
        return to

    def load(self, version: Version, to: Path) -> Bundle:
        """Fetch, verify, and hold the bundle against the digest that was registered.

        Raises:
            RecsysError: of `fetch` and `read_bundle`; `digest_mismatch` for another bundle than registered.
        """
        bundle = read_bundle(self.fetch(version, to))
        if bundle.digest != version.digest:
            what = f"registered {version.digest[:12]}, fetched {bundle.digest[:12]} as"
            raise RecsysError("digest_mismatch", what, version.uri)
        return bundle

    @contextmanager
    def _calls(self) -> Iterator[None]:
        """Turn what the client and the artifact store raise into `RecsysError`."""
        try:
            yield
        except self._failures as error:
            raise self._unavailable(error) from error
        except OSError as error:
            if error.errno is None:  # of requests, not of a file
                raise self._unavailable(error) from error
            raise storage_error(error, Path(error.filename or self.home)) from error

    def _unavailable(self, error: Exception) -> RecsysError:
        reason = _without_passwords(" ".join(str(error).split()))[:200]
        where = _without_passwords(self.uri)
        return RecsysError("registry_unavailable", reason, where, exit_code=EXIT_UNAVAILABLE)

    def _is_missing(self, error: MlflowException) -> bool:
        """Whether the registry itself says that a name is unknown, and not some web page in its place."""
        return error.error_code in _MISSING and (not self._remote or isinstance(error, RestException))

    def _check_model_files(self, version: Version, location: str) -> None:
        """Refuse a version with anything beside our bundle and MLflow's own description of it."""
        found = {Path(file.path).name for file in list_artifacts(location, tracking_uri=self.uri)}
        if strange := sorted(found - MODEL_FILES):
            what = f"{version.uri} carries more than a bundle:"
            raise RecsysError("artifact_policy_violation", what, strange[0][:80])
        if "data" not in found:
            raise RecsysError("manifest_invalid", "holds no bundle:", version.uri)


def version_of(found: ModelVersion) -> Version:
    """A version of MLflow's in our words."""
    return Version(str(found.name), int(found.version), str(found.run_id or ""), dict(found.tags))


def _local_home() -> ModuleType:
    try:
        from recsys.tracking import local_home
    except ModuleNotFoundError as error:
        what = f"module {error.name} is missing: install recsys[train], or give a tracking URI"
        raise RecsysError("missing_extra", what, exit_code=EXIT_UNAVAILABLE) from error
    return local_home


def _without_passwords(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)


def _make_private(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
