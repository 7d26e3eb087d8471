"""Training runs, model versions and aliases in MLflow.

MLflow is used to keep numbers, to resolve names and to move bytes, and for nothing that parses a model:
`fetch` brings the bundle's files and nothing else of the version, and `recsys.bundle` verifies them. Every
wait is bounded (under ten seconds in front of a dead server). No global MLflow state is read or set, so a
process may hold several registries, and nothing is ever written to the current folder.
"""

from __future__ import annotations

import fcntl
import logging
import math
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import mlflow.store.db.utils
import pandas as pd
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts, list_artifacts
from mlflow.entities import LoggedModelOutput, Metric, Param
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException, RestException
from mlflow.models import Model
from sqlalchemy.exc import SQLAlchemyError

from recsys.bundle import Bundle, read_bundle
from recsys.errors import EXIT_NO_INPUT, EXIT_UNAVAILABLE, RecsysError
from recsys.storage import storage_error
from recsys.tracking.pyfunc_model import BUNDLE, MODEL_FILES, contract, save_model
from recsys.versions import CHAMPION, PREVIOUS, Version, check_gates, parse_model_uri

logging.getLogger("alembic").setLevel(logging.WARNING)
mlflow.store.db.utils.MAX_RETRY_COUNT = 3  # 0.4 s of pauses in front of a dead database, not 101 s

_MISSING = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})
_LARGEST_BATCH = 100
_LONGEST_PARAMETER = 6000


class Registry:
    """Training runs, versions and aliases, in a SQLite file or behind a tracking server."""

    def __init__(self, home: Path, tracking_uri: str | None = None) -> None:
        """Open the registry; nothing is read or created before the first call.

        Args:
            home: folder of everything the program keeps; local artifacts lie in `home/artifacts`.
            tracking_uri: MLflow tracking URI; default is the SQLite file `home/mlflow.db`.
        """
        self.home = home.absolute()
        self.uri = tracking_uri or f"sqlite:///{self.home}/mlflow.db"
        self._remote = self.uri.startswith(("http://", "https://"))

    @cached_property
    def client(self) -> MlflowClient:
        """The client; on first use the tables of a local database are made by one process at a time."""
        if self._remote:
            return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.home / ".registry.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            client.search_experiments(max_results=1)
        return client

    def check(self) -> None:
        """Reach the registry and, on first use, create its tables; raises `registry_unavailable`.

        Called before hours of training, so that a dead registry is known at once.
        """
        with self._calls():
            self.client.search_experiments(max_results=1)

    def log_training(
        self,
        name: str,
        bundle_folder: Path,
        parameters: Mapping[str, Any],
        metrics: Mapping[str, float],
        tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Version:
        """Record one training run and register its bundle as the next version of `name`.

        Args:
            name: registered name; the experiment is named so too.
            bundle_folder: a bundle; it is verified first.
            parameters: settings, kept as text.
            metrics: figures; those that are not finite are left out.
            tables: rows of plain values by table name, kept as `tables/<name>.json`.
            tags: kept on the version beside its contract.

        Raises:
            RecsysError: of `read_bundle`, `registry_unavailable`, `storage_full`.
            ValueError: for a metric name with "@".
        """
        bundle = read_bundle(bundle_folder)
        figures = finite_metrics(metrics)
        with self._calls(), self._run(name, bundle) as run_id:
            model_id, location = self._log_model(name, bundle_folder, bundle, run_id)
            self._log_numbers(run_id, model_id, parameters, figures)
            for table, rows in (tables or {}).items():
                frame = pd.DataFrame(list(rows)).astype(object)  # MLflow 3.17 trips over text columns
                self.client.log_table(run_id, frame, f"tables/{table}.json")
            self._ensure_model(name)
            created = self.client.create_model_version(
                name, location, run_id=run_id, model_id=model_id, tags={**(tags or {}), **contract(bundle)}
            )
        return _version(created)

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
                    return _version(self.client.get_model_version(name, str(wanted)))
                return _version(self.client.get_model_version_by_alias(name, wanted))
            except MlflowException as error:
                if not self._is_missing(error):
                    raise
                raise self._unknown(name, wanted) from None

    def aliases(self, name: str) -> dict[str, int]:
        """Version number by alias; raises RecsysError `unknown_model`."""
        with self._calls():
            try:
                found = self.client.get_registered_model(name).aliases
            except MlflowException as error:
                if not self._is_missing(error):
                    raise
                what = "nothing is registered under this name: train first, or give another --home"
                raise RecsysError("unknown_model", what, repr(name), exit_code=EXIT_NO_INPUT) from None
        return {alias: int(number) for alias, number in sorted(found.items())}

    def list_versions(self, name: str) -> list[Version]:
        """All versions of `name`, newest first; empty for an unknown name."""
        with self._calls():
            found = self.client.search_model_versions(f"name = '{name}'")
        return sorted((_version(one) for one in found), key=lambda version: -version.number)

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

    def promote(self, version: Version, gates: Mapping[str, float] | None = None) -> None:
        """Let `champion` point to `version`, and `previous` to the champion before; no-op for the champion.

        Raises:
            RecsysError: `gates_failed` with the figures; then no alias has moved.
        """
        if failed := check_gates(self.metrics(version), gates or {}):
            raise RecsysError("gates_failed", "; ".join(failed), version.uri)
        champion = self.aliases(version.name).get(CHAMPION)
        if champion == version.number:
            return
        if champion is not None:
            self.set_alias(version.name, PREVIOUS, champion)
        self.set_alias(version.name, CHAMPION, version.number)

    def rollback(self, name: str) -> Version:
        """Swap `champion` and `previous`; gives the version that serves now.

        Raises:
            RecsysError: `unknown_model`, or `unknown_alias` where there is nothing to go back to.
        """
        aliases = self.aliases(name)
        if PREVIOUS not in aliases:
            raise self._unknown(name, PREVIOUS)
        self.set_alias(name, CHAMPION, aliases[PREVIOUS])
        if CHAMPION in aliases:
            self.set_alias(name, PREVIOUS, aliases[CHAMPION])
        return self.resolve(f"models:/{name}@{CHAMPION}")

    def set_alias(self, name: str, alias: str, number: int) -> None:
        """Let `alias` point to the version of this number."""
        with self._calls():
            self.client.set_registered_model_alias(name, alias, str(number))

    @contextmanager
    def _calls(self) -> Iterator[None]:
        """Turn what the client and the artifact store raise into `RecsysError`."""
        try:
            yield
        except (MlflowException, SQLAlchemyError) as error:
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

    def _unknown(self, name: str, wanted: str | int) -> RecsysError:
        """Say what there is instead; `unknown_model` where there is nothing of that name."""
        aliases = self.aliases(name)
        kind = "version" if isinstance(wanted, int) else "alias"
        known = ", ".join(f"{alias} = {number}" for alias, number in aliases.items()) or "none"
        what = f"{name} has no {kind} {wanted!r}; its aliases: {known};"
        return RecsysError(f"unknown_{kind}", what, "", exit_code=EXIT_NO_INPUT)

    @contextmanager
    def _run(self, name: str, bundle: Bundle) -> Iterator[str]:
        """A run of experiment `name`, ended as FINISHED or FAILED."""
        run_name = f"{name} {bundle.digest[:8]}"
        run = self.client.create_run(self._experiment(name), run_name=run_name, tags=contract(bundle))
        run_id = str(run.info.run_id)
        try:
            yield run_id
        except BaseException:
            with suppress(MlflowException):
                self.client.set_terminated(run_id, "FAILED")
            raise
        self.client.set_terminated(run_id, "FINISHED")

    def _experiment(self, name: str) -> str:
        """Id of the experiment `name`, made on first use."""
        if self.client.get_experiment_by_name(name) is None:
            location = None if self._remote else (self.home / "artifacts").as_uri()
            with _already_there():
                self.client.create_experiment(name, location)
        return str(self.client.get_experiment_by_name(name).experiment_id)

    def _log_model(self, name: str, folder: Path, bundle: Bundle, run_id: str) -> tuple[str, str]:
        """Log the bundle as a pyfunc whose loader is named, not carried; gives model id and location."""
        experiment = self.client.get_run(run_id).info.experiment_id
        logged = self.client.create_logged_model(experiment, name, source_run_id=run_id)
        described = Model(
            artifact_path=logged.artifact_location,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
            run_id=run_id,
            metadata=contract(bundle),
        )
        with tempfile.TemporaryDirectory(dir=self.home if not self._remote else None) as staging:
            model = Path(staging, "model")
            data = Path(staging, "bundle")  # the name under which MLflow copies it into data/
            data.symlink_to(folder.resolve(), target_is_directory=True)
            save_model(model, data, bundle, described)
            self.client.log_model_artifacts(logged.model_id, str(model))
        self.client.finalize_logged_model(logged.model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        return str(logged.model_id), str(logged.artifact_location)

    def _log_numbers(
        self, run_id: str, model_id: str, parameters: Mapping[str, Any], metrics: Mapping[str, float]
    ) -> None:
        now = int(time.time() * 1000)
        settings = [Param(key, str(value)[:_LONGEST_PARAMETER]) for key, value in parameters.items()]
        figures = [Metric(key, value, now, 0, model_id=model_id) for key, value in metrics.items()]
        for start in range(0, max(len(settings), len(figures)), _LARGEST_BATCH):
            rows = slice(start, start + _LARGEST_BATCH)
            self.client.log_batch(run_id, metrics=figures[rows], params=settings[rows])

    def _ensure_model(self, name: str) -> None:
        with _already_there():
            self.client.create_registered_model(name)

    def _check_model_files(self, version: Version, location: str) -> None:
        """Refuse a version with anything beside our bundle and MLflow's own description of it."""
        found = {Path(file.path).name for file in list_artifacts(location, tracking_uri=self.uri)}
        if strange := sorted(found - MODEL_FILES):
            what = f"{version.uri} carries more than a bundle:"
            raise RecsysError("artifact_policy_violation", what, strange[0][:80])
        if "data" not in found:
            raise RecsysError("manifest_invalid", "holds no bundle:", version.uri)


def finite_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The figures that MLflow can keep; raises ValueError for a name with "@"."""
    if refused := sorted(name for name in metrics if "@" in name):
        raise ValueError(f"MLflow refuses '@' in metric names, write ndcg_at_10: {refused}")
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def _version(found: ModelVersion) -> Version:
    return Version(str(found.name), int(found.version), str(found.run_id or ""), dict(found.tags))


def _without_passwords(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)


def _make_private(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


@contextmanager
def _already_there() -> Iterator[None]:
    """Go on where another process has just created the same thing."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
