"""The simulated tables as Parquet files, written row group by row group and published all at once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.events import Float64, Int64
from recsys.storage import storage_error, sync_file, sync_folder

_TIME = pa.timestamp("us", tz="UTC")
SCHEMAS = {
    "items": pa.schema(
        [
            ("item_id", pa.string()),
            ("title", pa.string()),
            ("description", pa.string()),
            ("category", pa.string()),
            ("subcategory", pa.string()),
            ("created_at", _TIME),
        ]
    ),
    "users": pa.schema([("user_id", pa.string()), ("region", pa.string()), ("device", pa.string())]),
    "impressions": pa.schema(
        [
            ("impression_id", pa.int64()),
            ("user_id", pa.string()),
            ("timestamp", _TIME),
            ("shown", pa.list_(pa.string())),
            ("clicked", pa.list_(pa.string())),
            ("position", pa.list_(pa.int16())),
            ("propensity", pa.list_(pa.float32())),
        ]
    ),
    "events": pa.schema(
        [
            ("event_id", pa.int64()),
            ("user_id", pa.string()),
            ("item_id", pa.string()),
            ("event_type", pa.string()),
            ("timestamp", _TIME),
            ("impression_id", pa.int64()),
            ("position", pa.int16()),
        ]
    ),
    "truth": pa.schema(
        [
            ("impression_id", pa.int64()),
            ("item_id", pa.string()),
            ("position", pa.int16()),
            ("examination", pa.float32()),
            ("attraction", pa.float32()),
            ("click_probability", pa.float32()),
        ]
    ),
}
_ID_DIGITS = 7


class TableWriter:
    """Writes the five files under temporary names; leaving the `with` block without error renames them.

    After an error the temporary files are gone, and files of an earlier run are as they were. A failure
    to write is raised as `storage.storage_error` says (exit 74).
    """

    def __init__(self, out: Path) -> None:
        """Take the folder to write into; it is made if it is not there."""
        self._out = out
        self._open = ExitStack()
        self._writers: dict[str, pq.ParquetWriter] = {}

    def __enter__(self) -> TableWriter:
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            for name, schema in SCHEMAS.items():
                writer = pq.ParquetWriter(
                    self._temporary(name), schema, compression="zstd", write_page_checksum=True
                )
                self._writers[name] = self._open.enter_context(writer)
        except OSError as error:
            self._discard()
            raise storage_error(error, self._out) from error
        return self

    def append(self, name: str, columns: Mapping[str, pa.Array]) -> None:
        """Add one row group to table `name`; nothing happens if it has no rows."""
        schema = SCHEMAS[name]
        table = pa.table([columns[column] for column in schema.names], schema=schema)
        if table.num_rows:
            self._writers[name].write_table(table, row_group_size=table.num_rows)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._publish()
        except OSError as failure:
            raise storage_error(failure, self._out) from failure
        finally:
            self._discard()
        if isinstance(error, OSError):
            raise storage_error(error, self._out) from error

    def _publish(self) -> None:
        self._open.close()
        for name in SCHEMAS:
            sync_file(self._temporary(name))
        for name in SCHEMAS:
            self._temporary(name).replace(self._out / f"{name}.parquet")
        sync_folder(self._out)

    def _discard(self) -> None:
        """Close and remove what was not published; a second failure says nothing new."""
        with suppress(OSError):
            self._open.close()
        for name in SCHEMAS:
            with suppress(OSError):
                self._temporary(name).unlink(missing_ok=True)

    def _temporary(self, name: str) -> Path:
        return self._out / f".{name}.parquet.tmp"


def ids(prefix: str, numbers: NDArray[np.integer]) -> pa.Array:
    """External ids such as "u0000017" of numbers below ten million."""
    digits = (numbers[:, None] // 10 ** np.arange(_ID_DIGITS - 1, -1, -1) % 10 + ord("0")).astype(np.uint8)
    letters = np.full((len(numbers), 1), ord(prefix), np.uint8)
    data = np.concatenate([letters, digits], axis=1)
    offsets = np.arange(len(numbers) + 1, dtype=np.int32) * (_ID_DIGITS + 1)
    return pa.StringArray.from_buffers(
        len(numbers), pa.py_buffer(offsets.tobytes()), pa.py_buffer(data.tobytes())
    )


def names(codes: NDArray[np.integer], values: tuple[str, ...]) -> pa.Array:
    """The name of each code, as strings."""
    return pa.array(values, pa.string()).take(pa.array(codes))


def lists(values: pa.Array, lengths: NDArray[np.integer]) -> pa.Array:
    """Consecutive runs of `values` with these lengths as one list column."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def moments(seconds: Float64) -> pa.Array:
    """Epoch seconds as UTC timestamps, to the microsecond."""
    return microseconds(np.rint(seconds * 1e6).astype(np.int64))


def microseconds(values: Int64) -> pa.Array:
    """Epoch microseconds as UTC timestamps."""
    return pa.array(values, pa.int64()).cast(_TIME)
