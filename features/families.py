"""Families of features: what one is worth is told by leaving it out (`recsys evaluate --ablate`).

The family follows from the declaration, so that every column has exactly one and a new declaration
needs no second entry anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from features.declaration import (
    Declaration,
    DistinctCategories,
    HistorySimilarity,
    InSlate,
    RequestFact,
    RequestScore,
    SlateShare,
    SourceFlag,
)

_OF_KEY = {
    "item": "popularity",
    "category": "popularity",
    "subcategory": "popularity",
    "user": "user",
    "user_category": "affinity",
    "user_subcategory": "affinity",
    "user_item": "affinity",
}
_OF_FACT = {"history_length": "user", "repeats": "affinity", "candidates": "slate", "sources": "sources"}
_OF_SCORE = {"als_user": "als"}


def family_of(declaration: Declaration) -> str:
    """The family of a declaration's columns.

    `popularity` (counts and ages of items and categories), `user`, `affinity` (of the user to the item or
    its category), `slate` (comparisons with the other candidates), `sources`, and one family a model:
    its name in `pairs` or in `scores`.

    Raises:
        KeyError: the key or the fact of the declaration has no family yet.
    """
    match declaration:
        case InSlate() | SlateShare():
            return "slate"
        case SourceFlag():
            return "sources"
        case DistinctCategories():
            return "user"
        case HistorySimilarity():
            return declaration.pairs
        case RequestScore():
            return _OF_SCORE.get(declaration.name, declaration.name)
        case RequestFact():
            return _OF_FACT[declaration.fact]
        case _:
            return _OF_KEY[declaration.key]


def families(declarations: Sequence[Declaration]) -> dict[str, tuple[str, ...]]:
    """Family to its column names, both in column order; every column is in exactly one."""
    found: dict[str, tuple[str, ...]] = {}
    for declaration in declarations:
        family = family_of(declaration)
        found[family] = found.get(family, ()) + tuple(column.name for column in declaration.columns())
    return found


def columns_without(declarations: Sequence[Declaration], family: str) -> tuple[str, ...]:
    """The columns that leave with a family: its own, and the comparisons of them within the slate.

    Raises:
        KeyError: no declaration is of this family.
    """
    own = families(declarations)[family]
    comparing = [d for d in declarations if isinstance(d, InSlate) and d.of in own]
    added = [column.name for declaration in comparing for column in declaration.columns()]
    return tuple(dict.fromkeys((*own, *added)))
