"""A checked dataset in memory: ids to row numbers and back, the catalogue, the log, the time split.

Frames come in already checked (`schema.check`); nothing here reads or repairs files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys.errors import RecsysError
from recsys.events import (
    DEFAULT_ROLES,
    Bool,
    EventRole,
    Events,
    Float64,
    Histories,
    Int32,
    Slates,
    lengths_to_offsets,
)

MOST_EVENT_TYPES = 127


class Ids:
    """A two-way map between external ids (all strings or all integers) and row numbers 0..n-1."""

    def __init__(self, values: pl.Series) -> None:
        """Take unique, non-null ids; their order is the row order."""
        self.values = values.alias("id")
        self._rows = pl.DataFrame({"id": self.values}).with_row_index("row")

    def __len__(self) -> int:
        return len(self.values)

    def index(self, ids: pl.Series) -> Int32:
        """Row number of each id, -1 for an unknown or null one; "2" and 2.0 find the integer 2."""
        if ids.dtype.is_float():
            ids = ids.set(ids != ids.round(), None)
        wanted = pl.DataFrame({"id": ids}).with_columns(pl.col("id").cast(self.values.dtype, strict=False))
        joined = wanted.join(self._rows, on="id", how="left", maintain_order="left")
        return joined["row"].cast(pl.Int32).fill_null(-1).to_numpy()

    def take(self, rows: Sequence[int] | NDArray[np.integer]) -> pl.Series:
        """External ids of these row numbers."""
        return self.values.gather(pl.Series(np.asarray(rows, dtype=np.int64)))

    def __getitem__(self, row: int) -> str | int:
        found: str | int = self.values[int(row)]
        return found


@dataclass(frozen=True)
class Catalogue:
    """The items as columns, row i is item_index i.

    Attributes:
        ids: external item ids.
        title: titles, "" where missing.
        description: descriptions, "" where missing.
        category: code into `category_names`, -1 where missing. Likewise `subcategory`.
        created_at: epoch seconds, NaN where unknown.
    """

    ids: Ids
    title: list[str]
    description: list[str]
    category: Int32
    category_names: list[str]
    subcategory: Int32
    subcategory_names: list[str]
    created_at: Float64

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def from_frame(cls, items: pl.DataFrame) -> Catalogue:
        """Read a checked items table; absent optional columns count as missing in every row."""
        category, category_names = _codes(items, "category")
        subcategory, subcategory_names = _codes(items, "subcategory")
        return cls(
            Ids(items["item_id"]),
            _text(items, "title"),
            _text(items, "description"),
            category,
            category_names,
            subcategory,
            subcategory_names,
            _seconds(items, "created_at"),
        )


@dataclass(frozen=True)
class Dataset:
    """Catalogue, users and log of one dataset folder.

    `users` are those of the log (events and slates), plus those in the users table. `attributes` is
    the users table (fairness only) or None. `event_types[i]` names type_index i, `roles[i]` its role.
    """

    name: str
    catalogue: Catalogue
    users: Ids
    events: Events
    slates: Slates | None
    event_types: tuple[str, ...]
    roles: tuple[EventRole, ...]
    attributes: pl.DataFrame | None = None

    @classmethod
    def from_frames(
        cls,
        items: pl.DataFrame,
        events: pl.DataFrame,
        impressions: pl.DataFrame | None = None,
        users: pl.DataFrame | None = None,
        *,
        name: str = "dataset",
        roles: Mapping[str, EventRole] = DEFAULT_ROLES,
    ) -> Dataset:
        """Build from checked frames.

        Type indices follow the order of `roles`, so two logs read with the same roles share them; types
        without a role come after and get `EventRole()`.

        Raises:
            RecsysError: `too_many_event_types` beyond 127.
        """
        catalogue = Catalogue.from_frame(items)
        user_ids = _all_users(events, impressions, users)
        others = set(events["event_type"].unique().to_list()) - set(roles)
        types = (*roles, *sorted(others))
        if len(types) > MOST_EVENT_TYPES:
            what = f"{len(types)} event types are more than {MOST_EVENT_TYPES}: map them to fewer"
            raise RecsysError("too_many_event_types", what, name)
        log = _events(events, catalogue.ids, user_ids, types)
        slates = None
        if impressions is not None and impressions.height:
            slates = _slates(impressions, catalogue.ids, user_ids)
        type_roles = tuple(roles.get(kind, EventRole()) for kind in types)
        return cls(name, catalogue, user_ids, log, slates, types, type_roles, users)

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """(types,) preference weight by type_index."""
        return np.array([role.weight for role in self.roles], np.float32)

    @cached_property
    def is_target(self) -> Bool:
        """(types,) whether events of that type_index are outcomes worth predicting."""
        return np.array([role.target and not role.negative for role in self.roles], np.bool_)

    @cached_property
    def is_negative(self) -> Bool:
        """(types,) whether events of that type_index say "less of this"."""
        return np.array([role.negative for role in self.roles], np.bool_)

    @cached_property
    def histories(self) -> Histories:
        """Each user's target events in time order."""
        return Histories.of(self.events, len(self.users), self.is_target)

    @property
    def end(self) -> float:
        """The moment just after the last event or slate; 0.0 for an empty log."""
        last = [self.events.timestamp[-1]] if len(self.events) else []
        if self.slates is not None and len(self.slates):
            last.append(self.slates.timestamp[-1])
        return float(max(last)) + 1.0 if last else 0.0

    def before(self, as_of: float) -> Dataset:
        """The same dataset with the log cut to what happened strictly before `as_of`."""
        slates = self.slates
        if slates is not None:
            slates = slates.take(np.flatnonzero(slates.timestamp < as_of))
        return self.with_log(self.events.take(slice(0, int(self.events.known_at(as_of)))), slates)

    def with_log(self, events: Events, slates: Slates | None) -> Dataset:
        """The same catalogue and users over another log."""
        return replace(self, events=events, slates=slates if slates is not None and len(slates) else None)


def _all_users(events: pl.DataFrame, impressions: pl.DataFrame | None, users: pl.DataFrame | None) -> Ids:
    frames = [frame for frame in (events, impressions, users) if frame is not None]
    ids = pl.concat([frame.select("user_id") for frame in frames], how="vertical_relaxed")
    return Ids(ids["user_id"].unique().sort())


def _text(items: pl.DataFrame, column: str) -> list[str]:
    if column not in items.columns:
        return [""] * items.height
    texts: list[str] = items[column].cast(pl.String).fill_null("").to_list()
    return texts


def _codes(items: pl.DataFrame, column: str) -> tuple[Int32, list[str]]:
    """Integer codes of a text column by sorted value, -1 for null or empty."""
    if column not in items.columns:
        return np.full(items.height, -1, np.int32), []
    values = items[column].cast(pl.String)
    names = sorted(name for name in values.unique().to_list() if name)
    return Ids(pl.Series(names, dtype=pl.String)).index(values), names


def _seconds(frame: pl.DataFrame, column: str) -> Float64:
    """Epoch seconds of a Datetime column (or of a numeric one, already in seconds); NaN for null."""
    if column not in frame.columns:
        return np.full(frame.height, np.nan)
    values = frame[column]
    if values.dtype.is_temporal():
        values = values.cast(pl.Datetime("us")).to_physical() / 1e6
    return values.cast(pl.Float64).fill_null(np.nan).to_numpy().astype(np.float64)


def _events(frame: pl.DataFrame, items: Ids, users: Ids, types: tuple[str, ...]) -> Events:
    timestamp = _seconds(frame, "timestamp")
    dated = ~np.isnan(timestamp)
    first = timestamp[dated].min() if dated.any() else 0.0
    timestamp = np.where(dated, timestamp, first - 1.0)
    order = np.argsort(timestamp, kind="stable")
    value = frame["value"] if "value" in frame.columns else pl.Series([None] * frame.height, dtype=pl.Float32)
    codes = Ids(pl.Series(types, dtype=pl.String)).index(frame["event_type"].cast(pl.String))
    return Events(
        users.index(frame["user_id"])[order],
        items.index(frame["item_id"])[order],
        codes.astype(np.int8)[order],
        timestamp[order],
        value.cast(pl.Float32).fill_null(np.nan).to_numpy()[order],
    )


def _slates(frame: pl.DataFrame, items: Ids, users: Ids) -> Slates:
    """Flatten the list columns; `clicked` is a list of item ids or of booleans beside `shown`."""
    frame = frame.with_columns(pl.Series("_timestamp", _seconds(frame, "timestamp")))
    frame = frame.with_row_index("_row").sort("_timestamp", maintain_order=True)
    lengths = frame["shown"].list.len().to_numpy().astype(np.int64)
    shown = frame["shown"].explode(empty_as_null=False)
    owner = np.repeat(np.arange(frame.height, dtype=np.int64), lengths)
    return Slates(
        users.index(frame["user_id"]),
        frame["_timestamp"].to_numpy(),
        lengths_to_offsets(lengths),
        items.index(shown),
        _clicked(frame, shown, owner),
        _per_row(frame, "position", owner, lengths).astype(np.int16),
        _propensity(frame, len(owner)),
        frame["_row"].to_numpy().astype(np.int64),
    )


def _clicked(frame: pl.DataFrame, shown: pl.Series, owner: NDArray[np.int64]) -> Bool:
    if "clicked" not in frame.columns:
        return np.zeros(len(owner), np.bool_)
    clicked = frame["clicked"]
    if clicked.dtype == pl.List(pl.Boolean):
        return clicked.explode(empty_as_null=False).fill_null(False).to_numpy()
    hits = pl.DataFrame(
        {
            "slate": np.repeat(np.arange(frame.height), clicked.list.len().fill_null(0).to_numpy()),
            "item": clicked.fill_null([]).explode(empty_as_null=False).cast(shown.dtype),
        }
    ).unique()
    rows = pl.DataFrame({"slate": owner, "item": shown})
    joined = rows.join(hits.with_columns(hit=True), on=["slate", "item"], how="left", maintain_order="left")
    return joined["hit"].fill_null(False).to_numpy()


def _per_row(
    frame: pl.DataFrame, column: str, owner: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Shown positions from the file, or the place in the list, counted from 1."""
    if column in frame.columns and isinstance(frame[column].dtype, pl.List):
        return frame[column].explode(empty_as_null=False).cast(pl.Int64).to_numpy()
    starts = lengths_to_offsets(lengths)[:-1]
    return np.arange(len(owner), dtype=np.int64) - np.repeat(starts, lengths) + 1


def _propensity(frame: pl.DataFrame, rows: int) -> NDArray[np.float32]:
    if "propensity" not in frame.columns or not isinstance(frame["propensity"].dtype, pl.List):
        return np.full(rows, np.nan, np.float32)
    values = frame["propensity"].explode(empty_as_null=False)
    return values.cast(pl.Float32).fill_null(np.nan).to_numpy()
