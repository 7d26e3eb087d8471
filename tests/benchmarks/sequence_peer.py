"""SASRec of RecTools as a peer: keeps its process, feeds it files, scores with the vectors that it writes."""

from __future__ import annotations

import json
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from peers import Asked, Params, Peer, UnavailableError

from recsys.baselines import BlockScorer
from recsys.dataset import Dataset
from recsys.events import Float32
from recsys.requests import HistoryBatch, Requests

PROGRAM = Path(__file__).with_name("rectools_sasrec.py")
INSTALL = "needs a Python with rectools[torch]==0.19.0 (numpy 1, pandas 2): give it with --peer-python"
NETWORK = {"n_blocks": 2, "n_heads": 2, "loss": "softmax"}
MODELS = ({"n_factors": 64, "dropout_rate": 0.2}, {"n_factors": 128, "dropout_rate": 0.5})
EPOCHS = (5, 20, 60)
LONGEST = 100
"""Events of a history that it reads, or fewer where nine in ten histories are shorter."""


@dataclass
class Training:
    """One process with one model in training, on files in a folder of its own."""

    asked: Asked
    folder: tempfile.TemporaryDirectory[str]
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, python: Path, asked: Asked, model: Params, seed: int) -> Training:
        """Write the files and start the process."""
        folder = tempfile.TemporaryDirectory(prefix="sasrec-")
        path, train = Path(folder.name), asked.train
        events = train.events.take(train.is_target[train.events.type_index])
        owner = np.repeat(np.arange(len(asked.history)), np.diff(asked.history.offsets))
        np.save(path / "events.npy", np.column_stack([events.user_index, events.item_index]).astype(np.int64))
        np.save(path / "asked.npy", np.column_stack([owner, asked.history.item_index]).astype(np.int64))
        model = {**NETWORK, **model, "session_max_len": history_length(train)}
        request = {"model": model, "seed": seed, "items": len(train.catalogue)}
        (path / "request.json").write_text(json.dumps({**request, "requests": len(asked.requests)}))
        with (path / "log.txt").open("w") as log:
            process = subprocess.Popen(
                [str(python), "-W", "ignore", str(PROGRAM), str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        return cls(asked, folder, process)

    def until(self, epochs: int, seconds: float) -> dict[str, Any]:
        """Train on to so many epochs in all, as far as the seconds go; the answer tells how many it were."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"epochs": epochs, "seconds": seconds}) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            log = Path(self.folder.name, "log.txt").read_text().strip().splitlines() or ["it said nothing"]
            raise UnavailableError(f"{INSTALL}; its process ended: {log[-1][:200]}")
        return json.loads(line)

    def scorer(self) -> BlockScorer:
        """Dot products of the vectors as they are now."""
        vectors, items = (np.load(Path(self.folder.name, f"{name}.npy")) for name in ("requests", "items"))
        return vector_scorer(self.asked.requests, vectors, items)

    def close(self) -> None:
        """End the process and drop its files."""
        self.process.kill()
        with suppress(BrokenPipeError):
            self.process.communicate()
        self.folder.cleanup()


def history_length(train: Dataset) -> int:
    """The ninth decile of the lengths of the histories, at most LONGEST."""
    lengths = np.diff(train.histories.offsets)
    return int(np.clip(np.quantile(lengths[lengths > 0], 0.9), 2, LONGEST))


def vector_scorer(asked: Requests, vectors: Float32, items: Float32) -> BlockScorer:
    """Dot products of `vectors`, one a request of `asked`, with `items`; a row of zeros is unknown."""
    keys = zip(asked.user_index.tolist(), asked.known.tolist(), strict=True)
    row_of = {key: row for row, key in enumerate(keys)}
    unknown = ~items.any(axis=1)

    def scores(requests: Requests, history: HistoryBatch) -> Float32:
        keys = zip(requests.user_index.tolist(), requests.known.tolist(), strict=True)
        wanted = vectors[[row_of[key] for key in keys]]
        block = wanted @ items.T
        block[:, unknown] = -np.inf
        block[~wanted.any(axis=1)] = -np.inf
        return block

    return scores


@dataclass
class SasRec:
    """Fits by going on with the training of the same model, where the last point was fewer epochs of it.

    One model trains for `seconds` at most, in tuning as in the last fit; `reached` tells the epochs that
    each fit really got, and what its process took.
    """

    python: Path | None
    seconds: float
    reached: list[dict[str, Any]] = field(default_factory=list)
    _last: tuple[tuple[Any, ...], Training] | None = None

    def fit(self, asked: Asked, params: Params, seed: int) -> BlockScorer:
        """A scorer after `params["epochs"]` epochs, or as many as the seconds allow.

        Raises:
            UnavailableError: no Python to run it with, or its process ended.
        """
        if self.python is None or not self.python.exists():
            raise UnavailableError(INSTALL)
        model = {name: value for name, value in params.items() if name != "epochs"}
        training = self._training(asked, model, seed)
        answer = training.until(params["epochs"], self.seconds)
        self.reached.append({"point": dict(params), "seed": seed, **answer})
        return training.scorer()

    def peak_memory_mb(self) -> float:
        """Of its processes so far."""
        return max((answer["peak_memory_mb"] for answer in self.reached), default=0.0)

    def _training(self, asked: Asked, model: Params, seed: int) -> Training:
        key = (id(asked), json.dumps(model), seed)
        if self._last is None or self._last[0] != key:
            self.close()
            self._last = key, Training.start(self.python, asked, model, seed)
        return self._last[1]

    def close(self) -> None:
        """End the process, if there is one."""
        if self._last is not None:
            self._last[1].close()
        self._last = None

    def peer(self) -> Peer:
        """The peer that this is."""
        grid = tuple({**model, "epochs": epochs} for model in MODELS for epochs in EPOCHS)
        return Peer("sasrec", self.fit, grid, seeded=True)
