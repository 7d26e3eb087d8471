"""A bundle many times side by side: block b of the items is the whole catalogue again under other ids.

Tables of pairs become block-diagonal, tables by item are repeated; trees, networks and encoder stay. A tenth
as many users as items live there, each in one block with the log of a user of the original, and the live
state is counted from that log. Nothing is learned, so nothing of it says how good lists are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.builder import Features
from features.live import LiveState
from features.replay import Replay
from recsys.bundle import Bundle
from recsys.dataset import Catalogue, Dataset, Ids
from recsys.dataset_folder import load
from recsys.events import Events, Float32, Slates, lengths_to_offsets
from recsys.golden import Golden
from recsys.model import Model
from recsys.pairs import SparsePairs
from recsys.popularity import PopularityConfig, fit_popularity
from recsys.protocols import everyone_at
from recsys.requests import source_names
from recsys.retrieval import Retriever, seen_items
from recsys.text.embeddings import ItemEmbeddings
from recsys.text.loading import load_encoder
from recsys.transitions import Covisitation

USER_COPIES = 5
GOLDEN_USERS = 8


def copied_files(bundle: Bundle, data: Path, copies: int) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Files and metadata of the bundle with `copies` blocks of items.

    Args:
        bundle: of a version.
        data: folder of the dataset that it was trained on, to the end.
        copies: blocks.
    """
    live = LiveState.from_files(bundle.files)
    model = Model.from_files(bundle.files, live.features)
    world = _dataset(load(data, roles=model.roles)[0], copies)
    wide = _model(model, world, copies)
    as_of = bundle.manifest.as_of
    state = LiveState.at(world, as_of, live.features)
    golden = _golden(wide, world, live.features, as_of)
    encoder = load_encoder(bundle.files).to_files()
    files = {**wide.to_files(), **encoder, **state.to_files(), **golden.to_files()}
    counts = {"items": len(world.catalogue), "users": len(world.users), "events": len(world.events)}
    return files, {"as_of": as_of, "feature_schema": bundle.manifest.feature_schema, **counts}


def _dataset(data: Dataset, copies: int) -> Dataset:
    """The catalogue `copies` times, and `USER_COPIES` times the users with their log, each in a block."""
    users = [f"{user}-{copy}" for user in data.users.values for copy in range(USER_COPIES)]
    return replace(
        data,
        catalogue=_catalogue(data.catalogue, copies),
        users=Ids(pl.Series(users)),
        events=_events(data.events, len(data.catalogue), copies),
        slates=None if data.slates is None else _slates(data.slates, len(data.catalogue), copies),
        attributes=None,
    )


def _catalogue(items: Catalogue, copies: int) -> Catalogue:
    blocks = range(copies)
    return replace(
        items,
        ids=Ids(pl.Series([f"{item}-{block:02d}" for block in blocks for item in items.ids.values])),
        title=[f"{title} {block}" for block in blocks for title in items.title],
        description=items.description * copies,
        category=np.tile(items.category, copies),
        subcategory=np.tile(items.subcategory, copies),
        created_at=np.tile(items.created_at, copies),
    )


def _block(user_index: np.ndarray, copies: int) -> np.ndarray:
    """The block that each user lives in."""
    return (user_index % copies).astype(np.int32)


def _events(events: Events, items: int, copies: int) -> Events:
    """Each event once for each copy of its user, at the same moment."""
    rows = np.repeat(np.arange(len(events)), USER_COPIES)
    user = (events.user_index[rows] * USER_COPIES + np.tile(np.arange(USER_COPIES), len(events))).astype(
        np.int32
    )
    item = events.item_index[rows]
    item = np.where(item >= 0, item + items * _block(user, copies), item).astype(np.int32)
    return Events(user, item, events.type_index[rows], events.timestamp[rows], events.value[rows])


def _slates(slates: Slates, items: int, copies: int) -> Slates:
    number = np.repeat(np.arange(len(slates)), USER_COPIES)
    user = (slates.user_index[number] * USER_COPIES + np.tile(np.arange(USER_COPIES), len(slates))).astype(
        np.int32
    )
    wide = slates.take(number)
    owner = np.repeat(np.arange(len(number)), np.diff(wide.offsets))
    item = np.where(wide.item_index >= 0, wide.item_index + items * _block(user, copies)[owner], -1)
    return replace(
        wide, user_index=user, item_index=item.astype(np.int32), impression_row=np.arange(len(number))
    )


def _model(model: Model, world: Dataset, copies: int) -> Model:
    recommender = model.recommender
    embeddings = _alike(model.embeddings.matrix, copies)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    np.divide(embeddings, lengths, out=embeddings, where=lengths > 0)
    digests = np.random.default_rng(0).integers(0, 256, (len(embeddings), 16), np.uint8)
    known = np.repeat(recommender.known_users, USER_COPIES)
    return replace(
        model,
        recommender=replace(
            recommender,
            retriever=_retriever(recommender.retriever, world, embeddings, copies),
            known_users=known,
            category=world.catalogue.category,
        ),
        catalogue=world.catalogue,
        users=world.users,
        embeddings=ItemEmbeddings(embeddings, digests),
    )


def _retriever(one: Retriever, world: Dataset, embeddings: np.ndarray, copies: int) -> Retriever:
    """EASE is left out: it is not fitted for so many items."""
    collaborative, sequence = one.collaborative, one.sequence
    return replace(
        one,
        collaborative=replace(
            collaborative,
            factors=_alike(collaborative.factors, copies),
            item_item=_diagonal(collaborative.item_item, copies),
            ease=SparsePairs.empty(len(embeddings)),
        ),
        transitions=_diagonal(one.transitions, copies),
        covisitation=Covisitation(
            _diagonal(one.covisitation.to_outcome, copies),
            _diagonal(one.covisitation.between_outcomes, copies),
        ),
        sequence=replace(
            sequence,
            learned=_alike(sequence.learned, copies),
            bias=np.tile(sequence.bias, copies),
            embeddings=embeddings,
        ),
        embeddings=embeddings,
        popularity=fit_popularity(world, PopularityConfig(one.popularity.half_life_days)),
    )


def _alike(rows: Float32, copies: int) -> Float32:
    """The rows `copies` times, each number a little off: equal items would tie, as no two in a shop do."""
    wide = np.tile(rows, (copies, 1))
    wide *= 1.0 + 0.05 * np.random.default_rng(0).standard_normal(wide.shape, np.float32)
    return wide


def _diagonal(pairs: SparsePairs, copies: int) -> SparsePairs:
    lengths = np.tile(np.diff(pairs.offsets), copies)
    shift = np.repeat(np.arange(copies) * len(pairs), len(pairs.columns))
    columns = (np.tile(pairs.columns, copies) + shift).astype(np.int32)
    return SparsePairs(lengths_to_offsets(lengths), columns, np.tile(pairs.values, copies))


def _golden(model: Model, world: Dataset, features: Features, as_of: float) -> Golden:
    """Whole candidate lists of a few users, with their scores by the night's path."""
    users = np.sort(np.random.default_rng(0).choice(len(world.users), GOLDEN_USERS, replace=False))
    requests = everyone_at(users.astype(np.int32), as_of, world.events)
    state = Replay(world, features)
    found = model.recommender.candidates(requests, state, seen_items(world.histories, requests))
    owner = found.request_of_row()
    return Golden(
        [f"golden-{number}" for number in owner],
        world.users.take(found.user_index[owner]).to_list(),
        world.catalogue.ids.take(found.item_index).to_list(),
        source_names(found.source),
        found.timestamp[owner].tolist(),
        model.recommender.score(found, state).tolist(),
    )
