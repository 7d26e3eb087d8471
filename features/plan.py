"""Which states the declarations need, grouped into tables that are kept and read together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from features.declaration import EVENT_STREAMS, HalfLife, Key, State, Stream
from recsys.events import Float64, Int64

DAY_S = 86_400.0


@dataclass(frozen=True)
class Table:
    """The states of one (key, stream, delay): decayed sums and the first and last moment, by key.

    Attributes:
        half_lives_days: of the decayed sums.
        columns: where `Reading.counters` takes each sum, then the days since the last and the first row
            of the stream; -1 where nobody asked.
    """

    key: Key
    stream: Stream
    delay_s: float
    half_lives_days: tuple[HalfLife, ...]
    columns: tuple[int, ...]

    @property
    def of_events(self) -> bool:
        """True where events update it, False where slate rows do."""
        return self.stream in EVENT_STREAMS

    @cached_property
    def rates(self) -> Float64:
        """(half-lives,) exponential decay a second, ln 2 / half-life; 0 where nothing decays."""
        lives = (math.inf if h is None else h for h in self.half_lives_days)
        return np.array([math.log(2) / (h * DAY_S) for h in lives], np.float64)

    @cached_property
    def column_array(self) -> Int64:
        """`columns` for the kernels."""
        return np.array(self.columns, np.int64)


class StatePlan:
    """The order of the states in `Reading.counters`, and the tables that fill it."""

    def __init__(self, states: Iterable[State]) -> None:
        """Give every distinct state a column, in the order of first mention."""
        self.states: tuple[State, ...] = tuple(dict.fromkeys(states))
        self.column = {state: place for place, state in enumerate(self.states)}
        groups: dict[tuple[Key, Stream, float], list[State]] = {}
        for state in self.states:
            if state.stream != "catalogue":
                groups.setdefault((state.key, state.stream, state.delay_s), []).append(state)
        self.tables = tuple(self._table(group) for group in groups.values())

    def __len__(self) -> int:
        return len(self.states)

    @cached_property
    def of_catalogue(self) -> Int64:
        """(4,) columns of the states that no stream updates, -1 where nobody asked.

        They are the age since creation, how many categories a history has, and the shares of category and
        subcategory in the slate.
        """
        kinds = [("created", "item"), ("categories", "user"), ("slate_share", "category")]
        kinds += [("slate_share", "subcategory")]
        found: dict[tuple[str, str], int] = {
            (state.mark, state.key): column
            for state, column in self.column.items()
            if state.stream == "catalogue"
        }
        return np.array([found.get(kind, -1) for kind in kinds], np.int64)

    @cached_property
    def by_key(self) -> dict[Key, list[Table]]:
        """The tables of each key, in order."""
        found: dict[Key, list[Table]] = {}
        for table in self.tables:
            found.setdefault(table.key, []).append(table)
        return found

    def _table(self, group: list[State]) -> Table:
        counts = [state for state in group if state.mark == "count"]
        marks = {state.mark: self.column[state] for state in group if state.mark != "count"}
        first = group[0]
        columns = [self.column[state] for state in counts] + [marks.get("last", -1), marks.get("first", -1)]
        lives = tuple(state.half_life_days for state in counts)
        return Table(first.key, first.stream, first.delay_s, lives, tuple(columns))
