"""What nobody in the world could log: how any item would have drawn any user at any moment.

The truth of the shown items is in the file `truth`; this is for items that were not shown.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recsys.draws import Draws
from recsys.events import Float32, Float64, Int64
from recsys.simulation.behaviour import attraction, examination_of
from recsys.simulation.grammar import Grammar
from recsys.simulation.policy import Visits
from recsys.simulation.world import DAY_S, Items, Population, SimulationConfig


class Truth:
    """The click model of a simulated world, built again from its configuration."""

    def __init__(self, config: SimulationConfig) -> None:
        """Take the configuration that the world was simulated with."""
        grammar = Grammar.load()
        self._start_s = config.start_s
        self._draws = Draws(config.seed)
        self._items = Items.of(config, grammar, self._draws)
        self._population = Population(config, grammar, self._draws)

    @property
    def created_s(self) -> Float64:
        """(items,) when each item came to be; the logging policy shows it from the next midnight on."""
        return self._items.created_s

    def examination(self, places: int) -> Float32:
        """(places,) probability that each place of a slate is looked at."""
        return examination_of(places)

    def attraction(self, user: NDArray[np.integer], timestamp_s: Float64, items: Int64) -> Float32:
        """(n, m) P(click | examined) of m items a request.

        Args:
            user: (n,) numbers of the users, the digits of their ids.
            timestamp_s: (n,) moments of the requests.
            items: (n, m) numbers of items, the digits of their ids.
        """
        out = np.zeros(items.shape, np.float32)
        days = ((timestamp_s - self._start_s) // DAY_S).astype(np.int64)
        for day in np.unique(days):
            rows = np.flatnonzero(days == day)
            ordinal = np.zeros(len(rows), np.int8)  # attraction does not depend on it
            visits = Visits(user[rows].astype(np.int32), int(day), ordinal, timestamp_s[rows])
            tastes = self._population.tastes(visits.user, visits.day)
            shown = items[rows]
            out[rows] = attraction(visits, tastes, shown, self._items, self._population, self._draws)
        return out
