"""The logging policy: what it says it shows with some probability, it shows that often."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recsys.draws import Draws
from recsys.simulation import SimulationConfig
from recsys.simulation.grammar import Grammar
from recsys.simulation.policy import RECENT_CLICKS, DayPolicy, Memory, Visits, first_seen
from recsys.simulation.world import Items, Population


def visits_of(user: int, count: int, day: int = 0) -> Visits:
    """`count` different requests of one user; they differ in nothing but their random numbers."""
    return Visits(np.full(count, user, np.int32), day, np.arange(count).astype(np.int64), np.zeros(count))


def policy_of(
    items: int, slate_size: int, clicks: list[int], draws: Draws
) -> tuple[DayPolicy, Memory, Items]:
    config = SimulationConfig(users=3, items=items, days=2, slate_size=slate_size, new_items_share=0.0)
    catalogue = Items.of(config, Grammar.load(), Draws(0))
    memory = Memory(3, items)
    memory.learn(np.ones(len(clicks), np.int32), np.array(clicks, np.int32))
    return DayPolicy(catalogue, config.start_s, memory, slate_size, draws), memory, catalogue


def slates(policy: DayPolicy, visits: Visits) -> tuple[np.ndarray, np.ndarray]:
    population = Population(SimulationConfig(), Grammar.load(), Draws(0))
    return policy.slates(visits, population.tastes(visits.user, visits.day))


def test_propensities_are_the_frequencies_of_a_monte_carlo():
    runs = 60_000
    policy, _, _ = policy_of(30, 3, [1, 1, 1, 4, 4, 7], Draws(1))
    shown, propensity = slates(policy, visits_of(0, runs))
    for place in range(2):
        # place 2 is conditional on what stands above: look at one frequent first item
        rows = (
            np.arange(runs)
            if place == 0
            else np.flatnonzero(shown[:, 0] == np.bincount(shown[:, 0]).argmax())
        )
        stated = dict(zip(shown[rows, place].tolist(), propensity[rows, place].tolist(), strict=True))
        observed = np.bincount(shown[rows, place], minlength=30) / len(rows)
        error = [abs(observed[i] - p) / np.sqrt(p * (1 - p) / len(rows)) for i, p in stated.items()]
        assert max(error) < 4.5
        assert sum(stated.values()) == pytest.approx(1.0, abs=1e-4)


def test_recently_clicked_items_are_not_shown_and_propensities_know_it():
    runs = 60_000
    recent = [1, 4, 4, 7]
    policy, _, _ = policy_of(30, 3, recent, Draws(2))
    shown, propensity = slates(policy, visits_of(1, runs))
    assert not np.isin(shown, recent).any()
    stated = dict(zip(shown[:, 0].tolist(), propensity[:, 0].tolist(), strict=True))
    assert len(stated) == 27
    assert sum(stated.values()) == pytest.approx(1.0, abs=1e-4)


def test_probabilities_of_all_slates_of_a_tiny_catalogue_sum_to_one():
    policy, _, _ = policy_of(4, 3, [2], Draws(3))
    shown, propensity = slates(policy, visits_of(0, 20_000))
    probability = {tuple(s): float(p) for s, p in zip(shown.tolist(), propensity.prod(axis=1), strict=True)}
    assert set(probability) == set(permutations(range(4), 3))
    assert sum(probability.values()) == pytest.approx(1.0, abs=1e-4)


def test_slates_have_no_repetition_and_valid_propensities():
    policy, _, _ = policy_of(1500, 20, [3] * 50, Draws(4))
    shown, propensity = slates(policy, visits_of(0, 2000))
    assert first_seen(shown).all()
    assert ((propensity > 0) & (propensity <= 1)).all()


@pytest.mark.parametrize("items", [1, 2, 5])
def test_a_short_catalogue_gives_short_slates(items):
    policy, _, _ = policy_of(items, 20, [0], Draws(5))
    shown, propensity = slates(policy, visits_of(1, 50))
    assert (np.sort(shown, axis=1) == np.arange(items)).all()
    assert propensity[:, -1] == pytest.approx(1.0, abs=1e-5)  # only one item was left


def test_popular_items_are_shown_more_often():
    policy, _, _ = policy_of(300, 10, [5] * 100 + [9] * 10, Draws(6))
    shown, _ = slates(policy, visits_of(0, 3000))
    counts = np.bincount(shown.ravel(), minlength=300)
    assert counts[5] > counts[9] > np.median(counts)


def test_memory_keeps_the_last_clicks_newest_first():
    memory = Memory(2, 100)
    memory.learn(np.array([0, 1, 0]), np.array([10, 50, 11]))
    memory.learn(np.array([0] * 3), np.array([12, 13, 14]))
    assert memory.recent[0].tolist() == [14, 13, 12, 11, 10, -1, -1, -1]
    assert memory.recent[1].tolist() == [50] + [-1] * (RECENT_CLICKS - 1)
    memory.learn(np.zeros(20, np.int32), np.arange(20))
    assert memory.recent[0].tolist() == [19, 18, 17, 16, 15, 14, 13, 12]


@settings(max_examples=100)
@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(1, 12)), elements=st.integers(-3, 5)))
def test_first_seen_equals_a_naive_loop(values):
    naive = [[value not in row[:place] for place, value in enumerate(row)] for row in values.tolist()]
    assert first_seen(values).tolist() == naive
