"""Options that several commands share, and the form in which the parser takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
HomeOption = Annotated[
    Path | None, typer.Option("--home", help="Where everything is kept (RECSYS_HOME, else ./.recsys).")
]
TrackingOption = Annotated[
    str | None,
    typer.Option("--tracking-uri", help="MLflow tracking server; default: an SQLite file in the home."),
]
NameOption = Annotated[str, typer.Option("--name", help="Registered model name.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file with settings.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value; may be given more than once.")
]
MaxBadOption = Annotated[float, typer.Option(help="Largest share of quarantined rows that is put up with.")]
DataArgument = Annotated[Path, typer.Argument(help="Folder in the dataset layout.")]


def repeated(words: list[str], option: str) -> list[str]:
    """`--seeds 0 1 2` as `--seeds 0 --seeds 1 --seeds 2`, the form that the parser knows."""
    out: list[str] = []
    within = False
    for word in words:
        if within and out[-1] != option and word.isdecimal():
            out.append(option)
        within = word == option or (within and word.isdecimal())
        out.append(word)
    return out
