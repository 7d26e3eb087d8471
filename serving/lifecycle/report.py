"""What is told of the life of models: counters for Prometheus, and a line for people."""

from __future__ import annotations

import time
from typing import Any

from recsys.errors import RecsysError
from serving.logs import LineLog
from serving.messages import ModelName
from serving.meters import Meters

MAIN = "main"
"""The role of the model that answers, beside those that are compared with it."""


class ModelReport:
    """Tells meters and a log; keeps counts of its own for whoever asks.

    Attributes:
        swaps: models that were swapped in. `rollbacks`: models that went again.
        rejected: refused bundles by code.
    """

    def __init__(self, meters: Meters, log: LineLog, role: str = MAIN) -> None:
        """Take whom to tell, and what the model is there for: only the main one is named to Prometheus."""
        self._meters, self._log, self._role = meters, log, role
        self.swaps = self.rollbacks = 0
        self.rejected: dict[str, int] = {}

    def swapped(self, name: ModelName) -> None:
        """A version answers from now on."""
        self.swaps += 1
        self._name(name)
        self._write("model_swapped", name)

    def rejected_bundle(self, name: ModelName, error: RecsysError) -> None:
        """A version was refused, and is not tried again soon."""
        self.rejected[error.code] = self.rejected.get(error.code, 0) + 1
        self._meters.bundle_rejected(error.code)
        self._write("model_rejected", name, code=error.code, what=error.what[:200])

    def rolled_back(self, name: ModelName, why: str) -> None:
        """The version before answers again."""
        self.rollbacks += 1
        self._name(name)
        self._write("model_rolled_back", name, why=why)

    def failed(self, what: str, error: RecsysError) -> None:
        """Something went wrong that changed nothing."""
        self._tell({"event": what, "code": error.code, "what": error.what[:200]})

    def _name(self, name: ModelName) -> None:
        if self._role == MAIN:
            self._meters.model(name)

    def _write(self, event: str, name: ModelName, **more: str) -> None:
        self._tell({"event": event, "model": name.name, "version": name.version, **more})

    def _tell(self, line: dict[str, Any]) -> None:
        role = {} if self._role == MAIN else {"role": self._role}
        self._log.write({"time": time.time(), **line, **role})
