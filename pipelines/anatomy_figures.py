"""What compression made of a network, drawn: its shape, its weights, what matters in it, what was kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from pipelines.figures import BLUE, GREY, INK, ORANGE, PALE, SKY, VERMILLION, render

_WIDTH = 5.2
_TILE = 64
"""Neurons in a row of a mask."""

_OUT, _CUT, _KEPT = 0.0, 1.0, 2.0
_MASK_COLOURS = ListedColormap([PALE, ORANGE, BLUE])


def parameters(anatomy: Mapping[str, Any], label: str) -> str:
    """Weights by kind of part, for both networks; what is exactly zero is hatched."""
    kinds = list(anatomy["edges"])
    networks = _networks(anatomy, label)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        height = 0.8 / len(networks)
        for place, (name, colour, network) in enumerate(networks):
            counts = np.array([network["parameters"].get(kind, 0) for kind in kinds]) / 1e6
            zeros = np.array([network["zeros"].get(kind, 0) for kind in kinds]) / 1e6
            at = np.arange(len(kinds)) + (place - (len(networks) - 1) / 2) * height
            bars = axes.barh(at, counts, height, color=colour, label=name)
            axes.bar_label(bars, [f"{count:.3g}" for count in counts], padding=3, fontsize=8)
            axes.barh(at, zeros, height, color="none", edgecolor="white", hatch="////", linewidth=0)
        axes.set_yticks(range(len(kinds)), kinds)
        axes.invert_yaxis()
        axes.set_xlabel("weights, millions (hatched: exactly zero)")
        axes.margins(x=0.12)
        figure.legend(loc="outside lower center", ncols=2)

    title = f"Bars: weights by kind of part, root and {label}"
    return render("parameters", title, (_WIDTH, 0.9 + 0.5 * len(kinds)), draw)


def histograms(anatomy: Mapping[str, Any], label: str) -> str:
    """Weights by their value before and after, a panel a kind, counts on a logarithmic scale."""
    kinds = list(anatomy["edges"])
    networks = _networks(anatomy, label)
    rows = math.ceil(len(kinds) / 2)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(rows, 2, squeeze=False)
        for panel, (kind, axes) in enumerate(zip(kinds, panels.flat, strict=False)):
            edges = np.array(anatomy["edges"][kind])
            for place, (name, colour, network) in enumerate(networks):
                if kind in network["histograms"]:
                    style = {"fill": True, "alpha": 0.45} if place == 0 else {"linewidth": 1.3}
                    counts = network["histograms"][kind]
                    axes.stairs(counts, edges, color=colour, label=name, gid=f"bins-{panel}-{place}", **style)
            axes.set_yscale("symlog", linthresh=1.0)
            axes.set_ylim(bottom=0.0)
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.set_title(kind)
            _log_counts(axes)
        for axes in panels.flat[len(kinds) :]:
            axes.set_axis_off()
        figure.supxlabel("value of a weight", fontsize=9)
        figure.supylabel("weights in a bin (logarithmic)", fontsize=9)
        handles = [Patch(color=colour, label=name) for name, colour, _ in networks]
        figure.legend(handles=handles, loc="outside upper left", ncols=2)

    title = f"Histograms: weights by value and kind of part, root and {label}"
    return render("histograms", title, (_WIDTH, 0.8 + 1.55 * rows), draw)


def importance(anatomy: Mapping[str, Any]) -> str:
    """Heat maps of the root: heads by layer, both parts by layer, neurons by layer in falling order."""
    found = anatomy["importance"]
    heads, neurons = _padded(found["heads"]), _padded(found["neurons"])
    layers = np.array([[layer["attention"], layer["feed_forward"]] for layer in found["layers"]])

    def draw(figure: Figure) -> None:
        panels: Any = figure.subplot_mosaic(
            [["heads", "layers"], ["neurons", "neurons"]], width_ratios=(1.6, 1)
        )
        _heat(figure, panels["heads"], heads, "heads", "head")
        _heat(figure, panels["layers"], layers, "sums", "")
        panels["layers"].set_xticks([0, 1], ["all\nheads", "all\nneurons"], fontsize=8)
        _heat(figure, panels["neurons"], neurons, "neurons", "")
        widths = [layer["feed_forward"] for layer in anatomy["root"]["architecture"]["layers"]]
        panels["neurons"].set_xlabel(f"neurons, most important first (a column: {_group(widths)})")
        panels["neurons"].set_xticks([])

    title = "Heat maps: importance of the root's heads, parts and neurons, layer by layer"
    return render("importance", title, (_WIDTH, 2.4 + 0.36 * len(layers)), draw)


def masks(anatomy: Mapping[str, Any], label: str) -> str:
    """Which heads and neurons of the root's layers are left; one square a head, one dot a neuron."""
    layers = anatomy["root"]["architecture"]["layers"]
    origin = {kept["layer"]: kept for kept in anatomy["kept"] if kept is not None}
    heads = _padded([_mask(layer["heads"], origin.get(place), "heads") for place, layer in enumerate(layers)])
    tiles = [
        _tile(_mask(layer["feed_forward"], origin.get(place), "neurons"))
        for place, layer in enumerate(layers)
    ]

    def draw(figure: Figure) -> None:
        heights = (0.9 + 0.2 * len(layers), 0.5 + len(tiles) / 3)
        top, below = figure.subfigures(2, 1, height_ratios=heights, squeeze=False).ravel()
        axes = top.subplots()
        style = {"cmap": _MASK_COLOURS, "vmin": _OUT, "vmax": _KEPT, "edgecolors": "white", "linewidth": 1.5}
        rows, columns = (np.arange(count + 1) - 0.5 for count in heads.shape)
        axes.pcolormesh(columns, rows, heads, **style)
        axes.invert_yaxis()
        _number_axes(axes, heads)
        axes.set(title="heads", xlabel="head", ylabel="layer")
        below.suptitle("neurons, 64 a row", x=0.02, ha="left", fontsize=9.5)
        panels = below.subplots(math.ceil(len(tiles) / 3), 3, squeeze=False)
        for place, axes in enumerate(panels.flat):
            axes.set_axis_off()
            if place < len(tiles) and tiles[place].size:
                axes.imshow(tiles[place], cmap=_MASK_COLOURS, vmin=_OUT, vmax=_KEPT, interpolation="none")
                axes.set_title(f"layer {place + 1}", fontsize=8.5)
        names = ("layer left out", "cut", "kept")
        handles = [
            Patch(color=colour, label=name) for name, colour in zip(names, (PALE, ORANGE, BLUE), strict=True)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)

    title = f"Masks: which heads and neurons of the root are left in the {label} network"
    height = 1.6 + 0.2 * len(layers) + 0.75 * math.ceil(len(layers) / 3)
    return render("masks", title, (_WIDTH, height), draw)


def structure(anatomy: Mapping[str, Any], label: str) -> str:
    """Both networks from text to embedding; widths of boxes are shares of the root's."""
    networks = _networks(anatomy, label)
    root = anatomy["root"]["architecture"]
    depth = max(network["architecture"]["depth"] for _, _, network in networks)

    def draw(figure: Figure) -> None:
        columns = figure.subplots(1, 2)
        for axes, (name, colour, network) in zip(columns, networks, strict=False):
            axes.set(xlim=(0, 1), ylim=(2.0 * depth + 3.4, -0.2), title=name)
            axes.set_axis_off()
            sources = _sources(anatomy["kept"]) if network is anatomy["compressed"] else {}
            _column(axes, network["architecture"], root, colour, sources)
        if len(networks) == 1:
            columns[1].set_axis_off()
            columns[1].set(xlim=(0, 1), ylim=(2.0 * depth + 3.4, -0.2), title=label)
            columns[1].text(
                0.5, depth, "no network:\none vector a word piece,\ntheir mean for a text", ha="center"
            )

    title = f"Diagram: layers of the root and of the {label} model from text to embedding"
    return render("structure", title, (_WIDTH, 1.2 + 0.46 * depth), draw)


def _networks(anatomy: Mapping[str, Any], label: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Name, colour and document of the one network or the two."""
    found = [("root", SKY, anatomy["root"])]
    if anatomy["compressed"] is not None:
        found.append((label, VERMILLION, anatomy["compressed"]))
    return found


def _log_counts(axes: Axes) -> None:
    """Powers of ten as they are said."""
    top = axes.dataLim.ymax
    powers = [10.0**power for power in range(0, 9, 2) if 10.0**power <= max(top, 1.0) * 3]
    axes.set_yticks([0.0, *powers])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.minorticks_off()


def _short(count: float) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:g}{unit}"
    return f"{count:g}"


def _group(widths: Sequence[int]) -> str:
    smallest, largest = (math.ceil(width / _TILE) for width in (min(widths), max(widths)))
    return f"{largest} of them" if smallest == largest else f"{smallest} to {largest} of them"


def _padded(rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """(rows, longest) with NaN where a row is shorter."""
    out = np.full((len(rows), max([1, *map(len, rows)])), np.nan)
    for place, row in enumerate(rows):
        out[place, : len(row)] = row
    return out


def _heat(figure: Figure, axes: Axes, values: NDArray[np.float64], title: str, label: str) -> None:
    """A cell a figure on a logarithmic scale; what is zero or not there stays grey."""
    positive = values[values > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (1.0, 1.0)
    norm = LogNorm(low, high * 1.0001)
    shown = np.where(values > 0, values, np.nan)
    axes.set_facecolor(PALE)
    image = axes.imshow(shown, cmap="cividis", norm=norm, aspect="auto", interpolation="none")
    _number_axes(axes, values)
    axes.set(title=title, xlabel=label, ylabel="layer")
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=12, ticks=[low, math.sqrt(low * high), high])
    bar.set_label("importance", fontsize=8)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)
    bar.ax.minorticks_off()
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1e}"))


def _number_axes(axes: Axes, values: NDArray[np.float64]) -> None:
    """From 1, in the middle of each cell, at most 8 numbers across."""
    rows, columns = values.shape
    axes.set_yticks(range(rows), list(map(str, range(1, rows + 1))))
    shown = range(0, columns, math.ceil(columns / 8))
    axes.set_xticks(shown, [str(column + 1) for column in shown])
    axes.tick_params(length=0)


def _mask(count: int, kept: Mapping[str, Any] | None, part: str) -> list[float]:
    """One value a part of a layer; a layer whose cut cannot be told counts as not there."""
    if kept is None or kept[part] is None:
        return [_OUT] * count
    there = set(kept[part])
    return [_KEPT if number in there else _CUT for number in range(count)]


def _tile(mask: Sequence[float]) -> NDArray[np.float64]:
    """(rows, 64), the last row filled up with NaN."""
    rows = math.ceil(len(mask) / _TILE)
    out = np.full(rows * _TILE, np.nan)
    out[: len(mask)] = mask
    return out.reshape(rows, _TILE)


def _sources(kept: Sequence[Mapping[str, Any] | None] | None) -> dict[int, str]:
    """By layer, which one of the root's it was, where that is known and another number."""
    return {
        place: f" (root's layer {origin['layer'] + 1})"
        for place, origin in enumerate(kept or [])
        if origin is not None and origin["layer"] != place
    }


def _column(
    axes: Axes, shape: Mapping[str, Any], root: Mapping[str, Any], colour: str, sources: Mapping[int, str]
) -> None:
    """Boxes from top to bottom."""
    words = shape["vocabulary"] * (shape["word_rank"] or shape["dim"])
    share = words / (root["vocabulary"] * (root["word_rank"] or root["dim"]))
    rank = shape["word_rank"]
    table = f"{shape['vocabulary']:,} word pieces × {rank or shape['dim']}"
    _box(axes, 0.0, share, table + (f", map to {shape['dim']}" if rank else ""), colour)
    _box(axes, 1.0, shape["positions"] / root["positions"], f"{shape['positions']} positions", colour)
    widest = {
        part: max([1, *(layer[part] for layer in root["layers"])]) for part in ("heads", "feed_forward")
    }
    running = shape["order"] or range(len(shape["layers"]))
    for place, number in enumerate(running):
        layer, top = shape["layers"][number], 2.2 + 2.0 * place
        told = f" (weights {number + 1})" if shape["order"] else sources.get(number, "")
        axes.text(-0.04, top + 0.8, f"{place + 1}", ha="right", va="center", fontsize=8.5)
        _box(axes, top, layer["heads"] / widest["heads"], f"{_many(layer['heads'], 'head')}{told}", colour)
        width = layer["feed_forward"] / widest["feed_forward"]
        _box(axes, top + 0.8, width, _many(layer["feed_forward"], "neuron"), colour)
    end = 2.4 + 2.0 * len(running)
    through = f", through {shape['projected']}" if shape["projected"] else ""
    width = (shape["projected"] or shape["dim"]) / root["dim"]
    _box(axes, end, width, f"mean, {shape['dim']} numbers{through}", colour)


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _box(axes: Axes, top: float, share: float, text: str, colour: str) -> None:
    """A frame of the root's width, filled to the share that is left."""
    axes.add_patch(Rectangle((0.0, top), 1.0, 0.72, facecolor="none", edgecolor=GREY, linewidth=0.7))
    axes.add_patch(Rectangle((0.0, top), min(share, 1.0), 0.72, facecolor=colour, alpha=0.45, linewidth=0))
    axes.text(0.5, top + 0.38, text, ha="center", va="center", fontsize=8, color=INK)
