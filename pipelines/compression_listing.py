"""The ladder as the registry holds it: `recsys compress --list`."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from pipelines.terminal import table
from recsys.tracking import Registry
from recsys.versions import CHOSEN, Version, encoder_name

BOUNDS = ("mean", "low", "high")


def listing(registry: Registry, name: str) -> dict[str, Any]:
    """Every registered encoder of `name`, the newest first, with its receipt.

    Raises:
        RecsysError: `unknown_model` where there is none; `registry_unavailable`.
    """
    encoders = encoder_name(name)
    chosen = registry.aliases(encoders).get(CHOSEN)
    variants = [_variant(version, registry, chosen) for version in registry.list_versions(encoders)]
    return {"name": encoders, "variants": variants}


def _variant(version: Version, registry: Registry, chosen: int | None) -> dict[str, Any]:
    """One version: single figures by name, and intervals of `<name>_mean`, `_low`, `_high` under `<name>`."""
    metrics = registry.metrics(version)
    found: dict[str, Any] = {
        "name": version.tags.get("recipe", ""),
        "version": version.number,
        "parent": version.tags.get("parent") or None,
        "chosen": version.number == chosen,
    }
    for key, value in sorted(metrics.items()):
        stem, _, bound = key.rpartition("_")
        if bound in BOUNDS:
            found.setdefault(stem, dict.fromkeys(BOUNDS))[bound] = value
        else:
            found[key] = int(value) if key in ("bytes", "parameters", "operations") else value
    return found


def print_listing(document: dict[str, Any], out: Console) -> None:
    """A line a version; the chosen one is marked."""
    rows = []
    for variant in document["variants"]:
        quality = variant.get("quality_ratio", dict.fromkeys(BOUNDS))
        rows.append(
            [
                ("* " if variant["chosen"] else "  ") + variant["name"],
                str(variant["version"]),
                _figure(variant.get("bytes", None), 1e-6, 1),
                _figure(variant.get("throughput_ratio"), 1.0, 1),
                _figure(quality["mean"], 1.0, 4),
                f"[{_figure(quality['low'], 1.0, 4)}, {_figure(quality['high'], 1.0, 4)}]",
                _figure(variant.get("cosine"), 1.0, 4),
            ]
        )
    header = ["variant", "version", "MB", "titles, times", "quality", "95 %", "cosine"]
    out.print(table(f"{document['name']} (* chosen)", header, rows))


def _figure(value: float | None, scale: float, digits: int) -> str:
    return "–" if value is None else f"{value * scale:.{digits}f}"
