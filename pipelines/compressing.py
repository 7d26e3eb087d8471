"""`recsys compress`: the ladder of variants, each with its receipt, and the cheapest that meets the limits.

The engine is fitted once, on the root's embeddings, before the window on which variants are judged. The
chosen one is judged again on the test window, which no variant has seen, by the same engine, grown older.
What is written down on the way is enough to go on after a signal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.budget import Budget, Stopped, stopping_on_signals
from pipelines.compression_answer import Settled, answer, confirmation, marked, settle
from pipelines.compression_engine import Engine, engine_of
from pipelines.compression_search import Search, spread
from pipelines.config import Config
from pipelines.downstream import Downstream, downstream
from pipelines.home import Home
from pipelines.registered_encoder import registered_text
from pipelines.rungs import Workbench, long_texts_of
from pipelines.search_space import study_name
from pipelines.terminal import Terminal, plain
from pipelines.training import train
from pipelines.validation import WindowConfig, rolling_windows, sampled_window
from recsys.compression.anatomy import anatomy_of
from recsys.compression.build import prepared
from recsys.compression.pruning import JUDGING_TEXTS, measure_importance
from recsys.compression.receipt import LONG_TOKENS
from recsys.compression.recipe import STATIC, parse_recipe
from recsys.compression.reference import REFERENCE, SentenceTransformersEncoder
from recsys.compression.settings import CompressionConfig
from recsys.dataset import Dataset
from recsys.errors import RecsysError
from recsys.evaluation import HEADLINE
from recsys.locks import lock
from recsys.protocols import Protocol, Split, split
from recsys.text.item_text import evenly
from recsys.text.quantization import build_encoder
from recsys.tracking import Registry
from recsys.versions import CHOSEN, encoder_name

ROOT = "fp32"
WINDOW = WindowConfig(windows=1)
NOTHING_MEASURED = CompressionConfig(ladder=(), parts=(), limits={})
"""What is measured does not decide the engine: a study goes on with another ladder or other limits."""


@dataclass(frozen=True)
class Job:
    """What a run works on, and what it is to do.

    Attributes:
        data: the log. `protocol`: how requests come.
        config: of the engine, the ladder and the choice.
        home, registry, terminal: where things are kept, registered and told.
        name: registered name of the recommender; its encoders are versions of `<name>-encoder`.
        minutes: for measuring variants; the ladder comes first, a search takes what it leaves.
        resume: keep what an earlier run over the same data and settings measured.
        bundle: whether a version of `name` is trained with the chosen encoder.
    """

    data: Dataset
    protocol: Protocol
    config: Config
    home: Home
    registry: Registry
    terminal: Terminal
    name: str
    minutes: float
    resume: bool = False
    bundle: bool = True


def compress(job: Job) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Measure variants, choose, confirm, and train a version with the chosen one.

    Returns:
        The answer as plain values, and the anatomy of the root and of the chosen variant for the page; None
        where nothing was chosen.

    Raises:
        RecsysError: `interrupted` where a signal came before anything was measured; `lock_held`;
            `nothing_to_test` for too short a log.
    """
    data, protocol, settings = job.data, job.protocol, job.config.compression
    outer = split(data, protocol)
    inner = rolling_windows(outer.train, protocol, WINDOW)[0]
    study = study_name(outer.train, protocol, replace(job.config, compression=NOTHING_MEASURED), (), WINDOW)
    folder = job.home.compression / study
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / "lock"), stopping_on_signals():
        try:
            engine = engine_of(inner, data, protocol, job.config, folder, job.terminal.step)
            bench = _bench(job, engine, inner, folder)
        except Stopped:
            raise _interrupted("before anything was measured") from None
        if not job.resume:
            bench.forget()
        rungs, stopped = _measure(job, bench)
        if not any(rung["kind"] == "encoder" for rung in rungs):
            raise _interrupted("before a variant was measured")
        settled, bundle = Settled(answer(rungs, settings), None, None, []), None
        try:
            if stopped != "signal":
                settled = _settle(job, bench, engine, outer, rungs)
                bundle = _follow(job, bench, settled)
        except Stopped:
            stopped = "signal"
    choice = settled.choice
    document = {
        "data": data.name,
        "protocol": protocol,
        "name": bench.name,
        "headline": HEADLINE[protocol],
        "reference": _reference(rungs),
        "requests": [len(each.window.requests) for each in bench.windows],
        "stopped_by": stopped,
        "variants": marked(rungs, choice["chosen"], settings),
        "limits": settings.limits,
        "prices": asdict(settings.prices),
        "choice": choice,
        "confirmation": settled.confirmation,
        "refuted": settled.refuted,
        "bundle": bundle,
        "root": engine.report,
        "study": study,
    }
    return plain(document), _anatomy(bench, choice["chosen"])


def _bench(job: Job, engine: Engine, window: Split, folder: Path) -> Workbench:
    """Everything that all variants are measured with."""
    settings, step, source = job.config.compression, job.terminal.step, engine.source
    judged = _window(job, engine, window)
    root = source.root
    with step("reference"):
        held_out = build_encoder(root.transformer, root.tokenizer, [], precision="fp32")
        reference = SentenceTransformersEncoder(engine.teacher)
    worded = [text.partition("\n")[0] for text in source.texts if text]
    return Workbench(
        encoder_name(job.name),
        window.train.end,
        source,
        [judged],
        (REFERENCE, reference),
        evenly(worded, settings.speed_texts),
        long_texts_of(source, settings.speed_texts // 2, LONG_TOKENS),
        held_out.encode(source.lessons.holdout),
        settings,
        folder,
        job.registry,
        step,
    )


def _window(job: Job, engine: Engine, window: Split) -> Downstream:
    """Some of a window's requests, answered by the engine."""
    config = job.config
    asked = sampled_window(window, config.compression.requests, config.seed)
    return downstream(
        engine.models,
        engine.features,
        asked,
        job.protocol,
        job.data,
        config,
        job.terminal.step,
        seed=config.seed,
    )


def _measure(job: Job, bench: Workbench) -> tuple[list[dict[str, Any]], str]:
    """All rungs that are known when the time is over or a signal comes, and which of both it was."""
    budget, settings = Budget(job.minutes * 60.0), job.config.compression
    recipes = spread([ROOT], settings.ladder)
    search = Search(bench, job.config.seed, job.terminal.note) if settings.search else None
    stopped = "end"
    try:
        for place, recipe in enumerate(recipes):
            if place > 1 and budget.left <= 0:
                stopped = "time"
                break
            _attempt(bench, recipe, job.terminal)
        for part in settings.parts:
            if budget.left > 0:
                bench.measured_part(part)
        if search is not None:
            search.run(lambda: budget.left > 0)
            stopped = "time" if budget.left <= 0 else stopped
    except Stopped:
        stopped = "signal"
    names = spread(recipes, search.recipes() if search else [])
    rungs = [bench.known(parse_recipe(name)) for name in names]
    parts = [bench.known_as(part) for part in settings.parts]
    return [rung for rung in [*rungs, *parts] if rung is not None], stopped


def _attempt(bench: Workbench, recipe: str, terminal: Terminal) -> None:
    """Measure one rung; what cannot be built here is told and left out."""
    try:
        rung = bench.measured(parse_recipe(recipe))
    except (ValueError, RecsysError) as error:
        terminal.note(f"{recipe}: left out, {error}")
        return
    quality, speed = rung["quality_ratio"]["mean"], rung["throughput_ratio"]
    size = rung["bytes"] / 1e6
    terminal.note(f"{recipe}: quality x{quality or 0:.4f}, {speed:.1f} times as fast, {size:.1f} MB")


def _settle(
    job: Job, bench: Workbench, engine: Engine, unseen: Split, rungs: list[dict[str, Any]]
) -> Settled:
    """The choice, each candidate for it judged on the test window as it comes back from the registry."""
    windows: list[Downstream] = []

    def confirm(chosen: Mapping[str, Any]) -> dict[str, Any]:
        if not windows:
            windows.append(_window(job, engine, unseen))
        uri = f"models:/{bench.name}/{chosen['version']}"
        text = registered_text(job.registry, uri, job.data, job.config, job.terminal.step)
        seen = bench.judged_on(windows, text.embeddings.matrix)
        found = confirmation(chosen, seen, len(windows[0].window.requests), job.config.compression)
        if not found["confirmed"]:
            job.terminal.note(f"{chosen['name']}: not confirmed, misses {', '.join(found['missed'])}")
        return found

    return settle(rungs, job.config.compression, confirm)


def _follow(job: Job, bench: Workbench, settled: Settled) -> dict[str, Any] | None:
    """Point `chosen` to the confirmed variant, and train a version with it."""
    if settled.chosen is None or not (settled.confirmation or {}).get("confirmed"):
        return None
    job.registry.set_alias(bench.name, CHOSEN, settled.chosen["version"])
    if not job.bundle:
        return None
    uri = f"models:/{bench.name}/{settled.chosen['version']}"
    config = replace(job.config, text=replace(job.config.text, encoder=uri))
    trained = train(job.data, config, job.home, job.registry, job.terminal, name=job.name)
    return {
        "model": trained.version.uri,
        "bytes": trained.bundle_bytes,
        "encoder": uri,
        "metrics": trained.metrics,
    }


def _anatomy(bench: Workbench, chosen: str | None) -> dict[str, Any] | None:
    if chosen is None:
        return None
    recipe, source = parse_recipe(chosen), bench.source
    compressed = None if recipe.runtime == STATIC else prepared(recipe, source, lambda done, total: None)
    with bench.step("anatomy"):
        importance = measure_importance(source.root, evenly(source.texts, JUDGING_TEXTS))
        return anatomy_of(source.root, compressed, importance).to_document()


def _reference(rungs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the speeds are told against, over all rungs: the median of its rates."""
    rates = {"titles_per_second": "throughput_ratio", "long_texts_per_second": "long_throughput_ratio"}
    encoders = [rung for rung in rungs if rung["kind"] == "encoder"]
    found: dict[str, Any] = {"name": REFERENCE}
    for rate, ratio in rates.items():
        values = sorted(rung[rate] / rung[ratio] for rung in encoders)
        found[rate] = values[len(values) // 2]
    return found


def _interrupted(when: str) -> RecsysError:
    return RecsysError("interrupted", f"stopped {when}; --resume goes on", exit_code=130)
