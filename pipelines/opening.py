"""What commands open before they work: the home with its registry, and the data set.

Heavy modules are imported inside, so that `recsys --help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.home import Home
from pipelines.terminal import Terminal


def home_and_registry(home: Path | None, tracking_uri: str | None) -> tuple[Home, Any]:
    """The home folder, and the registry in it or behind the tracking server; neither is reached yet."""
    from recsys.tracking import Registry

    place = Home.at(home)
    return place, Registry(place.path, tracking_uri)


def load_dataset(data: Path, roles: Any, max_bad: float, terminal: Terminal) -> Any:
    """The dataset, with the counts of its check on standard error."""
    from recsys.dataset_folder import load

    with terminal.step("dataset"):
        dataset, report = load(data, roles=roles, max_bad=max_bad)
    for line in report.lines():
        terminal.note(f"  {line}")
    return dataset
