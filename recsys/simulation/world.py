"""The made-up world: its sizes, its items and what each user likes. It knows no slate and no event.

Items are held as a few small columns. Users are not held at all: everything about a user is a function
of the seed and the user's number, so a million users take no more memory than a thousand.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from recsys.draws import Draws
from recsys.events import Float32, Float64, Int64
from recsys.simulation.grammar import NAME_CAPACITY, Grammar

DAY_S = 86_400.0
REGIONS = ("north", "south", "east", "west")
DEVICES = ("mobile", "desktop", "tablet")
MAX_USERS = 10_000_000
MAX_REQUESTS_PER_DAY = 6
TASTES = 5
"""Subcategories that a user likes at one time."""

_REGION_SHARE = (0.4, 0.3, 0.2, 0.1)
_DEVICE_SHARE = (0.6, 0.3, 0.1)
_DEVICE_ACTIVITY = np.array([1.15, 0.85, 0.6])
_TASTE_LIFETIME_DAYS = np.array([np.inf, 120.0, 90.0, 60.0, 30.0])
_TASTE_STRENGTH = np.array([1.0, 0.9, 0.8, 0.8, 0.8])
_PERSONAS = 12
_PERSONA_SUBCATEGORIES = 6
_NEVER_ACTIVE_SHARE = 0.03
_OLDEST_ITEM_DAYS = 60.0


@dataclass(frozen=True)
class SimulationConfig:
    """Sizes and seed of a simulated world.

    Attributes:
        users: registered users, at most ten million.
        items: catalogue size at the end, at most `grammar.NAME_CAPACITY`.
        days: length of the log.
        seed: everything follows from it.
        slate_size: items in a slate; slates are shorter while fewer items are live.
        requests_per_user_day: mean over active users; single users differ widely.
        new_items_share: share of the catalogue that arrives during the log.
        new_users_share: share of the users that register during the log (after its first day).
        start: first midnight of the log, UTC.
        requests_per_chunk: slates made and written at a time; changes speed and memory only.
    """

    users: int = 2000
    items: int = 1500
    days: int = 14
    seed: int = 0
    slate_size: int = 20
    requests_per_user_day: float = 0.7
    new_items_share: float = 0.3
    new_users_share: float = 0.2
    start: datetime = datetime(2026, 1, 5, tzinfo=UTC)
    requests_per_chunk: int = 1024

    def __post_init__(self) -> None:
        """Refuse sizes that make no world.

        Raises:
            ValueError: naming the option and its range.
        """
        limits = {"users": MAX_USERS, "items": NAME_CAPACITY, "days": 3650, "slate_size": 1000}
        limits["requests_per_chunk"] = 1_000_000
        for name, most in limits.items():
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie in 1..{most}, not {getattr(self, name)}")
        for name in ("new_items_share", "new_users_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, not {getattr(self, name)}")
        if not 0 < self.requests_per_user_day <= MAX_REQUESTS_PER_DAY:
            raise ValueError(f"requests_per_user_day must lie in (0, {MAX_REQUESTS_PER_DAY}]")
        if self.start.tzinfo is None:
            raise ValueError("start must carry a time zone")

    @property
    def start_s(self) -> float:
        """First midnight, epoch seconds."""
        return self.start.timestamp()


@dataclass(frozen=True)
class Items:
    """The catalogue in order of arrival; row i is item number i.

    Attributes:
        subcategory: (n,) code into the grammar's subcategories; `category` (n,) likewise.
        attributes: (n, families) codes into the grammar's attributes, -1 where the text has none.
        quality: (n,) standard normal, in no text: only behaviour shows it.
        created_s: (n,) epoch seconds, ascending.
        subcategories: how many there are in the grammar.
    """

    subcategory: NDArray[np.int16]
    category: NDArray[np.int16]
    attributes: NDArray[np.int8]
    quality: Float32
    created_s: Float64
    subcategories: int

    def __len__(self) -> int:
        return len(self.created_s)

    @classmethod
    def of(cls, config: SimulationConfig, grammar: Grammar, draws: Draws) -> Items:
        """Draw the catalogue."""
        items = np.arange(config.items)
        shelves = len(grammar.subcategories)
        weight = draws.uniform("shelf weight", np.arange(shelves)) + 0.4
        shelf = _choose(draws.uniform("item shelf", items), weight)
        attributes = np.stack(
            [
                codes[draws.integers(len(codes), "item attribute", items, f)]
                for f, codes in enumerate(grammar.families)
            ],
            axis=1,
        )
        missing = draws.uniform("item attributes", items[:, None], np.arange(attributes.shape[1])).argsort(
            axis=1
        )
        kept = 3 + draws.integers(attributes.shape[1] - 2, "item attribute count", items)
        attributes[missing >= kept[:, None]] = -1
        return cls(
            shelf.astype(np.int16),
            grammar.category_of[shelf],
            attributes,
            draws.normal("item quality", items).astype(np.float32),
            _creation(config, draws),
            shelves,
        )


def _creation(config: SimulationConfig, draws: Draws) -> Float64:
    """Ascending creation moments: some before the log, the others evenly over it. At least one is old."""
    items = np.arange(config.items)
    old = max(1, round(config.items * (1 - config.new_items_share)))
    u = draws.uniform("item created", items)
    before = config.start_s - 60.0 - u * u * _OLDEST_ITEM_DAYS * DAY_S
    during = config.start_s + u * config.days * DAY_S
    return np.asarray(np.floor(np.sort(np.where(items < old, before, during))))


@dataclass(frozen=True)
class Tastes:
    """What some users like on one day.

    Shapes: `subcategory` and `strength` (n, TASTES); `generosity` (n,), a shift of the log-odds of
    every click; `persona` (n,).
    """

    subcategory: NDArray[np.int16]
    strength: Float32
    generosity: Float32
    persona: Int64


class Population:
    """Answers questions about users, who are numbers 0..users-1. Every answer is a pure function."""

    def __init__(self, config: SimulationConfig, grammar: Grammar, draws: Draws) -> None:
        """Draw the personas: groups whose members share subcategories and leanings."""
        self._config = config
        self._draws = draws
        self._shelves = len(grammar.subcategories)
        self._categories = grammar.category_of
        personas = np.arange(_PERSONAS)[:, None]
        ranks = draws.uniform("persona shelves", personas, np.arange(self._shelves)).argsort(axis=1)
        self._persona_shelves = ranks[:, : min(_PERSONA_SUBCATEGORIES, self._shelves)]
        u = draws.uniform("persona leaning", personas, np.arange(len(grammar.attributes)))
        self._leaning = ((u < 0.3).astype(np.float32) - (u > 0.75)).astype(np.float32)

    def category_of(self, subcategory: NDArray[np.int16]) -> NDArray[np.int16]:
        """Category codes of these subcategories; same shape."""
        return np.asarray(self._categories[subcategory])

    def arrival_day(self, users: NDArray[np.integer]) -> Int64:
        """First day on which each user can act; 0 for those who were there before the log."""
        u = self._draws.uniform("user arrival", users)
        share = self._config.new_users_share
        later = 1 + (u / max(share, 1e-12) * (self._config.days - 1)).astype(np.int64)
        return np.where((u < share) & (self._config.days > 1), later, 0)

    def region(self, users: NDArray[np.integer]) -> Int64:
        """Codes into `REGIONS`."""
        return _choose(self._draws.uniform("user region", users), np.array(_REGION_SHARE))

    def device(self, users: NDArray[np.integer]) -> Int64:
        """Codes into `DEVICES`."""
        return _choose(self._draws.uniform("user device", users), np.array(_DEVICE_SHARE))

    def activity(self, users: NDArray[np.integer]) -> Float64:
        """Mean requests a day of each user: skewed, different by device, 0 for those who only registered."""
        skew = np.exp(self._draws.normal("user activity", users) - 0.5)
        rate = self._config.requests_per_user_day * skew * _DEVICE_ACTIVITY[self.device(users)]
        never = self._draws.uniform("user never active", users) < _NEVER_ACTIVE_SHARE
        return np.asarray(np.where(never, 0.0, rate))

    def requests(self, users: NDArray[np.integer], day: int) -> Int64:
        """How many requests each user makes on a day: Poisson, at most six; newcomers make at least one."""
        rate, arrival = self.activity(users), self.arrival_day(users)
        u = self._draws.uniform("requests", users, day)
        term = np.exp(-rate)
        below = term.copy()
        count = np.zeros(len(users), np.int64)
        for k in range(1, MAX_REQUESTS_PER_DAY + 1):
            count += u > below
            term = term * rate / k
            below += term
        count = np.where((arrival == day) & (day > 0), np.maximum(count, 1), count)
        return np.where((arrival <= day) & (rate > 0), count, 0)

    def tastes(self, users: NDArray[np.integer], day: int) -> Tastes:
        """What users like on a day.

        Each of the five tastes is a subcategory for a lifetime (the first forever), swells and fades
        within it, and is then replaced. Most come from the user's persona.
        """
        slot = np.arange(TASTES)
        who = users[:, None]
        persona = self._draws.integers(_PERSONAS, "user persona", users)
        age = day / _TASTE_LIFETIME_DAYS + self._draws.uniform("taste phase", who, slot)
        epoch = np.floor(age).astype(np.int64)
        typical = self._persona_shelves[
            persona[:, None],
            self._draws.integers(self._persona_shelves.shape[1], "taste typical", who, slot, epoch),
        ]
        own = self._draws.integers(self._shelves, "taste own", who, slot, epoch)
        shelf = np.where(self._draws.uniform("taste source", who, slot, epoch) < 0.85, typical, own)
        swell = 0.75 + 0.25 * np.sin(np.pi * (age - epoch))
        swell = np.where(np.isinf(_TASTE_LIFETIME_DAYS), 1.0, swell)
        strength = _TASTE_STRENGTH * swell * (0.8 + 0.4 * self._draws.uniform("taste strength", who, slot))
        generosity = 0.35 * self._draws.normal("user generosity", users)
        return Tastes(
            shelf.astype(np.int16), strength.astype(np.float32), generosity.astype(np.float32), persona
        )

    def liking(self, users: NDArray[np.integer], persona: Int64, attributes: NDArray[np.int8]) -> Float32:
        """Liking of the wording's attributes, summed over families.

        Args:
            users: (n,) user numbers.
            persona: (n,) their personas.
            attributes: (n, m, families) codes, -1 where missing.

        Returns:
            (n, m); a persona's leaning counts 1, the user's own 0.2.
        """
        codes = np.arange(self._leaning.shape[1])
        u = self._draws.uniform("user leaning", users[:, None], codes)
        leaning = self._leaning[persona] + 0.2 * ((u < 0.2).astype(np.float32) - (u > 0.85))
        padded = np.concatenate([leaning, np.zeros((len(users), 1))], axis=1).astype(np.float32)
        total = np.zeros(attributes.shape[:2], np.float32)
        rows = np.arange(len(users))[:, None]
        for family in range(attributes.shape[2]):
            total += padded[rows, attributes[:, :, family]]
        return total


def _choose(u: Float64, weight: Float64) -> Int64:
    """Codes 0..len(weight)-1 with probabilities proportional to `weight`, one a uniform number."""
    edges = np.cumsum(weight) / weight.sum()
    return np.minimum(np.searchsorted(edges, u, side="right"), len(weight) - 1).astype(np.int64)
