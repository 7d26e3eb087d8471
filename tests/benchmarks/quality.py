"""Ranking quality: ours against every peer, in one run, on one split, with one metric code.

Each tunable peer gets the same number of grid points, fitted on the train part's own inner split and chosen
by the headline metric there; the chosen point is fitted again on the whole train part. Nothing looks at the
test part before its metrics. Every peer fills up with popularity where it knows nothing.

    pip install -e ".[bench]"
    python tests/benchmarks/quality.py DATA --protocol time --seeds 0 1 2 --out results
    # with a sequential peer, which needs an environment of its own (see rectools_sasrec.py):
    python tests/benchmarks/quality.py DATA --protocol last --peer-python V/bin/python

Writes OUT/quality-<data>-<protocol>.json and .md, and prints the table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from peers import GRID_POINTS, PEERS, Params, Peer, UnavailableError
from quality_report import document_of, markdown
from quality_window import TUNING_REQUESTS, Window
from sequence_peer import SasRec

from pipelines.config import Config, load_config
from pipelines.evaluating import evaluate
from pipelines.home import Home
from pipelines.terminal import Terminal, plain
from recsys.dataset import Dataset
from recsys.dataset_folder import load
from recsys.evaluation import Evaluation
from recsys.events import Float32
from recsys.protocols import PROTOCOLS, Protocol
from recsys.storage import json_bytes, write_atomic
from recsys.text.embeddings import ItemEmbeddings
from recsys.text.item_text import catalogue_texts
from recsys.text.quantization import build_encoder
from recsys.text.teacher import load_teacher


@dataclass(frozen=True)
class Options:
    """What one run is asked for."""

    protocol: Protocol
    seeds: tuple[int, ...] = (0,)
    minutes_per_peer: float = 5.0
    peers: tuple[str, ...] = ()
    ours: bool = True
    peer_python: Path | None = None


@dataclass(frozen=True)
class Result:
    """One model on the test part, averaged over seeds under the name "full", and what it cost."""

    evaluation: Evaluation
    costs: dict[str, float]
    tuning: dict[str, Any] = field(default_factory=dict)


def averaged(runs: Sequence[Evaluation]) -> Evaluation:
    """Means over the seeds of every unit's metrics."""
    return replace(
        runs[0],
        values=mean_of([run.values for run in runs]),
        item_recall=mean_of([run.item_recall for run in runs]),
        extra=mean_of([run.extra for run in runs]),
    )


def mean_of(trees: Sequence[Any]) -> Any:
    """Element-wise mean of equal nests of dictionaries of arrays."""
    if not isinstance(trees[0], dict):
        return np.mean(trees, axis=0)
    return {key: mean_of([tree[key] for tree in trees]) for key in trees[0]}


def headline_of(result: Result) -> str:
    """The figure to watch a run by."""
    name = result.evaluation.headline
    return f"{name} {np.nanmean(result.evaluation.values['full'][name]):.4f}"


@dataclass
class Budget:
    """Seconds that one peer may tune for."""

    seconds: float
    began: float = field(default_factory=time.monotonic)

    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def over(self) -> bool:
        """Whether no further point may start."""
        return self.spent() >= self.seconds


def tune(
    peer: Peer, window: Window, chosen: Mapping[str, Params], budget: Budget, *, seed: int = 0
) -> tuple[Params, dict[str, Any]]:
    """The best point of the peer's grid on `window`, and the report of all of them.

    Raises:
        UnavailableError: no point could be fitted.
    """
    parts = {name: chosen[name] for name in peer.parts if name in chosen}
    if len(parts) < len(peer.parts):
        raise UnavailableError(f"needs {' and '.join(peer.parts)} in the same run")
    tried: list[dict[str, Any]] = []
    for point in peer.grid:
        entry: dict[str, Any] = {"point": dict(point)}
        tried.append(entry)
        if budget.over() and len(tried) > 1:
            entry["skipped"] = f"the {budget.seconds:.0f} s were over"
            continue
        began = time.monotonic()
        try:
            scorer = peer.fit(window.asked, {**point, **parts}, seed)
        except UnavailableError as error:
            entry["skipped"] = str(error)
            continue
        entry["score"] = window.headline(scorer)
        entry["seconds"] = time.monotonic() - began
    fitted = [entry for entry in tried if "score" in entry]
    if not fitted:
        raise UnavailableError(tried[0]["skipped"])
    best = max(fitted, key=lambda entry: entry["score"])
    return {**best["point"], **parts}, {"grid": tried, "chosen": best["point"], "seconds": budget.spent()}


def run_peer(
    peer: Peer, windows: tuple[Window, Window], chosen: dict[str, Params], options: Options
) -> Result:
    """Tune on the inner window, fit again on the whole train part, rank the test part."""
    inner, outer = windows
    with peak_memory() as tuning_peak:
        chosen[peer.name], tuning = tune(
            peer, inner, chosen, Budget(options.minutes_per_peer * 60), seed=options.seeds[0]
        )
    runs, seconds = [], {"fit": 0.0, "score": 0.0}
    with peak_memory() as peak:
        for seed in options.seeds if peer.seeded else options.seeds[:1]:
            began = time.monotonic()
            scorer = peer.fit(outer.asked, chosen[peer.name], seed)
            fitted = time.monotonic()
            runs.append(outer.measured(scorer))
            seconds["fit"] += fitted - began
            seconds["score"] += time.monotonic() - fitted
    costs = {f"{name}_seconds": total / len(runs) for name, total in seconds.items()}
    costs |= {"tune_seconds": tuning["seconds"], "peak_memory_mb": max(peak[0], tuning_peak[0])}
    return Result(averaged(runs), costs, tuning)


def run_ours(data: Dataset, options: Options, config: Config, home: Home, terminal: Terminal) -> Result:
    """Our defaults, through `recsys evaluate`'s own function."""
    began = time.monotonic()
    with peak_memory() as peak:
        done = evaluate(data, options.protocol, config, home, terminal, seeds=options.seeds, baselines=False)
    costs = {"fit_seconds": (time.monotonic() - began) / len(options.seeds), "peak_memory_mb": peak[0]}
    return Result(done.evaluation, costs)


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Peak resident MB of this process within the block; where Linux cannot reset it, NaN."""
    found, status = [float("nan")], Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        status = Path()
    yield found
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        found[0] = int(line.split()[1]) / 1024.0


def minilm_embeddings(texts: list[str], teacher: str) -> Float32:
    """(items, dim) by the frozen teacher in int8, as our runtime runs it."""
    model = load_teacher(teacher)
    encoder = build_encoder(model.transformer, model.tokenizer, texts)
    return ItemEmbeddings.empty().update(texts, encoder).matrix


def run(data: Dataset, options: Options, config: Config, home: Home, terminal: Terminal) -> dict[str, Any]:
    """The whole comparison as one document."""
    texts = catalogue_texts(data.catalogue, max_chars=config.text.max_chars)
    with terminal.step("frozen MiniLM"):
        embeddings = minilm_embeddings(texts, config.text.teacher)
    outer = Window.of(data, options.protocol, texts, embeddings)
    windows = outer.inner(), outer
    external = SasRec(options.peer_python, options.minutes_per_peer * 60 / 2)
    results: dict[str, Result] = {}
    unavailable: dict[str, str] = {}
    chosen: dict[str, Params] = {}
    for peer in (*PEERS, external.peer()):
        if options.peers and peer.name not in options.peers:
            continue
        with terminal.step(peer.name):
            try:
                results[peer.name] = run_peer(peer, windows, chosen, options)
                terminal.note(f"{peer.name}: {headline_of(results[peer.name])}")
            except (UnavailableError, MemoryError) as error:
                unavailable[peer.name] = str(error) or type(error).__name__
                terminal.note(f"{peer.name} is left out: {error}")
    external.close()
    if "sasrec" in results:
        results["sasrec"].costs["peak_memory_mb"] += external.peak_memory_mb()
    if options.ours:
        results["ours"] = run_ours(data, options, config, home, terminal)
    return document_of(
        data,
        options,
        results,
        unavailable,
        grid_points=GRID_POINTS,
        tuning_requests=TUNING_REQUESTS,
        sasrec_fits=external.reached,
    )


def main() -> None:
    """Read the options, run, write both files and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a dataset folder")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes-per-peer", type=float, default=5.0, help="to tune each peer in")
    parser.add_argument("--peers", nargs="+", default=[], help="only these")
    parser.add_argument("--no-ours", dest="ours", action="store_false")
    parser.add_argument("--peer-python", type=Path, help="a Python that has RecTools")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="as of recsys")
    parser.add_argument("--home", type=Path, help="as of recsys")
    parser.add_argument("--out", type=Path, default=Path("."))
    given = vars(parser.parse_args())
    config = load_config(None, given.pop("overrides"))
    folder, home, out = given.pop("data"), Home.at(given.pop("home")), given.pop("out")
    options = Options(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})
    terminal = Terminal()
    document = plain(run(load(folder, roles=config.roles)[0], options, config, home, terminal))
    text = markdown(document)
    name = f"quality-{document['data']}-{options.protocol}"
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / f"{name}.json", json_bytes(document))
    write_atomic(out / f"{name}.md", text.encode())
    terminal.out.print(text, markup=False)


if __name__ == "__main__":
    main()
