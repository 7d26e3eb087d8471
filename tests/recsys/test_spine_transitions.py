"""Transition strengths, computed by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from recsys.dataset import Dataset
from recsys.requests import DAY_S
from recsys.transitions import (
    Covisitation,
    CovisitationConfig,
    TransitionConfig,
    fit_covisitation,
    fit_transitions,
    transitions_from_files,
    transitions_to_files,
)

PLAIN = TransitionConfig(steps=2, backward=0.0, gap_half_life_days=1e12, damping=0.0, neighbours=9)


def make_dataset(rows: list[tuple[str, str, float]], kind: str = "click") -> Dataset:
    events = pl.DataFrame(
        [(user, item, kind, day * DAY_S) for user, item, day in rows],
        schema={"user_id": pl.String, "item_id": pl.String, "event_type": pl.String, "timestamp": pl.Float64},
        orient="row",
    )
    return Dataset.from_frames(pl.DataFrame({"item_id": list("abcd"), "title": list("ABCD")}), events)


def strengths(data: Dataset, config: TransitionConfig) -> list[list[float]]:
    return fit_transitions(data, config).csr.toarray().tolist()


ABC = [("u", "a", 0.0), ("u", "b", 1.0), ("u", "c", 3.0)]


def test_a_pair_counts_one_over_the_steps_between():
    expected = [[0, 1, 1 / 2, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(strengths(make_dataset(ABC), PLAIN), expected)


def test_the_reverse_pair_gets_the_backward_share():
    config = TransitionConfig(steps=2, backward=0.5, gap_half_life_days=1e12, damping=0.0)
    expected = [[0, 1, 1 / 2, 0], [1 / 2, 0, 1, 0], [1 / 4, 1 / 2, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(strengths(make_dataset(ABC), config), expected)


def test_a_gap_of_one_half_life_counts_half():
    config = TransitionConfig(steps=2, backward=0.0, gap_half_life_days=1.0, damping=0.0)
    expected = [[0, 1 / 2, 1 / 2 * 1 / 8, 0], [0, 0, 1 / 4, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(strengths(make_dataset(ABC), config), expected)


def test_strengths_are_damped_by_the_popularity_of_both_ends():
    data = make_dataset([*ABC, ("v", "a", 0.0), ("v", "b", 1.0), ("w", "a", 5.0)])
    config = TransitionConfig(steps=1, backward=0.0, gap_half_life_days=1e12, damping=0.5)
    expected = [[0, 2 / np.sqrt(3 * 2), 0, 0], [0, 0, 1 / np.sqrt(2 * 1), 0], [0] * 4, [0] * 4]
    np.testing.assert_allclose(strengths(data, config), expected, rtol=1e-6)


def test_no_pair_crosses_users_or_holds_one_item_twice():
    data = make_dataset([("u", "a", 0.0), ("v", "b", 1.0), ("u", "a", 2.0), ("v", "d", 3.0)])
    expected = [[0] * 4, [0, 0, 0, 1], [0] * 4, [0] * 4]
    assert strengths(data, PLAIN) == expected


def test_the_strongest_successors_are_kept():
    rows = [
        ("u", "a", 0.0),
        ("u", "b", 1.0),
        ("v", "a", 0.0),
        ("v", "c", 1.0),
        ("w", "a", 0.0),
        ("w", "c", 1.0),
    ]
    config = TransitionConfig(steps=1, backward=0.0, gap_half_life_days=1e12, damping=0.0, neighbours=1)
    assert strengths(make_dataset(rows), config)[0] == [0, 0, 2, 0]


@pytest.mark.parametrize("rows", [[], [("u", "a", 0.0)]], ids=["empty", "one event"])
def test_a_log_without_pairs_has_no_strengths(rows):
    assert strengths(make_dataset(rows), PLAIN) == [[0] * 4] * 4


def test_events_that_are_no_targets_have_no_successor():
    assert strengths(make_dataset(ABC, kind="view"), PLAIN) == [[0] * 4] * 4


def test_files_round_trip_exactly():
    pairs = fit_transitions(make_dataset(ABC), TransitionConfig())
    again = transitions_from_files(transitions_to_files(pairs))
    for name in ("offsets", "columns", "values"):
        np.testing.assert_array_equal(getattr(again, name), getattr(pairs, name))
        assert getattr(again, name).dtype == getattr(pairs, name).dtype


def test_pairs_that_end_in_an_outcome_are_counted_apart():
    """u clicks a, buys b, clicks c, buys d; v clicks a, then d."""
    rows = [("u", "a", "click", 0.0), ("u", "b", "purchase", 1.0), ("u", "c", "click", 2.0)]
    rows += [("u", "d", "purchase", 3.0), ("v", "a", "click", 0.0), ("v", "d", "click", 1.0)]
    schema = {"user_id": pl.String, "item_id": pl.String, "event_type": pl.String, "timestamp": pl.Float64}
    events = pl.DataFrame(rows, schema=schema, orient="row").with_columns(pl.col("timestamp") * DAY_S)
    data = Dataset.from_frames(pl.DataFrame({"item_id": list("abcd"), "title": list("ABCD")}), events)
    config = CovisitationConfig(steps=2, backward=0.5, gap_half_life_days=1e12, damping=0.0)
    found = fit_covisitation(data, config)
    to_outcome = [[0, 1, 0, 0], [0, 0, 0, 1 / 2], [0, 1 / 2, 0, 1], [0, 1 / 4, 0, 0]]
    np.testing.assert_allclose(found.to_outcome.csr.toarray(), to_outcome)
    between = [[0, 0, 0, 0], [0, 0, 0, 1 / 2], [0, 0, 0, 0], [0, 1 / 4, 0, 0]]
    np.testing.assert_allclose(found.between_outcomes.csr.toarray(), between)
    again = Covisitation.from_files(found.to_files())
    np.testing.assert_array_equal(again.to_outcome.values, found.to_outcome.values)
    np.testing.assert_array_equal(again.between_outcomes.columns, found.between_outcomes.columns)


def test_a_log_of_one_kind_of_event_has_no_outcomes_of_its_own():
    found = fit_covisitation(make_dataset(ABC, kind="purchase"), CovisitationConfig())
    assert not len(found.to_outcome.values)
    assert len(found.between_outcomes) == 4
    assert len(fit_covisitation(make_dataset([]), CovisitationConfig()).to_outcome) == 4
