"""`recsys score`: the nightly batch, top k for every user, from one version into one published night."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from features.live import LiveState
from features.replay import Replay
from pipelines.home import Home
from pipelines.terminal import Report, Terminal
from recsys.bundle import Bundle, read_bundle
from recsys.cold_start import RUNGS
from recsys.dataset import Dataset
from recsys.dataset_folder import load
from recsys.errors import EXIT_USAGE, RecsysError
from recsys.events import Int32
from recsys.model import Model
from recsys.popularity import PopularityConfig, fit_popularity
from recsys.protocols import everyone_at
from recsys.publication import Publication, publish
from recsys.published_rows import PROPENSITY
from recsys.ranked import Ranked
from recsys.recommender import Recommender, request_blocks
from recsys.requests import source_names
from recsys.reranking import Reranker
from recsys.retrieval import seen_items
from recsys.text.item_text import catalogue_texts
from recsys.text.loading import load_encoder
from recsys.tracking import Registry
from recsys.versions import Version


@dataclass(frozen=True)
class Night:
    """A published night: users asked, how many each cold-start rung answered, items newly embedded."""

    publication: Publication
    version: Version
    users: int
    rungs: dict[str, int]
    embedded: int


@dataclass(frozen=True)
class NightSettings:
    """What a night is asked to be. `night` None is the UTC day that begins at or holds `as_of`."""

    top_k: int
    as_of: float | None = None
    night: date | None = None
    threads: int = 2
    max_bad: float = 0.05
    allow_shrink: bool = False


def fetch_bundle(registry: Registry, version: Version, home: Home) -> Bundle:
    """The version's verified bundle, from the cache where it lies there."""
    folder = home.bundles / version.digest
    if version.digest and folder.exists():
        return read_bundle(folder)
    return registry.load(version, folder)


def score_night(
    folder: Path,
    out: Path,
    uri: str,
    settings: NightSettings,
    home: Home,
    registry: Registry,
    terminal: Terminal,
) -> Night:
    """Score every user of the dataset at `folder` with the version that `uri` means now.

    The alias is resolved once. Users and items that the version has not seen are folded in from the log
    and from their text.

    Raises:
        RecsysError: of `Registry.resolve`, `read_bundle`, `load` and `publish`.
    """
    version = registry.resolve(uri)
    with terminal.step("bundle"):
        bundle = fetch_bundle(registry, version, home)
        state = LiveState.from_files(bundle.files)
        features = state.features
        model = Model.from_files(bundle.files, features)
    with terminal.step("dataset"):
        data, _ = load(folder, roles=model.roles, max_bad=settings.max_bad)
    as_of = settings.as_of if settings.as_of is not None else max(data.end, bundle.manifest.as_of)
    past = data.before(as_of)
    with terminal.step("new items"):
        recommender, embedded = recommender_over(model, past, bundle)
        reranker = model.reranker(past, recommender.retriever.embeddings)
    night = settings.night or datetime.fromtimestamp(as_of, UTC).date()
    counts = dict.fromkeys(RUNGS, 0)
    with terminal.step("scores") as progress:
        lists = ranked_blocks(recommender, reranker, Replay(past, features), past, as_of, settings)
        stream = (
            ranked_rows(ranked, users, past) for users, ranked in counted(lists, past, counts, progress)
        )
        schema = schema_of(past, explored=reranker.config.explores)
        reader = pa.RecordBatchReader.from_batches(schema, stream)
        publication = publish(
            out,
            reader,
            night=night,
            version=version,
            as_of=as_of,
            allow_shrink=settings.allow_shrink,
        )
    return Night(publication, version, len(past.users), counts, embedded)


def recommender_over(model: Model, data: Dataset, bundle: Bundle) -> tuple[Recommender, int]:
    """The bundle's models over the dataset's rows, and how many item texts had to be embedded."""
    texts = catalogue_texts(data.catalogue, max_chars=model.settings["max_chars"])
    encoder = load_encoder(bundle.files)
    embeddings = model.embeddings.update(texts, encoder)
    half_life = model.recommender.retriever.popularity.half_life_days
    popularity = fit_popularity(data, PopularityConfig(half_life))
    return model.over(data, embeddings, popularity), embeddings.encoded


def ranked_blocks(
    recommender: Recommender,
    reranker: Reranker,
    state: Replay,
    data: Dataset,
    as_of: float,
    settings: NightSettings,
) -> Iterator[tuple[Int32, Ranked]]:
    """Users and their lists, a block at a time, in user order."""
    users = np.arange(len(data.users), dtype=np.int32)
    for chosen in request_blocks(len(users)):
        requests = everyone_at(users[chosen], as_of, data.events)
        candidates = recommender.candidates(requests, state, seen_items(data.histories, requests))
        yield (
            users[chosen],
            recommender.recommend(
                candidates, state, settings.top_k, threads=settings.threads, reranker=reranker
            ),
        )


def counted(
    lists: Iterator[tuple[Int32, Ranked]], data: Dataset, counts: dict[str, int], progress: Report
) -> Iterator[tuple[Int32, Ranked]]:
    """The same blocks; adds each one's rungs to `counts` and reports the users done."""
    for users, ranked in lists:
        for rung, number in zip(*np.unique(ranked.rung, return_counts=True), strict=True):
            counts[RUNGS[rung]] += int(number)
        yield users, ranked
        progress(int(users[-1]) + 1, len(data.users))


def schema_of(data: Dataset, *, explored: bool) -> pa.Schema:
    """Columns of a published night; ids have the types of the dataset."""
    columns = [
        pa.field("user_id", _id_type(data.users.values)),
        pa.field("item_id", _id_type(data.catalogue.ids.values)),
        pa.field("rank", pa.int32()),
        pa.field("score", pa.float64()),
        pa.field("source", pa.string()),
        pa.field("rung", pa.string()),
    ]
    return pa.schema(columns + [pa.field(PROPENSITY, pa.float64())] * explored)


def ranked_rows(ranked: Ranked, users: Int32, data: Dataset) -> pa.RecordBatch:
    """One row a recommended item, users in their order, ranks from 1."""
    lengths = np.diff(ranked.offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    rank = np.arange(len(owner)) - ranked.offsets[:-1][owner] + 1
    schema = schema_of(data, explored=ranked.propensity is not None)
    columns = [
        data.users.take(users[owner]).to_list(),
        data.catalogue.ids.take(ranked.item_index).to_list(),
        rank,
        ranked.score,
        source_names(ranked.source),
        [RUNGS[rung] for rung in ranked.rung[owner]],
    ]
    if ranked.propensity is not None:
        columns.append(ranked.propensity)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _id_type(values: pl.Series) -> pa.DataType:
    return pa.int64() if values.dtype.is_integer() else pa.string()


def night_document(night: Night, out: Path) -> dict[str, Any]:
    """What was published, as plain values."""
    publication = night.publication
    return {
        "table": str(out),
        "night": publication.night.isoformat(),
        "rows": publication.rows,
        "users": night.users,
        "rungs": night.rungs,
        "items_embedded": night.embedded,
        "model": publication.model,
        "digest": publication.digest,
        "as_of": publication.as_of,
        "table_version": publication.table_version,
        "changed": publication.changed,
    }


def parse_night(text: str) -> date:
    """A calendar day; raises RecsysError `time_invalid` (exit 64)."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        what = "a night is a day like 2026-01-31, not"
        raise RecsysError("time_invalid", what, repr(text[:100]), exit_code=EXIT_USAGE) from None


def parse_moment(text: str) -> float:
    """Epoch seconds of an ISO 8601 moment (UTC where it names no zone) or of a number of seconds.

    Raises:
        RecsysError: `time_invalid` (exit 64).
    """
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        what = "give an ISO 8601 time or epoch seconds, not"
        raise RecsysError("time_invalid", what, repr(text[:100]), exit_code=EXIT_USAGE) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
