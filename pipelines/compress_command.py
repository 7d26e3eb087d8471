"""`recsys compress` on the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.home import DEFAULT_NAME, Home
from pipelines.opening import home_and_registry, load_dataset
from pipelines.options import (
    ConfigOption,
    HomeOption,
    JsonOption,
    MaxBadOption,
    NameOption,
    SetOption,
    TrackingOption,
)
from pipelines.terminal import Terminal
from recsys.errors import EXIT_CONFIG, EXIT_USAGE, RecsysError


def compress(
    data: Annotated[Path | None, typer.Argument(help="Folder in the dataset layout.")] = None,
    minutes: Annotated[
        float, typer.Option("--minutes", help="For measuring variants; one always ends.")
    ] = 40,
    protocol: Annotated[str | None, typer.Option(help="time, last or slate; default as in training.")] = None,
    recipe: Annotated[
        list[str] | None, typer.Option("--recipe", help="In place of the ladder: layers=2,vocabulary=2,int8.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what was measured before.")] = False,
    bundle: Annotated[
        bool, typer.Option("--bundle/--no-bundle", help="Train a version with the chosen encoder.")
    ] = True,
    adaptation: Annotated[
        bool, typer.Option("--adaptation", help="Compare ways of fine-tuning instead of compressing.")
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="Print the ladder from the registry.")] = False,
    out: Annotated[Path | None, typer.Option(help="HTML page; default: in the home.")] = None,
    name: NameOption = DEFAULT_NAME,
    config: ConfigOption = None,
    overrides: SetOption = None,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
    max_bad: MaxBadOption = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Measure smaller text encoders, and choose the cheapest that meets the limits."""
    terminal = Terminal(as_json=as_json)
    if listed:
        _list(terminal, home, tracking_uri, name)
        return
    if data is None:
        raise RecsysError("usage", "name the folder of a data set, or --list", exit_code=EXIT_USAGE)
    if not minutes > 0:
        raise RecsysError("usage", "--minutes must be more than 0, not", f"{minutes:g}", exit_code=EXIT_USAGE)
    settings = _settings(config, overrides or [], recipe or [])
    place, registry = home_and_registry(home, tracking_uri)
    dataset = load_dataset(data, settings.roles, max_bad, terminal)
    if adaptation:
        _compare(dataset, settings, place, terminal)
        return
    registry.check()
    _run(
        terminal,
        out,
        data=dataset,
        protocol=protocol or ("time" if dataset.slates is None else "slate"),
        config=settings,
        home=place,
        registry=registry,
        name=name,
        minutes=minutes,
        resume=resume,
        bundle=bundle,
    )


def _run(terminal: Terminal, out: Path | None, *, protocol: str, **job: Any) -> None:
    """The job, its page and its result."""
    from pipelines.compressing import Job
    from pipelines.compressing import compress as run
    from pipelines.compression_page import write_page
    from pipelines.compression_report import print_compression
    from recsys.protocols import parse_protocol

    asked = Job(**job, protocol=parse_protocol(protocol), terminal=terminal)
    document, anatomy = run(asked)
    page = (out or asked.home.compression / document["study"] / "page.html").absolute()
    write_page(page, document, anatomy)
    document |= {"page": str(page), "seconds": terminal.elapsed(), "step_seconds": terminal.seconds}
    terminal.result(document, lambda console: print_compression(document, console))


def _settings(path: Path | None, overrides: list[str], recipes: list[str]) -> Any:
    """The configuration, with these recipes as the ladder.

    Raises:
        RecsysError: `config_invalid` for an unknown method or a limit out of range, with what is allowed.
    """
    from dataclasses import replace

    from pipelines.config import load_config

    settings = load_config(path, overrides, os.environ)
    if not recipes:
        return settings
    try:
        compression = replace(settings.compression, ladder=tuple(recipes), search=False)
    except ValueError as error:
        raise RecsysError("config_invalid", str(error), "--recipe", exit_code=EXIT_CONFIG) from None
    return replace(settings, compression=compression)


def _list(terminal: Terminal, home: Path | None, tracking_uri: str | None, name: str) -> None:
    from pipelines.compression_listing import listing, print_listing

    _, registry = home_and_registry(home, tracking_uri)
    document = listing(registry, name)
    terminal.result(document, lambda console: print_listing(document, console))


def _compare(dataset: Any, settings: Any, place: Home, terminal: Terminal) -> None:
    from pipelines.adaptation_table import compare_adaptation, print_adaptation

    document = {"data": dataset.name, **compare_adaptation(dataset, settings, place, terminal)}
    terminal.result(document, lambda console: print_adaptation(document, console))
