"""The features that the engine uses unless told otherwise."""

from __future__ import annotations

from features.declaration import (
    LIFETIME,
    Age,
    Counter,
    Declaration,
    DistinctCategories,
    HalfLife,
    HistorySimilarity,
    InSlate,
    Pace,
    Rate,
    RequestFact,
    RequestScore,
    Share,
    SlateShare,
    SourceFlag,
    Trend,
)
from recsys.requests import SOURCES

_TWO_HOURS = 1 / 12
_LIVES: tuple[HalfLife, ...] = (30.0, LIFETIME)


def _popularity(delay_s: float) -> tuple[Declaration, ...]:
    return (
        Counter("item_target", "item", "target", (1.0, 7.0, 30.0, 180.0, LIFETIME), delay_s),
        Trend("item_trend_day", "item", "target", 1.0, 7.0, delay_s),
        Trend("item_trend_month", "item", "target", 30.0, 180.0, delay_s),
        Counter("item_shown", "item", "shown", (_TWO_HOURS, 1.0, LIFETIME), delay_s),
        Rate("item_rate", "item", "click", "shown", (_TWO_HOURS, 1.0, 7.0, LIFETIME), 20.0, delay_s),
        Counter("item_negative", "item", "negative", (LIFETIME,), delay_s),
        Counter("category_target", "category", "target", (7.0,), delay_s),
        Rate("category_rate", "category", "click", "shown", (1.0, LIFETIME), 50.0, delay_s),
        Counter("subcategory_target", "subcategory", "target", (7.0,), delay_s),
        Rate("subcategory_rate", "subcategory", "click", "shown", (1.0, LIFETIME), 50.0, delay_s),
        Age("item_age_days", "item", "first", "any", delay_s),
        Age("item_idle_days", "item", "last", "target", delay_s),
    )


def _person(delay_s: float) -> tuple[Declaration, ...]:
    return (
        Counter("user_target", "user", "target", _LIVES, delay_s),
        Rate("user_rate", "user", "click", "shown", (LIFETIME,), 20.0, delay_s),
        Pace("user_pace", "user", "target", delay_s),
        Age("user_idle_days", "user", "last", "target", delay_s),
        DistinctCategories("user_categories"),
        RequestFact("history_length"),
        RequestFact("repeats"),
        Share("category_affinity", "user_category", "target", _LIVES, delay_s),
        Share("subcategory_affinity", "user_subcategory", "target", _LIVES, delay_s),
        Rate("user_category_rate", "user_category", "click", "shown", (LIFETIME,), 10.0, delay_s),
        Rate("user_subcategory_rate", "user_subcategory", "click", "shown", (7.0, LIFETIME), 10.0, delay_s),
        Counter("user_subcategory_shown", "user_subcategory", "shown", (LIFETIME,), delay_s),
        Rate("user_item_rate", "user_item", "click", "shown", (LIFETIME,), 3.0, delay_s),
        Counter("user_item_shown", "user_item", "shown", (LIFETIME,), delay_s),
        Counter("user_item_target", "user_item", "target", (LIFETIME,), delay_s),
        Counter("user_category_negative", "user_category", "negative", (LIFETIME,), delay_s),
        Age("user_category_idle_days", "user_category", "last", "target", delay_s),
        Age("user_subcategory_idle_days", "user_subcategory", "last", "target", delay_s),
    )


def _scores() -> tuple[Declaration, ...]:
    return (
        HistorySimilarity("text", "text", ("mean", "max", "top3", "last", "recent")),
        HistorySimilarity("als_history", "als", ("mean", "max", "ordered")),
        HistorySimilarity("item_item", "item_item", ("max", "last", "recent", "ordered"), "sum"),
        HistorySimilarity("ease", "ease", ("mean", "recent", "ordered"), "sum"),
        HistorySimilarity("transition", "transition", ("max", "last", "ordered"), "sum"),
        HistorySimilarity("to_outcome", "to_outcome", ("max", "last", "ordered"), "sum"),
        HistorySimilarity("between_outcomes", "between_outcomes", ("max", "ordered"), "sum"),
        RequestScore("head"),
        RequestScore("als_user"),
        RequestScore("sequence"),
        SlateShare("category_in_slate", "category"),
        SlateShare("subcategory_in_slate", "subcategory"),
        *(SourceFlag(source) for source in SOURCES),
        RequestFact("sources"),
        RequestFact("candidates"),
    )


def _comparisons() -> tuple[Declaration, ...]:
    return (
        InSlate("head", ("rank", "ratio", "zscore")),
        InSlate("als_user", ("rank", "zscore")),
        InSlate("sequence", ("rank", "ratio", "zscore")),
        InSlate("ease_mean", ("rank", "zscore")),
        InSlate("text_mean", ("rank", "zscore")),
        InSlate("text_max", ("rank", "zscore")),
        InSlate("item_item_ordered", ("rank", "ratio")),
        InSlate("transition_ordered", ("rank", "ratio")),
        InSlate("item_target_7d", ("rank", "zscore")),
        InSlate("item_rate_1d", ("rank", "zscore")),
        InSlate("item_age_days", ("rank",)),
    )


def default_features(delay_s: float = 0.0) -> tuple[Declaration, ...]:
    """The default declarations, with every counter and age `delay_s` behind the moment of the request."""
    return (*_popularity(delay_s), *_person(delay_s), *_scores(), *_comparisons())


DEFAULT_FEATURES: tuple[Declaration, ...] = default_features()
"""The default declarations without delay: every event counts from the moment it is known."""
