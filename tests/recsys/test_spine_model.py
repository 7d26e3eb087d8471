"""A whole model: its files, its rows laid over another dataset's, and scores by id."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest

from features.builder import Features
from features.catalogue import DEFAULT_FEATURES
from features.replay import Replay
from recsys.bundle import read_bundle, write_bundle
from recsys.collaborative import CollaborativeConfig
from recsys.collaborative_training import fit_collaborative
from recsys.dataset import Dataset
from recsys.errors import RecsysError
from recsys.events import DEFAULT_ROLES
from recsys.golden import Golden
from recsys.model import Model
from recsys.popularity import PopularityConfig, fit_popularity
from recsys.ranker_training import fit_ranker
from recsys.ranking import RankerConfig
from recsys.recommender import Recommender
from recsys.relevance import RelevanceHead
from recsys.relevance_weights import HeadConfig
from recsys.requests import DAY_S, SOURCES, Requests, source_names
from recsys.retrieval import RetrievalConfig, Retriever, seen_items
from recsys.scorer import Scorer, load_scorer
from recsys.sequence import SequenceConfig
from recsys.sequence_training import fit_sequence
from recsys.text.embeddings import ItemEmbeddings
from recsys.transitions import CovisitationConfig, TransitionConfig, fit_covisitation, fit_transitions

ITEMS = [f"i{n:02d}" for n in range(24)]
USERS = [f"u{n}" for n in range(10)]
AS_OF = 30 * DAY_S
VECTORS = {
    item: vector / np.linalg.norm(vector)
    for item, vector in zip(ITEMS, np.random.default_rng(9).normal(size=(24, 8)), strict=True)
}


def make_dataset(items: list[str], extra_users: tuple[str, ...] = ()) -> Dataset:
    """The same log over a catalogue in any order, with further items and without some that nobody took."""
    rng = np.random.default_rng(2)
    count = 160
    log = {
        "user_id": rng.choice(USERS[:9], count),
        "item_id": rng.choice(ITEMS[:20], count),
        "event_type": rng.choice(["click", "purchase", "view", "dismiss"], count, p=[0.6, 0.2, 0.1, 0.1]),
        "timestamp": np.sort(rng.random(count)) * 29 * DAY_S,
    }
    catalogue = {
        "item_id": items,
        "title": [f"title {item}" for item in items],
        "category": [f"c{int(item[1:]) % 3}" if item.startswith("i") else "new" for item in items],
        "created_at": [None if item == "i05" else -DAY_S * (2 + int(item[1:])) for item in items],
    }
    users = pl.DataFrame({"user_id": [*USERS, *extra_users]})
    return Dataset.from_frames(pl.DataFrame(catalogue), pl.DataFrame(log), users=users)


def make_embeddings(items: list[str]) -> ItemEmbeddings:
    matrix = np.stack([VECTORS.get(item, np.zeros(8)) for item in items]).astype(np.float32)
    return ItemEmbeddings(matrix, np.zeros((len(items), 16), np.uint8))


@dataclass(frozen=True)
class World:
    data: Dataset
    features: Features
    model: Model
    scorer: Scorer


@pytest.fixture(scope="module")
def world() -> World:
    data, embeddings, features = make_dataset(ITEMS), make_embeddings(ITEMS), Features()
    config = RetrievalConfig(
        **dict.fromkeys(("als", "item_item", "ease", "transition", "covisitation", "sequence", "text"), 6),
        **dict.fromkeys(("cold", "fresh", "popular"), 5),
    )
    collaborative = fit_collaborative(data, CollaborativeConfig(embedding_dim=6, epochs=3))
    retriever = Retriever(
        collaborative,
        fit_transitions(data, TransitionConfig()),
        fit_covisitation(data, CovisitationConfig()),
        fit_sequence(data, embeddings.matrix, SequenceConfig(embedding_dim=8, epochs=2, negatives=8))[0],
        embeddings.matrix,
        fit_popularity(data, PopularityConfig()),
        data.weights,
        config,
    )
    head = RelevanceHead.untrained(embeddings.matrix, data.weights, HeadConfig(embedding_dim=4, hidden_dim=3))
    known = np.diff(data.histories.offsets) > 0
    unranked = Recommender(retriever, head, None, features, known, data.catalogue.category)
    state = Replay(data, features)
    recommender = unranked.with_ranker(fit_small_ranker(unranked, data, state, features))
    model = Model(recommender, data.catalogue, data.users, embeddings, dict(DEFAULT_ROLES), {"limit": 50})
    return World(data, features, model, Scorer(model, state, AS_OF))


def fit_small_ranker(models: Recommender, data: Dataset, state: Replay, features: Features):
    """Fitted on a planted mixture of the thirty columns that differ most, and of the first source."""
    rng = np.random.default_rng(4)
    count, rows = 60, 10
    items = np.concatenate([rng.permutation(24)[:rows] for _ in range(count)])
    offsets = np.arange(count + 1, dtype=np.int64) * rows
    moments = np.sort(rng.uniform(5, 29, count)) * DAY_S
    users = rng.integers(0, 10, count)
    source = rng.integers(0, 64, len(items)).astype(np.int32)
    requests = Requests.of(users, moments, data.events.known_at(moments), (offsets, items), source)
    matrix = models.matrix(requests, state.read(requests))
    filled = np.nan_to_num(matrix)
    varied = filled[:, filled.std(axis=0).argsort()[-30:]]
    score = (varied / varied.std(axis=0)) @ rng.normal(size=30) + 8.0 * (source & 1)
    requests = requests.labelled(score > np.median(score))
    config = RankerConfig(rounds=15, leaves=6, min_data_in_leaf=5, threads=1)
    names = features.schema.names
    return fit_ranker(matrix, requests, names, features.schema.digest, config)[0]


ROWS = (
    ["q1"] * 4 + ["q2"] * 3 + ["q3"] * 2,
    ["u1"] * 4 + ["u5"] * 3 + ["stranger"] * 2,
    ["i01", "i07", "i22", "i13", "i07", "nothing", "i02", "i04", "i15"],
    ["als+text", "", "fresh", "popular", "", "", "transition", "", "item_item"],
    [np.nan] * 4 + [20 * DAY_S] * 3 + [np.nan] * 2,
)


def shuffled(order: np.ndarray) -> list[list]:
    return [[column[row] for row in order] for column in ROWS]


def test_scores_come_in_the_order_of_the_rows(world):
    scores = world.scorer.score(*ROWS)
    assert scores.shape == (9,)
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) > 4
    order = np.random.default_rng(1).permutation(9)
    np.testing.assert_array_equal(world.scorer.score(*shuffled(order)), scores[order])
    without = world.scorer.score(*ROWS[:3], [""] * 9, ROWS[4])
    assert (without != scores).any()  # sources count, so the test above sees them in their place


def test_a_request_alone_scores_as_in_a_batch(world):
    scores = world.scorer.score(*ROWS)
    for rows in (range(4), range(4, 7), range(7, 9)):
        np.testing.assert_array_equal(world.scorer.score(*shuffled(np.array(rows))), scores[list(rows)])


def test_a_row_without_a_moment_is_asked_at_as_of(world):
    dated = [AS_OF if np.isnan(moment) else moment for moment in ROWS[4]]
    np.testing.assert_array_equal(world.scorer.score(*ROWS[:4], dated), world.scorer.score(*ROWS))


def test_no_rows_have_no_scores(world):
    assert world.scorer.score([], [], [], [], []).shape == (0,)


def test_files_give_the_same_scores_to_the_last_bit(world):
    files = world.model.to_files()
    again = Model.from_files(files, world.features)
    scorer = Scorer(again, world.scorer.state, AS_OF)
    np.testing.assert_array_equal(scorer.score(*ROWS), world.scorer.score(*ROWS))
    assert again.to_files() == files
    assert again.settings == {"limit": 50}
    assert list(again.roles.items()) == list(DEFAULT_ROLES.items())
    assert again.catalogue.category_names == world.data.catalogue.category_names


def test_no_file_can_carry_code(world):
    endings = {name.rsplit(".", 1)[1] for name in world.model.to_files()}
    assert endings <= {"parquet", "json", "safetensors", "txt"}


def test_other_features_are_refused(world):
    turned = [DEFAULT_FEATURES[place] for place in (0, 2, 1, *range(3, len(DEFAULT_FEATURES)))]
    with pytest.raises(RecsysError, match="feature_mismatch: the ranker was fitted on other features"):
        Model.from_files(world.model.to_files(), Features(turned))


def test_a_model_without_a_ranker_neither_scores_nor_saves(world):
    unranked = replace(world.model.recommender, ranker=None)
    with pytest.raises(ValueError, match="no ranker yet"):
        unranked.score(ask(world.data, ["u1"]), world.scorer.state)
    with pytest.raises(ValueError, match="only a recommender with a ranker"):
        replace(world.model, recommender=unranked).to_files()


@pytest.mark.parametrize("shift", [0.0, 1e-3], ids=["whole", "wrong"])
def test_a_bundle_is_held_against_its_golden_scores(world, tmp_path, shift):
    dated = [AS_OF if np.isnan(moment) else moment for moment in ROWS[4]]
    scores = world.scorer.score(*ROWS[:4], dated) + shift
    golden = Golden(*ROWS[:4], dated, scores.tolist())
    metadata = {"name": "recsys", "as_of": AS_OF, "feature_schema": world.features.schema.digest}
    write_bundle(tmp_path / "bundle", world.model.to_files() | golden.to_files(), metadata)
    bundle = read_bundle(tmp_path / "bundle")
    if shift:
        with pytest.raises(RecsysError, match="golden_mismatch: row 0"):
            load_scorer(bundle, world.scorer.state, world.features)
    else:
        scorer = load_scorer(bundle, world.scorer.state, world.features)
        np.testing.assert_array_equal(scorer.score(*ROWS), world.scorer.score(*ROWS))


def ask(data: Dataset, users: list[str]) -> Requests:
    count = len(users)
    nothing = (np.zeros(count + 1, np.int64), np.zeros(0, np.int32))
    index = data.users.index(pl.Series(users, dtype=pl.String))
    return Requests.of(index, np.full(count, AS_OF), np.full(count, len(data.events)), nothing)


def recommend(models: Recommender, data: Dataset, features: Features, users: list[str], k: int = 6):
    """Per user: rung and the (item id, score, sources) of the best k."""
    state, requests = Replay(data, features), ask(data, users)
    found = models.candidates(requests, state, seen_items(data.histories, requests))
    ranked = models.recommend(found, state, k)
    items = data.catalogue.ids.take(ranked.item_index).to_list()
    rows = list(zip(items, ranked.score.tolist(), source_names(ranked.source), strict=True))
    return {
        user: (int(ranked.rung[q]), rows[ranked.offsets[q] : ranked.offsets[q + 1]])
        for q, user in enumerate(users)
    }


def laid_over(world: World, items: list[str], extra_users: tuple[str, ...] = ()):
    data = make_dataset(items, extra_users)
    return data, world.model.over(data, make_embeddings(items), fit_popularity(data, PopularityConfig()))


def test_the_same_rows_give_the_same_recommender(world):
    data, models = laid_over(world, ITEMS)
    again = recommend(models, data, world.features, USERS)
    assert again == recommend(world.model.recommender, world.data, world.features, USERS)


def test_lists_are_sorted_unseen_and_name_their_sources(world):
    found = recommend(world.model.recommender, world.data, world.features, [*USERS, "stranger"])
    assert [rung for rung, _ in found.values()] == [0] * 9 + [4, 4]
    for user, (_, rows) in found.items():
        scores = [score for _, score, _ in rows]
        assert scores == sorted(scores, reverse=True)
        assert len({item for item, _, _ in rows}) == len(rows) == 6
        assert all(set(sources.split("+")) <= set(SOURCES) for _, _, sources in rows)
        if user in USERS[9:] or user == "stranger":
            assert {name for _, _, sources in rows for name in sources.split("+")} <= {"fresh", "popular"}


def test_one_user_alone_gets_the_list_it_gets_in_a_batch(world):
    models, data = world.model.recommender, world.data
    batch = recommend(models, data, world.features, USERS)
    for user in USERS:
        assert recommend(models, data, world.features, [user])[user] == batch[user]


def test_the_numbering_of_items_and_users_does_not_matter(world):
    turned = [ITEMS[place] for place in np.random.default_rng(6).permutation(24)]
    data, models = laid_over(world, turned, ("a newcomer", "z newcomer"))
    before = recommend(world.model.recommender, world.data, world.features, USERS, k=24)
    after = recommend(models, data, world.features, USERS, k=24)
    for user in USERS:
        (rung, rows), (new_rung, new_rows) = before[user], after[user]
        assert new_rung == rung
        old, new = {item: rest for item, *rest in rows}, {item: rest for item, *rest in new_rows}
        assert {item: sources for item, (_, sources) in new.items()} == {
            item: sources for item, (_, sources) in old.items()
        }
        for item, (score, _) in old.items():
            assert new[item][0] == pytest.approx(score, abs=1e-6)


def pair_scores(pairs, items: list[str]) -> dict[tuple[str, str], float]:
    dense = pairs.factors @ pairs.factors.T if hasattr(pairs, "factors") else pairs.csr.toarray()
    return {(a, b): float(dense[i, j]) for i, a in enumerate(items) for j, b in enumerate(items)}


def test_pair_scores_follow_their_items_and_new_items_have_none(world):
    items = [ITEMS[place] for place in np.random.default_rng(7).permutation(20)]  # four are gone
    items[3:3] = ["n1"]
    items.append("n2")
    data, models = laid_over(world, items)
    assert models.known_users.tolist() == world.model.recommender.known_users.tolist()
    for name, pairs in models.pairs.items():
        old, new = pair_scores(world.model.recommender.pairs[name], ITEMS), pair_scores(pairs, items)
        for (a, b), score in new.items():
            expected = 0.0 if {a, b} & {"n1", "n2"} else old[a, b]
            assert score == pytest.approx(expected, abs=1e-6), (name, a, b)
    found = recommend(models, data, world.features, USERS)
    assert all(np.isfinite([score for _, score, _ in rows]).all() for _, rows in found.values())


def test_new_users_are_unknown_to_the_collaborative_model(world):
    data, models = laid_over(world, ITEMS, ("a newcomer",))
    assert data.users[0] == "a newcomer"
    assert models.known_users.tolist() == [False, *world.model.recommender.known_users.tolist()]
