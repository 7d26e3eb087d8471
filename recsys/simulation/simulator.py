"""Runs the made-up world day by day and writes its log, with the known truth beside it.

Days are simulated in order, the requests of a day in chunks in time order; so every file is sorted by
time, and memory follows the chunk and the catalogue, not the number of users.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys.draws import Draws
from recsys.events import Float32, Int32, Int64
from recsys.simulation import write
from recsys.simulation.behaviour import (
    EVENT_TYPES,
    EventRows,
    Outcome,
    attraction,
    events_of,
    outcome,
    visits_of_day,
)
from recsys.simulation.grammar import Grammar
from recsys.simulation.policy import DayPolicy, Memory, Visits
from recsys.simulation.world import DAY_S, DEVICES, REGIONS, Items, Population, SimulationConfig

_USERS_PER_BLOCK = 20_000
_ITEMS_PER_BLOCK = 20_000


@dataclass(frozen=True)
class SimulationReport:
    """What was written.

    Attributes:
        users, items, impressions, shown, events, clicks: rows of each kind; `shown` are those of truth.
        click_rate: clicks a shown item.
        oracle_auc: AUC within a slate of the true click probability, the mean over slates with both
            clicked and unclicked items; no ranker can be expected to beat it. NaN without such slates.
        attraction_auc: the same for P(click | examined), which knows no positions.
        seconds: time taken.
    """

    users: int
    items: int
    impressions: int
    shown: int
    events: int
    clicks: int
    click_rate: float
    oracle_auc: float
    attraction_auc: float
    seconds: float


def simulate(
    out: Path, config: SimulationConfig, *, progress: Callable[[int, int], None] | None = None
) -> SimulationReport:
    """Write items, users, impressions, events and truth as Parquet files into `out`.

    The files appear together at the end, in the place of earlier ones. Events and impressions are
    sorted by time. `propensity` in impressions is the probability that the logging policy put this item into
    this place, given the request and the items above. Same config, same bytes.

    Args:
        out: folder, made if missing.
        config: sizes and seed.
        progress: called with (days done, days) after each day.

    Raises:
        RecsysError: `storage_full` or `storage_failed` (exit 74); earlier files are then untouched.
    """
    started = time.perf_counter()
    with write.TableWriter(out) as tables:
        run = _Run(config, tables)
        run.write_items()
        run.write_users()
        for day in range(config.days):
            run.simulate_day(day)
            if progress:
                progress(day + 1, config.days)
        run.finish()
    return run.tally.report(config, time.perf_counter() - started)


@dataclass
class _Tally:
    """Running totals of a simulation."""

    impressions: int = 0
    shown: int = 0
    events: int = 0
    clicks: int = 0
    slates_with_both: int = 0
    auc_sums: dict[str, float] = field(default_factory=lambda: {"oracle": 0.0, "attraction": 0.0})

    def add(self, result: Outcome) -> None:
        self.impressions += len(result.item)
        self.shown += result.item.size
        self.clicks += int(result.clicked.sum())
        hits = result.clicked.sum(axis=1)
        both = (hits > 0) & (hits < result.item.shape[1])
        self.slates_with_both += int(both.sum())
        for name, score in (("oracle", result.click_probability), ("attraction", result.attraction)):
            self.auc_sums[name] += float(_auc(score[both], result.clicked[both]).sum())

    def report(self, config: SimulationConfig, seconds: float) -> SimulationReport:
        mean = {
            name: total / self.slates_with_both if self.slates_with_both else float("nan")
            for name, total in self.auc_sums.items()
        }
        return SimulationReport(
            config.users,
            config.items,
            self.impressions,
            self.shown,
            self.events,
            self.clicks,
            self.clicks / max(self.shown, 1),
            mean["oracle"],
            mean["attraction"],
            seconds,
        )


class _Run:
    """One simulation: the world, what the policy remembers, and the files being written."""

    def __init__(self, config: SimulationConfig, tables: write.TableWriter) -> None:
        self.tally = _Tally()
        self._config = config
        self._tables = tables
        self._draws = Draws(config.seed)
        self._grammar = Grammar.load()
        self._items = Items.of(config, self._grammar, self._draws)
        self._population = Population(config, self._grammar, self._draws)
        self._memory = Memory(config.users, config.items)
        self._pending: list[EventRows] = []

    def write_items(self) -> None:
        """Write the catalogue with its text."""
        shelves = self._grammar.subcategories
        for rows in _blocks(self._config.items, _ITEMS_PER_BLOCK):
            shelf = self._items.subcategory[rows]
            titles, descriptions = self._grammar.write(rows, shelf, self._items.attributes[rows], self._draws)
            columns = {
                "item_id": write.ids("i", rows),
                "title": pa.array(titles, pa.string()),
                "description": pa.array(descriptions, pa.string()),
                "category": write.names(shelf, tuple(s.category for s in shelves)),
                "subcategory": write.names(shelf, tuple(s.name for s in shelves)),
                "created_at": write.moments(self._items.created_s[rows]),
            }
            self._tables.append("items", columns)

    def write_users(self) -> None:
        """Write the users with their attributes, also those who never act."""
        for rows in _blocks(self._config.users, _USERS_PER_BLOCK):
            columns = {
                "user_id": write.ids("u", rows),
                "region": write.names(self._population.region(rows), REGIONS),
                "device": write.names(self._population.device(rows), DEVICES),
            }
            self._tables.append("users", columns)

    def simulate_day(self, day: int) -> None:
        """Show and record every slate of a day; the policy learns from its clicks at the end."""
        start_s = self._config.start_s + day * DAY_S
        policy = DayPolicy(self._items, start_s, self._memory, self._config.slate_size, self._draws)
        visits = self._visits(day, start_s)
        size = self._config.requests_per_chunk
        learned = [
            self._chunk(visits.take(slice(at, at + size)), policy) for at in range(0, len(visits), size)
        ]
        if learned:
            self._memory.learn(*(np.concatenate(column) for column in zip(*learned, strict=True)))

    def finish(self) -> None:
        """Write the events that are still held back."""
        self._emit(np.iinfo(np.int64).max)

    def _visits(self, day: int, start_s: float) -> Visits:
        blocks = [
            visits_of_day(self._population, self._draws, day, start_s, users)
            for users in _blocks(self._config.users, _USERS_PER_BLOCK)
        ]
        return Visits.merged(blocks)

    def _chunk(self, visits: Visits, policy: DayPolicy) -> tuple[Int32, Int32]:
        """Simulate and write consecutive slates; returns their clicks as (users, items) in time order."""
        self._emit(int(np.rint(visits.timestamp_s[0] * 1e6)))
        tastes = self._population.tastes(visits.user, visits.day)
        shown, propensity = policy.slates(visits, tastes)
        attracts = attraction(visits, tastes, shown, self._items, self._population, self._draws)
        result = outcome(visits, shown, attracts, self._draws)
        first = self.tally.impressions
        self._write_slates(visits, result, propensity, first)
        self._pending.append(events_of(visits, first, result, self._items, self._draws))
        self.tally.add(result)
        slate, column = np.nonzero(result.clicked)
        return visits.user[slate], shown[slate, column].astype(np.int32)

    def _write_slates(self, visits: Visits, result: Outcome, propensity: Float32, first: int) -> None:
        slates, length = result.item.shape
        impression = first + np.arange(slates)
        shown = write.ids("i", result.item.ravel())
        position = pa.array(np.tile(np.arange(1, length + 1, dtype=np.int16), slates))
        sizes = np.full(slates, length)
        impressions = {
            "impression_id": pa.array(impression),
            "user_id": write.ids("u", visits.user),
            "timestamp": write.moments(visits.timestamp_s),
            "shown": write.lists(shown, sizes),
            "clicked": write.lists(write.ids("i", result.item[result.clicked]), result.clicked.sum(axis=1)),
            "position": write.lists(position, sizes),
            "propensity": write.lists(pa.array(propensity.ravel()), sizes),
        }
        truth = {
            "impression_id": pa.array(np.repeat(impression, length)),
            "item_id": shown,
            "position": position,
            "examination": pa.array(np.tile(result.examination, slates)),
            "attraction": pa.array(result.attraction.ravel()),
            "click_probability": pa.array(result.click_probability.ravel()),
        }
        self._tables.append("impressions", impressions)
        self._tables.append("truth", truth)

    def _emit(self, before_us: int) -> None:
        """Write the pending events before this moment: nothing earlier can follow any more."""
        if not self._pending:
            return
        ready, later = EventRows.concatenate(self._pending).split(before_us)
        self._pending = [later]
        columns = {
            "event_id": pa.array(self.tally.events + np.arange(len(ready))),
            "user_id": write.ids("u", ready.user),
            "item_id": write.ids("i", ready.item),
            "event_type": write.names(ready.kind, EVENT_TYPES),
            "timestamp": write.microseconds(ready.timestamp_us),
            "impression_id": pa.array(ready.slate),
            "position": pa.array(ready.position),
        }
        self._tables.append("events", columns)
        self.tally.events += len(ready)


def _auc(score: Float32, clicked: np.ndarray) -> np.ndarray:
    """(n,) area under the ROC curve of each row; ties count one half. Rows need both classes."""
    order = np.argsort(score, axis=1, kind="stable")
    ranked = np.take_along_axis(score, order, axis=1)
    places = np.arange(score.shape[1])
    low = np.where(np.diff(ranked, axis=1, prepend=-np.inf) > 0, places, 0)
    low = np.maximum.accumulate(low, axis=1)
    high = np.where(np.diff(ranked, axis=1, append=np.inf) > 0, places, score.shape[1])
    high = np.minimum.accumulate(high[:, ::-1], axis=1)[:, ::-1]
    rank = (low + high) / 2 + 1
    hits = np.take_along_axis(clicked, order, axis=1)
    positives = hits.sum(axis=1)
    negatives = score.shape[1] - positives
    return ((rank * hits).sum(axis=1) - positives * (positives + 1) / 2) / (positives * negatives)


def _blocks(count: int, size: int) -> list[Int64]:
    """The numbers 0..count-1 in blocks of at most `size`."""
    return [np.arange(first, min(first + size, count)) for first in range(0, count, size)]
