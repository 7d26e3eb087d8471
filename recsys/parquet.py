"""Parquet files that may be damaged or hostile, read with every check on, and written so that they can be.

Pages are written with checksums and verified when read; text is proven to be UTF-8 before Polars, which
takes that for granted, sees it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.cells import marked_text
from recsys.schema import refused
from recsys.storage import storage_error, sync_folder

MAX_TABLE_BYTES = 16 * 2**30
BATCH_ROWS = 65_536


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Read a Parquet file, all columns or those of `columns` that it has.

    Args:
        path: the file.
        columns: names wanted; absent ones are left out.

    Raises:
        RecsysError: `input_invalid` (exit 65) naming the file, whatever is wrong with it.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            wanted = names if columns is None else [name for name in names if name in columns]
            _refuse_repeated(wanted, path)
            table = _read_bounded(file, wanted, path)
        return _to_polars(table)
    except (pa.ArrowException, OSError, ValueError, TypeError, MemoryError) as error:
        raise refused(f"cannot read the Parquet file: {_first_line(error)}", str(path)) from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise refused(f"cannot use the Parquet file: {_first_line(error)}", str(path)) from error


def write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """Write a frame with page checksums; the file appears whole or not at all.

    Raises:
        RecsysError: as `storage.storage_error` says (exit 74), the old file untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_repeated(names: Sequence[str], path: Path) -> None:
    for name in names:
        if names.count(name) > 1:
            raise refused(f"column `{name}` appears more than once", str(path))


def _read_bounded(file: pq.ParquetFile, columns: list[str], path: Path) -> pa.Table:
    """All rows in batches, given up when they need more than MAX_TABLE_BYTES."""
    batches, size = [], 0
    for batch in file.iter_batches(_batch_rows(file), columns=columns):
        batches.append(batch)
        size += batch.nbytes
        if size > MAX_TABLE_BYTES:
            raise refused(f"the table needs over {MAX_TABLE_BYTES:,} bytes of memory", str(path))
    schema = batches[0].schema if batches else file.read_row_groups([], columns=columns).schema
    return pa.Table.from_batches(batches, schema)


def _batch_rows(file: pq.ParquetFile) -> int:
    """Rows a batch, fewer where the rows are declared to be large."""
    metadata = file.metadata
    declared = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    return max(1, min(BATCH_ROWS, 2**26 * max(1, metadata.num_rows) // max(1, declared)))


def _to_polars(table: pa.Table) -> pl.DataFrame:
    columns = [_sound(column.combine_chunks()) for column in table.columns]
    frame = pl.from_arrow(pa.table(dict(zip(table.column_names, columns, strict=True))))
    if not isinstance(frame, pl.DataFrame):
        raise TypeError("not a table")
    return frame


def _sound(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The column itself if it is valid throughout, otherwise with its undecodable text marked."""
    try:
        column.validate(full=True)
        return column
    except pa.ArrowInvalid:
        return _repaired(column)


def _repaired(column: pa.Array) -> pa.Array:
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lists = pa.LargeListArray if pa.types.is_large_list(column.type) else pa.ListArray
        repaired = lists.from_arrays(column.offsets, _repaired(column.values), mask=column.is_null())
        repaired.validate(full=True)
        return repaired
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        column.validate(full=True)
        return column
    raw = column.cast(pa.large_binary())
    raw.validate(full=True)
    return pa.array(
        [None if value is None else marked_text(value) for value in raw.to_pylist()], pa.large_string()
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
