"""The catalogue's text, the users and the random numbers behind them."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.draws import Draws
from recsys.simulation import SimulationConfig
from recsys.simulation.grammar import _HEADS, _STRIDE, _TAILS, NAME_CAPACITY, Grammar, names
from recsys.simulation.world import MAX_REQUESTS_PER_DAY, Items, Population

GRAMMAR = Grammar.load()


def written(count: int, seed: int = 0) -> tuple[Items, list[str], list[str]]:
    draws = Draws(seed)
    items = Items.of(SimulationConfig(items=count, seed=seed), GRAMMAR, draws)
    return items, *GRAMMAR.write(np.arange(count), items.subcategory, items.attributes, draws)


def test_grammar_has_enough_shelves_and_words():
    assert len(GRAMMAR.categories) >= 12
    assert len({(shelf.category, shelf.name) for shelf in GRAMMAR.subcategories}) >= 60
    for shelf in GRAMMAR.subcategories:
        assert min(len(shelf.nouns), len(shelf.parts), len(shelf.uses)) >= 4
    for attribute in GRAMMAR.attributes:
        assert len(set(attribute.adjectives)) >= 4
        assert len(set(attribute.clauses)) >= 4


def test_every_noun_goes_with_a_or_an():
    heads = [noun.split(" of ")[0] for shelf in GRAMMAR.subcategories for noun in shelf.nouns]
    singular = ("ss", "lens", "atlas")
    assert [head for head in heads if head.endswith("s") and not head.endswith(singular)] == []


def test_no_two_items_alike():
    _, titles, descriptions = written(20_000)
    assert len(set(titles)) == len(set(descriptions)) == 20_000


def test_names_suffice_for_a_million_items_and_never_meet():
    assert NAME_CAPACITY >= 1_000_000
    assert np.gcd(_STRIDE, NAME_CAPACITY) == 1  # so the numbers are permuted
    assert len(set(_HEADS)) == len(_HEADS)
    assert len(set(_TAILS)) == len(_TAILS)
    # consonants, vowel, consonants + vowel, rest: the second vowel is where the tail begins
    assert all(re.fullmatch(r"[^aeiou]+[aeiou][^aeiou]+", head) for head in _HEADS)
    assert all(re.match(r"[aeiou]", tail) for tail in _TAILS)


@settings(max_examples=50)
@given(st.integers(0, 2**63), st.integers(0, NAME_CAPACITY - 300))
def test_any_run_of_numbers_gets_distinct_names(seed, first):
    assert len(set(names(np.arange(first, first + 300), Draws(seed)))) == 300


def test_a_number_beyond_the_names_is_refused():
    with pytest.raises(ValueError, match="item numbers"):
        names(np.array([NAME_CAPACITY]), Draws(0))


def test_descriptions_are_one_to_three_sentences_of_readable_length():
    _, titles, descriptions = written(2000)
    words = np.array([len(text.split()) for text in descriptions])
    assert words.min() >= 20
    assert words.max() <= 65
    assert 30 <= words.mean() <= 45
    assert all(1 <= text.count(". ") + 1 <= 3 and text.endswith(".") for text in descriptions)
    assert not [
        text for text in titles + descriptions if re.search(r"[{}]|  |\ba [aeiou]|\ban [^aeiouAEIOUS]", text)
    ]


def test_every_attribute_of_an_item_is_in_its_description():
    items, _, descriptions = written(500)
    for codes, text in zip(items.attributes, descriptions, strict=True):
        present = [GRAMMAR.attributes[code] for code in codes if code >= 0]
        assert 3 <= len(present) <= 5
        for attribute in present:
            assert any(words.lower() in text.lower() for words in attribute.adjectives + attribute.clauses)


def test_items_are_in_order_of_arrival_and_cover_every_shelf():
    config = SimulationConfig()
    items, _, _ = written(config.items)
    assert (np.diff(items.created_s) >= 0).all()
    assert (items.created_s < config.start_s).mean() == pytest.approx(1 - config.new_items_share, abs=0.01)
    assert items.created_s.max() < config.start_s + config.days * 86_400
    assert set(items.subcategory) == set(range(len(GRAMMAR.subcategories)))


def test_a_user_is_the_same_in_any_company():
    population = Population(SimulationConfig(), GRAMMAR, Draws(5))
    everyone, one = population.tastes(np.arange(100), 3), population.tastes(np.array([42]), 3)
    assert (everyone.subcategory[42] == one.subcategory[0]).all()
    assert everyone.strength[42] == pytest.approx(one.strength[0])
    assert population.requests(np.arange(100), 3)[42] == population.requests(np.array([42]), 3)[0]


def test_tastes_drift_slowly():
    population = Population(SimulationConfig(), GRAMMAR, Draws(0))
    users = np.arange(2000)
    first = population.tastes(users, 0)
    kept = [(population.tastes(users, day).subcategory == first.subcategory).mean() for day in (0, 1, 13)]
    assert kept[0] == 1.0
    assert kept[1] > 0.97
    assert 0.7 < kept[2] < 0.95
    assert (population.tastes(users, 300).subcategory[:, 0] == first.subcategory[:, 0]).all()


def test_activity_is_skewed_and_some_users_only_register():
    config = SimulationConfig(users=5000)
    population = Population(config, GRAMMAR, Draws(0))
    users = np.arange(config.users)
    per_day = np.stack([population.requests(users, day) for day in range(config.days)], axis=1)
    arrival, total = population.arrival_day(users), per_day.sum(axis=1)
    assert (per_day[np.arange(config.days) < arrival[:, None]] == 0).all()
    assert per_day.max() <= MAX_REQUESTS_PER_DAY
    assert (arrival > 0).mean() == pytest.approx(config.new_users_share, abs=0.02)
    assert len(np.unique(arrival)) == config.days
    active = arrival == 0
    assert (total == 0).mean() > 0.02
    assert ((total >= 1) & (total <= 2)).mean() > 0.1
    assert np.quantile(total[active], 0.99) > 4 * total[active].mean()


@pytest.mark.parametrize(
    "options",
    [
        {"users": 0},
        {"items": NAME_CAPACITY + 1},
        {"days": 0},
        {"slate_size": 0},
        {"new_items_share": 1.5},
        {"requests_per_user_day": 0},
    ],
)
def test_impossible_sizes_are_refused_by_name(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SimulationConfig(**options)


def test_draws_are_uniform_and_streams_are_independent():
    draws = Draws(3)
    keys = np.arange(50_000)
    first, second = draws.uniform("a", keys), draws.uniform("b", keys)
    for u in (first, second, draws.uniform("a", keys, 1)):
        assert ((u > 0) & (u < 1)).all()
        counts = np.bincount((u * 20).astype(int), minlength=20)
        assert ((counts - 2500) ** 2 / 2500).sum() < 43.8  # chi square, 19 degrees, p = .001
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.02
