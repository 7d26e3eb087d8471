"""`recsys demo`: the whole job on one small simulated world, and a report that a person can read."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console

from pipelines.compressing import Job, compress
from pipelines.compression_page import write_page
from pipelines.config import Config
from pipelines.evaluating import Evaluated
from pipelines.evaluation_report import print_evaluation
from pipelines.home import DEFAULT_HOME, DEFAULT_NAME, Home
from pipelines.scoring import NightSettings, night_document, score_night
from pipelines.terminal import Terminal
from pipelines.training import train, trained_document
from recsys.dataset import Dataset
from recsys.dataset_folder import load
from recsys.metrics import mean_interval, slate_metrics
from recsys.simulation import SimulationConfig, simulate
from recsys.tracking import Registry
from recsys.versions import CHOSEN, encoder_name

DEMO_TOKENS = 120_000
DEMO_STEPS = 20
DEMO_LADDER = ("int8", "vocabulary=2,static")
DEMO_RECOVERY_TOKENS = 60_000
DEMO_MINUTES = 2.0
SHOWN_USERS = 3
SHOWN_HISTORY = 5
SHOWN_SLATE = 5


def run_demo(
    home: Home, terminal: Terminal, *, seed: int = 0, users: int = 2000, items: int = 1500
) -> dict[str, Any]:
    """Simulate, train, register, promote, score; the report as plain values."""
    folder = home.demo_data
    with terminal.step("simulation") as progress:
        world = simulate(folder, SimulationConfig(users=users, items=items, seed=seed), progress=progress)
    config = demo_config(seed)
    data, report = load(folder, roles=config.roles)
    registry = Registry(home.path)
    job = Job(data, "slate", config, home, registry, terminal, DEFAULT_NAME, DEMO_MINUTES, bundle=False)
    ladder, anatomy = compress(job)
    page = home.compression / "page.html"
    write_page(page, ladder, anatomy)
    if ladder["confirmation"] and ladder["confirmation"]["confirmed"]:
        chosen = f"models:/{encoder_name(DEFAULT_NAME)}@{CHOSEN}"
        config = replace(config, text=replace(config.text, encoder=chosen))
    trained = train(data, config, home, registry, terminal, name=DEFAULT_NAME)
    registry.promote(trained.version, config.gates)
    settings = NightSettings(top_k=config.scoring.top_k)
    uri = f"models:/{DEFAULT_NAME}@champion"
    night = score_night(folder, home.scores, uri, settings, home, registry, terminal)
    return {
        "home": str(home.path),
        "world": {"folder": str(folder), "slates": world.impressions, "events": world.events},
        "check": report.to_dict(),
        "oracle": oracle(folder, trained.evaluated),
        "ladder": {**ladder, "page": str(page)},
        **trained_document(trained, data.name),
        "night": night_document(night, home.scores),
        "people": people(data, home.scores, night.publication.path),
        "seconds": terminal.elapsed(),
        "step_seconds": terminal.seconds,
    }


def demo_config(seed: int) -> Config:
    """The default settings with less training and a short ladder, so that the demo ends in minutes."""
    config = Config(seed=seed)
    return replace(
        config,
        distillation=replace(config.distillation, max_tokens_seen=DEMO_TOKENS),
        finetuning=replace(config.finetuning, max_steps=DEMO_STEPS, evaluate_every=DEMO_STEPS),
        compression=replace(
            config.compression,
            ladder=DEMO_LADDER,
            parts=(),
            search=False,
            recovery=replace(config.compression.recovery, max_tokens_seen=DEMO_RECOVERY_TOKENS),
            speed_texts=50,
        ),
    )


def oracle(folder: Path, evaluated: Evaluated) -> dict[str, float]:
    """AUC of the true click probability on the test slates, and how far the full model came from .5 to it.

    `attraction` is the probability of a click on an item that is looked at: all that a ranker can know.
    `click` has the effect of the place on the page in it too.
    """
    split = evaluated.split
    slates = split.visible.slates
    if slates is None:
        raise ValueError("the oracle needs slates")
    rows = slates.impression_row[-len(split.requests) :]
    impressions = pl.read_parquet(folder / "impressions.parquet", columns=["impression_id"])[rows.tolist()]
    truth = pl.read_parquet(folder / "truth.parquet").group_by("impression_id", maintain_order=True)
    columns = truth.agg("attraction", "click_probability")
    joined = impressions.join(columns, on="impression_id", how="left", maintain_order="left")
    found = {}
    full = float(np.nanmean(evaluated.evaluation.values["full"]["auc"]))
    for name, column in (("attraction", "attraction"), ("click", "click_probability")):
        scores = joined[column].explode(empty_as_null=False).to_numpy()
        auc = slate_metrics(scores, split.requests.label, split.requests.offsets)["auc"]
        best = mean_interval(auc, split.requests.user_index).mean
        found[f"{name}_auc"] = best
        found[f"{name}_reached"] = (full - 0.5) / (best - 0.5)
    return {"full_auc": full, **found}


def people(data: Dataset, scores: Path, file: str) -> list[dict[str, Any]]:
    """Three users with much, some and little history: what they did last, and what they get."""
    lengths = np.diff(data.histories.offsets)
    order = np.argsort(lengths, kind="stable")
    active = order[lengths[order] > 0]
    if not len(active):
        return []
    places = [len(active) - 1, len(active) // 2, 0][:SHOWN_USERS]
    table = pl.read_parquet(scores / file, columns=["user_id", "item_id", "rank", "score", "source", "rung"])
    return [_person(data, table, int(active[place])) for place in places]


def _person(data: Dataset, table: pl.DataFrame, user: int) -> dict[str, Any]:
    start, stop = data.histories.offsets[user : user + 2]
    newest = list(dict.fromkeys(data.histories.item_index[start:stop][::-1].tolist()))[:SHOWN_HISTORY]
    rows = table.filter(pl.col("user_id") == data.users[user]).sort("rank").head(SHOWN_SLATE)
    items = data.catalogue.ids.index(rows["item_id"])
    return {
        "user_id": data.users[user],
        "events": int(stop - start),
        "rung": rows["rung"][0] if rows.height else None,
        "history": [_label(data, item) for item in newest],
        "slate": [
            {
                "rank": row["rank"],
                "item": _label(data, int(item)),
                "score": row["score"],
                "source": row["source"],
            }
            for row, item in zip(rows.iter_rows(named=True), items, strict=True)
        ],
    }


def _label(data: Dataset, item: int) -> str:
    shelf = data.catalogue.subcategory[item]
    name = data.catalogue.subcategory_names[shelf] if shelf >= 0 else ""
    return f"{data.catalogue.title[item]} [{name}]"


def print_demo(document: dict[str, Any], out: Console) -> None:
    """The report."""
    world, night, truth = document["world"], document["night"], document["oracle"]
    out.rule("What was built")
    out.print(f"world      {world['slates']:,} slates, {world['events']:,} events in {world['folder']}")
    out.print(f"encoder    {_encoder_line(document)}", markup=False)
    out.print(f"head       calibration error {document['calibration_error']:.4f}")
    out.print(f"ranker     {document['ranker']['trees']} trees on {document['ranker']['rows']:,} rows")
    print_evaluation(document, out)
    out.print(
        f"true oracle: AUC {truth['attraction_auc']:.4f}; ours {truth['full_auc']:.4f}, "
        f"{truth['attraction_reached']:.0%} of the way from .5 "
        f"({truth['click_reached']:.0%} of an oracle that also knows the positions)"
    )
    out.rule("Three users")
    for person in document["people"]:
        _print_person(person, out)
    out.rule("Where things are")
    out.print(f"version    {document['model']}, champion; {document['bundle_bytes'] / 1e6:.1f} MB")
    out.print(f"ladder     {document['ladder']['page']}", markup=False)
    out.print(f"scores     {night['rows']:,} rows, night {night['night']}, in {night['table']}")
    out.print(f"took       {document['seconds']:.0f} s", markup=False)
    out.rule("Next")
    for line in next_commands(document["home"], world["folder"]):
        out.print(line, markup=False)


def _encoder_line(document: dict[str, Any]) -> str:
    """Which encoder serves, and why."""
    ladder = document["ladder"]
    chosen = next((rung for rung in ladder["variants"] if rung.get("chosen")), None)
    if "encoder" not in document["text"] or chosen is None:
        return f"{document['text']['distillation']['layers']} layers, {document['text']['precision']}"
    quality = ladder["confirmation"]["quality_ratio"]
    return (
        f"{chosen['name']}, the cheapest of {len(ladder['variants'])} that meets the limits: "
        f"{chosen['bytes'] / 1e6:.1f} MB, titles {chosen['throughput_ratio']:.0f} times as fast as "
        f"{ladder['reference']['name']}, quality x{quality['mean']:.3f} "
        f"[{quality['low']:.3f}, {quality['high']:.3f}]"
    )


def next_commands(home: str, data: str) -> list[str]:
    """What to type next, in the shell that ran the demo."""
    option = "" if Path(home) == Path.cwd() / DEFAULT_HOME else f" --home {home}"
    activate = Path(sys.prefix) / "bin" / "activate"
    commands = [
        f"recsys verify{option}",
        f"recsys score {data}{option}",
        f"recsys evaluate {data} --protocol slate{option}",
        f"recsys compress --list{option}",
        f"recsys train YOUR_DATA{option}",
        f"mlflow ui --backend-store-uri sqlite:///{home}/mlflow.db",
    ]
    return [f"source {activate}", *commands] if shutil.which("recsys") is None else commands


def _print_person(person: dict[str, Any], out: Console) -> None:
    out.print(
        f"user {person['user_id']}, {person['events']} events, answered by {person['rung']}", markup=False
    )
    for title in person["history"]:
        out.print(f"    did   {title}", markup=False)
    for row in person["slate"]:
        out.print(
            f"    gets  {row['rank']}. {row['item']}  {row['score']:+.2f}  {row['source']}", markup=False
        )
