"""One user a rung of the cold-start ladder."""

from __future__ import annotations

import numpy as np

from recsys.cold_start import RUNGS, rungs
from recsys.pairs import known_rows
from recsys.requests import HistoryBatch

FACTORS = np.array([[1, 0], [0, 0], [0, 0], [0, 0]], np.float32)  # only item 0 is in the training log
EMBEDDINGS = np.array([[1], [1], [0], [0]], np.float32)  # items 0 and 1 have text
CATEGORY = np.array([2, -1, 0, -1], np.int32)  # items 0 and 2 have a category


def answer(asks: list[tuple[int, list[int]]], known_users: list[bool] | None = None) -> list[str]:
    items = np.array([item for _, history in asks for item in history], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(history) for _, history in asks])]).astype(np.int64)
    batch = HistoryBatch(offsets, items, np.zeros(len(items), np.int32), np.zeros(len(items)))
    known = np.array([True, True, False] if known_users is None else known_users, np.bool_)
    users = np.array([user for user, _ in asks], np.int32)
    items = known_rows(FACTORS), known_rows(EMBEDDINGS)
    return [RUNGS[place] for place in rungs(users, batch, known, *items, CATEGORY)]


def test_each_rung_has_its_user():
    asks = [(0, [3, 0]), (2, [1, 0]), (2, [2, 1]), (2, [3, 2]), (2, [3])]
    assert answer(asks) == list(RUNGS)


def test_a_user_of_the_training_log_without_a_usable_history_falls_down_the_ladder():
    assert answer([(1, []), (1, [1]), (1, [2]), (1, [3])]) == ["popular", "content", "category", "popular"]


def test_unknown_users_and_users_newer_than_the_model_are_folded_in():
    assert answer([(-1, [0]), (7, [0]), (-1, [])]) == ["folded_in", "folded_in", "popular"]
    assert answer([(0, [0])], known_users=[]) == ["folded_in"]


def test_unknown_items_are_no_evidence():
    assert answer([(0, [-1]), (0, [-1, 2])]) == ["popular", "category"]
    assert answer([]) == []
