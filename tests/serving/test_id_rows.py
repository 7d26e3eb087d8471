"""Ids to rows and back: whatever form they come in, and one at a time or all at once."""

from __future__ import annotations

import polars as pl
import pytest

from recsys.dataset import Ids
from serving.engine.id_rows import IdRows

TEXTS, NUMBERS = ["b", "a", "7"], [30, 10, 20]


@pytest.fixture(params=[TEXTS, NUMBERS], ids=["texts", "numbers"])
def rows(request) -> IdRows:
    return IdRows(Ids(pl.Series(request.param)))


@pytest.mark.parametrize(
    "asked",
    [
        [],
        ["a"],
        [10],
        TEXTS,
        NUMBERS,
        ["a", "b", "nobody"],
        [10, 99, 20],
        ["10", 20, "030", "a", 7, "7"],
        ["a", "a", "b"],
    ],
)
def test_all_at_once_are_found_as_one_at_a_time(rows, asked):
    found = rows.find_all(asked)
    assert found.dtype == "int32"
    assert found.tolist() == [rows.find(each) for each in asked]


def test_a_new_id_is_found_from_then_on(rows):
    new = 99 if rows.integers else "new"
    assert rows.find_all([new, rows[0]]).tolist() == [-1, 0]
    assert rows.add(new) == 3 == rows.add(str(new))
    assert rows.find_all([new, rows[0]]).tolist() == [3, 0]
