"""Importers: other people's files into the dataset layout, one format a module.

What an importer reads is checked like any dataset: the good rows are written, the bad lines and rows go to
a quarantine beside them, and the counts add up.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl

from recsys.check_report import CheckReport
from recsys.dataset_folder import write_dataset, write_quarantine
from recsys.errors import EXIT_NO_INPUT, EXIT_USAGE, RecsysError
from recsys.formats.amazon import read_amazon
from recsys.formats.imported import Imported
from recsys.formats.lines import LineLog
from recsys.formats.mind import read_mind
from recsys.formats.movielens import read_movielens
from recsys.formats.table import read_tables_as
from recsys.parquet import write_parquet
from recsys.quarantine import check
from recsys.schema import EVENTS, IMPRESSIONS, ITEMS, USERS, refused

__all__ = ["FORMATS", "ImportReport", "import_dataset"]

FORMATS: Mapping[str, Callable[..., Imported]] = MappingProxyType(
    {"mind": read_mind, "movielens": read_movielens, "amazon": read_amazon, "table": read_tables_as}
)
QUARANTINE = "quarantine"
UNLABELLED = "unlabelled_slate"


@dataclass(frozen=True)
class ImportReport:
    """What was read and written: lines of each file by fate, then rows of each table by fate."""

    format: str
    logs: tuple[LineLog, ...]
    check: CheckReport

    def to_dict(self) -> dict[str, object]:
        """The report as JSON values."""
        files = [
            {"file": log.source, "lines_in": log.lines_in, "refused": log.refused, "reasons": log.reasons()}
            for log in self.logs
        ]
        return {"format": self.format, "files": files, **self.check.to_dict()}

    def lines(self) -> list[str]:
        """The report for people, one fact a line."""
        lines = []
        for log in self.logs:
            lines.append(f"{Path(log.source).name}: {log.lines_in:,} lines, {log.refused:,} refused")
            lines += [f"{'':<12}refused: {rows:,} {reason}" for reason, rows in log.reasons().items()]
        return lines + self.check.lines()


def import_dataset(format: str, source: Path, out: Path, **options: Any) -> ImportReport:
    """Read `source` in one of FORMATS, check it, and write `out` in the dataset layout.

    Bad lines and rows are written to `out/quarantine`.

    Args:
        format: a key of FORMATS.
        source: the folder to read.
        out: dataset folder to write, not `source` itself.
        options: keyword arguments of the importer.

    Raises:
        RecsysError: `usage` (exit 64) for an unknown format or option, `no_input` (exit 66), exit 65 for
            `input_invalid` (a damaged file, or one most of whose lines are not of the format) and
            `empty_catalogue`.
    """
    read = _importer(format, source, out, options)
    imported = read(source, **options)
    for log in imported.logs:
        _refuse_foreign(log, format)
    checked = check(imported.tables)
    good = checked.good
    if not good[ITEMS].height:
        raise RecsysError("empty_catalogue", f"no item could be read as `{format}`", str(source))
    write_dataset(out, good[ITEMS], good[EVENTS], good.get(IMPRESSIONS), good.get(USERS))
    write_quarantine(out / QUARANTINE, checked)
    _write_lines(out / QUARANTINE / "lines.parquet", imported.logs)
    return ImportReport(format, tuple(imported.logs), checked.report)


def _importer(format: str, source: Path, out: Path, options: Mapping[str, Any]) -> Callable[..., Imported]:
    if format not in FORMATS:
        raise RecsysError("usage", f"formats are {', '.join(FORMATS)}", format, exit_code=EXIT_USAGE)
    accepted = [name for name in inspect.signature(FORMATS[format]).parameters if name != "source"]
    for name in options:
        if name not in accepted:
            what = f"`{format}` has no option `{name}`; it has {', '.join(accepted) or 'none'}"
            raise RecsysError("usage", what, exit_code=EXIT_USAGE)
    if not source.is_dir():
        raise RecsysError("no_input", "no such folder", str(source), exit_code=EXIT_NO_INPUT)
    if source.resolve() == out.resolve():
        raise RecsysError("usage", "write to another folder than the source", str(out), exit_code=EXIT_USAGE)
    return FORMATS[format]


def _refuse_foreign(log: LineLog, format: str) -> None:
    reasons = {reason: rows for reason, rows in log.reasons().items() if reason != UNLABELLED}
    if 2 * sum(reasons.values()) > log.lines_in:
        fates = ", ".join(f"{reason} {rows:,}" for reason, rows in reasons.items())
        raise refused(f"most of its {log.lines_in:,} lines are not `{format}`: {fates}", log.source)


def _write_lines(path: Path, logs: list[LineLog]) -> None:
    frames = [frame for log in logs for frame in log.refusals]
    path.unlink(missing_ok=True)
    if frames:
        write_parquet(path, pl.concat(frames))
