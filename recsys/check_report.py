"""The account of a check: rows of every table by fate, for people and as JSON values."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TableCounts:
    """Rows of one table: `rows_in` = `good` + the sum of `reasons`. Rows under `warnings` are good."""

    rows_in: int
    good: int
    reasons: dict[str, int] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)

    @property
    def quarantined(self) -> int:
        """Number of rows in the quarantine."""
        return sum(self.reasons.values())

    @property
    def bad_share(self) -> float:
        """Quarantined rows over all rows; 0.0 for an empty table."""
        return self.quarantined / self.rows_in if self.rows_in else 0.0

    def to_dict(self) -> dict[str, object]:
        """Counts as JSON values."""
        return {
            "rows_in": self.rows_in,
            "good": self.good,
            "quarantined": self.quarantined,
            "reasons": self.reasons,
            "warnings": self.warnings,
        }


@dataclass(frozen=True)
class CheckReport:
    """Counts of every table that was there, and hints on what may be wrong with the whole of it."""

    tables: dict[str, TableCounts]
    hints: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """The report as JSON values."""
        tables = {name: counts.to_dict() for name, counts in self.tables.items()}
        return {"tables": tables, "hints": list(self.hints)}

    def lines(self) -> list[str]:
        """The report for people, one fact a line."""
        lines = []
        for name, counts in self.tables.items():
            total = f"{counts.rows_in:,} rows = {counts.good:,} good + {counts.quarantined:,} quarantined"
            lines.append(f"{name:<12}{total}")
            lines += [f"{'':<12}quarantined: {n:,} {reason}" for reason, n in counts.reasons.items()]
            lines += [f"{'':<12}warning: {n:,} {reason}" for reason, n in counts.warnings.items()]
        return lines + [f"hint: {hint}" for hint in self.hints]
