"""What a person sees: steps with progress on standard error, results on standard output."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

Report = Callable[[int, int], None]
_WIDTH = 120  # tables are made for people who widen their window, and for files


class Terminal:
    """Progress to standard error; one JSON object or readable text to standard output."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._stdout = _own_stdout()
        self.out = Console(file=self._stdout, highlight=False, soft_wrap=True, width=_WIDTH)
        self.err = Console(file=sys.stderr, highlight=False)
        self.started = time.monotonic()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[Report]:
        """Show a step with a spinner or a bar; adds its seconds to `self.seconds[name]`."""
        began = time.monotonic()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.err, transient=True, disable=not self.err.is_terminal) as bar:
            task = bar.add_task(name, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        took = time.monotonic() - began
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        self.note(f"[{time.monotonic() - self.started:7.1f} s] {name}: {took:.1f} s")

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def note(self, text: str) -> None:
        """A line for people, on standard error."""
        self.err.print(text, markup=False)

    def result(self, document: Mapping[str, Any], lines: Callable[[Console], None]) -> None:
        """Print `document` as one JSON object with --json, else let `lines` print for people."""
        if self.as_json:
            self._stdout.write(json.dumps(plain(document), ensure_ascii=False, allow_nan=False) + "\n")
        else:
            lines(self.out)
        self._stdout.flush()


def _own_stdout() -> TextIO:
    """Standard output for results alone: what libraries print there goes to standard error from now on."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(kept, "w", encoding="utf-8")


def plain(value: Any) -> Any:
    """The same document with null for NaN and infinity, and text for what JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def table(title: str, header: list[str], rows: list[list[str]]) -> Table:
    """A table with a left-aligned first column and right-aligned figures."""
    out = Table(title=title, title_justify="left", header_style="bold")
    for place, name in enumerate(header):
        out.add_column(name, justify="left" if place == 0 else "right", no_wrap=True)
    for row in rows:
        out.add_row(*row)
    return out


def print_pairs(document: Mapping[str, Any], console: Console) -> None:
    """A line for each entry."""
    for key, value in document.items():
        console.print(f"{key}: {value}", markup=False)


def print_lines(lines: Sequence[str], console: Console) -> None:
    """The lines as they are."""
    for line in lines:
        console.print(line, markup=False)
