"""What each feature family and each candidate source is worth: the ranker without it, on the same test.

Only the ranker is fitted again. The models below it stay as they are, also where a family or a source
of theirs is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console

from features.families import columns_without, families
from pipelines.config import Config
from pipelines.fitting import Stacked, Step
from pipelines.terminal import table
from recsys.evaluation import HEADLINE, headline_values
from recsys.events import Float32, Float64, Int32, Int64
from recsys.metrics.intervals import paired_interval
from recsys.newcomers import with_newcomers
from recsys.protocols import Protocol, positives_of, with_both_classes
from recsys.ranker_training import fit_ranker
from recsys.ranking import Ranker
from recsys.recommender import Recommender, State
from recsys.requests import SOURCES, Requests, blocks

Worth = dict[str, dict[str, Float64]]
"""Headline of every request without a thing: [`families` or `sources`][name] is (requests,)."""


@dataclass(frozen=True)
class Ablated:
    """A ranker that was fitted without something.

    Attributes:
        kind: `families` or `sources`.
        name: of the family or the source.
        ranker: over the whole schema; it reads no column that was left out.
        bit: the source's bit in `Requests.source`, 0 for a family.
    """

    kind: str
    name: str
    ranker: Ranker
    bit: int = 0


@dataclass(frozen=True)
class HeldOut:
    """The requests that all are judged on: their candidates, positives (offsets, item_index) and past."""

    models: Recommender
    state: State
    candidates: Requests
    positives: tuple[Int64, Int32]
    protocol: Protocol


def ablated_rankers(stacked: Stacked, config: Config, step: Step, *, seed: int = 0) -> list[Ablated]:
    """One ranker without each feature family, one without each source that proposed any training row.

    Slates that were logged have no sources. What takes too much away to fit a ranker is left out.
    """
    found = [
        Ablated("families", name, without_family(stacked, name, config, step, seed=seed))
        for name in families(stacked.features.declarations)
    ]
    used = int(np.bitwise_or.reduce(stacked.rows.source)) if stacked.rows.rows else 0
    for place, name in enumerate(SOURCES):
        if used >> place & 1 and used != 1 << place:
            ranker = without_source(stacked, 1 << place, config, step, seed=seed)
            found.append(Ablated("sources", name, ranker, 1 << place))
    return found


def without_family(stacked: Stacked, family: str, config: Config, step: Step, *, seed: int = 0) -> Ranker:
    """The ranker of the same rows that never saw the family's columns, nor comparisons of them."""
    schema = stacked.features.schema
    columns = [schema.index(name) for name in columns_without(stacked.features.declarations, family)]
    with step(f"ranker without {family}"), blanked(stacked.matrix, columns):
        return fit_ranker(
            stacked.matrix, stacked.rows, schema.names, schema.digest, config.ranker, seed=seed
        )[0]


@contextmanager
def blanked(matrix: Float32, columns: Sequence[int]) -> Iterator[None]:
    """The columns hold NaN inside, and their values again after.

    LightGBM sets constant columns aside before it draws any, so the fit equals one without them, and
    no second matrix is needed.
    """
    kept = matrix[:, columns]
    matrix[:, columns] = np.nan
    try:
        yield
    finally:
        matrix[:, columns] = kept


def without_source(stacked: Stacked, bit: int, config: Config, step: Step, *, seed: int = 0) -> Ranker:
    """The ranker of the rows that another source proposed too; their features know one source less."""
    schema = stacked.features.schema
    rows = sourceless(stacked.rows, bit)
    rows = rows.take(with_both_classes(rows))
    with step(f"ranker without source {SOURCES[bit.bit_length() - 1]}"):
        matrix = stacked.early.matrix_in_blocks(rows, stacked.state)
        return fit_ranker(matrix, rows, schema.names, schema.digest, config.ranker, seed=seed)[0]


def sourceless(requests: Requests, bit: int) -> Requests:
    """The requests without this source: its bit is cleared, and what only it proposed is gone."""
    source = (requests.source & ~bit).astype(np.int32)
    return replace(requests, source=source).with_rows((source != 0) | (requests.source == 0))


def ablated_values(ablated: Sequence[Ablated], held: HeldOut, config: Config, step: Step) -> Worth:
    """The headline of every held-out request by each ranker, block by block of candidates."""
    digest, threads = held.models.features.schema.digest, config.scoring.threads
    parts: dict[tuple[str, str], list[Float64]] = {(each.kind, each.name): [] for each in ablated}
    with step("test scores without each") as progress:
        for chosen in blocks(held.candidates.offsets):
            positives = positives_of(held.positives, chosen)
            matrices = _Matrices(held, held.candidates.take(chosen))
            for each in ablated:
                requests, matrix = matrices.without(each.bit)
                scores = each.ranker.score(matrix, digest, threads=threads)
                scores = with_newcomers(requests, scores, held.models.newcomers)
                values = headline_values(requests, scores, positives, held.protocol)
                parts[each.kind, each.name].append(values)
            progress(int(chosen[-1]) + 1, len(held.candidates))
    worth: Worth = {"families": {}, "sources": {}}
    for (kind, name), blocks_of in parts.items():
        worth[kind][name] = np.concatenate(blocks_of) if blocks_of else np.zeros(0)
    return worth


class _Matrices:
    """The candidates of one block and their features, whole or without a source; the last is kept."""

    def __init__(self, held: HeldOut, block: Requests) -> None:
        self._held, self._block = held, block
        self._bit = -1
        self._last: tuple[Requests, Float32]

    def without(self, bit: int) -> tuple[Requests, Float32]:
        if bit != self._bit:
            requests = sourceless(self._block, bit) if bit else self._block
            self._last = requests, self._held.models.matrix(requests, self._held.state.read(requests))
            self._bit = bit
        return self._last


def ablation_document(
    full: Float64, runs: Sequence[Worth], clusters: Int32, protocol: Protocol
) -> dict[str, Any]:
    """ablation.<families or sources>.<name>: full minus without it, paired, with its 95 % interval.

    Args:
        full: (requests,) headline of the full model, averaged over the seeds.
        runs: one a seed; averaged per request over the seeds that have the name.
        clusters: (requests,) users.
        protocol: names the headline.
    """
    document: dict[str, Any] = {"headline": HEADLINE[protocol]}
    for kind in ("families", "sources"):
        names = list(dict.fromkeys(name for run in runs for name in run[kind]))
        document[kind] = {
            name: asdict(
                paired_interval(
                    full, np.mean([run[kind][name] for run in runs if name in run[kind]], axis=0), clusters
                )
            )
            for name in names
        }
    return document


def print_ablation(document: dict[str, Any], out: Console) -> None:
    """Two tables, the most worth first."""
    for kind, title in (("families", "feature family"), ("sources", "candidate source")):
        entries = sorted(document[kind].items(), key=lambda pair: -pair[1]["mean"])
        rows = [
            [name, f"{entry['mean']:+.4f}", f"[{entry['low']:+.4f}, {entry['high']:+.4f}]"]
            for name, entry in entries
        ]
        if rows:
            heading = f"worth in {document['headline']}: full minus without it"
            out.print(table(heading, [title, "worth", "paired 95 %"], rows))
