"""What a feature is: one frozen declaration each, from which replay, live state and schema all follow.

A declaration says what is counted, by which key, with which decay and delay, and what the number means.
Nothing here computes. Missing values are NaN everywhere: an unknown user, item or category, an absent
score, a ratio over nothing. A known key that nothing has happened to yet counts 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Key = Literal[
    "global", "user", "item", "category", "subcategory", "user_category", "user_subcategory", "user_item"
]
Stream = Literal["target", "outcome", "click", "negative", "any", "shown", "catalogue"]
Mark = Literal["count", "first", "last", "created", "categories", "slate_share"]
Pairs = Literal["text", "als", "item_item", "ease", "transition", "to_outcome", "between_outcomes"]
DENSE_PAIRS: tuple[Pairs, ...] = ("text", "als")
"""Those that are given by factors; the others are stored pair by pair."""
Aggregate = Literal["mean", "max", "top3", "last", "recent", "ordered"]
Transform = Literal["rank", "ratio", "zscore"]
HalfLife = float | None

LIFETIME: HalfLife = None
"""The half-life of a count that never decays."""

EVENT_STREAMS: tuple[Stream, ...] = ("target", "outcome", "click", "negative", "any")
AGGREGATES: tuple[Aggregate, ...] = ("mean", "max", "top3", "last", "recent", "ordered")
TRANSFORMS: tuple[Transform, ...] = ("rank", "ratio", "zscore")


@dataclass(frozen=True)
class State:
    """One number that is kept per key and read at a moment.

    Attributes:
        key: whose number it is, seen from a row (user, candidate).
        stream: the rows that update it: `target` (outcomes worth predicting, by event weight), `outcome`
            (the same, each 1), `click` (clicks; in a log without that type, every outcome), `negative`,
            `any` (each event 1), `shown` (slate rows), or `catalogue` (no stream).
        mark: `count` (decayed sum), `first` and `last` (days since that row of the stream), `created` (days
            since the item's created_at), `categories` (distinct categories in the user's
            history), `slate_share` (share of the request's candidates that have the candidate's category
            or sub-category, as `key` says).
        half_life_days: of a `count`; None never decays.
        delay_s: how old a row of the stream must be before it is seen.
    """

    key: Key
    stream: Stream
    mark: Mark = "count"
    half_life_days: HalfLife = LIFETIME
    delay_s: float = 0.0


@dataclass(frozen=True)
class Formula:
    """A column that follows from states of the same row; see `features.derive` for the operations."""

    operation: Literal["log1p", "identity", "ratio", "rate", "oldest"]
    inputs: tuple[State, ...]
    constant: float = 0.0


@dataclass(frozen=True)
class Column:
    """One column of the feature matrix, and its formula where it has one."""

    name: str
    meaning: str
    formula: Formula | None = None


def label_of(half_life_days: HalfLife) -> str:
    """Short name of a half-life: `2h`, `7d`, `lifetime`."""
    if half_life_days is None:
        return "lifetime"
    if half_life_days < 1:
        return f"{round(half_life_days * 24)}h"
    return f"{half_life_days:g}d"


@dataclass(frozen=True)
class Counter:
    """log(1 + decayed count) of a stream's rows by key, one column a half-life."""

    name: str
    key: Key
    stream: Stream
    half_lives_days: tuple[HalfLife, ...]
    delay_s: float = 0.0

    def columns(self) -> tuple[Column, ...]:
        """`NAME_HALFLIFE` for each half-life, in the declared order."""
        return tuple(self._column(half_life) for half_life in self.half_lives_days)

    def _column(self, half_life: HalfLife) -> Column:
        label = label_of(half_life)
        state = State(self.key, self.stream, "count", half_life, self.delay_s)
        meaning = f"log(1 + {self.stream} count of the {self.key}, half-life {label})"
        return Column(f"{self.name}_{label}", meaning, Formula("log1p", (state,)))


@dataclass(frozen=True)
class Rate:
    """(n + strength · g) / (d + strength): a decayed rate, smoothed towards the global rate g.

    NaN while the global denominator is empty, as in a log without slates.
    """

    name: str
    key: Key
    numerator: Stream
    denominator: Stream
    half_lives_days: tuple[HalfLife, ...]
    prior_strength: float = 20.0
    delay_s: float = 0.0

    def columns(self) -> tuple[Column, ...]:
        """`NAME_HALFLIFE` for each half-life, in the declared order."""
        return tuple(self._column(half_life) for half_life in self.half_lives_days)

    def _column(self, half_life: HalfLife) -> Column:
        label = label_of(half_life)
        keys: tuple[Key, Key] = (self.key, "global")
        inputs = tuple(
            State(key, stream, "count", half_life, self.delay_s)
            for key in keys
            for stream in (self.numerator, self.denominator)
        )
        meaning = f"smoothed {self.numerator} per {self.denominator} of the {self.key}, half-life {label}"
        return Column(f"{self.name}_{label}", meaning, Formula("rate", inputs, self.prior_strength))


@dataclass(frozen=True)
class Trend:
    """Short-lived count / (long-lived count + 1): how much of the attention is recent, 0 to 1."""

    name: str
    key: Key
    stream: Stream
    short_days: float
    long_days: HalfLife
    delay_s: float = 0.0

    def columns(self) -> tuple[Column, ...]:
        """One column, `NAME`."""
        half_lives: tuple[HalfLife, HalfLife] = (self.short_days, self.long_days)
        inputs = tuple(State(self.key, self.stream, "count", h, self.delay_s) for h in half_lives)
        short, long = (label_of(h) for h in half_lives)
        meaning = f"{self.stream} count of the {self.key}, half-life {short} over {long}"
        return (Column(self.name, meaning, Formula("ratio", inputs, 1.0)),)


@dataclass(frozen=True)
class Share:
    """Affinity: the part of the user's decayed events that fell on this key; NaN without events."""

    name: str
    key: Key
    stream: Stream
    half_lives_days: tuple[HalfLife, ...]
    delay_s: float = 0.0

    def columns(self) -> tuple[Column, ...]:
        """`NAME_HALFLIFE` for each half-life, in the declared order."""
        return tuple(self._column(half_life) for half_life in self.half_lives_days)

    def _column(self, half_life: HalfLife) -> Column:
        keys: tuple[Key, Key] = (self.key, "user")
        inputs = tuple(State(key, self.stream, "count", half_life, self.delay_s) for key in keys)
        meaning = f"share of the user's {self.stream} events in this {self.key}"
        return Column(f"{self.name}_{label_of(half_life)}", meaning, Formula("ratio", inputs))


@dataclass(frozen=True)
class Pace:
    """Events a day of the key since its first event: count / (days + 1); NaN before the first."""

    name: str
    key: Key
    stream: Stream
    delay_s: float = 0.0

    def columns(self) -> tuple[Column, ...]:
        """One column, `NAME`."""
        count = State(self.key, self.stream, "count", LIFETIME, self.delay_s)
        first = State(self.key, self.stream, "first", LIFETIME, self.delay_s)
        meaning = f"{self.stream} events a day of the {self.key} since its first"
        return (Column(self.name, meaning, Formula("ratio", (count, first), 1.0)),)


@dataclass(frozen=True)
class Age:
    """Days since the key's last event (`last`), or since it came into being (`first`).

    The age of an item is that of its created_at; without one, of the first time it was acted on or shown.
    """

    name: str
    key: Key
    since: Literal["first", "last"]
    stream: Stream = "target"
    delay_s: float = 0.0

    def columns(self) -> tuple[Column, ...]:
        """One column, `NAME`."""
        if self.since == "last" or self.key != "item":
            state = State(self.key, self.stream, self.since, LIFETIME, self.delay_s)
            meaning = f"days since the {self.since} {self.stream} event of the {self.key}"
            return (Column(self.name, meaning, Formula("identity", (state,))),)
        inputs = (
            State("item", "catalogue", "created"),
            State("item", self.stream, "first", LIFETIME, self.delay_s),
            State("item", "shown", "first", LIFETIME, self.delay_s),
        )
        return (Column(self.name, "days since the item appeared", Formula("oldest", inputs)),)


@dataclass(frozen=True)
class DistinctCategories:
    """How many different categories stand in the user's history."""

    name: str

    def columns(self) -> tuple[Column, ...]:
        """One column, `NAME`."""
        state = State("user", "catalogue", "categories")
        return (Column(self.name, "distinct categories in the history", Formula("identity", (state,))),)


@dataclass(frozen=True)
class SlateShare:
    """How much of the slate is of the candidate's kind: what a policy shows in numbers, it believes in.

    Attributes:
        key: `category` or `subcategory`.
    """

    name: str
    key: Literal["category", "subcategory"]

    def columns(self) -> tuple[Column, ...]:
        """One column, `NAME`."""
        state = State(self.key, "catalogue", "slate_share")
        meaning = f"share of the slate that has the candidate's {self.key}"
        return (Column(self.name, meaning, Formula("identity", (state,))),)


@dataclass(frozen=True)
class HistorySimilarity:
    """Scores between the candidate and the user's last events, brought together in several ways.

    Attributes:
        pairs: which item-to-item scores.
        aggregates: `mean`, `max`, `top3` (mean of the three highest), `last` (the newest event), `recent`
            (weights: event weight × 2^(-age / half-life)), `ordered` (event weight × place_decay^place,
            place 0 the newest).
        weighted: whether the two weighted aggregates are a `mean` or a `sum`.
        limit: how many events back.
    """

    name: str
    pairs: Pairs
    aggregates: tuple[Aggregate, ...]
    weighted: Literal["mean", "sum"] = "mean"
    limit: int = 50
    half_life_days: float = 7.0
    place_decay: float = 0.9

    def columns(self) -> tuple[Column, ...]:
        """`NAME_AGGREGATE` in the declared order."""
        meaning = f"of the {self.pairs} scores between candidate and history"
        return tuple(Column(f"{self.name}_{a}", f"{a} {meaning}") for a in self.aggregates)


@dataclass(frozen=True)
class RequestScore:
    """A score of each candidate that the caller computes, such as the head's."""

    name: str

    def columns(self) -> tuple[Column, ...]:
        """One column, `NAME`."""
        return (Column(self.name, f"score of the candidate by `{self.name}`"),)


@dataclass(frozen=True)
class SourceFlag:
    """1 where the retriever proposed the candidate; NaN where we retrieved none (a logged slate)."""

    source: str

    def columns(self) -> tuple[Column, ...]:
        """One column, `from_SOURCE`."""
        return (Column(f"from_{self.source}", f"proposed by the retriever `{self.source}`"),)


@dataclass(frozen=True)
class RequestFact:
    """A plain count.

    Attributes:
        fact: `history_length` (events in the history read), `repeats` (of them, with the candidate),
            `candidates` (in the request), `sources` (retrievers that proposed the candidate).
    """

    fact: Literal["history_length", "repeats", "candidates", "sources"]

    def columns(self) -> tuple[Column, ...]:
        """One column, named after the fact."""
        return (Column(self.fact, f"{self.fact.replace('_', ' ')} (count)"),)


@dataclass(frozen=True)
class InSlate:
    """A column compared with the other candidates of the request; NaN stays NaN.

    Attributes:
        of: name of an earlier column.
        transforms: `rank` (1 = highest, ties averaged, over the number ranked), `ratio` (to the highest,
            NaN where that is not positive), `zscore` (0 where all are equal).
    """

    of: str
    transforms: tuple[Transform, ...] = field(default=TRANSFORMS)

    def columns(self) -> tuple[Column, ...]:
        """`OF_TRANSFORM` in the declared order."""
        return tuple(Column(f"{self.of}_{t}", f"{t} of {self.of} in the slate") for t in self.transforms)


Declaration = (
    Counter
    | Rate
    | Trend
    | Share
    | Pace
    | Age
    | DistinctCategories
    | SlateShare
    | HistorySimilarity
    | RequestScore
    | SourceFlag
    | RequestFact
    | InSlate
)
