"""RecTools' SASRec as a process of its own: RecTools needs numpy 1, so it lives in another environment.

    python -m venv V && V/bin/pip install torch==2.13.0 "rectools[torch]==0.19.0"
    V/bin/python rectools_sasrec.py FOLDER        # started by quality.py with --peer-python V/bin/python

Imports nothing of ours. Reads from FOLDER `request.json` {"model", "seed", "items", "requests"}, `events.npy`
(rows of user, item, oldest first) and `asked.npy` (rows of request, item, oldest first). Then each line
{"epochs", "seconds"} on standard input trains up to that many epochs in all, as far as the seconds in all
go; it writes `requests.npy` (requests, dim) and `items.npy` (items, dim), zeros for what is not known, and
answers one line of JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

PACKAGES = ("rectools", "torch", "pytorch-lightning", "numpy", "pandas")


def main() -> None:
    """Answer every line of standard input."""
    folder = Path(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(2)
    request = json.loads((folder / "request.json").read_text())
    seed_everything(request["seed"])
    model, epochs = SASRecModel(**request["model"]), 0
    dataset = as_dataset(np.load(folder / "events.npy"))
    trained = 0.0
    for line in sys.stdin:
        wanted = json.loads(line)
        while epochs < wanted["epochs"] and (not epochs or trained < wanted["seconds"]):
            began = time.monotonic()
            model.fit_partial(dataset, 1, 1)
            trained += time.monotonic() - began
            epochs += 1
        write_vectors(model, np.load(folder / "asked.npy"), request, folder)
        answer = {
            "epochs": epochs,
            "seconds": trained,
            "peak_memory_mb": peak_memory_mb(),
            "versions": versions(),
        }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def as_dataset(rows: np.ndarray) -> Dataset:
    """Rows of (who, item), oldest first, as interactions a nanosecond apart."""
    columns = {
        Columns.User: rows[:, 0],
        Columns.Item: rows[:, 1],
        Columns.Weight: 1.0,
        Columns.Datetime: pd.to_datetime(np.arange(len(rows))),
    }
    return Dataset.construct(pd.DataFrame(columns))


def write_vectors(model: SASRecModel, asked: np.ndarray, request: dict[str, Any], folder: Path) -> None:
    """Vectors whose dot products are the model's scores.

    `recommend` gives lists only, and slates need the score of every shown item, so this goes through what
    `recommend` itself calls; every request is a user with the history that the request may see.
    """
    known = np.asarray(model.data_preparator.get_known_item_ids(), np.int64)
    asked = asked[np.isin(asked[:, 1], known)]
    dataset = model.data_preparator.transform_dataset_u2i(as_dataset(asked), np.unique(asked[:, 0]))
    loader = model.data_preparator.get_dataloader_recommend(dataset, 256)
    users, items = model.lightning_model._get_user_item_embeddings(loader, "cpu")
    rows = dataset.user_id_map.convert_to_external(np.arange(len(users)))
    first = model.data_preparator.n_item_extra_tokens
    save(folder / "requests.npy", rows, users.numpy(), request["requests"])
    save(folder / "items.npy", known, items.numpy()[first:], request["items"])


def save(path: Path, rows: np.ndarray, vectors: np.ndarray, count: int) -> None:
    """(count, dim) array with the vectors in their rows."""
    out = np.zeros((count, vectors.shape[1]), np.float32)
    out[np.asarray(rows, np.int64)] = vectors
    np.save(path, out)


def peak_memory_mb() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def versions() -> dict[str, str]:
    """Of what decides the result."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


if __name__ == "__main__":
    main()
