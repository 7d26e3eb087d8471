"""From requests, their reading and the models' scores to the feature matrix, columns in schema order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from features.catalogue import DEFAULT_FEATURES
from features.declaration import (
    AGGREGATES,
    DENSE_PAIRS,
    TRANSFORMS,
    Declaration,
    HistorySimilarity,
    InSlate,
    RequestFact,
    RequestScore,
    SourceFlag,
)
from features.derive import Program
from features.keys import writable
from features.plan import StatePlan
from features.reading import Reading
from features.records import from_record, to_record
from features.schema import FeatureField, FeatureSchema
from features.similarity import WeighedHistory, count_repeats, write_dense
from features.slate import compare_in_slate
from features.sources import write_source_flags
from features.stored_similarity import write_stored
from recsys.dense_products import DenseProducts
from recsys.events import Bool, Float32, Int64
from recsys.pairs import DensePairs, SparsePairs
from recsys.requests import SOURCES, HistoryBatch, Requests

PairScores = Mapping[str, DensePairs | DenseProducts | SparsePairs]

HISTORY_LIMIT = 150
_NO_PAIRS = SparsePairs.empty(0)


class Features:
    """A list of declarations made computable: its schema, the states it needs, and the matrix.

    Attributes:
        schema: names, order and parameters of the columns.
        plan: the states that `Replay` and `LiveState` must read.
    """

    def __init__(
        self,
        declarations: Sequence[Declaration] = DEFAULT_FEATURES,
        *,
        history_limit: int = HISTORY_LIMIT,
        history_delay_s: float = 0.0,
    ) -> None:
        """Take declarations in column order, and how many events, how old at least, a history holds.

        Raises:
            ValueError: two columns share a name, or an `InSlate` names no earlier column.
        """
        self.declarations = tuple(declarations)
        self.history_limit = history_limit
        self.history_delay_s = history_delay_s
        columns = [column for declaration in self.declarations for column in declaration.columns()]
        self.schema = self._schema()
        self._place = {column.name: place for place, column in enumerate(columns)}
        if len(self._place) < len(columns):
            raise ValueError("two feature columns share a name")
        formulas = [column.formula for column in columns if column.formula is not None]
        self.plan = StatePlan(state for formula in formulas for state in formula.inputs)
        self._program = Program.of(columns, self.plan)
        self._comparisons = self._comparison_program()
        self._similarities = self._ways()
        self._flags = self._flag_columns()
        self._others = [
            (self._place[declaration.columns()[0].name], declaration)
            for declaration in self.declarations
            if isinstance(declaration, RequestScore)
            or (isinstance(declaration, RequestFact) and declaration.fact != "sources")
        ]

    @property
    def compared_events(self) -> int:
        """Of how many of the newest events of a history the pair scores are looked at."""
        return max((declarations[0].limit for declarations, _, _ in self._similarities), default=0)

    def build(
        self,
        requests: Requests,
        reading: Reading,
        pairs: PairScores,
        scores: Mapping[str, Float32],
        event_weights: Float32,
    ) -> Float32:
        """(rows, features) float32 matrix, columns in schema order, each in one piece.

        Args:
            requests: who asks for what.
            reading: from `Replay.read` or `LiveState.read` of the same requests.
            pairs: item-to-item scores by name (the names are those of `declaration.Pairs`); of dense ones
                the products with the reading's history will do.
            scores: (rows,) scores by `RequestScore` name. Absent pairs and scores give NaN columns.
            event_weights: (types,) weight by type_index in the history.
        """
        matrix = np.full((len(self.schema), requests.rows), np.nan, np.float32)
        self._program.run(reading.counters.T, matrix)
        write_source_flags(requests.source, self._flags, matrix)
        self._write_similarities(requests, reading.history, pairs, event_weights, matrix)
        for column, declaration in self._others:
            if isinstance(declaration, RequestFact):
                matrix[column] = _fact(declaration.fact, requests, reading)
            elif declaration.name in scores:
                matrix[column] = scores[declaration.name]
        compare_in_slate(requests.offsets, self._comparisons, matrix)
        return matrix.T

    def _write_similarities(
        self, requests: Requests, history: HistoryBatch, pairs: PairScores, weights: Float32, matrix: Float32
    ) -> None:
        """Those that weigh the history alike share the weights, and their stored pairs are read together."""
        strength = weights.astype(np.float64)[history.type_index]
        for declarations, as_mean, columns in self._similarities:
            weighed = WeighedHistory.of(declarations[0], history, strength)
            stored = []
            for place, declaration in enumerate(declarations):
                table = pairs.get(declaration.pairs, _NO_PAIRS)
                if isinstance(table, DensePairs):
                    table = DenseProducts.of(table, requests, history, declaration.limit)
                if isinstance(table, DenseProducts):
                    write_dense(table, requests, weighed, as_mean[place], columns[place], matrix)
                elif declaration.pairs not in DENSE_PAIRS:
                    stored.append(table)
            if stored:
                first = len(declarations) - len(stored)
                write_stored(stored, requests, weighed, as_mean[first:], columns[first:], matrix)

    def to_json(self) -> str:
        """Declarations and history settings, from which `from_json` makes the same features."""
        records = [to_record(declaration) for declaration in self.declarations]
        settings = {"history_limit": self.history_limit, "history_delay_s": self.history_delay_s}
        return json.dumps({**settings, "declarations": records})

    @classmethod
    def from_json(cls, text: str | bytes) -> Features:
        """Inverse of `to_json`. Raises KeyError or TypeError for declarations that this version lacks."""
        record = json.loads(text)
        return cls(
            [from_record(declaration) for declaration in record["declarations"]],
            history_limit=record["history_limit"],
            history_delay_s=record["history_delay_s"],
        )

    def _schema(self) -> FeatureSchema:
        settings = {"history_limit": self.history_limit, "history_delay_s": self.history_delay_s}
        fields = []
        for declaration in self.declarations:
            parameters = json.dumps({**to_record(declaration), **settings}, sort_keys=True)
            fields += [
                FeatureField(column.name, "float32", column.meaning, parameters)
                for column in declaration.columns()
            ]
        return FeatureSchema(tuple(fields))

    def _ways(self) -> list[tuple[list[HistorySimilarity], Bool, Int64]]:
        """The similarities that weigh a history alike, dense pairs first; is it a mean; columns, (n, 6)."""
        ways: dict[tuple[object, ...], list[HistorySimilarity]] = {}
        for declaration in self.declarations:
            if isinstance(declaration, HistorySimilarity):
                way = (declaration.limit, declaration.half_life_days, declaration.place_decay)
                ways.setdefault(way, []).append(declaration)
        for alike in ways.values():
            alike.sort(key=lambda declaration: declaration.pairs not in DENSE_PAIRS)
        return [
            (
                alike,
                np.array([declaration.weighted == "mean" for declaration in alike]),
                np.stack([self._columns(declaration) for declaration in alike]),
            )
            for alike in ways.values()
        ]

    def _columns(self, similarity: HistorySimilarity) -> Int64:
        """(6,) where each of AGGREGATES goes, -1 nowhere."""
        first = self._place[similarity.columns()[0].name]
        places = {aggregate: first + nth for nth, aggregate in enumerate(similarity.aggregates)}
        return np.array([places.get(aggregate, -1) for aggregate in AGGREGATES], np.int64)

    def _flag_columns(self) -> Int64:
        """(sources + 1,) where each source's flag goes, and their number; -1 nowhere."""
        found = np.full(len(SOURCES) + 1, -1, np.int64)
        for declaration in self.declarations:
            place = self._place[declaration.columns()[0].name]
            if isinstance(declaration, SourceFlag):
                found[SOURCES.index(declaration.source)] = place
            elif isinstance(declaration, RequestFact) and declaration.fact == "sources":
                found[-1] = place
        return found

    def _comparison_program(self) -> Int64:
        """(lines, 4) source column and the columns of rank, ratio and z-score, -1 where not wanted."""
        lines = []
        for declaration in self.declarations:
            if not isinstance(declaration, InSlate):
                continue
            names = [f"{declaration.of}_{transform}" for transform in TRANSFORMS]
            wanted = [name.removeprefix(f"{declaration.of}_") in declaration.transforms for name in names]
            places = [self._place[name] if want else -1 for name, want in zip(names, wanted, strict=True)]
            source = self._place.get(declaration.of, len(self._place))
            if source > max(places):
                raise ValueError(f"in-slate feature of `{declaration.of}`, which is no earlier column")
            lines.append([source, *places])
        return np.array(lines, np.int64).reshape(-1, 1 + len(TRANSFORMS))


def _fact(fact: str, requests: Requests, reading: Reading) -> Float32:
    """(rows,) a plain count, see `RequestFact`."""
    if fact == "repeats":
        counts = np.empty(requests.rows, np.float32)
        history = reading.history
        candidates = (requests.offsets, writable(requests.item_index))
        count_repeats(candidates, history.offsets, history.item_index, counts)
        return counts
    lengths = requests.lengths
    values = reading.history.lengths if fact == "history_length" else lengths
    return np.repeat(values, lengths).astype(np.float32)
