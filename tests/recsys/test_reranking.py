"""Rerankers: each step against a naive version, all together, and the probabilities that are written down."""

from __future__ import annotations

import time
from itertools import permutations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.dataset import Catalogue
from recsys.errors import RecsysError
from recsys.events import lengths_to_offsets
from recsys.ranked import Ranked, top_ranked
from recsys.requests import DAY_S, Requests
from recsys.reranking import DiversityConfig, ExplorationConfig, Reranker, RerankingConfig, Rule
from recsys.reranking.reranker import relevance_of

CATEGORIES = ["news", "sport", "travel"]
NOW = 1e9


def catalogue_of(items: int) -> Catalogue:
    rows = np.arange(items)
    return Catalogue.from_frame(
        pl.DataFrame(
            {
                "item_id": [f"i{row}" for row in rows],
                "title": ["a title"] * items,
                "category": [CATEGORIES[row % 3] for row in rows],
                "subcategory": [None if row % 2 else f"s{row % 4}" for row in rows],
                "created_at": [None if row % 5 == 0 else NOW - row * DAY_S for row in rows],
            },
            schema_overrides={"created_at": pl.Float64, "subcategory": pl.String},
        )
    )


def embeddings_of(items: int, dim: int = 8) -> np.ndarray:
    matrix = np.random.default_rng(1).normal(size=(items, dim)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    matrix[::7] = 0.0
    return matrix


def requests_of(lists: list[list[int]], users: np.ndarray | None = None) -> Requests:
    offsets = lengths_to_offsets(np.array([len(items) for items in lists], np.int64))
    items = np.array([item for items in lists for item in items], np.int32)
    who = np.arange(len(lists)) if users is None else users
    return Requests.of(who, np.full(len(lists), NOW), np.zeros(len(lists)), (offsets, items))


def rerank(config: RerankingConfig, requests: Requests, scores: np.ndarray, k: int, items: int) -> Ranked:
    reranker = Reranker(config, catalogue_of(items), embeddings_of(items))
    return reranker.rerank(requests, scores, k, np.zeros(len(requests), np.int8))


def lists_of(ranked: Ranked) -> list[list[int]]:
    return [part.tolist() for part in np.split(ranked.item_index, ranked.offsets[1:-1])]


some_lists = st.lists(st.lists(st.integers(0, 29), unique=True, max_size=12), min_size=1, max_size=4)
SCORES = [-2.0, 0.0, 0.5, 1.0, 3.0]


@given(some_lists, st.integers(1, 8), st.randoms())
def test_with_everything_off_lists_are_those_of_the_ranker_to_the_bit(lists, k, random):
    requests = requests_of(lists)
    scores = np.array([random.choice([np.nan, -np.inf, 0.0, 1.0, 2.5]) for _ in range(requests.rows)])
    plain = top_ranked(requests, scores, k, np.zeros(len(requests), np.int8))
    ranked = rerank(RerankingConfig(), requests, scores, k, 30)
    for name in ("offsets", "item_index", "score", "source", "rung"):
        np.testing.assert_array_equal(getattr(ranked, name), getattr(plain, name))
    assert ranked.propensity is None


@settings(deadline=None)
@given(some_lists, st.integers(1, 8), st.randoms(), st.sampled_from([0.0, 0.3, 0.8]))
def test_diversity_is_the_greedy_choice_of_the_paper(lists, k, random, share):
    requests = requests_of(lists)
    scores = np.array([random.choice(SCORES) for _ in range(requests.rows)])
    found = rerank(RerankingConfig(DiversityConfig(share, pool=9)), requests, scores, k, 30)
    relevance, cosine = relevance_of(requests, scores), embeddings_of(30) @ embeddings_of(30).T
    for q, items in enumerate(lists_of(found)):
        own = {
            int(requests.item_index[row]): (relevance[row], scores[row])
            for row in range(requests.offsets[q], requests.offsets[q + 1])
        }
        left = sorted(own, key=lambda item, own=own: (-own[item][1], item))[: max(9, k)]
        for place, item in enumerate(items):
            above = items[:place]
            value = {
                i: share * own[i][0] - (1 - share) * max((cosine[i, a] for a in above), default=0.0)
                for i in left
            }
            assert value[item] == pytest.approx(max(value.values()), abs=1e-6)
            left.remove(item)
        assert len(items) == min(k, len(own))


def test_a_copy_of_the_item_above_gives_way_to_an_item_without_embedding():
    requests, scores = requests_of([[1, 8, 7]]), np.array([3.0, 2.9, 1.5])
    embeddings = embeddings_of(9)
    embeddings[8], embeddings[7] = embeddings[1], 0.0
    for share, expected in ((1.0, [1, 8, 7]), (0.6, [1, 8, 7]), (0.5, [1, 7, 8])):
        reranker = Reranker(RerankingConfig(DiversityConfig(share)), catalogue_of(9), embeddings)
        ranked = reranker.rerank(requests, scores, 3, np.zeros(1, np.int8))
        assert ranked.item_index.tolist() == expected
        assert ranked.score.tolist() == [{1: 3.0, 8: 2.9, 7: 1.5}[item] for item in expected]


@pytest.mark.slow
def test_two_thousand_requests_a_second_on_one_core():
    count, candidates, items = 1000, 200, 5000
    rng = np.random.default_rng(0)
    lists = [rng.choice(items, candidates, replace=False).tolist() for _ in range(count)]
    requests, scores = requests_of(lists), rng.normal(size=count * candidates)
    reranker = Reranker(
        RerankingConfig(DiversityConfig(0.5)), catalogue_of(items), embeddings_of(items, dim=384)
    )
    rung = np.zeros(count, np.int8)
    reranker.rerank(requests.take(np.arange(2)), scores[: 2 * candidates], 20, rung[:2])
    started = time.process_time()
    reranker.rerank(requests, scores, 20, rung)
    assert count / (time.process_time() - started) > 2000


@settings(deadline=None)
@given(some_lists, st.integers(1, 8), st.randoms())
def test_rules_filter_boost_and_cap(lists, k, random):
    requests = requests_of(lists)
    scores = np.array([random.choice(SCORES) for _ in range(requests.rows)])
    rules = (
        Rule("filter", "category", equals="travel"),
        Rule("filter", "item_id", equals="i4"),
        Rule("boost", "subcategory", equals="s2", by=0.4),
        Rule("bury", "age_days", above=10, by=2.0),
        Rule("cap", "category", by=2),
        Rule("cap", "category", equals="news", by=1),
    )
    found = rerank(RerankingConfig(rules=rules), requests, scores, k, 30)
    relevance, catalogue = relevance_of(requests, scores), catalogue_of(30)
    for q, items in enumerate(lists_of(found)):
        own = {}
        for row in range(requests.offsets[q], requests.offsets[q + 1]):
            item = int(requests.item_index[row])
            if item % 3 != 2 and item != 4:
                old = NOW - catalogue.created_at[item] >= 10 * DAY_S
                own[item] = (-(relevance[row] + 0.4 * (item % 4 == 2) - 2.0 * old), -scores[row], item)
        expected, used = [], {}
        for item in sorted(own, key=own.__getitem__):
            if used.get(item % 3, 0) < (1 if item % 3 == 0 else 2) and len(expected) < k:
                expected.append(item)
                used[item % 3] = used.get(item % 3, 0) + 1
        assert items == expected


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        (Rule("promote", "category", equals="news"), "boost, bury, filter, cap"),
        (Rule("boost", "brand", equals="x", by=1), "item_id, category, subcategory, age_days"),
        (Rule("filter", "category", equals="cooking"), "news, sport, travel"),
        (Rule("filter", "subcategory", equals="s9"), "s0, s2"),
        (Rule("boost", "category", equals="news"), "by > 0"),
        (Rule("bury", "category", equals="news", by=float("inf")), "by > 0"),
        (Rule("cap", "category", by=1.5), "by = 1, 2"),
        (Rule("cap", "item_id", equals="i1", by=1), "category or subcategory"),
        (Rule("filter", "age_days"), "above or below"),
        (Rule("filter", "category"), "equals"),
    ],
)
def test_a_wrong_rule_is_refused_with_what_is_allowed(rule, named):
    with pytest.raises(RecsysError) as caught:
        Reranker(RerankingConfig(rules=(rule,)), catalogue_of(12), embeddings_of(12))
    assert (caught.value.code, caught.value.exit_code) == ("rule_invalid", 78)
    assert named in caught.value.what
    assert caught.value.where == "reranking.rules[0]"


def test_probabilities_of_all_lists_are_their_frequencies():
    runs, k, share = 60_000, 2, 0.4
    requests = requests_of([[3, 1, 2, 0]] * runs)
    scores = np.tile([3.0, 1.0, 2.0, 0.0], runs)
    ranked = rerank(RerankingConfig(exploration=ExplorationConfig(share, seed=5)), requests, scores, k, 4)
    lists = ranked.item_index.reshape(runs, k)
    stated = dict(
        zip(map(tuple, lists.tolist()), ranked.propensity.reshape(runs, k).prod(axis=1), strict=True)
    )
    assert set(stated) == set(permutations(range(4), 2))
    assert sum(stated.values()) == pytest.approx(1.0)
    for shown, probability in stated.items():
        observed = (lists == shown).all(axis=1).mean()
        assert abs(observed - probability) < 4.5 * np.sqrt(probability * (1 - probability) / runs)
    first = dict(zip(lists[:, 0].tolist(), ranked.propensity[::k].tolist(), strict=True))
    assert first == pytest.approx({3: 0.7, 2: 0.1, 1: 0.1, 0: 0.1})


def test_a_night_explores_the_same_way_again_in_any_order_and_another_seed_does_not():
    requests = requests_of([list(range(30))] * 50)
    scores = np.tile(np.linspace(1, 0, 30), 50)

    def run(requests, seed):
        config = RerankingConfig(exploration=ExplorationConfig(0.3, seed=seed))
        return rerank(config, requests, scores, 10, 30).table(10)

    once, order = run(requests, 1), np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(once[order], run(requests.take(order), 1))
    assert (once != run(requests, 2)).any()
    elsewhere = (once >= 10).mean()  # a random place shows one of the 20 others, or of the list itself
    assert 0.1 < elsewhere < 0.3


def test_exploration_keeps_to_the_filters_and_to_the_length_of_the_list():
    rules = (Rule("filter", "category", equals="news"), Rule("cap", "category", by=2))
    config = RerankingConfig(exploration=ExplorationConfig(1.0), rules=rules)
    ranked = rerank(config, requests_of([list(range(30))] * 40), np.tile(np.arange(30.0), 40), 10, 30)
    assert np.diff(ranked.offsets).tolist() == [4] * 40
    assert not (ranked.item_index % 3 == 0).any()
    np.testing.assert_allclose(ranked.propensity.reshape(40, 4), [[1 / 20, 1 / 19, 1 / 18, 1 / 17]] * 40)


def test_a_configuration_comes_back_from_plain_json():
    from dataclasses import asdict

    config = RerankingConfig(
        DiversityConfig(0.7), ExplorationConfig(0.1, 3), (Rule("cap", "category", by=2),)
    )
    assert RerankingConfig.from_dict(asdict(config)) == config
    assert RerankingConfig.from_dict({}).is_off
    with pytest.raises(RecsysError, match="unknown key"):
        RerankingConfig.from_dict({"rules": [{"action": "cap", "fild": "category"}]})


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_shares_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match="must lie in"):
        DiversityConfig(wrong)
    with pytest.raises(ValueError, match="must lie in"):
        ExplorationConfig(wrong)
