"""Business rules: what an item's id, category or age does to its place in every list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
from numba import njit

from recsys.dataset import Catalogue
from recsys.errors import EXIT_CONFIG, RecsysError
from recsys.events import Bool, Float64, Int32, Int64, lengths_to_offsets
from recsys.requests import DAY_S, Requests

Action = Literal["boost", "bury", "filter", "cap"]
Field = Literal["item_id", "category", "subcategory", "age_days"]
ACTIONS: tuple[Action, ...] = get_args(Action)
FIELDS: tuple[Field, ...] = get_args(Field)


@dataclass(frozen=True)
class Rule:
    """One rule. It is about the items whose field `equals` a value, or whose age lies in a range.

    Attributes:
        action: `boost` and `bury` add `by` to the relevance or take it away; `filter` takes the item
            out; `cap` lets at most `by` items of one category (or subcategory) into a list.
        field: `item_id`, `category`, `subcategory`, or `age_days` (from `created_at` to the request).
        equals: the value. A cap without it holds for every category by itself.
        above: least age in days, for `age_days`; an item of unknown age is never meant.
        below: age in days that is not reached, for `age_days`.
        by: in units of the span of a request's scores, which counts as 1; for a cap a number of items.
    """

    action: Action
    field: Field
    equals: str | int | None = None
    above: float | None = None
    below: float | None = None
    by: float = 0.0


class Rules:
    """Rules over one catalogue, checked and turned into arrays."""

    def __init__(self, rules: Sequence[Rule], catalogue: Catalogue) -> None:
        """Check every rule.

        Raises:
            RecsysError: `rule_invalid` (exit 78) with the rule's place and what is allowed.
        """
        for place, rule in enumerate(rules):
            _check(rule, catalogue, f"reranking.rules[{place}]")
        self._catalogue = catalogue
        self._filters = [self._condition(rule) for rule in rules if rule.action == "filter"]
        self._shifts = [
            (self._condition(rule), rule.by if rule.action == "boost" else -rule.by)
            for rule in rules
            if rule.action in ("boost", "bury")
        ]
        caps = [rule for rule in rules if rule.action == "cap"]
        self._codes = np.array([self._capped_codes(rule) for rule in caps], np.int32)
        self._limits = np.array([int(rule.by) for rule in caps], np.int64)

    @property
    def has_caps(self) -> bool:
        """Whether lists are capped at all."""
        return len(self._limits) > 0

    def kept(self, requests: Requests) -> Bool:
        """(rows,) false where a filter takes the candidate out."""
        out = np.ones(requests.rows, np.bool_)
        for condition in self._filters:
            out &= ~condition.holds(requests)
        return out

    def shift(self, requests: Requests) -> Float64:
        """(rows,) what boosts and buries add to the relevance."""
        out = np.zeros(requests.rows)
        for condition, by in self._shifts:
            out += by * condition.holds(requests)
        return out

    def capped(self, order: tuple[Int64, Int64], item_index: Int32, k: int) -> tuple[Int64, Int64]:
        """The first k rows of each request that no cap keeps out; a list may end up shorter than k.

        Args:
            order: (offsets, rows) of the candidates, best first.
            item_index: (all candidate rows,) items.
            k: length of a list.
        """
        if not self.has_caps:
            return order
        offsets, rows = order
        keep = np.zeros(len(rows), np.bool_)
        _walk(offsets, item_index[rows], self._codes, self._limits, k, keep)
        owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        return lengths_to_offsets(np.bincount(owner[keep], minlength=len(offsets) - 1)), rows[keep]

    def _condition(self, rule: Rule) -> _Condition:
        low = -np.inf if rule.above is None else rule.above
        high = np.inf if rule.below is None else rule.below
        if rule.field == "age_days":
            return _Condition(None, self._catalogue.created_at, low, high)
        return _Condition(_equal(rule, self._catalogue), self._catalogue.created_at, low, high)

    def _capped_codes(self, rule: Rule) -> Int32:
        """(items,) what the cap counts by, -1 where it does not count."""
        codes, _ = _coded(rule.field, self._catalogue)
        return codes if rule.equals is None else np.where(_equal(rule, self._catalogue), codes, -1)


@dataclass(frozen=True)
class _Condition:
    """Which candidates a rule is about: `items` (items,) where it is about items, else an age in days."""

    items: Bool | None
    created_at: Float64
    above: float
    below: float

    def holds(self, requests: Requests) -> Bool:
        known = requests.item_index >= 0
        item = np.maximum(requests.item_index, 0)
        if self.items is not None:
            return known & self.items[item]
        age = (requests.timestamp[requests.request_of_row()] - self.created_at[item]) / DAY_S
        return known & (age >= self.above) & (age < self.below)


def _equal(rule: Rule, catalogue: Catalogue) -> Bool:
    """(items,) whether the field has the rule's value."""
    if rule.field == "item_id":
        out = np.zeros(len(catalogue), np.bool_)
        row = catalogue.ids.index(pl.Series([rule.equals]))
        out[row[row >= 0]] = True
        return out
    codes, names = _coded(rule.field, catalogue)
    return codes == names.index(str(rule.equals))


def _coded(field: Field, catalogue: Catalogue) -> tuple[Int32, list[str]]:
    if field == "category":
        return catalogue.category, catalogue.category_names
    return catalogue.subcategory, catalogue.subcategory_names


def _check(rule: Rule, catalogue: Catalogue, where: str) -> None:
    if rule.action not in ACTIONS:
        raise _invalid(f"unknown action {rule.action!r}; there are: {', '.join(ACTIONS)}", where)
    if rule.field not in FIELDS:
        raise _invalid(f"unknown field {rule.field!r}; there are: {', '.join(FIELDS)}", where)
    if rule.action == "cap" and (rule.field not in ("category", "subcategory") or not _is_count(rule.by)):
        raise _invalid("a cap needs field category or subcategory, and by = 1, 2, …", where)
    if rule.action in ("boost", "bury") and not 0 < rule.by < float("inf"):
        raise _invalid(f"a {rule.action} needs by > 0, not {rule.by}", where)
    ranged = rule.above is not None or rule.below is not None
    if rule.field == "age_days":
        if not ranged or rule.equals is not None:
            raise _invalid("age_days needs above or below (in days), not equals", where)
    elif ranged or (rule.equals is None and rule.action != "cap"):
        raise _invalid(f"{rule.field} needs equals, not above or below", where)
    elif rule.equals is not None and rule.field != "item_id":
        _check_name(rule, _coded(rule.field, catalogue)[1], where)


def _check_name(rule: Rule, names: Sequence[str], where: str) -> None:
    if str(rule.equals) not in names:
        some = ", ".join(names[:20]) + (f" … ({len(names)} in all)" if len(names) > 20 else "")
        raise _invalid(f"no item has {rule.field} {rule.equals!r}; there are: {some or 'none'}", where)


def _is_count(value: float) -> bool:
    return value >= 1 and float(value).is_integer()


def rule_of(table: dict[str, Any]) -> Rule:
    """Read a rule from plain JSON; raises RecsysError `rule_invalid` for an unknown key."""
    known = [entry.name for entry in fields(Rule)]
    if unknown := sorted(set(table) - set(known)):
        raise _invalid(f"unknown key; there are: {', '.join(known)}", unknown[0])
    return Rule(**table)


def _invalid(what: str, where: str) -> RecsysError:
    return RecsysError("rule_invalid", what, where, exit_code=EXIT_CONFIG)


@njit(cache=True, nogil=True)
def _walk(offsets: Int64, items: Int32, codes: Int32, limits: Int64, k: int, keep: Bool) -> None:
    """Mark the rows that stay: the first k of each request that exceed no limit."""
    used = np.zeros((len(limits), codes.max() + 1), np.int64)
    for request in range(len(offsets) - 1):
        used[:] = 0
        taken = 0
        for row in range(offsets[request], offsets[request + 1]):
            free = taken < k
            for cap in range(len(limits)):
                code = codes[cap, items[row]] if items[row] >= 0 else -1
                free = free and (code < 0 or used[cap, code] < limits[cap])
            if free:
                keep[row] = True
                taken += 1
                for cap in range(len(limits)):
                    code = codes[cap, items[row]] if items[row] >= 0 else -1
                    if code >= 0:
                        used[cap, code] += 1
