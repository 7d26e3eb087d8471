"""Names of model versions, and the gates it passes before it serves; no registry is called."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from recsys.errors import EXIT_NO_INPUT, EXIT_USAGE, RecsysError

CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS = "previous"
CHOSEN = "chosen"

_URI = re.compile(
    r"models:/(?P<name>[^/:@\s]{1,200})(?:@(?P<alias>[A-Za-z0-9_-]{1,100})|/(?P<number>[0-9]{1,9}))"
)


@dataclass(frozen=True)
class Version:
    """One registered bundle.

    Attributes:
        name: registered name.
        number: version number, counted from 1.
        run_id: training run that made it.
        tags: the contract (`bundle_digest`, `feature_schema`, `as_of`, `created_by`) and what training added.
    """

    name: str
    number: int
    run_id: str
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        """The fixed name of this version, whatever the aliases do."""
        return f"models:/{self.name}/{self.number}"

    @property
    def digest(self) -> str:
        """SHA-256 of the bundle's manifest; "" for a version that we did not register."""
        return self.tags.get("bundle_digest", "")

    @property
    def as_of(self) -> float:
        """Epoch seconds, UTC, that it was trained up to; NaN for a version that we did not register."""
        return float(self.tags.get("as_of", "nan"))


def encoder_name(name: str) -> str:
    """The registered name of a recommender's compressed text encoders."""
    return f"{name}-encoder"


def parse_model_uri(uri: str) -> tuple[str, str | int]:
    """Split `models:/NAME@ALIAS` or `models:/NAME/NUMBER` into the name and the alias or number.

    Raises:
        RecsysError: `model_uri_invalid` (exit 64) for anything else.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        expected = "expected models:/NAME@ALIAS or models:/NAME/NUMBER, got"
        raise RecsysError("model_uri_invalid", expected, repr(uri[:200]), exit_code=EXIT_USAGE)
    return match["name"], match["alias"] or int(match["number"])


def unknown_model(name: str) -> RecsysError:
    """`unknown_model` (exit 66), for a name under which nothing is registered."""
    what = "nothing is registered under this name: train first, or give another --home"
    return RecsysError("unknown_model", what, repr(name), exit_code=EXIT_NO_INPUT)


def unknown_version(name: str, wanted: str | int, aliases: Mapping[str, int]) -> RecsysError:
    """`unknown_version` or `unknown_alias` (exit 66), which says what `aliases` there are."""
    kind = "version" if isinstance(wanted, int) else "alias"
    known = ", ".join(f"{alias} = {number}" for alias, number in sorted(aliases.items())) or "none"
    what = f"{name} has no {kind} {wanted!r}; its aliases: {known};"
    return RecsysError(f"unknown_{kind}", what, "", exit_code=EXIT_NO_INPUT)


def check_gates(metrics: Mapping[str, float], gates: Mapping[str, float]) -> list[str]:
    """The gates that `metrics` fail, each with its figures; empty where all pass.

    Args:
        metrics: figures of a version.
        gates: limits by `<metric>_min` or `<metric>_max`; the limit itself passes. A metric that is missing
            or NaN fails.

    Raises:
        ValueError: for a gate whose name ends otherwise.
    """
    failed = []
    for gate, limit in sorted(gates.items()):
        metric, _, side = gate.rpartition("_")
        if side not in ("min", "max") or not metric:
            raise ValueError(f"gate {gate!r} must be named <metric>_min or <metric>_max")
        value = metrics.get(metric, math.nan)
        passes = value >= limit if side == "min" else value <= limit
        if not passes:
            figure = "missing" if math.isnan(value) else f"{value:.6g}"
            failed.append(
                f"{metric} {figure}, {'at least' if side == 'min' else 'at most'} {limit:.6g} asked"
            )
    return failed
