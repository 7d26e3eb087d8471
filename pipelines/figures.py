"""Figures as SVG text to be put into a page, and the two that show what a variant gives up for what.

Equal input gives equal text. No name that a person chose gets into a drawing but as a tip, which shows when
a pointer rests on a mark.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

# Colours that are told apart with every kind of colour vision (Okabe & Ito 2008).
BLUE, SKY, ORANGE, VERMILLION, GREEN = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#009E73"
GREY, PALE, INK = "#8A8A8A", "#E8EAED", "#1F2328"

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.0,
    "axes.labelsize": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "hatch.linewidth": 0.6,
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def render(
    name: str,
    title: str,
    size: tuple[float, float],
    draw: Callable[[Figure], None],
    tips: Mapping[str, str] | None = None,
) -> str:
    """An `<svg>` element.

    Args:
        name: starts every id in it, so that several figures can stand in one page.
        title: what it shows, for those who do not see it.
        size: width and height in inches.
        draw: fills the figure.
        tips: by gid of an artist, the text that shows when a pointer rests on it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    return _for_a_page(buffer.getvalue(), name, title, tips or {})


def _for_a_page(document: str, name: str, title: str, tips: Mapping[str, str]) -> str:
    """The element alone, without what the page says once for all: fonts, name spaces, line joins."""
    svg = document[document.index("<svg") :]
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', svg)[:2]
    svg = re.sub(r"<svg[^>]*>", "", svg, count=1)
    svg = re.sub(r"<style.*?</style>|<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*| id=\"image\w+\"", "", svg)  # equal images have equal ids
    svg = re.sub(r'\bid="|url\(#|xlink:href="#', lambda found: f"{found.group()}{name}-", svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg).replace('xlink:href="', 'href="')
    for gid, tip in tips.items():
        svg = svg.replace(f'id="{name}-{gid}">', f'id="{name}-{gid}"><title>{html.escape(tip)}</title>')
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}-title" id="{name}">'
    return f'{head}\n<title id="{name}-title">{html.escape(title)}</title>{svg.rstrip()}\n'


@dataclass(frozen=True)
class Scale:
    """One axis: what of a variant it shows, its label, and a limit with the side that it allows.

    Attributes:
        of: the mean and, where they are known, the bounds; NaN otherwise.
        label: with the unit.
        limit: drawn as a line; None draws none.
    """

    of: Callable[[Mapping[str, Any]], tuple[float, float, float]]
    label: str
    limit: float | None = None
    more_is_better: bool = True


def interval(entry: Mapping[str, Any] | None) -> tuple[float, float, float]:
    """Mean and bounds; NaN for what is missing."""
    mean, low, high = ((entry or {}).get(key) for key in ("mean", "low", "high"))
    return _number(mean), _number(low), _number(high)


def exact(value: float | None, unit: float = 1.0) -> tuple[float, float, float]:
    """A figure without bounds, in `unit`."""
    return _number(value) / unit, math.nan, math.nan


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


@dataclass(frozen=True)
class Mark:
    """How the variants of one standing look."""

    label: str
    shape: str
    fill: str
    edge: str
    ink: str = "white"
    size: float = 11.5
    line: float = 0.9


MARKS = {
    "chosen": Mark("chosen", "s", VERMILLION, INK, size=14.0),
    "runner-up": Mark("runner-up", "D", ORANGE, INK, ink=INK),
    "frontier": Mark("frontier of cost", "o", BLUE, BLUE),
    "feasible": Mark("meets every limit", "o", "#BFDDEF", BLUE, ink=INK),
    "frontier-missed": Mark("frontier of cost, misses a limit", "o", "white", BLUE, ink=INK, line=2.0),
    "missed": Mark("misses a limit", "o", "white", GREY, ink=INK),
}


def standing(variant: Mapping[str, Any], runner_up: str | None) -> str:
    """Key of `MARKS`."""
    if variant["chosen"]:
        return "chosen"
    if variant["name"] == runner_up:
        return "runner-up"
    if variant["frontier"]:
        return "frontier" if variant["feasible"] else "frontier-missed"
    return "feasible" if variant["feasible"] else "missed"


def trade_off(
    name: str, title: str, variants: Sequence[Mapping[str, Any]], runner_up: str | None, x: Scale, y: Scale
) -> str:
    """Every variant that has both figures as a numbered mark, their frontier, the limits.

    Numbers are places in `variants`, from 1. The line joins the variants that no other beats in one of the
    two figures and equals in the other; a variant's own mark tells of the frontier of cost and quality.
    """
    points = {
        number: (x.of(variant), y.of(variant), variant) for number, variant in enumerate(variants, start=1)
    }
    points = {number: point for number, point in points.items() if math.isfinite(point[0][0] + point[1][0])}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set(xlabel=x.label, ylabel=y.label)
        axes.grid(color=PALE, linewidth=0.8)
        axes.set_axisbelow(True)
        if not points:
            axes.text(0.5, 0.5, "nothing was measured", transform=axes.transAxes, ha="center")
            return
        _scale(axes, axes.xaxis, [point[0][0] for point in points.values()])
        _limits(axes, x.limit, y.limit)
        _frontier(axes, list(points.values()), x, y)
        used = [_mark(axes, number, point, runner_up) for number, point in points.items()]
        _legend(figure, [key for key in MARKS if key in used], x.limit is not None or y.limit is not None)

    tips = {f"variant-{number}": f"{number}: {point[2]['name']}" for number, point in points.items()}
    return render(name, title, (5.2, 4.6), draw, tips)


def _scale(axes: Axes, axis: Axis, values: Sequence[float]) -> None:
    """Logarithmic where the values span a factor of four, all of them positive."""
    if min(values) > 0 and max(values) > 4 * min(values):
        axes.set_xscale("log")
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    axes.margins(0.09)


def _limits(axes: Axes, x: float | None, y: float | None) -> None:
    for line, value in ((axes.axvline, x), (axes.axhline, y)):
        if value is not None:
            line(value, color=GREEN, linestyle=(0, (4, 2)), linewidth=1.3, gid=f"limit-{line.__name__}")


def _frontier(axes: Axes, points: Sequence[Any], x: Scale, y: Scale) -> None:
    """A line from the one that is best in x to the one that is best in y."""
    x_sign, y_sign = (1.0 if scale.more_is_better else -1.0 for scale in (x, y))
    best, line = -math.inf, []
    for at_x, at_y, _ in sorted(points, key=lambda point: (-x_sign * point[0][0], -y_sign * point[1][0])):
        if y_sign * at_y[0] > best:
            best = y_sign * at_y[0]
            line.append((at_x[0], at_y[0]))
    if line:
        axes.plot(*zip(*line, strict=True), color=BLUE, linewidth=1.4, alpha=0.7, gid="frontier")


def _mark(axes: Axes, number: int, point: Any, runner_up: str | None) -> str:
    (x, x_low, x_high), (y, y_low, y_high), variant = point
    key = standing(variant, runner_up)
    mark, front = MARKS[key], 10.0 - list(MARKS).index(key)
    for low, high, line in ((x_low, x_high, axes.hlines), (y_low, y_high, axes.vlines)):
        if math.isfinite(low + high):
            line(y if line == axes.hlines else x, low, high, color=mark.edge, linewidth=1.0, alpha=0.6)
    axes.plot(
        [x],
        [y],
        linestyle="none",
        marker=mark.shape,
        markersize=mark.size,
        markerfacecolor=mark.fill,
        markeredgecolor=mark.edge,
        markeredgewidth=mark.line,
        zorder=front,
        gid=f"variant-{number}",
    )
    axes.annotate(
        str(number), (x, y), ha="center", va="center_baseline", color=mark.ink, fontsize=7, zorder=front
    )
    return key


def _legend(figure: Figure, keys: Sequence[str], limited: bool) -> None:
    """Below the axes; a mark as it is drawn."""
    entries = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=MARKS[key].shape,
            markersize=8,
            markerfacecolor=MARKS[key].fill,
            markeredgecolor=MARKS[key].edge,
            markeredgewidth=MARKS[key].line,
            label=MARKS[key].label,
        )
        for key in keys
    ]
    entries.append(Line2D([], [], color=BLUE, linewidth=1.4, label="frontier of this plot"))
    if limited:
        entries.append(Line2D([], [], color=GREEN, linestyle=(0, (4, 2)), label="limit"))
    figure.legend(handles=entries, loc="outside lower center", ncols=2)
