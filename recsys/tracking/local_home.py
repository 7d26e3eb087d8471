"""A registry in an SQLite file: the one kind of store for which all of MLflow has to be installed."""

from __future__ import annotations

import fcntl
import logging
from pathlib import Path

import mlflow.store.db.utils
from mlflow import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

__all__ = ["SQLAlchemyError", "open_home"]

logging.getLogger("alembic").setLevel(logging.WARNING)
mlflow.store.db.utils.MAX_RETRY_COUNT = 3  # 0.4 s of pauses in front of a dead database, not 101 s


def open_home(home: Path, uri: str) -> MlflowClient:
    """The client of the database in a home; its tables are made on first use, by one process at a time.

    Raises:
        MlflowException, SQLAlchemyError, OSError: the file or the folder cannot be used.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / ".registry.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client
