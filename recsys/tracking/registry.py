"""Writing the registry: training runs, model versions and aliases. It needs all of MLflow."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import LoggedModelOutput, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from recsys.bundle import Bundle, read_bundle
from recsys.errors import RecsysError
from recsys.tracking.pyfunc_model import contract, save_model
from recsys.tracking.reading import RegistryReader, version_of
from recsys.versions import CHAMPION, PREVIOUS, Version, check_gates, unknown_version

_LARGEST_BATCH = 100
_LONGEST_PARAMETER = 6000


class Registry(RegistryReader):
    """Training runs, versions and aliases, in a SQLite file or behind a tracking server."""

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
        return version_of(created)

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
            raise unknown_version(name, PREVIOUS, aliases)
        self.set_alias(name, CHAMPION, aliases[PREVIOUS])
        if CHAMPION in aliases:
            self.set_alias(name, PREVIOUS, aliases[CHAMPION])
        return self.resolve(f"models:/{name}@{CHAMPION}")

    def set_alias(self, name: str, alias: str, number: int) -> None:
        """Let `alias` point to the version of this number."""
        with self._calls():
            self.client.set_registered_model_alias(name, alias, str(number))

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


def finite_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The figures that MLflow can keep; raises ValueError for a name with "@"."""
    if refused := sorted(name for name in metrics if "@" in name):
        raise ValueError(f"MLflow refuses '@' in metric names, write ndcg_at_10: {refused}")
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


@contextmanager
def _already_there() -> Iterator[None]:
    """Go on where another process has just created the same thing."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
