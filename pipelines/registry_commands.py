"""`recsys promote`, `rollback` and `verify` on the command line: what is done to registered versions."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from pipelines.home import DEFAULT_NAME
from pipelines.opening import home_and_registry
from pipelines.options import ConfigOption, HomeOption, JsonOption, SetOption, TrackingOption
from pipelines.terminal import Terminal, print_pairs


def promote(
    model: Annotated[str, typer.Argument(help="models:/NAME/NUMBER, or NAME for its newest version.")] = (
        DEFAULT_NAME
    ),
    config: ConfigOption = None,
    overrides: SetOption = None,
    force: Annotated[bool, typer.Option("--force", help="Skip the gates.")] = False,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move the champion alias to a version that passes the gates of the configuration."""
    from pipelines.config import load_config
    from pipelines.registering import promote_version

    terminal = Terminal(as_json=as_json)
    gates = {} if force else load_config(config, overrides or [], os.environ).gates
    _, registry = home_and_registry(home, tracking_uri)
    document = promote_version(registry, model, gates)
    terminal.result(document, lambda console: print_pairs(document, console))


def rollback(
    name: Annotated[str, typer.Argument(help="Registered model name.")] = DEFAULT_NAME,
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Swap the champion with the version that was champion before it."""
    from pipelines.registering import rollback_name

    terminal = Terminal(as_json=as_json)
    _, registry = home_and_registry(home, tracking_uri)
    document = rollback_name(registry, name)
    terminal.result(document, lambda console: print_pairs(document, console))


def verify(
    what: Annotated[
        str, typer.Argument(help="models:/NAME@ALIAS, a bundle folder, or a folder of published nights.")
    ] = f"models:/{DEFAULT_NAME}@champion",
    home: HomeOption = None,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check digests, formats and golden scores of a bundle, or the digests of published nights."""
    from pipelines.registering import verify_thing

    terminal = Terminal(as_json=as_json)
    with terminal.step("verification"):
        document = verify_thing(what, *home_and_registry(home, tracking_uri))
    terminal.result(document, lambda console: print_pairs(document, console))
