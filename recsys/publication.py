"""The night's scores as one partition of a Delta table: the old night or the new one, never a mixture.

A night is one Parquet file, which carries its own manifest and is named after it. The file is complete and
on stable storage before one Delta commit puts it in the place of the old one, so that what a reader sees
verifies at every instant, whenever the job is killed. `_manifests/<night>.json` is a copy for people and
programs that do not read Delta; a killed job leaves it one publication behind until the next run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from urllib.parse import unquote

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, Schema
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, create_table_with_add_actions

from recsys.errors import EXIT_IO, EXIT_NO_INPUT, RecsysError
from recsys.locks import lock
from recsys.published_rows import PROPENSITY, RowGroups, Scores, as_reader, digest_of_file
from recsys.storage import json_bytes, parse_json, storage_error, sync_file, sync_folder, write_atomic
from recsys.versions import Version

MANIFESTS = "_manifests"
SMALLEST_FREE = 16 * 2**20
_KEY = "recsys.publication"


@dataclass(frozen=True)
class Publication:
    """What one night holds and where it came from; equal where the same rows came from the same version.

    Attributes:
        night: the partition.
        rows: number of rows.
        digest: SHA-256 of the rows (`published_rows`).
        as_of: epoch seconds, UTC; nothing after it was known to the scores.
        model: the fixed name of the version, `models:/NAME/NUMBER`.
        bundle_digest: digest of its bundle.
        table_version: version of the Delta table that was current when this was read or written.
        changed: whether the call that gave this wrote a new version of the table.
    """

    night: date
    rows: int
    digest: str
    as_of: float
    model: str
    bundle_digest: str
    table_version: int = field(default=-1, compare=False)
    changed: bool = field(default=False, compare=False)

    def to_bytes(self) -> bytes:
        """The manifest as JSON; equal publications give equal bytes."""
        document = asdict(self) | {"night": self.night.isoformat(), "format_version": 1}
        return json_bytes({key: document[key] for key in document if key not in ("table_version", "changed")})

    @classmethod
    def from_bytes(cls, raw: bytes, where: str, table_version: int) -> Publication:
        """Read a manifest; raises RecsysError `manifest_invalid`."""
        document = parse_json(raw, where)
        try:
            if document.pop("format_version") != 1:
                raise ValueError("unknown format version")
            night = date.fromisoformat(document.pop("night"))
            return cls(night=night, table_version=table_version, **document)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise RecsysError("manifest_invalid", f"of a night: {str(error)[:200]}", where) from None

    @property
    def path(self) -> str:
        """Where the file lies in the table: the name is fixed by the manifest, and so by the rows."""
        name = hashlib.sha256(self.to_bytes()).hexdigest()[:32]
        return f"night={self.night}/part-{name}.parquet"


def publish(
    folder: Path, scores: Scores, *, night: date, version: Version, as_of: float, allow_shrink: bool = False
) -> Publication:
    """Put the scores of one night in place of what was published for it; the same ones change nothing.

    The lock is taken before the first row is asked for, so a lazy stream is not even started by a second job.

    Args:
        folder: the Delta table, made on first use; partitioned by `night`.
        scores: columns user_id, item_id, rank, score, source, rung, and propensity where lists were
            explored; other nights of the table then have nulls there. A frame is sorted here; a stream must
            hold each user's rows together with ranks 1, 2, 3 …, and is never held whole. No rows are fine.
        night: the partition to replace.
        version: the model version that scored.
        as_of: epoch seconds, UTC, that the scores know.
        allow_shrink: replace a night by less than half of its rows.

    Raises:
        RecsysError: `lock_held` (exit 75); `refusing_shrink`, `scores_invalid`, `non_finite_scores` (65);
            `storage_full` (74). In every case readers still see what was there before.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder / f".lock-{night}"):
            _check_space(folder, scores)
            with _staged(folder, night) as staging:
                publication = _write(staging, scores, night, version, as_of)
                return _replace(folder, staging, publication, allow_shrink=allow_shrink)
    except OSError as error:
        raise storage_error(error, Path(error.filename or folder)) from error


def read_publication(folder: Path, night: date) -> Publication | None:
    """The manifest of the night as readers see it now, None where nothing is published; rows are not read.

    Raises:
        RecsysError: `digest_mismatch` where the file is damaged, or another program rewrote the night.
    """
    table = _open(folder)
    if table is None:
        return None
    paths = list(_active_rows(table, night))
    if not paths:
        return None
    if len(paths) > 1:
        raise RecsysError("digest_mismatch", "another program has rewritten this night:", str(night))
    publication = _embedded(folder / paths[0], table.version())
    if publication.path != paths[0]:
        raise RecsysError("digest_mismatch", "the manifest inside is not the one published:", paths[0])
    return publication


def list_nights(folder: Path) -> list[date]:
    """The nights that are published now, oldest first; empty where there is no table."""
    table = _open(folder)
    if table is None:
        return []
    actions = pa.table(table.get_add_actions(flatten=True))
    partitions = {unquote(path).split("/")[0] for path in actions.column("path").to_pylist()}
    return sorted(date.fromisoformat(name.removeprefix("night=")) for name in partitions)


def verify_night(folder: Path, night: date) -> Publication:
    """Read the whole night again and hold it against its manifest.

    Raises:
        RecsysError: `night_missing` (exit 66); `digest_mismatch` with both digest prefixes.
    """
    publication = read_publication(folder, night)
    if publication is None:
        raise RecsysError(
            "night_missing", f"{night} is not published in", str(folder), exit_code=EXIT_NO_INPUT
        )
    try:
        with _parquet(folder / publication.path) as file:
            actual = digest_of_file(file)
    except (OSError, pa.ArrowException) as error:
        raise RecsysError("digest_mismatch", _unreadable(error), publication.path) from error
    if actual != publication.digest:
        what = f"expected {publication.digest[:12]}, actual {actual[:12]} in"
        raise RecsysError("digest_mismatch", what, publication.path)
    return publication


def _write(path: Path, scores: Scores, night: date, version: Version, as_of: float) -> Publication:
    """Stream the rows into a file with page checksums that ends with its own manifest."""
    groups = RowGroups(as_reader(scores))
    options = {"compression": "zstd", "write_page_checksum": True}
    with pq.ParquetWriter(path, groups.schema, **options) as writer:
        for group in groups:
            writer.write_batch(group, row_group_size=group.num_rows)
        publication = Publication(night, groups.rows, groups.digest, as_of, version.uri, version.digest)
        writer.add_key_value_metadata({_KEY: publication.to_bytes().decode()})
    sync_file(path)
    return publication


def _replace(folder: Path, staging: Path, publication: Publication, *, allow_shrink: bool) -> Publication:
    """Make the staged file the night; where the night is the same already, only repair what is damaged."""
    rows_before, before = _before(folder, publication.night)
    path = folder / publication.path
    if before == publication:
        if not _is_whole(path, publication):
            _move(staging, path)
        _copy_manifest(folder, before)
        return before
    if publication.rows < rows_before / 2 and not allow_shrink:
        what = f"{publication.rows} rows in place of {rows_before}; --allow-shrink if it is meant;"
        raise RecsysError("refusing_shrink", what, str(publication.night))
    _move(staging, path)
    table_version = _commit(folder, publication, pq.read_schema(path))
    _copy_manifest(folder, publication)
    return replace(publication, table_version=table_version, changed=True)


def _before(folder: Path, night: date) -> tuple[int, Publication | None]:
    """Rows of the night as the table counts them, and its manifest, None where missing or damaged."""
    table = _open(folder)
    if table is None:
        return 0, None
    rows = sum(_active_rows(table, night).values())
    try:
        return rows, read_publication(folder, night)
    except RecsysError:
        return rows, None


def _is_whole(path: Path, publication: Publication) -> bool:
    try:
        with _parquet(path) as file:
            return digest_of_file(file) == publication.digest
    except (OSError, pa.ArrowException):
        return False


def _move(staging: Path, path: Path) -> None:
    staging.replace(path)
    sync_folder(path.parent)


def _commit(folder: Path, publication: Publication, schema: pa.Schema) -> int:
    """One Delta commit that adds the file and removes what the night held; gives the table's version."""
    status = (folder / publication.path).stat()
    night = {"night": publication.night.isoformat()}
    statistics = json.dumps({"numRecords": publication.rows})
    modified = int(status.st_mtime * 1000)
    action = AddAction(publication.path, status.st_size, night, modified, data_change=True, stats=statistics)
    columns = Schema.from_arrow(schema.remove_metadata().append(pa.field("night", pa.date32())))
    try:
        with lock(folder / ".lock-commit", wait_s=30):
            table = _open(folder)
            if table is None:
                create_table_with_add_actions(str(folder), columns, [action], partition_by=["night"])
            else:
                columns = _joined_columns(table, columns)
                filters = [("night", "=", night["night"])]
                table.create_write_transaction([action], "overwrite", columns, ["night"], filters)
            version = DeltaTable(folder).version()
            _sync_log(folder, version)
    except DeltaError as error:
        raise RecsysError("table_failed", str(error)[:200], str(folder), exit_code=EXIT_IO) from error
    return version


def _joined_columns(table: DeltaTable, columns: Schema) -> Schema:
    """The table's columns, and `propensity` where it is new; ids of another type would break readers."""
    before = {one.name: one for one in table.schema().fields}
    for one in columns.fields:
        held = before.get(one.name)
        if held is None and one.name == PROPENSITY:
            before[one.name] = one
        elif held is None or str(held.type) != str(one.type):
            what = f"the table holds {held and held.type} in this column, the scores hold {one.type}:"
            raise RecsysError("scores_invalid", what, one.name)
    return Schema(list(before.values()))


def _sync_log(folder: Path, version: int) -> None:
    log = folder / "_delta_log"
    sync_file(log / f"{version:020}.json")
    sync_folder(log)
    sync_folder(folder)


def _copy_manifest(folder: Path, publication: Publication) -> None:
    path = folder / MANIFESTS / f"{publication.night}.json"
    if not path.exists() or path.read_bytes() != publication.to_bytes():
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, publication.to_bytes())


@contextmanager
def _staged(folder: Path, night: date) -> Iterator[Path]:
    """A name for the file in the making, beside its later place; what a killed job left there is removed."""
    partition = folder / f"night={night}"
    partition.mkdir(exist_ok=True)
    staging = partition / ".staging.parquet"
    staging.unlink(missing_ok=True)
    try:
        yield staging
    finally:
        staging.unlink(missing_ok=True)


def _check_space(folder: Path, scores: Scores) -> None:
    """Fail at once where what is to come cannot fit: as much as the frame, or the largest night so far."""
    nights = [path.stat().st_size for path in folder.glob("night=*/part-*.parquet")]
    frame = scores.estimated_size() if isinstance(scores, pl.DataFrame) else 0
    need = max([SMALLEST_FREE, frame, *nights])
    free = shutil.disk_usage(folder).free
    if free < need:
        raise RecsysError("storage_full", f"need≈{need} bytes have {free} at", str(folder), exit_code=EXIT_IO)


def _open(folder: Path) -> DeltaTable | None:
    try:
        return DeltaTable(folder) if DeltaTable.is_deltatable(str(folder)) else None
    except DeltaError as error:
        raise RecsysError("table_failed", str(error)[:200], str(folder), exit_code=EXIT_IO) from error


def _active_rows(table: DeltaTable, night: date) -> dict[str, int]:
    """Number of rows by path, for the files that hold the night now."""
    actions = pa.table(table.get_add_actions(flatten=True))
    paths = [unquote(path) for path in actions.column("path").to_pylist()]
    rows = actions.column("num_records").to_pylist()
    found = zip(paths, rows, strict=True)
    return {path: count or 0 for path, count in found if path.startswith(f"night={night}/")}


def _embedded(path: Path, table_version: int) -> Publication:
    try:
        with _parquet(path) as file:
            raw = (file.metadata.metadata or {}).get(_KEY.encode())
    except (OSError, pa.ArrowException) as error:
        raise RecsysError("digest_mismatch", _unreadable(error), path.name) from error
    if raw is None:
        raise RecsysError("digest_mismatch", "no manifest inside, not written by this program:", path.name)
    return Publication.from_bytes(raw, path.name, table_version)


def _parquet(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, page_checksum_verification=True)


def _unreadable(error: Exception) -> str:
    return f"cannot be read ({' '.join(str(error).split())[:120]}):"
