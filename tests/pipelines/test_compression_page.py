"""The page and the lines of `recsys compress`: everything is there, is true, is inert, and twice the same."""

from __future__ import annotations

import base64
import copy
import html
import importlib.resources
import io
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pipelines.anatomy_figures import importance as heat_maps
from pipelines.anatomy_figures import masks, parameters, structure
from pipelines.compression_page import page, write_page
from pipelines.compression_report import print_compression
from pipelines.figures import Scale, exact, trade_off
from recsys.compression.anatomy import anatomy_of
from recsys.compression.factorisation import factorise_words
from recsys.compression.projection import project
from recsys.compression.pruning import Importance, prune
from recsys.compression.sharing import share_layers
from recsys.compression.variant import Variant
from recsys.text.transformer import Architecture, TextTransformer

VOID = {"meta", "br", "wbr", "hr", "input", "img", "link"}
BLUE, ORANGE = "#0072b2", "#e69f00"


def around(mean: float | None, half: float = 0.01) -> dict[str, float | None]:
    return {"mean": mean, "low": None if mean is None else mean - half, "high": mean and mean + half}


def encoder(name: str, megabytes: float, speed: float, ratio: float, **changes: Any) -> dict[str, Any]:
    """One rung; its other figures follow from these, so that all differ."""
    figures = {
        "name": name,
        "version": int(megabytes * 10),
        "parent": "fp32",
        "kind": "encoder",
        "bytes": int(megabytes * 1e6),
        "parameters": int(megabytes * 0.9e6),
        "operations": int(3e9 / speed),
        "peak_memory_bytes": int(megabytes * 2e6 + 3e8),
        "titles_per_second": 700.0 * speed,
        "long_texts_per_second": 120.0 * speed,
        "throughput_ratio": around(speed, 0.05),
        "long_throughput_ratio": around(speed * 0.9, 0.06),
        "latency_p50_ms": 12.0 / speed,
        "latency_p99_ms": around(20.0 / speed, 0.2),
        "cosine": 0.9 + 0.05 * ratio,
        "neighbour_overlap": 0.7 * ratio,
        "quality": around(0.12 * ratio, 0.004),
        "quality_ratio": around(ratio),
        "explanation_fidelity": around(0.8 * ratio, 0.02),
        "fairness_gap": around(0.03 / ratio, 0.005),
        "cost": 100.0 / speed,
        "feasible": True,
        "missed": [],
        "frontier": True,
        "chosen": False,
        "build_seconds": megabytes * 7,
    }
    return figures | changes


def five_and_a_part() -> dict[str, Any]:
    """What is printed with --json: five encoders of which the third is chosen, and a part of the bundle."""
    missed = {"feasible": False, "missed": ["throughput_min_ratio"]}
    part = {
        "name": "trees=0.5",
        "version": None,
        "parent": None,
        "kind": "bundle part",
        "bytes": 28_910_000,
        "whole_bytes": 31_240_000,
        "quality": around(0.1187),
        "quality_ratio": around(0.9913),
        "explanation_fidelity": around(0.96),
        "fairness_gap": around(0.0071, 0.001),
    }
    return {
        "data": "books",
        "protocol": "time",
        "name": "shop-encoder",
        "headline": "ndcg_at_10",
        "reference": {
            "name": "sentence-transformers fp32",
            "titles_per_second": 701.0,
            "long_texts_per_second": 118.0,
        },
        "variants": [
            encoder("fp32", 90.1, 1.02, 1.0, parent=None, **missed),
            encoder("int8", 23.2, 2.31, 0.994, frontier=False, **missed),
            encoder("layers=2,vocabulary=2,int8", 4.3, 7.7, 0.963, chosen=True),
            encoder("layers=3,int8", 17.4, 4.6, 0.971),
            encoder("static", 46.5, 210.0, 0.881, feasible=False, missed=["quality_min_ratio"]),
            part,
        ],
        "limits": {"quality_min_ratio": 0.95, "throughput_min_ratio": 4.25, "fairness_gap_max": None},
        "prices": {"cpu_second": 1.3e-5, "gb_month": 0.023, "texts_per_month": 1e8, "copies": 10.0},
        "choice": {
            "chosen": "layers=2,vocabulary=2,int8",
            "runner_up": "layers=3,int8",
            "binding": "quality_min_ratio",
            "limit_costs": {"quality_min_ratio": 12.51, "throughput_min_ratio": 0.0},
            "cost": 12.99,
            "infeasible": None,
        },
        "confirmation": {
            "confirmed": True,
            "requests": 11_873,
            "quality_ratio": around(0.9721),
            "explanation_fidelity": around(0.7711),
            "fairness_gap": around(0.0331),
        },
        "bundle": {"model": "models:/shop/7", "bytes": 35_400_000},
    }


@pytest.fixture
def document() -> dict[str, Any]:
    return five_and_a_part()


@pytest.fixture(scope="module")
def root(tiny_teacher) -> Variant:
    return Variant(tiny_teacher.transformer, tiny_teacher.tokenizer)


@pytest.fixture(scope="module")
def importance(root) -> Importance:
    random = np.random.default_rng(0)
    return Importance([random.random(4) + 0.1 for _ in range(4)], [random.random(64) + 0.1 for _ in range(4)])


@pytest.fixture(scope="module")
def anatomy(root, importance, made_up_texts) -> dict[str, Any]:
    """Layers 0, 2 and 3 of four, three of four heads, 20 of 64 neurons."""
    shallow = root.then("layers-3", TextTransformer.from_teacher(root.transformer, [0, 2, 3]).eval())
    cut = prune(shallow, made_up_texts[:40], heads=3, feed_forward=20)
    return anatomy_of(root, cut, importance).to_document()


class Reader(HTMLParser):
    """Text, tags, ids and attributes; fails on tags that do not close each other."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.words.append("" if tag in ("wbr", "tspan", "code") else " ")
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    def values(self, *names: str) -> list[str]:
        return [value for name, value in self.attributes if name in names]


def drawing(source: str, name: str) -> str:
    """The svg element of this name."""
    found = re.search(rf'<svg [^>]*id="{name}">.*?</svg>', source, flags=re.DOTALL)
    assert found, name
    return found.group()


def images(svg: str) -> list[np.ndarray]:
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert("RGB"))
        for code in re.findall(r"data:image/png;base64,([^\"]+)", svg)
    ]


def is_colour(image: np.ndarray, colour: str) -> np.ndarray:
    return (image == [int(colour[place : place + 2], 16) for place in (1, 3, 5)]).all(axis=2)


def marks(svg: str) -> dict[int, tuple[float, float]]:
    """Number of each mark, to where it is."""
    found = re.findall(r'id="\w+-variant-(\d+)">.*?<use [^>]*x="([\d.]+)" y="([\d.]+)"', svg, flags=re.DOTALL)
    return {int(number): (float(x), float(y)) for number, x, y in sorted(found)}


@pytest.fixture(scope="module")
def whole(anatomy) -> str:
    return page(five_and_a_part(), anatomy)


def test_page_parses_and_needs_nothing_but_itself(whole):
    reader = Reader(whole)
    assert not {"script", "link", "img", "iframe", "object", "foreignobject"} & set(reader.tags)
    references = reader.values("href", "src", "xlink:href", "srcset", "data", "action")
    assert references
    assert all(each.startswith(("#", "data:image/png;base64,")) for each in references)
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]+", "", whole)
    assert set(re.findall(r"url\((.)", whole)) == {"#"}
    assert not re.search(r"@import|\son\w+=", whole)
    assert len(whole.encode()) < 400_000


def test_ids_are_unique_and_every_reference_is_to_one(whole):
    reader = Reader(whole)
    ids = Counter(reader.values("id"))
    assert max(ids.values()) == 1
    pointed = re.findall(r"url\(#([^)]+)\)", whole) + re.findall(r'href="#([^"]+)"', whole)
    assert set(pointed) | set(reader.values("aria-labelledby")) <= set(ids)


def test_page_holds_every_variant_and_its_figures(whole, document):
    text = Reader(whole).text
    for number, variant in enumerate(document["variants"][:-1], start=1):
        assert f"{number}. {variant['name']} " in text
        row = re.search(rf'<th scope="row">{number}\. .*?</tr>', whole, flags=re.DOTALL).group()
        said = Reader(f"<tr>{row}").text
        ratio, p99 = variant["quality_ratio"], variant["latency_p99_ms"]
        for figure in (
            f"{ratio['mean']:.4f}",
            f"[{ratio['low']:.4f}, {ratio['high']:.4f}]",
            f"{p99['mean']:.2f}",
            f"[{p99['low']:.2f}, {p99['high']:.2f}]",
            f"{variant['throughput_ratio']['mean']:.2f}",
            f"{variant['bytes'] / 1e6:,.2f}",
            f"{variant['parameters'] / 1e6:,.2f}",
            f"{variant['operations'] / 1e9:,.3f}",
            f"{variant['titles_per_second']:,.0f}",
            f"{variant['peak_memory_bytes'] / 1e6:,.0f}",
            f"{variant['explanation_fidelity']['mean']:.4f}",
            f"{variant['fairness_gap']['mean']:.4f}",
            f"{variant['cosine']:.4f}",
            f"{variant['cost']:,.2f}",
            f"{variant['build_seconds']:,.1f}",
            str(variant["version"]),
        ):
            assert figure in said, (variant["name"], figure)
    assert "trees=0.5 28.91 31.24 0.1187" in text
    assert whole.count('<td class="missed"') == 3
    assert whole.count('<tr class="chosen">') == 1


def test_every_row_has_as_many_cells_as_there_are_columns(whole):
    table = re.search(r'<table class="many">.*?</table>', whole, flags=re.DOTALL).group()
    columns = 2 + table.count('scope="col"') - 2
    for row in re.findall(r'<tr class="\w[\w-]*">.*?</tr>', table, flags=re.DOTALL):
        assert row.count("<td") + row.count("<th") == columns
    spans = [int(span) for span in re.findall(r'scope="colgroup" colspan="(\d+)"', table)]
    assert sum(spans) + 2 == columns


def test_answer_limits_prices_and_confirmation_are_told(whole):
    text = Reader(whole).text
    for words in (
        "Chosen: layers=2,vocabulary=2,int8, the cheapest of 5 variants that meets every limit, at 12.99 a",
        "Runner-up: layers=3,int8, at 21.74 a month.",
        "The limit that binds is quality_min_ratio: without it a month would cost 12.51 less.",
        "Confirmed on 11,873 requests of the unseen window: quality ratio 0.9721 [0.9621, 0.9821]",
        "Written: models:/shop/7, 35.4 MB.",
        "throughput_min_ratio least ratio of titles a second to those of the reference 4.25 0.00",
        "100,000,000",
        "1.3e-05",
        "sentence-transformers fp32, embeds 701 titles and 118 long texts a second",
    ):
        assert words in text, words
    assert "fairness_gap_max" not in text, "an open limit is none"


def test_every_drawing_has_a_title(whole):
    for name in ("size", "speed", "cost", "structure", "parameters", "importance", "masks", "histograms"):
        svg = drawing(whole, name)
        assert f'role="img" aria-labelledby="{name}-title"' in svg
        assert re.search(rf'<title id="{name}-title">[^<]{{20,}}</title>', svg)
    assert Reader(whole).tags["figcaption"] == 8


def test_trade_offs_hold_each_encoder_once_where_it_belongs(whole, document):
    encoders = document["variants"][:-1]
    for name, figure in (
        ("size", lambda each: each["bytes"]),
        ("speed", lambda each: each["throughput_ratio"]["mean"]),
        ("cost", lambda each: each["cost"]),
    ):
        svg = drawing(whole, name)
        places = marks(svg)
        assert list(places) == [1, 2, 3, 4, 5]
        x, y = (np.array(side) for side in zip(*places.values(), strict=True))
        assert np.argsort(x).tolist() == np.argsort([figure(each) for each in encoders]).tolist()
        assert np.argsort(-y).tolist() == np.argsort([e["quality_ratio"]["mean"] for e in encoders]).tolist()
        shown = np.log([figure(each) for each in encoders])  # and to scale
        assert np.corrcoef(shown, x)[0, 1] == pytest.approx(1.0, abs=1e-6)
        for number, variant in enumerate(encoders, start=1):
            assert f"<title>{number}: {variant['name']}</title>" in svg
        assert f'id="{name}-limit-axhline"' in svg
        assert (f'id="{name}-limit-axvline"' in svg) == (name == "speed")


def test_frontier_of_a_drawing_joins_what_none_beats():
    rungs = [
        encoder(str(place), size, 1.0, quality)
        for place, (size, quality) in enumerate([(10, 1.0), (20, 0.9), (5, 0.8), (4, 0.95), (30, 1.1)])
    ]
    axes = (
        Scale(lambda each: exact(each["bytes"], 1e6), "MB", more_is_better=False),
        Scale(lambda each: exact(each["quality_ratio"]["mean"]), "quality"),
    )
    svg = trade_off("plain", "a title", rungs, None, *axes)
    line = re.search(r'id="plain-frontier">\s*<path d="([^"]+)"', svg).group(1)
    corners = np.array(re.findall(r"([\d.]+) ([\d.]+)", line), float)
    places = marks(svg)
    assert {tuple(corner) for corner in corners} == {places[1], places[4], places[5]}


def test_histograms_peak_where_the_weights_do(whole, anatomy):
    svg = drawing(whole, "histograms")
    for panel, kind in enumerate(anatomy["edges"]):
        for place, network in enumerate(("root", "compressed")):
            path = re.search(rf'id="histograms-bins-{panel}-{place}">\s*<path d="([^"]+)"', svg).group(1)
            x, y = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", path), float).T
            counts = anatomy[network]["histograms"][kind]
            (top,) = np.unique(x[y == y.min()].reshape(-1, 2).mean(1).round(2))[:1]
            bins = (top - x.min()) / (x.max() - x.min()) * len(counts)
            assert counts[int(bins)] == max(counts)


def test_heat_maps_are_the_importance(whole, anatomy, importance):
    heads, *_ = found = [image for image in images(drawing(whole, "importance")) if image.shape[0] == 4]
    assert [image.shape[:2] for image in found] == [(4, 4), (4, 2), (4, 64)]
    brightness = heads.astype(float).sum(2).ravel()
    expected = np.concatenate(anatomy["importance"]["heads"])
    assert np.argsort(brightness)[[0, -1]].tolist() == np.argsort(expected)[[0, -1]].tolist()
    neurons = found[2].astype(float).sum(2)
    assert (np.diff(neurons, axis=1) <= 3).all(), "in falling order"


def test_masks_are_what_was_kept(whole, anatomy):
    svg = drawing(whole, "masks")
    cells = re.findall(r'style="fill: (#\w+); stroke: #ffffff', svg)
    kept = {origin["layer"]: origin for origin in anatomy["kept"]}
    assert sorted(kept) == [0, 2, 3]
    expected = [
        "#e8eaed" if layer not in kept else BLUE if head in kept[layer]["heads"] else ORANGE
        for layer in range(4)
        for head in range(4)
    ]
    assert cells == expected
    tiles = images(svg)
    assert len(tiles) == 4
    for layer, tile in enumerate(tiles):
        assert tile.shape[:2] == (1, 64)
        neurons = kept[layer]["neurons"] if layer in kept else []
        assert np.flatnonzero(is_colour(tile, BLUE)).tolist() == neurons
        assert is_colour(tile, ORANGE).sum() == (64 - 20 if layer in kept else 0)


def test_structure_and_parameters_are_told(whole, anatomy):
    words = words_of(drawing(whole, "structure"))
    assert words.count("4 heads") == 4
    assert words.count("3 heads (root's layer 3)") == 1
    assert words.count("64 neurons") == 4
    assert words.count("20 neurons") == 3
    words = words_of(drawing(whole, "parameters"))
    for network in ("root", "compressed"):
        for count in anatomy[network]["parameters"].values():
            assert f"{count / 1e6:.3g}" in words


def words_of(svg: str) -> list[str]:
    return [html.unescape(word) for word in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def test_every_kind_of_network_is_drawn(root, importance, made_up_texts):
    """Shared layers, a part left out everywhere, a thin word table, fewer numbers; none warns."""
    texts = made_up_texts[:60]
    shared = anatomy_of(root, share_layers(root), importance).to_document()
    words = words_of(structure(shared, "chosen"))
    assert words.count("4 heads (weights 1)") == 2
    assert words.count("4 heads (weights 2)") == 2
    thin = project(factorise_words(prune(root, texts, heads=0), texts, rank=8), texts, dims=16)
    opened = anatomy_of(root, thin, importance).to_document()
    words = words_of(structure(opened, "chosen"))
    assert f"{root.transformer.architecture.vocabulary} word pieces × 8, map to 32" in words
    assert words.count("0 heads") == 4
    assert "mean, 32 numbers, through 16" in words
    assert masks(opened, "chosen").count(f"fill: {ORANGE}; stroke: #ffffff") == 16, "all heads are cut"
    assert {"word map", "projection"} <= set(words_of(parameters(opened, "chosen")))
    shape = Architecture.uniform(20, dim=4, heads=1, feed_forward=8, layers=1, positions=4)
    single = replace(root, transformer=TextTransformer(shape))
    smallest = anatomy_of(single, single, Importance([np.ones(1)], [np.ones(8)])).to_document()
    assert "1 head" in words_of(structure(smallest, "chosen"))
    (cell,) = re.findall(rf'<path d="([^"]+)"[^>]*fill: {BLUE}; stroke: #ffffff', masks(smallest, "chosen"))
    assert np.ptp(np.array(re.findall(r"([\d.]+) ([\d.]+)", cell), float), axis=0).min() > 10, "has an area"
    bare = prune(root, texts, heads=0, feed_forward=0)
    nothing = Importance([np.zeros(0)] * 4, [np.zeros(0)] * 4)
    empty = anatomy_of(bare, None, nothing).to_document()
    assert "0 neurons" in words_of(structure(empty, "chosen"))
    assert heat_maps(empty).startswith("<svg")


def test_equal_input_gives_equal_bytes_in_place_of_what_was_there(tmp_path, document, anatomy, whole):
    path = tmp_path / "page.html"
    path.write_text("an older page")
    write_page(path, copy.deepcopy(document), copy.deepcopy(anatomy))
    assert path.read_bytes() == whole.encode()
    assert list(tmp_path.iterdir()) == [path]


def test_names_are_text_and_never_markup(document):
    evil = '<script>alert("1")</script>&amp;$x^2$'
    document["variants"][1]["name"] = document["variants"][1]["parent"] = evil
    document["choice"]["runner_up"] = document["data"] = document["reference"]["name"] = evil
    document["variants"][-1]["name"] = document["bundle"]["model"] = evil
    source = page(document, None)
    reader = Reader(source)
    assert "<script" not in source
    assert f"2. {evil}" in reader.text
    assert f"Smaller encoders for {evil}" in reader.text
    assert f"Runner-up: {evil}" in reader.text
    assert f"Written: {evil}" in reader.text
    assert f"2: {evil}" in reader.text, "the tip of a mark"


def test_missing_figures_are_dashes_and_not_drawn(document, anatomy):
    bare = document["variants"][1]
    for key in ("quality_ratio", "quality", "throughput_ratio", "latency_p99_ms", "explanation_fidelity"):
        bare[key] = {"mean": None, "low": None, "high": None}
    bare |= {"fairness_gap": None, "cosine": None, "cost": None, "version": None}
    document["variants"][0]["quality_ratio"] |= {"low": None, "high": None}
    document["confirmation"]["fairness_gap"] = {"mean": None, "low": None, "high": None}
    document["reference"]["long_texts_per_second"] = None
    source = page(document, anatomy)
    text = Reader(source).text
    assert "1.0000 [–, –]" in text
    assert "fairness gap – (95 % intervals)" in text
    row = re.search(r'<th scope="row">2\. .*?</tr>', source, flags=re.DOTALL).group()
    assert row.count("<td>–") + row.count('"missed">–') == 9
    assert list(marks(drawing(source, "size"))) == [1, 3, 4, 5]
    assert "None" not in text
    assert "nan" not in text


def test_nothing_measured_still_makes_a_page(document):
    for variant in document["variants"]:
        variant["quality_ratio"] = {"mean": None, "low": None, "high": None}
    source = page(document, None)
    assert "nothing was measured" in drawing(source, "size")
    assert marks(source) == {}


def test_figures_beside_their_intervals_read_the_same(document):
    """As rungs are written down: one number, and the interval under a name of its own."""
    expected = page(document, None)
    for variant in document["variants"][:-1]:
        for name, around in (
            ("throughput_ratio", "throughput_interval"),
            ("long_throughput_ratio", "long_throughput_interval"),
            ("latency_p99_ms", "latency_interval"),
        ):
            variant[around] = variant[name]
            variant[name] = variant[name]["mean"]
    assert page(document, None) == expected


def test_no_answer_says_what_to_relax(document):
    for variant in document["variants"]:
        variant["chosen"] = False
    document["choice"] = {
        "chosen": None,
        "runner_up": None,
        "binding": None,
        "limit_costs": {},
        "cost": None,
        "infeasible": {
            "nearest": "layers=3,int8",
            "relax_to": {"quality_min_ratio": 0.941, "throughput_min_ratio": 4.1},
        },
    }
    document |= {"confirmation": None, "bundle": None}
    text = Reader(page(document, None)).text
    assert "No variant meets every limit." in text
    relaxed = "quality_min_ratio 0.941 (it is 0.95) and throughput_min_ratio 4.1 (it is 4.25)"
    assert f"Nearest: layers=3,int8; it would be chosen with {relaxed}." in text
    assert "nothing to lay open" in text
    document["choice"]["infeasible"] = {"nearest": None, "relax_to": {}}
    assert "each lacks a measure that is limited" in printed(document)


def test_a_table_has_no_network_to_lay_open(document, root, importance):
    source = page(document, anatomy_of(root, None, importance).to_document())
    assert "no network:" in drawing(source, "structure")
    assert 'id="masks"' not in source
    assert "histograms-bins-0-0" in source
    assert "histograms-bins-0-1" not in source


def test_without_limits_nothing_is_said_to_be_met(document):
    document["limits"] = {"quality_min_ratio": None}
    document["choice"] |= {"binding": None, "limit_costs": {}, "runner_up": None}
    text = Reader(page(document, None)).text
    assert "the cheapest of 5 variants there is, at" in text
    assert "There are no limits" in text


def printed(document: dict[str, Any]) -> str:
    out = Console(file=io.StringIO(), width=120, soft_wrap=True, highlight=False)
    print_compression(document, out)
    assert out.width == 120
    return out.file.getvalue()


def test_terminal_shows_the_table_and_the_answer(document):
    long = document["variants"][3]["name"] = (
        "gradual-neurons=768,gradual-heads=8,layers=3,vocabulary=2,word-rank=128,int8"
    )
    text = printed(document | {"page": "/a/page.html"})
    lines = [" ".join(re.sub("[│┃]", " ", line).split()) for line in text.splitlines()]
    assert "layers=2,vocabulary=2,int8 4.3 7.70 2.60 0.9630 [0.9530, 0.9730] 12.99 chosen, frontier" in lines
    assert "fp32 90.1 1.02 19.61 1.0000 [0.9900, 1.0100] 98.04 frontier, misses throughput" in lines
    assert any(line.startswith(f"{long} 17.4") for line in lines)
    assert "trees=0.5 28.9 31.2 0.9913 [0.9813, 1.0013]" in lines
    assert "quality_min_ratio 0.95 12.51" in lines
    assert "The limit that binds is quality_min_ratio: without it a month would cost 12.51 less." in lines
    assert any(line.startswith("Confirmed on 11,873 requests") for line in lines)
    assert lines[-2:] == ["Written: models:/shop/7, 35.4 MB.", "Page: /a/page.html"]


def test_terminal_and_page_tell_what_was_passed_over(document):
    refuted = {**document["confirmation"], "name": "vocabulary=2,static", "missed": ["quality_min_ratio"]}
    document["refuted"] = [refuted]
    text = printed(document)
    assert "Passed over: vocabulary=2,static, cheaper, but on the unseen window it misses quality" in text


def test_terminal_says_when_the_unseen_window_disagrees(document):
    document["confirmation"]["confirmed"] = False
    document["bundle"] = None
    text = printed(document)
    assert "Not confirmed on 11,873 requests of the unseen window: quality ratio 0.9721" in text
    assert "Written" not in text


def test_the_template_lies_in_the_package():
    assert importlib.resources.files("pipelines").joinpath("templates", "compression.html").is_file()
