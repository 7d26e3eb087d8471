"""What a server must answer, worked out in the tests' own process: by the engine, and by the night's code."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.live import LiveState
from features.replay import Replay
from recsys.bundle import Bundle, read_bundle
from recsys.dataset import Dataset
from recsys.model import Model
from recsys.popularity import PopularityConfig, fit_popularity
from recsys.requests import Requests, source_mask
from recsys.text.item_text import catalogue_texts
from recsys.text.loading import load_encoder
from serving.engine.answering import rank
from serving.engine.live_model import LiveModel
from serving.events.log import Stored
from serving.events.parsing import event_of
from serving.events.sqlite_reader import SqliteReader
from serving.messages import ModelName, RankRequest

NAME = ModelName(name="recsys", version=0)


def stored(log: Path) -> list[Stored]:
    """Everything that a log holds, in its order; another process may write it meanwhile."""
    found: list[Stored] = []
    with closing(SqliteReader(log)) as reader:
        while page := reader.read(found[-1].sequence if found else 0, 1000):
            found += page
    return found


def model_of(bundle: Path, log: Path | None = None) -> LiveModel:
    """The engine over a bundle, with what a log holds."""
    model = LiveModel.load(read_bundle(bundle), NAME)
    if log is not None:
        follow(model, log)
    return model


def follow(model: LiveModel, log: Path) -> None:
    """Show a model what has come to a log, and give new items the embeddings of their texts."""
    for each in stored(log):
        if each.sequence > model.sequence:
            model.apply(event_of(each.record), each.sequence)
    embed(model)


def embed(model: LiveModel) -> None:
    """Give new items the embeddings of their texts."""
    for row, text in model.texts_to_embed().items():
        model.embedded(row, text, model.encoder.encode([text])[0])


def ranked(model: LiveModel, user: str, candidates: Sequence[str], moment: float) -> dict[str, float]:
    """Scores of the candidates by id, best first."""
    request = RankRequest(user_id=user, candidates=list(candidates), timestamp=moment)
    return {str(item.id): item.score for item in rank(model, request, moment).items}


def asked(server: Any, user: str, candidates: Sequence[str], moment: float) -> dict[str, float]:
    """The same of a server."""
    got = server.post("/v1/rank", {"user_id": user, "candidates": list(candidates), "timestamp": moment})
    assert got.status == 200, got.body
    return {item["id"]: item["score"] for item in got.json["items"]}


def are_close(one: dict[str, float], other: dict[str, float], within: float = 1e-6) -> bool:
    """Whether two rankings are of the same items with the same scores."""
    same = one.keys() == other.keys()
    return same and all(abs(score - other[each]) <= within for each, score in one.items())


def nightly(
    bundle: Bundle, data: Dataset, user: str, items: list[str], now: float, source: str
) -> dict[str, float]:
    """What the nightly job gives for these candidates from the log of `data`."""
    state = LiveState.from_files(bundle.files)
    model = Model.from_files(bundle.files, state.features)
    texts = catalogue_texts(data.catalogue, max_chars=model.settings["max_chars"])
    embeddings = model.embeddings.update(texts, load_encoder(bundle.files))
    recommender = model.over(data, embeddings, fit_popularity(data, PopularityConfig()))
    requests = Requests.of(
        data.users.index(pl.Series([user])),
        np.array([now]),
        data.events.known_at(np.array([now])),
        (np.array([0, len(items)]), data.catalogue.ids.index(pl.Series(items))),
        source_mask([source] * len(items)),
    )
    found = recommender.score(requests, Replay(data, state.features))
    return dict(zip(items, found.tolist(), strict=True))
