"""The MLflow registry, the only package that imports MLflow: no telemetry, no pickle, no long waits.

`reading` works with `mlflow-skinny` alone, at a tracking server. `Registry` is the whole, which also writes
and needs all of MLflow; it is imported when it is asked for, so that readers need not have it.
"""

import os
from typing import TYPE_CHECKING

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
os.environ["MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER"] = "false"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "4")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

if TYPE_CHECKING:
    from recsys.tracking.registry import Registry
else:

    def __getattr__(name: str) -> type:
        """The class `Registry`, imported on first use."""
        if name != "Registry":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from recsys.tracking.registry import Registry

        return Registry


__all__ = ["Registry"]
