"""One list drafted from two, and who placed what in it.

Team-draft interleaving (Radlinski, Kurup & Joachims 2008, "How does clickthrough data reflect retrieval
quality?", algorithm 2): in each round a coin says who picks first, and each side picks the best of its list
that is not there yet. Whoever placed more of what is clicked has won. Nothing here counts clicks.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import chain
from typing import TypeVar
from zlib import crc32

import numpy as np
from msgspec.structs import replace

from recsys.draws import Draws
from serving.experiments.experiment import Arm
from serving.messages import Ranking

MOST_PLACES = 64
"""Places that a label remembers: who is clicked below them has no team. Even, so that it favours nobody."""

K = TypeVar("K", bound=Hashable)

_ORDERS = ((Arm.CONTROL, Arm.TREATMENT), (Arm.TREATMENT, Arm.CONTROL))
_SIGNS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_VALUES = {sign: value for value, sign in enumerate(_SIGNS)}
_MARKS = 2**11


def team_draft(
    control: Sequence[K], treatment: Sequence[K], k: int, *, seed: int
) -> list[tuple[K, Arm | None]]:
    """Draft a list, best first, each item once.

    Args:
        control: one list, best first.
        treatment: the other one.
        k: items wanted; fewer come back only where both lists together have fewer.
        seed: decides every round's coin; 64 bits.

    Returns:
        Items with the side that placed them. When one list has nothing left, the rest of the other one
        follows without a team: there was no choice, and no credit should come of it.
    """
    own = {Arm.CONTROL: iter(control), Arm.TREATMENT: iter(treatment)}
    rounds = (min(k, len(control) + len(treatment)) + 1) // 2
    coins = (Draws(seed).bits("first pick", np.arange(rounds)) >> np.uint64(63)).tolist()
    drafted: dict[K, Arm | None] = {}
    for arm in chain.from_iterable(_ORDERS[coin] for coin in coins):
        item = next((each for each in own[arm] if each not in drafted), None)
        if item is None:
            break
        drafted[item] = arm
    for each in chain(control, treatment):
        if len(drafted) >= k:
            break
        drafted.setdefault(each, None)
    return list(drafted.items())[: max(k, 0)]


class Teams:
    """Who placed what in the first places of a list, as a text of two signs a place that names no item.

    Both signs together are 12 bits in base64url's alphabet, high ones first: the 11 low bits of the CRC-32 of
    the item's id as UTF-8 text, and 1 for the treatment or 0 for the control. The marks let a client leave
    items out of what it shows, or show them in another order: a place counts only where the mark fits.
    """

    def __init__(self, codes: Sequence[int]) -> None:
        """Take the codes of the places, from the first one on."""
        self._codes = codes

    @classmethod
    def of(cls, picks: Sequence[tuple[str | int, Arm | None]]) -> Teams:
        """The teams of a draft; what has no team stands at its end and is left out."""
        drafted = [(item, arm) for item, arm in picks[:MOST_PLACES] if arm is not None]
        return cls([2 * _mark(item) + (arm is Arm.TREATMENT) for item, arm in drafted])

    @classmethod
    def parse(cls, text: str) -> Teams:
        """The teams of a label.

        Raises:
            ValueError: it is no such text.
        """
        if len(text) % 2 or not _VALUES.keys() >= set(text):
            raise ValueError("teams are two signs of base64url a place")
        values = [_VALUES[sign] for sign in text]
        return cls([64 * high + low for high, low in zip(values[::2], values[1::2], strict=True)])

    def __str__(self) -> str:
        return "".join(_SIGNS[code >> 6] + _SIGNS[code & 63] for code in self._codes)

    def find(self, item: str | int, place: int) -> Arm | None:
        """Whose item it is.

        Args:
            item: its id.
            place: where it was shown, from 0 on; only tried first.

        Returns:
            None where nobody placed it, or where the marks do not tell.
        """
        mark = _mark(item)
        if place < len(self._codes) and self._codes[place] >> 1 == mark:
            return _ORDERS[self._codes[place] & 1][0]
        sides = {code & 1 for code in self._codes if code >> 1 == mark}
        return _ORDERS[sides.pop()][0] if len(sides) == 1 else None


def interleaved(control: Ranking, treatment: Ranking, k: int | None, *, seed: int) -> tuple[Ranking, Teams]:
    """One answer drafted from two, under the control's name, and who placed what.

    An item comes with the source and the reasons of who placed it. Two models' scores cannot be compared, so
    `score` is 1 / rank here.

    Args:
        control: an answer with at least k items where there are so many.
        treatment: the other model's answer to the same request.
        k: items wanted, None for all.
        seed: of the draft.
    """
    sides = (control, treatment)
    by_id = [{str(item.id): item for item in side.items} for side in sides]
    wanted = sum(map(len, by_id)) if k is None else k
    picks = team_draft(list(by_id[0]), list(by_id[1]), wanted, seed=seed)
    found = [
        (by_id[1] if arm is Arm.TREATMENT or each not in by_id[0] else by_id[0])[each] for each, arm in picks
    ]
    items = [replace(item, rank=rank, score=1.0 / rank) for rank, item in enumerate(found, start=1)]
    reason = control.degraded_reason or treatment.degraded_reason
    ranking = replace(control, items=items, degraded=reason is not None, degraded_reason=reason)
    return ranking, Teams.of(picks)


def _mark(item: str | int) -> int:
    return crc32(str(item).encode()) % _MARKS
