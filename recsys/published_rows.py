"""The rows of a scored night on their way to a file: one schema, a fixed order, a digest of what they say.

The digest does not depend on how the rows came in batches: it is taken over row groups of `GROUP_ROWS`, which
are also the row groups of the file, so that reading them back gives the same bytes to hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.errors import RecsysError

COLUMNS = ("user_id", "item_id", "rank", "score", "source", "rung")
PROPENSITY = "propensity"
"""Column of nights with exploration only: P(this item in this place | the request, the items above)."""

GROUP_ROWS = 65_536

Scores: TypeAlias = pl.DataFrame | pa.RecordBatchReader


def canonical_schema(schema: pa.Schema) -> pa.Schema:
    """The published types for a table of scores: ids int64 or text, rank int32, score float64, the rest text.

    `propensity`, float64, is kept where the scores have it.

    Raises:
        RecsysError: `scores_invalid` for a missing column.
    """
    if missing := [name for name in COLUMNS if name not in schema.names]:
        raise RecsysError("scores_invalid", "missing columns:", ", ".join(missing))
    types = {"rank": pa.int32(), "score": pa.float64(), "source": pa.string(), "rung": pa.string()}
    for name in ("user_id", "item_id"):
        types[name] = pa.int64() if pa.types.is_integer(schema.field(name).type) else pa.string()
    columns = [pa.field(name, types[name]) for name in COLUMNS]
    return pa.schema(columns + [pa.field(PROPENSITY, pa.float64())] * (PROPENSITY in schema.names))


def as_reader(scores: Scores) -> pa.RecordBatchReader:
    """A stream of batches; a frame is sorted by user, in order of first appearance, then by rank."""
    if isinstance(scores, pl.DataFrame):
        numbered = scores.with_row_index("_row")
        first = pl.col("_row").min().over("user_id")
        return numbered.sort(first, "rank").drop("_row").to_arrow().to_reader()
    return scores


class RowGroups:
    """Iterates over the rows in canonical batches of `GROUP_ROWS`, checking and digesting as it goes."""

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        """Take a stream whose rows lie by user, rank 1, 2, 3 … within each."""
        self.schema = canonical_schema(reader.schema)
        self.rows = 0
        self._reader = reader
        self._digest = RowDigest(self.schema)
        self._last_user: pa.Scalar | None = None
        self._last_rank = 0

    @property
    def digest(self) -> str:
        """SHA-256 of the rows given out so far."""
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Give the row groups; memory holds one group and one incoming batch.

        Raises:
            RecsysError: `scores_invalid` for a null, a type that cannot be cast, or ranks out of order;
                `non_finite_scores`.
        """
        waiting: list[pa.RecordBatch] = []
        held = 0
        for batch in self._reader:
            waiting.append(self._canonical(batch))
            held += batch.num_rows
            while held >= GROUP_ROWS:
                whole = pa.concat_batches(waiting)
                yield self._checked(whole.slice(0, GROUP_ROWS))
                waiting, held = [whole.slice(GROUP_ROWS)], held - GROUP_ROWS
        if held:
            yield self._checked(pa.concat_batches(waiting))

    def _canonical(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        try:
            columns = [batch.column(field.name).cast(field.type) for field in self.schema]
        except pa.ArrowInvalid as error:
            raise RecsysError("scores_invalid", str(error)[:200]) from error
        return pa.record_batch(columns, schema=self.schema)

    def _checked(self, group: pa.RecordBatch) -> pa.RecordBatch:
        for name in self.schema.names:
            if group.column(name).null_count:
                raise RecsysError("scores_invalid", "null in column", name)
        if PROPENSITY in self.schema.names:
            propensity = group.column(PROPENSITY).to_numpy()
            if not ((propensity > 0) & (propensity <= 1)).all():
                raise RecsysError("scores_invalid", "a probability is not in (0, 1]:", PROPENSITY)
        finite = np.isfinite(group.column("score").to_numpy())
        if not finite.all():
            row = self.rows + int(np.argmin(finite))
            raise RecsysError(
                "non_finite_scores", f"row {row}: {group.column('score')[row - self.rows]}", "score"
            )
        self._check_ranks(group)
        self._digest.update(group)
        self.rows += group.num_rows
        return group

    def _check_ranks(self, group: pa.RecordBatch) -> None:
        users, ranks = group.column("user_id"), group.column("rank").to_numpy()
        same = np.empty(len(ranks), np.bool_)
        same[0] = self._last_user is not None and users[0] == self._last_user
        same[1:] = pc.equal(users[1:], users[:-1]).to_numpy(zero_copy_only=False)
        expected = np.where(same, np.concatenate([[self._last_rank], ranks[:-1]]) + 1, 1)
        if (ranks != expected).any():
            row = int(np.argmax(ranks != expected))
            what = f"row {self.rows + row}: expected rank {expected[row]}, actual {ranks[row]}"
            raise RecsysError("scores_invalid", what, "rank")
        self._last_user, self._last_rank = users[-1], int(ranks[-1])


class RowDigest:
    """SHA-256 over the Arrow IPC bytes of the schema and of each row group."""

    def __init__(self, schema: pa.Schema) -> None:
        """Begin with the schema."""
        self._hash = hashlib.sha256(schema.remove_metadata().serialize())

    def update(self, group: pa.RecordBatch) -> None:
        """Add one row group."""
        self._hash.update(group.serialize())

    def hexdigest(self) -> str:
        """The digest so far."""
        return self._hash.hexdigest()


def digest_of_file(file: pq.ParquetFile) -> str:
    """The digest of the rows in a published file; memory holds one row group."""
    schema = canonical_schema(file.schema_arrow)
    digest = RowDigest(schema)
    for number in range(file.num_row_groups):
        group = file.read_row_group(number, columns=schema.names).cast(schema)
        digest.update(pa.concat_batches(group.to_batches()))
    return digest.hexdigest()
