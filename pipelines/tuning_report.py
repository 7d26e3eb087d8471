"""What a search is asked for and what it found: the file and the lines for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from pipelines.terminal import table
from recsys.errors import EXIT_NO_INPUT, EXIT_USAGE, RecsysError
from recsys.storage import write_atomic


def check_out(minutes: float, out: Path | None) -> None:
    """Refuse what would fail after the search.

    Raises:
        RecsysError: `usage` for no time, `no_such_folder` where `out` cannot be written.
    """
    if not minutes > 0:
        raise RecsysError("usage", "--minutes must be more than 0, not", f"{minutes:g}", exit_code=EXIT_USAGE)
    if out is not None and not out.absolute().parent.is_dir():
        raise RecsysError("no_such_folder", "make it first:", str(out.parent), exit_code=EXIT_NO_INPUT)


def write_toml(document: dict[str, Any], out: Path) -> Path:
    """Write the best configuration with a line on where it comes from; the file's absolute path."""
    best, given = document["best"], document["default"]
    origin = f"# recsys tune, {document['study']}, trial {document['best_trial']}: validation "
    origin += f"{document['headline']} {best:.4f}, as given {given:.4f}\n"
    write_atomic(out, (origin + document["toml"]).encode())
    return out.absolute()


def print_tuning(document: dict[str, Any], out: Console) -> None:
    """The changed settings, the best trial against the default, where the configuration is."""
    rows = [
        [key, f"{before:g}", f"{after:g}", f"{document['importances'].get(key, float('nan')):.2f}"]
        for key, (before, after) in document["changes"].items()
    ]
    title = f"{document['data']}, protocol {document['protocol']}: trial {document['best_trial']}"
    if rows:
        out.print(table(title, ["setting", "given", "found", "importance"], rows))
    else:
        out.print(f"{title}: nothing was found that is better than the settings as given", markup=False)
    metric, gap = document["headline"], document["difference"]
    out.print(
        f"validation {metric}: {document['best']:.4f}, as given {document['default']:.4f}; "
        f"difference {gap['mean']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}] (paired 95 %)"
    )
    counts = document["trials"]
    out.print(f"{counts['complete']} trials, {counts['pruned']} pruned, {counts['fail']} broken off")
    out.print("the best of many on the same requests looks better than it is: judge it with recsys evaluate")
    out.print(f"written: {document['out']}", markup=False)
