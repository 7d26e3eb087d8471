"""Dataset folders on disk: read, checked and handed on, or written.

A folder holds `items` and `events`, optionally `impressions` and `users`, each as `.parquet` or `.csv`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from recsys.cells import read_csv
from recsys.check_report import CheckReport
from recsys.dataset import Dataset
from recsys.errors import EXIT_NO_INPUT, RecsysError
from recsys.events import DEFAULT_ROLES, EventRole
from recsys.parquet import read_parquet, write_parquet
from recsys.quarantine import Checked, CheckOptions, Table, check
from recsys.schema import (
    EVENTS,
    IMPRESSIONS,
    ITEMS,
    LAYOUT,
    TABLES,
    USERS,
    Kind,
    conform,
    refused,
)

REQUIRED_TABLES = (ITEMS, EVENTS)
LOG_TABLES = (EVENTS, IMPRESSIONS)
"""Tables that are read without the columns that the layout does not name."""


def load(
    folder: Path,
    *,
    roles: Mapping[str, EventRole] = DEFAULT_ROLES,
    max_bad: float = 0.05,
    quarantine_to: Path | None = None,
    options: CheckOptions | None = None,
) -> tuple[Dataset, CheckReport]:
    """Read and check a dataset folder.

    Args:
        folder: a folder in the dataset layout.
        roles: what each event type means.
        max_bad: largest share of quarantined rows of any table that is put up with.
        quarantine_to: folder for the quarantined rows, one Parquet file a table that has any.
        options: what else counts as bad.

    Returns:
        The good rows as a dataset named after the folder, and the counts.

    Raises:
        RecsysError: `no_input` (exit 66) without a folder; exit 65 for `input_invalid` (a damaged or
            missing file, a missing column), `too_many_bad_rows` and `empty_catalogue`.
    """
    checked = check(read_tables(folder), options=options)
    if quarantine_to is not None:
        write_quarantine(quarantine_to, checked)
    refuse_bad(checked.report, max_bad, str(folder))
    good = checked.good
    if not good[ITEMS].height:
        raise RecsysError("empty_catalogue", "no items: add at least one row to the items table", str(folder))
    dataset = Dataset.from_frames(
        good[ITEMS],
        good[EVENTS],
        good.get(IMPRESSIONS),
        good.get(USERS),
        name=folder.resolve().name,
        roles=roles,
    )
    return dataset, checked.report


def refuse_bad(report: CheckReport, max_bad: float, where: str) -> None:
    """Raise `too_many_bad_rows` (exit 65) where any table's share of bad rows is over `max_bad`."""
    for name, counts in report.tables.items():
        if counts.bad_share > max_bad:
            reasons = ", ".join(f"{reason} {rows:,}" for reason, rows in counts.reasons.items())
            what = (
                f"{name}: {counts.quarantined:,} of {counts.rows_in:,} rows are bad "
                f"({counts.bad_share:.1%}, at most {max_bad:.1%} allowed): {reasons}"
            )
            raise RecsysError("too_many_bad_rows", "; ".join([what, *report.hints]), where)


def read_tables(folder: Path) -> dict[str, Table]:
    """The tables of a dataset folder as they are, unchecked.

    Raises:
        RecsysError: `no_input` (exit 66), `input_invalid` (exit 65).
    """
    if not folder.is_dir():
        raise RecsysError("no_input", "no such dataset folder", str(folder), exit_code=EXIT_NO_INPUT)
    tables = {}
    for name in TABLES:
        path = _find(folder, name)
        if path is not None:
            tables[name] = read_table(path, tuple(LAYOUT[name]) if name in LOG_TABLES else None)
    return tables


def read_table(path: Path, columns: tuple[str, ...] | None = None) -> Table:
    """One table from a `.parquet` or `.csv` file, all its columns or those of `columns` that it has."""
    if path.suffix == ".parquet":
        return Table(read_parquet(path, columns), str(path))
    frame = read_csv(path)
    wanted = frame.columns if columns is None else [name for name in frame.columns if name in columns]
    return Table(frame.select(wanted), str(path), text=True)


def _find(folder: Path, name: str) -> Path | None:
    found = [path for path in (folder / f"{name}.parquet", folder / f"{name}.csv") if path.exists()]
    if len(found) > 1:
        raise refused(f"both {found[0].name} and {found[1].name} are there; keep one", str(folder))
    if not found and name in REQUIRED_TABLES:
        raise refused(f"{name}.parquet (or {name}.csv) is missing", str(folder))
    return found[0] if found else None


def write_dataset(
    folder: Path,
    items: pl.DataFrame,
    events: pl.DataFrame,
    impressions: pl.DataFrame | None = None,
    users: pl.DataFrame | None = None,
) -> None:
    """Write a dataset folder: Parquet with page checksums, moments as Datetime UTC in microseconds.

    Each file appears whole or not at all. Tables that are not given are removed.

    Raises:
        RecsysError: `input_invalid` for a frame that is not of the layout, as `parquet.write_parquet`.
    """
    frames = {ITEMS: items, EVENTS: events, IMPRESSIONS: impressions, USERS: users}
    for name, frame in frames.items():
        path = folder / f"{name}.parquet"
        if frame is None:
            path.unlink(missing_ok=True)
        else:
            write_parquet(path, dated(frame, name))


def dated(frame: pl.DataFrame, table: str) -> pl.DataFrame:
    """The same frame with its moments as Datetime UTC; one out of range becomes null."""
    typed = conform(frame, table, table)
    moments = [name for name, kind in LAYOUT[table].items() if kind is Kind.TIME and name in frame.columns]
    return frame.with_columns(
        (typed[name] * 1e6).round().cast(pl.Int64, strict=False).cast(pl.Datetime("us", "UTC"))
        for name in moments
    )


def write_quarantine(folder: Path, checked: Checked) -> list[Path]:
    """Write the bad rows of each table that has any to `<folder>/<table>.parquet`; returns the paths."""
    written = []
    for name, frame in checked.quarantined.items():
        path = folder / f"{name}.parquet"
        path.unlink(missing_ok=True)
        if frame.height:
            write_parquet(path, frame)
            written.append(path)
    return written
