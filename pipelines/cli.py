"""The `recsys` command line: reads options, runs one step, prints its result.

Heavy modules are imported inside the commands, so that `recsys --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pipelines.compress_command import compress
from pipelines.failures import run_to_exit
from pipelines.home import DEFAULT_NAME, Home
from pipelines.opening import home_and_registry, load_dataset
from pipelines.options import (
    ConfigOption,
    DataArgument,
    HomeOption,
    JsonOption,
    MaxBadOption,
    NameOption,
    SetOption,
    TrackingOption,
    repeated,
)
from pipelines.registry_commands import promote, rollback, verify
from pipelines.terminal import Terminal, print_lines, print_pairs
from recsys.errors import EXIT_USAGE, RecsysError
from serving.commands.compare import compare
from serving.commands.events import events
from serving.commands.serve import serve

app = typer.Typer(
    name="recsys",
    help="A personalized recommendation engine for a catalogue with text and a log of what people did.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(compress)


@app.command()
def demo(
    home: HomeOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the world and of the training.")] = 0,
    users: Annotated[int, typer.Option(help="Users of the simulated world.")] = 2000,
    items: Annotated[int, typer.Option(help="Items of the simulated world.")] = 1500,
    as_json: JsonOption = False,
) -> None:
    """Simulate a small world, train, register, promote and score the night, and print a report."""
    from pipelines.demo import print_demo, run_demo

    terminal = Terminal(as_json=as_json)
    document = run_demo(Home.at(home), terminal, seed=seed, users=users, items=items)
    terminal.result(document, lambda out: print_demo(document, out))


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder to write the dataset and its truth to.")],
    users: Annotated[int, typer.Option()] = 2000,
    items: Annotated[int, typer.Option()] = 1500,
    days: Annotated[int, typer.Option()] = 14,
    seed: Annotated[int, typer.Option()] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write a simulated dataset whose true click probabilities are known."""
    from recsys.simulation import SimulationConfig
    from recsys.simulation import simulate as run

    terminal = Terminal(as_json=as_json)
    try:
        config = SimulationConfig(users=users, items=items, days=days, seed=seed)
    except ValueError as error:
        raise RecsysError("usage", str(error), exit_code=EXIT_USAGE) from None
    with terminal.step("simulation") as progress:
        report = asdict(run(out, config, progress=progress))
    terminal.result(report, lambda console: print_pairs(report, console))


@app.command("import")
def import_(
    format: Annotated[str, typer.Argument(help="mind, movielens, amazon or table.")],
    source: Annotated[Path, typer.Argument(help="Folder with the original files.")],
    out: Annotated[Path, typer.Argument(help="Folder to write the dataset to.")],
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="key=value for the format, e.g. reviews=Beauty.json.gz."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a public or private data set into the dataset layout."""
    from pipelines.importing import import_options
    from recsys.formats import import_dataset

    terminal = Terminal(as_json=as_json)
    with terminal.step(f"import {format}"):
        report = import_dataset(format, source, out, **import_options(option or []))
    terminal.result(report.to_dict(), lambda console: print_lines(report.lines(), console))


@app.command()
def merge(
    out: Annotated[Path, typer.Argument(help="Folder to write the dataset to.")],
    data: Annotated[list[Path], typer.Argument(help="Dataset folders; of one item the last words count.")],
    as_json: JsonOption = False,
) -> None:
    """Make one dataset of several: what there was, and the days that a server has logged since."""
    from recsys.dataset_union import unite

    terminal = Terminal(as_json=as_json)
    if out.resolve() in {each.resolve() for each in data}:
        raise RecsysError("usage", "the new folder is one of the old ones", str(out), exit_code=EXIT_USAGE)
    with terminal.step("merge"):
        counts = unite(data, out)
    terminal.result({"out": str(out), **counts}, lambda console: print_pairs(counts, console))


@app.command()
def validate(
    data: DataArgument,
    max_bad: MaxBadOption = 0.05,
    quarantine: Annotated[Path | None, typer.Option(help="Folder for the bad rows.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a dataset, set bad rows apart, and count: in = good + quarantined, by reason."""
    from recsys.dataset_folder import load

    terminal = Terminal(as_json=as_json)
    with terminal.step("check"):
        _, report = load(data, max_bad=max_bad, quarantine_to=quarantine)
    terminal.result(report.to_dict(), lambda console: print_lines(report.lines(), console))


@app.command()
def train(
    data: DataArgument,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_of: Annotated[str | None, typer.Option(help="Train on what happened before this time.")] = None,
    name: NameOption = DEFAULT_NAME,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
    max_bad: MaxBadOption = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Train, judge on a held-out window, and register a version."""
    from pipelines.config import load_config
    from pipelines.scoring import parse_moment
    from pipelines.training import print_trained, trained_document
    from pipelines.training import train as run

    terminal = Terminal(as_json=as_json)
    settings = load_config(config, overrides or [], os.environ)
    moment = None if as_of is None else parse_moment(as_of)
    place, registry = home_and_registry(home, tracking_uri)
    registry.check()
    dataset = load_dataset(data, settings.roles, max_bad, terminal)
    trained = run(dataset, settings, place, registry, terminal, name=name, as_of=moment)
    document = trained_document(trained, data.resolve().name)
    terminal.result(document, lambda console: print_trained(document, console))


@app.command()
def evaluate(
    data: DataArgument,
    protocol: Annotated[str, typer.Option(help="time, last or slate.")] = "time",
    baselines: Annotated[bool, typer.Option("--baselines/--no-baselines")] = True,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Tell what each feature family and each source is worth.")
    ] = False,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Tell what diversity, exploration and the rules cost.")
    ] = False,
    off_policy: Annotated[
        bool, typer.Option("--off-policy", help="Estimate our click rate from logged propensities.")
    ] = False,
    seeds: Annotated[list[int] | None, typer.Option("--seeds", help="One or more: --seeds 0 1 2.")] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    home: HomeOption = None,
    max_bad: MaxBadOption = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Fit on the past, score the future, and print a table with intervals."""
    from pipelines.config import load_config
    from pipelines.evaluating import evaluate as run
    from pipelines.evaluation_report import evaluation_document, print_evaluation
    from recsys.protocols import parse_protocol

    terminal = Terminal(as_json=as_json)
    wanted = parse_protocol(protocol)
    settings = load_config(config, overrides or [], os.environ)
    dataset = load_dataset(data, settings.roles, max_bad, terminal)
    chosen = tuple(seeds) if seeds else (settings.seed,)
    result = run(
        dataset,
        wanted,
        settings,
        Home.at(home),
        terminal,
        seeds=chosen,
        baselines=baselines,
        ablate=ablate,
        rerank=rerank,
        off_policy=off_policy,
    )
    document = evaluation_document(dataset.name, chosen, result.document, terminal)
    terminal.result(document, lambda console: print_evaluation(document, console))


@app.command()
def tune(
    data: DataArgument,
    minutes: Annotated[float, typer.Option("--minutes", help="Time to spend; the first trial always ends.")],
    protocol: Annotated[str, typer.Option(help="time, last or slate.")] = "time",
    out: Annotated[Path | None, typer.Option(help="TOML file to write; default: in the home.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the newest search like this.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    home: HomeOption = None,
    max_bad: MaxBadOption = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Search hyper-parameters on windows before the test, and write the best as TOML."""
    from pipelines.tuning_report import check_out, print_tuning, write_toml
    from recsys.protocols import parse_protocol

    terminal = Terminal(as_json=as_json)
    wanted = parse_protocol(protocol)
    check_out(minutes, out)
    from pipelines.config import load_config  # what is wrong with the words is told before heavy imports
    from pipelines.tuning import tune as run

    settings = load_config(config, overrides or [], os.environ)
    place = Home.at(home)
    dataset = load_dataset(data, settings.roles, max_bad, terminal)
    found = run(dataset, wanted, settings, place, terminal, minutes=minutes, resume=resume)
    written = write_toml(found, out or place.tuning / found["study"] / "tuned.toml")
    document = {"data": dataset.name, **found, "out": str(written), "seconds": terminal.elapsed()}
    terminal.result(document, lambda console: print_tuning(document, console))


for command in (promote, rollback, verify):
    app.command()(command)


@app.command()
def score(
    data: DataArgument,
    model: Annotated[str, typer.Option(help="models:/NAME@ALIAS or models:/NAME/NUMBER.")] = (
        f"models:/{DEFAULT_NAME}@champion"
    ),
    out: Annotated[Path | None, typer.Option(help="Delta table; default: scores in the home.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Items a user.")] = 20,
    as_of: Annotated[str | None, typer.Option(help="Moment of the scores; default: the log's end.")] = None,
    night: Annotated[
        str | None, typer.Option(help="Partition YYYY-MM-DD; default: the day of as-of.")
    ] = None,
    max_bad: MaxBadOption = 0.05,
    allow_shrink: Annotated[bool, typer.Option("--allow-shrink")] = False,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score the night: top k items for every user, published as one partition of a Delta table."""
    from pipelines.scoring import NightSettings, night_document, parse_moment, parse_night, score_night

    terminal = Terminal(as_json=as_json)
    settings = NightSettings(
        top_k=top_k,
        as_of=None if as_of is None else parse_moment(as_of),
        night=None if night is None else parse_night(night),
        max_bad=max_bad,
        allow_shrink=allow_shrink,
    )
    place, registry = home_and_registry(home, tracking_uri)
    published = out or place.scores
    result = score_night(data, published, model, settings, place, registry, terminal)
    document = night_document(result, published)
    terminal.result(document, lambda console: print_pairs(document, console))


app.command()(serve)
app.add_typer(events)
app.command()(compare)


def main() -> NoReturn:
    """Run the command line; a failure ends with one line on standard error and a sysexits number."""
    run_to_exit(lambda: app(repeated(sys.argv[1:], "--seeds"), standalone_mode=False))
