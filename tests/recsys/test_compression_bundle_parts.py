"""A small fitted recommender with rounded tables and fewer trees: its size, its lists, its files."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest

from features.builder import Features
from features.replay import Replay
from recsys.collaborative import CollaborativeConfig
from recsys.collaborative_training import fit_collaborative
from recsys.compression.bundle_parts import (
    BUNDLE_PARTS,
    StorageConfig,
    compress_parts,
    parse_parts,
    part_bytes,
    stored_as,
)
from recsys.dataset import Dataset
from recsys.events import DEFAULT_ROLES
from recsys.model import Model
from recsys.numeric_storage import storage_of
from recsys.popularity import PopularityConfig, fit_popularity
from recsys.protocols import everyone_at
from recsys.ranker_training import fit_ranker
from recsys.ranking import Ranker, RankerConfig
from recsys.recommender import Recommender
from recsys.relevance import RelevanceHead
from recsys.relevance_weights import HeadConfig
from recsys.requests import DAY_S, Requests
from recsys.retrieval import RetrievalConfig, Retriever, seen_items
from recsys.sequence import SequenceConfig
from recsys.sequence_training import fit_sequence
from recsys.text.embeddings import ItemEmbeddings
from recsys.transitions import CovisitationConfig, TransitionConfig, fit_covisitation, fit_transitions

ITEMS, USERS, EVENTS, DIM = 60, 40, 900, 24
AS_OF = 30 * DAY_S
ROUNDED = ("factors=int8", "embeddings=int8", "pairs=float16")


@dataclass(frozen=True)
class World:
    data: Dataset
    state: Replay
    model: Model

    @property
    def recommender(self) -> Recommender:
        return self.model.recommender


def make_dataset() -> Dataset:
    """Users of five tastes take items of their own fifth four times of five."""
    rng = np.random.default_rng(2)
    user = rng.integers(0, USERS, EVENTS)
    own = rng.random(EVENTS) < 0.8
    item = np.where(own, rng.integers(0, ITEMS // 5, EVENTS) * 5 + user % 5, rng.integers(0, ITEMS, EVENTS))
    item %= ITEMS - 4  # the last four are never taken
    log = {
        "user_id": user,
        "item_id": item,
        "event_type": rng.choice(["click", "purchase"], EVENTS, p=[0.8, 0.2]),
        "timestamp": np.sort(rng.random(EVENTS)) * 29 * DAY_S,
    }
    items = pl.DataFrame({"item_id": range(ITEMS), "title": [f"item {n}" for n in range(ITEMS)]})
    return Dataset.from_frames(items, pl.DataFrame(log), users=pl.DataFrame({"user_id": range(USERS)}))


def make_embeddings() -> ItemEmbeddings:
    """Near by taste; one item has no text."""
    rng = np.random.default_rng(5)
    matrix = rng.normal(size=(ITEMS, DIM)) + 2.0 * rng.normal(size=(5, DIM))[np.arange(ITEMS) % 5]
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    matrix[7] = 0.0
    return ItemEmbeddings(matrix.astype(np.float32), np.zeros((ITEMS, 16), np.uint8))


@pytest.fixture(scope="module")
def world() -> World:
    data, embeddings, features = make_dataset(), make_embeddings(), Features()
    sequence = SequenceConfig(embedding_dim=8, epochs=3, negatives=8, threads=1)
    retriever = Retriever(
        fit_collaborative(data, CollaborativeConfig(embedding_dim=12, epochs=4)),
        fit_transitions(data, TransitionConfig()),
        fit_covisitation(data, CovisitationConfig()),
        fit_sequence(data, embeddings.matrix, sequence)[0],
        embeddings.matrix,
        fit_popularity(data, PopularityConfig()),
        data.weights,
        RetrievalConfig(),
    )
    head = RelevanceHead.untrained(embeddings.matrix, data.weights, HeadConfig(embedding_dim=4, hidden_dim=3))
    known = np.diff(data.histories.offsets) > 0
    unranked = Recommender(retriever, head, None, features, known, data.catalogue.category)
    state = Replay(data, features)
    model = Model(
        unranked.with_ranker(small_ranker(unranked, state)),
        data.catalogue,
        data.users,
        embeddings,
        dict(DEFAULT_ROLES),
        {},
    )
    return World(data, state, model)


def small_ranker(models: Recommender, state: Replay) -> Ranker:
    """Fitted on a planted mixture of the thirty columns that differ most."""
    rng = np.random.default_rng(4)
    count, rows = 120, 20
    users = rng.integers(0, USERS, count)
    items = np.concatenate([rng.permutation(ITEMS)[:rows] for _ in range(count)])
    moments = np.sort(rng.uniform(10, 29, count)) * DAY_S
    offsets = np.arange(count + 1, dtype=np.int64) * rows
    requests = Requests.of(users, moments, state.dataset.events.known_at(moments), (offsets, items))
    matrix = models.matrix(requests, state.read(requests))
    filled = np.nan_to_num(matrix)
    varied = filled[:, filled.std(axis=0).argsort()[-30:]]
    score = (varied / varied.std(axis=0)) @ rng.normal(size=30)
    requests = requests.labelled(score > np.median(score))
    config = RankerConfig(rounds=40, leaves=6, min_data_in_leaf=10, patience=40, threads=1)
    schema = models.features.schema
    return fit_ranker(matrix, requests, schema.names, schema.digest, config)[0]


def top_lists(world: World, recommender: Recommender, k: int = 10) -> list[list[int]]:
    requests = everyone_at(np.arange(USERS, dtype=np.int32), AS_OF, world.data.events)
    found = recommender.candidates(requests, world.state, seen_items(world.data.histories, requests))
    ranked = recommender.recommend(found, world.state, k)
    return [ranked.item_index[a:b].tolist() for a, b in zip(ranked.offsets, ranked.offsets[1:], strict=False)]


def overlap(lists: list[list[int]], others: list[list[int]]) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(lists, others, strict=True)]))


@pytest.mark.parametrize(
    ("names", "least"),
    [
        (["factors=float16"], 0.97),
        (["factors=int8"], 0.93),
        (["embeddings=float16"], 0.97),
        (["embeddings=int8"], 0.93),
        (["pairs=float16"], 0.97),
        (ROUNDED, 0.93),
    ],
)
def test_rounded_tables_barely_change_the_lists(world, names, least):
    lists = top_lists(world, world.recommender)
    assert {len(items) for items in lists} == {10}
    assert overlap(top_lists(world, compress_parts(world.recommender, names)), lists) >= least


def test_a_few_trees_change_lists_more_than_many(world):
    lists = top_lists(world, world.recommender)
    found = [
        overlap(top_lists(world, compress_parts(world.recommender, [f"trees={share}"])), lists)
        for share in (1.0, 0.9, 0.02)
    ]
    assert found[0] == 1.0
    assert found[0] > found[1] > found[2]


def test_what_is_written_scores_as_what_was_compressed(world):
    smaller = compress_parts(world.recommender, [*ROUNDED, "trees=0.5"])
    model = replace(world.model, recommender=smaller, embeddings=world.model.embeddings.rounded("int8"))
    again = Model.from_files(model.to_files(), smaller.features)
    requests = everyone_at(np.arange(USERS, dtype=np.int32), AS_OF, world.data.events)
    candidates = smaller.candidates(requests, world.state, seen_items(world.data.histories, requests))
    expected = smaller.score(candidates, world.state)
    np.testing.assert_array_equal(again.recommender.score(candidates, world.state), expected)
    assert (world.recommender.score(candidates, world.state) != expected).any()
    assert again.to_files() == model.to_files()


def test_laid_over_another_catalogue_the_tables_stay_in_their_kind(world):
    smaller = compress_parts(world.recommender, ROUNDED)
    model = replace(world.model, recommender=smaller)
    over = model.over(world.data, model.embeddings.rounded("int8"), smaller.retriever.popularity)
    assert part_bytes(over) == part_bytes(smaller)


def test_the_recommender_that_is_compressed_is_left_alone(world):
    files = world.model.to_files()
    compress_parts(world.recommender, [*ROUNDED, "trees=0.5"])
    assert world.model.to_files() == files


def test_tables_take_the_bytes_of_their_kind(world):
    whole, smaller = (part_bytes(stored_as(world.recommender, parse_parts(names))) for names in ((), ROUNDED))
    retriever = world.recommender.retriever
    gone = {name: whole[name] - smaller[name] for name in whole}
    slack = 100  # of the names in the header
    assert gone["item_embeddings.safetensors"] == pytest.approx(ITEMS * (3 * DIM - 4), abs=slack)
    assert gone["sequence.safetensors"] == pytest.approx(ITEMS * (3 * 8 - 4), abs=slack)
    assert gone["transitions.safetensors"] == pytest.approx(2 * len(retriever.transitions.values), abs=slack)
    scores = len(retriever.collaborative.item_item.values) + len(retriever.collaborative.ease.values)
    assert gone["collaborative.safetensors"] == pytest.approx(ITEMS * (3 * 12 - 4) + 2 * scores, abs=slack)
    assert gone["ranker.txt"] == gone["head.safetensors"] == gone["popularity.safetensors"] == 0


def test_bytes_are_those_of_the_bundle(world):
    found = part_bytes(world.recommender)
    files = {name: len(data) for name, data in world.model.to_files().items()}
    assert {name: size for name, size in files.items() if name in found} == found
    assert set(files) - set(found) == {"items.parquet", "users.parquet", "settings.json"}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    unranked = replace(world.recommender, ranker=None)
    assert set(found) - set(part_bytes(unranked)) == {"ranker.txt", "ranker.json"}


def test_items_without_text_or_events_stay_unknown(world):
    retriever = compress_parts(world.recommender, ROUNDED).retriever
    assert not retriever.embeddings[7].any()
    assert not retriever.collaborative.factors[-4:].any()
    assert not retriever.sequence.learned[-4:].any()
    assert retriever.sequence.embeddings is retriever.embeddings
    for name in ("embeddings", "collaborative"):
        before, after = (getattr(of, name) for of in (world.recommender.retriever, retriever))
        table, rounded = (getattr(of, "factors", of) for of in (before, after))
        np.testing.assert_array_equal(rounded.any(axis=1), table.any(axis=1))
        assert storage_of(rounded) == "int8"


def test_the_first_trees_score_as_lightgbm_scores_with_them(world):
    ranker = world.recommender.ranker
    matrix = np.random.default_rng(0).normal(size=(50, len(ranker.features))).astype(np.float32)
    for count in (1, 7, ranker.trees):
        fewer = ranker.with_trees(count)
        assert fewer.trees == count
        expected = ranker.booster.predict(matrix, num_iteration=count, raw_score=True, num_threads=1)
        np.testing.assert_array_equal(fewer.score(matrix, ranker.schema_hash), expected)
        again = Ranker.from_files(fewer.to_files())
        np.testing.assert_array_equal(again.score(matrix, ranker.schema_hash), expected)
        assert (again.features, again.schema_hash) == (ranker.features, ranker.schema_hash)
    assert len(ranker.with_trees(7).to_files()["ranker.txt"]) < len(ranker.to_files()["ranker.txt"]) / 2
    for count in (0, -1, ranker.trees + 1):
        with pytest.raises(ValueError, match=f"can keep 1..{ranker.trees} trees, not {count}"):
            ranker.with_trees(count)


@pytest.mark.parametrize(("share", "count"), [("1", 10), ("0.5", 5), ("0.26", 3), ("0.001", 1)])
def test_a_share_of_the_trees_is_kept_and_one_at_least(world, share, count):
    of_ten = replace(world.recommender, ranker=world.recommender.ranker.with_trees(10))
    assert compress_parts(of_ten, [f"trees={share}"]).ranker.trees == count


def test_without_a_ranker_there_are_no_trees_to_drop(world):
    unranked = replace(world.recommender, ranker=None)
    assert stored_as(unranked, StorageConfig(trees=0.5)).ranker is None


def test_nothing_named_changes_nothing(world):
    assert parse_parts([]) == StorageConfig()
    same = compress_parts(world.recommender, [])
    assert same.retriever.embeddings is world.recommender.retriever.embeddings
    assert part_bytes(same) == part_bytes(world.recommender)


def test_names_are_read_as_settings():
    found = parse_parts(["trees=0.5", "factors=int8", "embeddings=float16", "pairs=float16"])
    assert found == StorageConfig("int8", "float16", "float16", 0.5)
    for part, values in BUNDLE_PARTS.items():
        for value in values:
            assert getattr(parse_parts([f"{part}={value}"]), part) == value


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["weights=int8"], "unknown part weights=int8: one of trees, factors, embeddings, pairs"),
        (["factors"], "unknown value in factors: factors is one of float32, float16, int8"),
        (["factors=int4"], "unknown value in factors=int4: factors is one of float32, float16, int8"),
        (["pairs=int8"], "unknown value in pairs=int8: pairs is one of float32, float16"),
        (["trees=half"], "trees must be a share above 0, up to 1, not 'half'"),
        (["trees"], "trees must be a share"),
        (["trees=0"], "trees must be a share above 0, up to 1, not 0.0"),
        (["trees=1.5"], "trees must be a share above 0, up to 1, not 1.5"),
        (["trees=nan"], "trees must be a share above 0, up to 1, not nan"),
        (["factors=int8", "factors=int8"], "factors is named twice"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_can(world, names, message):
    with pytest.raises(ValueError, match=message):
        compress_parts(world.recommender, names)
