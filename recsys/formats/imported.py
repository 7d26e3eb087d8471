"""What an importer hands over: tables in the dataset layout, and what became of each line it read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import polars as pl

from recsys.formats.lines import LineLog
from recsys.quarantine import Table

Schema = Mapping[str, pl.DataType | type[pl.DataType]]


@dataclass(frozen=True)
class Imported:
    """Unchecked tables by name (`items` and `events` at least) and the accounts of the files read."""

    tables: Mapping[str, Table]
    logs: list[LineLog] = field(default_factory=list)


def one_frame(chunks: Iterable[pl.DataFrame], schema: Schema) -> pl.DataFrame:
    """All chunks as one frame with exactly these columns; the schema alone where there are none."""
    return pl.concat([pl.DataFrame(schema=schema), *(chunk.select(list(schema)) for chunk in chunks)])
