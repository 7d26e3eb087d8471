"""The page of `recsys compress`: one file that a browser opens, with no script and nothing to fetch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipelines import anatomy_figures
from pipelines import compression_report as report
from pipelines.figures import Scale, exact, interval, standing, trade_off
from recsys.storage import write_atomic

TEMPLATE = "compression.html"


def write_page(path: Path, document: Mapping[str, Any], anatomy: Mapping[str, Any] | None) -> None:
    """Put the page in place of what is there, if anything; equal input gives equal bytes.

    Args:
        path: the file; its folder is there.
        document: what `recsys compress --json` prints; figures and bounds of intervals may be null.
        anatomy: `Anatomy.to_document()` of the chosen variant; None leaves its part of the page out.

    Raises:
        KeyError: the document lacks something.
        OSError: the file cannot be written.
    """
    write_atomic(path, page(document, anatomy).encode())


def page(document: Mapping[str, Any], anatomy: Mapping[str, Any] | None) -> str:
    """The whole page as HTML."""
    environment = Environment(
        loader=PackageLoader("pipelines"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template(TEMPLATE)
    runner_up = document["choice"]["runner_up"]
    return template.render(
        document=document,
        report=report,
        standing=lambda variant: standing(variant, runner_up),
        trade_offs=_trade_offs(document),
        anatomy=anatomy,
        network=_label(document),
        drawings=_drawings(anatomy, _label(document)) if anatomy is not None else {},
    )


def _label(document: Mapping[str, Any]) -> str:
    """What the compressed network is called in drawings."""
    choice = document["choice"]
    if choice["chosen"] is not None:
        return "chosen"
    return "nearest" if choice["infeasible"] and choice["infeasible"]["nearest"] else "compressed"


def _trade_offs(document: Mapping[str, Any]) -> dict[str, str]:
    """Drawings of quality against size, speed and cost, by name."""
    metric, limits = report.metric_name(document["headline"]), report.limits(document)
    quality = Scale(
        lambda variant: interval(variant["quality_ratio"]),
        f"quality ({metric}), ratio to the root's",
        limits.get("quality_min_ratio"),
    )
    scales = {
        "size": Scale(lambda each: exact(each["bytes"], 1e6), "size on disk, MB", more_is_better=False),
        "speed": Scale(
            lambda each: interval(report.measure(each, "throughput_ratio")),
            "titles a second, ratio to the reference's",
            limits.get("throughput_min_ratio"),
        ),
        "cost": Scale(lambda each: exact(each["cost"]), "cost of a month", more_is_better=False),
    }
    variants, runner_up = report.encoders(document), document["choice"]["runner_up"]
    return {
        name: trade_off(name, f"{metric} against {scale.label}", variants, runner_up, scale, quality)
        for name, scale in scales.items()
    }


def _drawings(anatomy: Mapping[str, Any], label: str) -> dict[str, str]:
    """Drawings of the networks by name; of what was kept only where it is known."""
    found = {
        "structure": anatomy_figures.structure(anatomy, label),
        "parameters": anatomy_figures.parameters(anatomy, label),
        "histograms": anatomy_figures.histograms(anatomy, label),
        "importance": anatomy_figures.importance(anatomy),
    }
    if anatomy["kept"] and any(origin is not None for origin in anatomy["kept"]):
        found["masks"] = anatomy_figures.masks(anatomy, label)
    return found
