"""The home folder: everything that the program keeps lies below it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_HOME = ".recsys"
DEFAULT_NAME = "recsys"


@dataclass(frozen=True)
class Home:
    """Paths below one folder: `mlflow.db` and `artifacts` of the registry, caches, the night's scores."""

    path: Path

    @classmethod
    def at(cls, option: Path | None) -> Home:
        """The folder of `--home`, of RECSYS_HOME, or `.recsys` in the current folder; made if absent."""
        path = (option or Path(os.environ.get("RECSYS_HOME") or DEFAULT_HOME)).expanduser().absolute()
        path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    @property
    def students(self) -> Path:
        """Distilled encoders by fingerprint."""
        return self.path / "cache" / "students"

    @property
    def bundles(self) -> Path:
        """Verified copies of registered bundles by digest."""
        return self.path / "cache" / "bundles"

    @property
    def tuning(self) -> Path:
        """Studies of `recsys tune`: one database, one folder a study."""
        return self.path / "tuning"

    @property
    def compression(self) -> Path:
        """Studies of `recsys compress`: the root, the engine and the rungs, one folder a study."""
        return self.path / "compression"

    @property
    def scores(self) -> Path:
        """The Delta table of the nightly scores."""
        return self.path / "scores"

    @property
    def demo_data(self) -> Path:
        """The simulated world of `recsys demo`."""
        return self.path / "demo" / "data"
