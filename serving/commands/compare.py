"""`recsys compare` on the command line: what the event log says of the experiments in it."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recsys.errors import EXIT_NO_INPUT, RecsysError
from serving.commands.opening import (
    HomeOption,
    JsonOption,
    LogOption,
    RedisNameOption,
    RedisOption,
    open_reader,
)

if TYPE_CHECKING:
    from rich.table import Table

    from recsys.metrics.intervals import Interval
    from serving.events.log import EventReader
    from serving.experiments.comparison import Comparison
    from serving.experiments.figures import ArmFigures, Drafted, Split
    from serving.experiments.logged import LoggedExperiments

_WIDTH = 120  # also where the output goes to a file


def compare(
    log: LogOption = None,
    redis: RedisOption = None,
    redis_name: RedisNameOption = "recsys",
    experiment: Annotated[str | None, typer.Option(help="Name of one; default: all in the log.")] = None,
    outcome: Annotated[
        list[str] | None,
        typer.Option(help="Event type that counts, may be repeated; default: click and purchase."),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the two sides of each experiment, and name the winner once there is one."""
    import msgspec

    reader = open_reader(log, redis, redis_name, home)
    document = compared(reader, experiment, outcome)
    if as_json:
        sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
    else:
        _print(document)
    sys.stdout.flush()


def compared(
    reader: EventReader, experiment: str | None = None, outcomes: list[str] | None = None
) -> dict[str, Any]:
    """What a log says, for JSON: NaN in it stands for what is not known.

    Args:
        reader: of the log; it is closed.
        experiment: name of one, None for all.
        outcomes: event types that count, None for the default ones.

    Raises:
        RecsysError: `no_experiment` (exit 66) where the log holds none, or none of this name.
    """
    from serving.experiments.comparison import compare as compare_slates
    from serving.experiments.logged import DEFAULT_OUTCOMES, read_experiments

    types = list(outcomes or DEFAULT_OUTCOMES)
    with closing(reader):
        found = read_experiments(reader, types)
    names = sorted(found.slates) if experiment is None else [experiment]
    if not names or not found.slates.keys() >= set(names):
        known = f"it has {', '.join(sorted(found.slates))}" if found.slates else "it has none at all"
        what = f"no impression of {experiment or 'an experiment'} is in the log, {known}"
        raise RecsysError("no_experiment", what, exit_code=EXIT_NO_INPUT)
    return {
        "experiments": [compare_slates(found.slates[name]) for name in names],
        "outcome_types": types,
        "outcomes": found.outcomes,
        "outcomes_joined": found.joined,
        "outcomes_not_shown": found.not_shown,
        "warnings": _doubts(found, reader.damage.rows_lost + found.unreadable),
    }


def _doubts(found: LoggedExperiments, lost: int) -> list[str]:
    said = []
    if found.outcomes and not found.joined:
        said.append(
            f"none of {found.outcomes:,} outcomes names an impression of an experiment: "
            "interactions need the impression_id"
        )
    if found.not_shown:
        said.append(f"{found.not_shown:,} outcomes name an item that their impression does not show")
    if lost:
        said.append(f"{lost:,} damaged records could not be read")
    return said


def _print(document: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, soft_wrap=True, width=_WIDTH)
    for each in document["experiments"]:
        console.print(_table(each))
        for line in _lines(each):
            console.print(line, markup=False)
        console.print()
    for warning in document["warnings"]:
        console.print(f"warning: {warning}", markup=False)
    types = " or ".join(document["outcome_types"])
    console.print(f"outcome: {types}; 95 % intervals over users", markup=False)


def _table(comparison: Comparison) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from serving.experiments.figures import Split

    figures = comparison.figures
    is_split = isinstance(figures, Split)
    kind = f"{comparison.share:.4g} of the users " + (
        "have the treatment" if is_split else "have drafted lists"
    )
    table = Table(title=escape(f"{comparison.name}: {kind}"), title_justify="left", header_style="bold")
    header, rows = _split_rows(figures) if isinstance(figures, Split) else _drafted_rows(figures)
    for place, name in enumerate(header):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _split_rows(figures: Split) -> tuple[list[str], list[list[str]]]:
    header = ["", "users", "impressions", "outcomes", "outcomes an impression", "95 %"]
    return header, [
        ["control", *_arm_cells(figures.control)],
        ["treatment", *_arm_cells(figures.treatment)],
        ["difference", "", "", "", f"{figures.difference.mean:+.5f}", _bounds(figures.difference, "+.5f")],
    ]


def _arm_cells(arm: ArmFigures) -> list[str]:
    counts = [f"{count:,}" for count in (arm.users, arm.impressions, arm.outcomes)]
    return [*counts, f"{arm.rate.mean:.5f}", _bounds(arm.rate, ".5f")]


def _drafted_rows(figures: Drafted) -> tuple[list[str], list[list[str]]]:
    wins, users = figures.wins.values(), figures.users_for.values()
    shares = [f"{1.0 - figures.share.mean:.1%}", f"{figures.share.mean:.1%}"]
    bounds = ["", _bounds(figures.share, ".1%")]
    rows = zip(("control", "treatment"), wins, users, shares, bounds, strict=True)
    header = ["", "impressions won", "users for it", "share of the won", "95 %"]
    return header, [[side, f"{won:,}", f"{count:,}", *cells] for side, won, count, *cells in rows]


def _bounds(interval: Interval, form: str) -> str:
    return f"{interval.low:{form}} to {interval.high:{form}}"


def _lines(comparison: Comparison) -> list[str]:
    from serving.experiments.figures import Split

    figures = comparison.figures
    if isinstance(figures, Split):
        facts = [f"lift {figures.lift:+.1%}", f"group sizes p = {figures.ratio_p:.3g}"]
    else:
        facts = [
            f"{figures.users:,} users",
            f"{figures.impressions:,} impressions, {figures.ties:,} of them ties",
        ]
        facts.append(f"sign test over users p = {figures.sign_p:.3g}")
    verdict = f"winner: {comparison.winner}" if comparison.winner else "no winner yet"
    return [", ".join(facts), *(f"warning: {each}" for each in comparison.warnings), verdict]
