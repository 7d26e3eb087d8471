"""The draft is fair, whole and repeatable, and its teams are found again in what the client showed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.draws import Draws
from serving.experiments.experiment import Arm
from serving.experiments.interleaving import MOST_PLACES, Teams, team_draft

C, T = Arm.CONTROL, Arm.TREATMENT

lists = st.lists(st.integers(0, 30), unique=True, max_size=20)
seeds = st.integers(0, 2**63 - 1)


def paper_draft(control, treatment, k, seed):
    """Algorithm 2 as it is printed: the side with fewer picks goes next, a coin decides between equals."""
    coins = iter(Draws(seed).bits("first pick", np.arange(2 * k + 2)) >> np.uint64(63))
    own = {C: control, T: treatment}
    team = {C: [], T: []}
    order = []
    while len(order) < k:
        is_even = len(team[C]) == len(team[T])
        side = (T if next(coins) else C) if is_even else min(team, key=lambda arm: len(team[arm]))
        left = [item for item in own[side] if item not in order]
        if not left:
            break
        team[side].append(left[0])
        order.append(left[0])
    return [(item, C if item in team[C] else T) for item in order]


@given(lists, lists, st.integers(0, 45), seeds)
def test_the_draft_is_the_papers_and_fills_up_without_credit(control, treatment, k, seed) -> None:
    got = team_draft(control, treatment, k, seed=seed)
    drafted = [pick for pick in got if pick[1] is not None]

    assert drafted == paper_draft(control, treatment, k, seed)
    assert got[: len(drafted)] == drafted


@given(lists, lists, st.integers(0, 45), seeds)
def test_the_list_has_k_items_of_either_list_each_once(control, treatment, k, seed) -> None:
    got = team_draft(control, treatment, k, seed=seed)
    items = [item for item, _ in got]

    assert len(items) == len(set(items)) == min(k, len({*control, *treatment}))
    assert {*items} <= {*control, *treatment}
    for item, arm in got:
        assert arm is None or item in (control if arm is C else treatment)
    assert got == team_draft(control, treatment, k, seed=seed)


@given(lists, lists, st.integers(0, 45), seeds)
def test_both_sides_have_placed_as_many_after_every_second_place(control, treatment, k, seed) -> None:
    sides = [arm for _, arm in team_draft(control, treatment, k, seed=seed)]
    drafted = [arm for arm in sides if arm is not None]

    for end in range(0, len(drafted) + 1, 2):
        assert drafted[:end].count(C) == drafted[:end].count(T)


@given(lists, st.integers(0, 25), seeds)
def test_equal_lists_come_out_as_they_are(items, k, seed) -> None:
    got = team_draft(items, items, k, seed=seed)

    assert [item for item, _ in got] == items[:k]
    assert None not in [arm for _, arm in got]


@given(lists, lists, seeds)
def test_no_item_stands_below_one_that_both_lists_have_below_it(control, treatment, seed) -> None:
    items = [item for item, _ in team_draft(control, treatment, 45, seed=seed)]
    shared = {*control} & {*treatment}

    for above in shared:
        for below in shared:
            if control.index(above) < control.index(below) and treatment.index(above) < treatment.index(
                below
            ):
                assert items.index(above) < items.index(below)


def test_a_longer_list_begins_with_the_shorter_one() -> None:
    control, treatment = list(range(20)), list(range(10, 30))

    whole = team_draft(control, treatment, 30, seed=7)
    assert all(team_draft(control, treatment, k, seed=7) == whole[:k] for k in range(31))


def test_a_small_draft_has_the_outcomes_that_a_hand_finds_equally_often() -> None:
    found = Counter(tuple(team_draft("ab", "bc", 3, seed=seed)) for seed in range(8000))

    # round 1: a by C and b by T in either order; round 2: T places c, or C finds nothing and c has no team
    expected = {
        (("a", C), ("b", T), ("c", T)),
        (("a", C), ("b", T), ("c", None)),
        (("b", T), ("a", C), ("c", T)),
        (("b", T), ("a", C), ("c", None)),
    }
    assert set(found) == expected
    assert all(abs(count - 2000) < 4 * np.sqrt(8000 * 1 / 4 * 3 / 4) for count in found.values())


def test_equal_lists_share_the_credit_of_every_place() -> None:
    credit = np.zeros(7)
    for seed in range(4_000):
        credit += [arm is T for _, arm in team_draft(range(7), range(7), 7, seed=seed)]

    assert (abs(credit - 2000) < 4 * np.sqrt(4_000 / 4)).all()


def wins(control, treatment, attraction, seed, k=10):
    """+1, 0 or -1: who placed more of what one simulated user clicks, the deeper the less often."""
    rng = np.random.default_rng(seed)
    picks = team_draft(control, treatment, k, seed=seed)
    clicked = rng.random(len(picks)) < [
        attraction[item] / (1 + place / 3) for place, (item, _) in enumerate(picks)
    ]
    sides = [arm for (_, arm), hit in zip(picks, clicked, strict=True) if hit]
    return int(np.sign(sides.count(T) - sides.count(C)))


def test_two_lists_of_the_same_quality_win_equally_often() -> None:
    attraction = np.linspace(0.1, 0.5, 5).repeat(8)  # 40 items in groups of equals
    rng = np.random.default_rng(1)
    orders = [np.argsort(-attraction + 1e-6 * rng.random(40), kind="stable").tolist() for _ in range(2)]
    scores = [wins(*orders, attraction, seed) for seed in range(4000)]

    assert orders[0] != orders[1]
    assert abs(np.mean(scores)) < 4 * np.std(scores) / np.sqrt(4000)


def test_the_better_list_wins_whichever_side_it_is_on() -> None:
    attraction = np.linspace(0.6, 0.05, 40)
    best, worse = list(range(40)), np.random.default_rng(2).permutation(40).tolist()

    assert np.mean([wins(worse, best, attraction, seed) for seed in range(500)]) > 0.2
    assert np.mean([wins(best, worse, attraction, seed) for seed in range(500)]) < -0.2


picks = st.lists(
    st.tuples(st.integers() | st.text(max_size=8), st.sampled_from([C, T])),
    max_size=MOST_PLACES,
    unique_by=lambda pick: str(pick[0]),
)


@given(picks)
def test_teams_are_found_again_from_their_text_where_they_were_placed(picks) -> None:
    teams = Teams.parse(str(Teams.of(picks)))

    assert [teams.find(item, place) for place, (item, _) in enumerate(picks)] == [arm for _, arm in picks]
    assert [teams.find(str(item), place) for place, (item, _) in enumerate(picks)] == [
        arm for _, arm in picks
    ]


def test_teams_are_found_in_a_list_with_gaps_and_in_another_order_but_for_a_few() -> None:
    wrong = unknown = 0
    for seed in range(300):
        picks = team_draft(
            [f"c{n}-{seed}" for n in range(10)], [f"t{n}-{seed}" for n in range(10)], 10, seed=seed
        )
        teams = Teams.of(picks)
        for place, (item, arm) in enumerate(picks[:0:-2]):
            found = teams.find(item, place)
            unknown += found is None
            wrong += found not in (None, arm)

    assert unknown < 300 * 5 * 0.01
    assert wrong < 300 * 5 * 0.01


def test_items_that_nobody_placed_have_no_team() -> None:
    teams = Teams.of(team_draft(range(10), range(5, 15), 10, seed=1))

    assert sum(teams.find(f"advert {number}", number % 10) is not None for number in range(1000)) < 20
    assert Teams.parse("").find("a", 0) is None


def test_places_that_are_not_remembered_have_no_team_and_favour_nobody() -> None:
    picks = team_draft(range(100), range(100), 100, seed=3)
    kept = Teams.of(picks)
    sides = [kept.find(item, place) for place, (item, _) in enumerate(picks)][:MOST_PLACES]

    assert len(str(kept)) == 2 * MOST_PLACES
    assert sides.count(C) == sides.count(T) == MOST_PLACES // 2


def test_two_signs_a_place_are_those_of_the_documented_formula() -> None:
    # the check value of CRC-32 is 0xCBF43926; its 11 low bits are 294, so the codes are 588 and 589
    assert str(Teams.of([(123456789, C), ("123456789", T)])) == "JM" + "JN"


@pytest.mark.parametrize("text", ["A", "A+", "é9", "AA\n", "=="])
def test_other_texts_are_no_teams(text) -> None:
    with pytest.raises(ValueError, match="base64url"):
        Teams.parse(text)
