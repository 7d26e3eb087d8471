"""Every column has one family, and leaves with it."""

from __future__ import annotations

import pytest

from features.builder import Features
from features.catalogue import DEFAULT_FEATURES
from features.declaration import Counter, HistorySimilarity, InSlate, RequestScore
from features.families import columns_without, families


def test_every_column_is_in_exactly_one_family():
    columns = [column for names in families(DEFAULT_FEATURES).values() for column in names]
    assert sorted(columns) == sorted(Features().schema.names)


def test_a_family_leaves_with_the_comparisons_of_its_columns():
    declarations = (
        Counter("item_target", "item", "target", (7.0,)),
        HistorySimilarity("text", "text", ("mean", "max")),
        RequestScore("als_user"),
        InSlate("text_mean", ("rank", "zscore")),
        InSlate("item_target_7d", ("rank",)),
    )
    assert families(declarations) == {
        "popularity": ("item_target_7d",),
        "text": ("text_mean", "text_max"),
        "als": ("als_user",),
        "slate": ("text_mean_rank", "text_mean_zscore", "item_target_7d_rank"),
    }
    assert columns_without(declarations, "text") == (
        "text_mean", "text_max", "text_mean_rank", "text_mean_zscore",
    )  # fmt: skip
    assert columns_without(declarations, "als") == ("als_user",)
    with pytest.raises(KeyError):
        columns_without(declarations, "transition")
