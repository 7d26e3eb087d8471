"""Figures with what they should be: collected, printed as a table, held against their goals in the end."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

OUT = "RECSYS_BENCH_OUT"


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        part: of the benchmark. `name`: what was measured.
        value: in `unit`.
        at_most, at_least: the goal; None where there is none.
        note: how, in a few words.
    """

    part: str
    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the goal is reached; a figure without one always is, one that is no number never."""
        below = self.at_most is None or self.value <= self.at_most
        return below and (self.at_least is None or self.value >= self.at_least)

    @property
    def goal(self) -> str:
        """In words."""
        if self.at_most is not None:
            return f"<= {_short(self.at_most)}"
        return "" if self.at_least is None else f">= {_short(self.at_least)}"

    def cells(self) -> list[str]:
        """The figure as a row of the table."""
        verdict = "" if not self.goal else "yes" if self.is_met else "NO"
        return [
            self.part,
            self.name,
            f"{_short(self.value)} {self.unit}".strip(),
            self.goal,
            verdict,
            self.note,
        ]


class Figures:
    """All figures of one run."""

    def __init__(self) -> None:
        self._found: list[Figure] = []
        self._began, self._machine = datetime.now(UTC), machine()

    def add(self, part: str, name: str, value: float, unit: str = "", **more: Any) -> None:
        """Keep a figure, and tell it at once; `more` are fields of `Figure`."""
        figure = Figure(part, name, float(value), unit, **more)
        self._found.append(figure)
        print("   ", " | ".join(cell for cell in figure.cells() if cell), flush=True)

    def misses(self) -> list[str]:
        """Figures that are not what they should be, a line each."""
        return [
            f"{figure.part}: {figure.name}: {_short(figure.value)} {figure.unit}, wanted {figure.goal}"
            for figure in self._found
            if not figure.is_met
        ]

    def table(self, command: str) -> str:
        """Markdown: where it was measured, and a row a figure."""
        head = ["part", "figure", "measured", "goal", "met", "how"]
        rows = [head, ["---"] * len(head), *(figure.cells() for figure in self._found)]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([f"{self._began:%Y-%m-%d}, {self._machine}; `{command}`", "", *lines])

    def write(self) -> None:
        """Keep everything as JSON in the file that RECSYS_BENCH_OUT names, if it does."""
        if name := os.environ.get(OUT):
            figures = [{**asdict(figure), "is_met": figure.is_met} for figure in self._found]
            document = {"began": self._began.isoformat(), "machine": self._machine, "figures": figures}
            Path(name).write_text(json.dumps(document, indent=1) + "\n")


def machine() -> str:
    """Processor, its cores, memory, and the load of the last minute."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    python = platform.python_version()
    model = names[0] if names else platform.machine()
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB, Python {python}, load before {load:.1f}"


class Neighbours:
    """Who else used the processors since this was made; figures of a crowded machine say little."""

    def __init__(self) -> None:
        self._all, self._busy = _processor_s()
        self._mine = _mine_s()

    def share(self) -> float:
        """Percent of all processors' time that neither this process nor its ended children had."""
        everything, busy = _processor_s()
        others = busy - self._busy - (_mine_s() - self._mine)
        return 100.0 * max(0.0, others) / max(everything - self._all, 1e-9)


def _processor_s() -> tuple[float, float]:
    """Seconds of all processors, and those that were not idle, since the machine came up."""
    fields = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    tick = os.sysconf("SC_CLK_TCK")
    return sum(fields) / tick, (sum(fields) - fields[3] - fields[4]) / tick


def _mine_s() -> float:
    mine = os.times()
    return mine.user + mine.system + mine.children_user + mine.children_system


def middle(values: Sequence[float]) -> float:
    """The median; infinite without any."""
    return median(values) if values else float("inf")


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
