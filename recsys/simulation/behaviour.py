"""How users act on a slate: what they look at, what draws them, what they click and do afterwards.

Clicks follow the examination hypothesis (Richardson, Dominowska & Ragno 2007): an item is clicked when
its place is examined and, independently, the item attracts. Both probabilities are the known truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.draws import Draws
from recsys.events import Bool, Float32, Float64, Int64
from recsys.simulation.policy import Visits
from recsys.simulation.world import DAY_S, Items, Population, Tastes

EVENT_TYPES = ("view", "click", "like", "comment", "share", "purchase", "dismiss")
BASE = -3.3
TASTE_WEIGHT = 1.9
CATEGORY_WEIGHT = 0.6
LIKING_WEIGHT = 0.25
QUALITY_WEIGHT = 0.35
FRESHNESS_WEIGHT = 0.6
SESSION_WEIGHT = 0.3
_FRESHNESS_DAYS = 4.0
_EXAMINATION_POWER = 0.25
_DISMISS_BELOW = 0.02
_AFTER_CLICK = {"like": (-2.6, 2.5), "comment": (-4.2, 2.0), "share": (-4.0, 2.0), "purchase": (-4.6, 3.5)}
_AFTER_QUALITY = 0.5
_SHORTEST_GAP_S, _GAP_SPREAD_S = 900.0, 300.0
"""Between two requests of a session. A slate's events are over before the shortest gap is."""

_DELAYS = {
    "view": (0.0, 0.0),
    "click": (1.0, 0.0),
    "like": (1.0, 0.4),
    "comment": (1.0, 0.8),
    "share": (1.0, 0.6),
    "purchase": (1.0, 0.95),
    "dismiss": (1.0, 0.0),
}
"""Seconds from looking at the item to the event, and the part of the time spent on it that is added."""


@dataclass(frozen=True)
class Outcome:
    """What happened on n slates of m places. All shapes (n, m), but `examination` is (m,)."""

    item: Int64
    attraction: Float32
    examination: Float32
    clicked: Bool
    examined: Bool

    @property
    def click_probability(self) -> Float32:
        """(n, m) P(click) of every shown item, before anybody looked."""
        return self.attraction * self.examination


@dataclass(frozen=True)
class EventRows:
    """Events in time order. `slate` is the number of the impression, `kind` a code into EVENT_TYPES."""

    timestamp_us: Int64
    slate: Int64
    user: NDArray[np.integer]
    item: Int64
    kind: NDArray[np.int8]
    position: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.timestamp_us)

    @classmethod
    def concatenate(cls, parts: list[EventRows]) -> EventRows:
        """All rows, ordered by time, then slate, place and kind."""
        columns = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__
        }
        order = np.lexsort((columns["kind"], columns["position"], columns["slate"], columns["timestamp_us"]))
        return cls(**{name: column[order] for name, column in columns.items()})

    def split(self, before_us: int) -> tuple[EventRows, EventRows]:
        """The rows before a moment, and the others."""
        cut = int(np.searchsorted(self.timestamp_us, before_us, side="left"))
        halves = [
            EventRows(*(getattr(self, name)[part] for name in self.__dataclass_fields__))
            for part in (slice(0, cut), slice(cut, None))
        ]
        return halves[0], halves[1]


def visits_of_day(
    population: Population, draws: Draws, day: int, day_start_s: float, users: NDArray[np.integer]
) -> Visits:
    """All requests of these users on a day, in no set order: one session a user, minutes between requests."""
    counts = population.requests(users, day)
    who = np.repeat(users, counts)
    ordinal = np.arange(len(who)) - np.repeat(np.cumsum(counts) - counts, counts)
    hour = np.interp(
        draws.uniform("session start", who, day),
        [0, 0.03, 0.1, 0.3, 0.5, 0.65, 0.9, 1],
        [0, 6, 8, 11, 15, 18, 21.5, 22.2],
    )
    gap = _SHORTEST_GAP_S + _GAP_SPREAD_S * draws.uniform("session pace", who, day)
    moment = np.round(day_start_s + hour * 3600 + ordinal * gap, 3)
    return Visits(who.astype(np.int32), day, ordinal.astype(np.int8), moment)


def attraction(
    visits: Visits, tastes: Tastes, shown: Int64, items: Items, population: Population, draws: Draws
) -> Float32:
    """(n, m) P(click | examined) of each shown item."""
    shelf, category = items.subcategory[shown], items.category[shown]
    mood = draws.integers(tastes.subcategory.shape[1], "session mood", visits.user, visits.day)
    logit = np.full(shown.shape, BASE) + tastes.generosity[:, None]
    for slot in range(tastes.subcategory.shape[1]):
        strength = tastes.strength[:, slot, None]
        in_mood = SESSION_WEIGHT * (mood == slot)[:, None]
        wanted = tastes.subcategory[:, slot, None]
        home = population.category_of(wanted)
        logit += np.where(shelf == wanted, TASTE_WEIGHT * strength + in_mood, 0.0)
        logit += np.where((category == home) & (shelf != wanted), CATEGORY_WEIGHT * strength, 0.0)
    logit += LIKING_WEIGHT * population.liking(visits.user, tastes.persona, items.attributes[shown])
    logit += QUALITY_WEIGHT * items.quality[shown]
    age_days = (visits.timestamp_s[:, None] - items.created_s[shown]) / DAY_S
    logit += FRESHNESS_WEIGHT * np.exp(-age_days / _FRESHNESS_DAYS)
    return (1.0 / (1.0 + np.exp(-logit))).astype(np.float32)


def examination_of(places: int) -> Float32:
    """(places,) probability that each place of a slate is looked at."""
    return (np.arange(1, places + 1) ** -_EXAMINATION_POWER).astype(np.float32)


def outcome(visits: Visits, shown: Int64, attracts: Float32, draws: Draws) -> Outcome:
    """Draw what each user looks at and clicks."""
    places = np.arange(1, shown.shape[1] + 1)
    examination = examination_of(shown.shape[1])
    keys = (visits.user[:, None], visits.day, visits.ordinal[:, None], places)
    examined = draws.uniform("examined", *keys) < examination
    clicked = examined & (draws.uniform("clicked", *keys) < attracts)
    return Outcome(shown, attracts, examination, clicked, examined)


def events_of(visits: Visits, first_slate: int, result: Outcome, items: Items, draws: Draws) -> EventRows:
    """Every event on these slates: looks while reading down, a click and what follows it, dismissals.

    A slate's events end before the user's next request.
    """
    places = np.arange(1, result.item.shape[1] + 1)
    keys = (visits.user[:, None], visits.day, visits.ordinal[:, None], places)
    dwell = 8.0 + 22.0 * draws.uniform("dwell", *keys)
    spent = np.cumsum(result.clicked * dwell, axis=1) - result.clicked * dwell
    reading = places * (1.5 + 1.5 * draws.uniform("pace", visits.user, visits.day))[:, None]
    seen = np.minimum(reading + spent, _SHORTEST_GAP_S - 60.0)
    parts = []
    for kind, name in enumerate(EVENT_TYPES):
        happened = _happened(name, result, items, draws.uniform(f"{name} happened", *keys))
        slate, column = np.nonzero(happened)
        wait, share = _DELAYS[name]
        delay = seen[slate, column] + wait + share * (dwell[slate, column] - 2.0)
        moment = visits.timestamp_s[slate] + delay
        parts.append(
            EventRows(
                np.rint(moment * 1e6).astype(np.int64),
                first_slate + slate,
                visits.user[slate],
                result.item[slate, column],
                np.full(len(slate), kind, np.int8),
                places[column].astype(np.int16),
            )
        )
    return EventRows.concatenate(parts)


def _happened(name: str, result: Outcome, items: Items, u: Float64) -> Bool:
    """(n, m) where this kind of event takes place."""
    if name == "view":
        return result.clicked | (result.examined & (u < 0.15 + 0.5 * result.attraction))
    if name == "click":
        return result.clicked
    if name == "dismiss":
        return result.examined & ~result.clicked & (result.attraction < _DISMISS_BELOW) & (u < 0.04)
    base, slope = _AFTER_CLICK[name]
    logit = base + slope * result.attraction + _AFTER_QUALITY * items.quality[result.item]
    return result.clicked & (u < 1.0 / (1.0 + np.exp(-logit)))
