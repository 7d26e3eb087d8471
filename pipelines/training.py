"""`recsys train`: judge on a held-out window, fit to the end, bundle, register."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from features.live import LiveState
from features.replay import Replay
from pipelines.config import Config
from pipelines.encoding import TextModel
from pipelines.evaluating import Evaluated, evaluate
from pipelines.evaluation_report import print_evaluation
from pipelines.fitting import Fit, fit, retrieve
from pipelines.home import Home
from pipelines.terminal import Terminal
from recsys.bundle import Bundle, read_bundle, write_bundle
from recsys.dataset import Dataset
from recsys.events import Int64
from recsys.golden import Golden
from recsys.model import Model
from recsys.protocols import Protocol, everyone_at
from recsys.requests import Requests, source_names
from recsys.scorer import load_scorer
from recsys.signing import load_private_key, sign_bundle
from recsys.text.loading import load_encoder
from recsys.tracking import Registry
from recsys.versions import Version

GOLDEN_REQUESTS = 8


@dataclass(frozen=True)
class Trained:
    """A registered version and what it was judged by."""

    version: Version
    evaluated: Evaluated
    fitted: Fit
    metrics: dict[str, float]
    bundle_bytes: int


def train(
    data: Dataset,
    config: Config,
    home: Home,
    registry: Registry,
    terminal: Terminal,
    *,
    name: str,
    as_of: float | None = None,
) -> Trained:
    """Train on what `data` holds before `as_of` (default: everything) and register a version of `name`.

    The table and the gates' figures come from a fit that has not seen the newest window; the registered
    models are fitted again to the end with the same settings and the same encoder. A registered encoder
    (`text.encoder`) is named by the version's tag `encoder`. A key that cannot be used is told of first.

    Raises:
        RecsysError: of `load_private_key`, the data, the settings and the registry.
    """
    key = load_private_key(Path(config.signing.key)) if config.signing.key else None
    past = data if as_of is None else data.before(as_of)
    moment = past.end if as_of is None else as_of
    protocol: Protocol = "time" if past.slates is None else "slate"
    evaluated = evaluate(past, protocol, config, home, terminal, seeds=(config.seed,), registry=registry)
    tags = {"data": data.name, "protocol": protocol}
    if encoder := evaluated.text.report.get("encoder"):
        tags["encoder"] = encoder
    fitted = fit(
        past, past, protocol, evaluated.text.embeddings.matrix, config, terminal.step, seed=config.seed
    )
    metrics = version_metrics(evaluated)
    with terminal.step("bundle"):
        files, metadata = bundle_files(past, moment, fitted, evaluated.text, config, name)
    staging = Path(tempfile.mkdtemp(prefix="bundle-", dir=home.path))
    try:
        write_bundle(staging / "bundle", files, metadata)
        if key is not None:
            sign_bundle(staging / "bundle", key)
        with terminal.step("registry"):
            check_bundle(read_bundle(staging / "bundle"))
            version = registry.log_training(
                name,
                staging / "bundle",
                {**config.flat(), "data": data.name, "protocol": protocol},
                metrics,
                {"evaluation": evaluation_rows(evaluated)},
                tags,
            )
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    size = sum(len(content) for content in files.values())
    return Trained(version, evaluated, fitted, metrics, size)


def version_metrics(evaluated: Evaluated) -> dict[str, float]:
    """Figures that gates and people compare versions by; `lift_over_*` are ratios of the headline."""
    document = evaluated.document
    models, headline = document["models"], document["headline"]
    metrics = {name: entry["mean"] for name, entry in models["full"].items()}
    metrics |= {f"{model}_{headline}": models[model][headline]["mean"] for model in models if model != "full"}
    full = models["full"][headline]["mean"]
    for model in ("popularity", document["best_baseline"]):
        other = models[model][headline]["mean"]
        label = "popularity" if model == "popularity" else "best_baseline"
        metrics[f"lift_over_{label}"] = full / other if other > 0 else float("inf") if full > 0 else 1.0
    metrics["calibration_error"] = float(document["calibration_error"])
    return metrics


def evaluation_rows(evaluated: Evaluated) -> list[dict[str, Any]]:
    """The evaluation table as flat rows."""
    return [
        {"model": model, "metric": metric, **entry}
        for model, metrics in evaluated.document["models"].items()
        for metric, entry in metrics.items()
    ]


def bundle_files(
    data: Dataset, as_of: float, fitted: Fit, text: TextModel, config: Config, name: str
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Everything that scoring needs, as bytes by name, and the manifest's metadata."""
    roles = dict(zip(data.event_types, data.roles, strict=True))
    settings = {
        "max_chars": config.text.max_chars,
        "top_k": config.scoring.top_k,
        "reranking": asdict(config.reranking),
    }
    model = Model(fitted.recommender, data.catalogue, data.users, text.embeddings, roles, settings)
    state = LiveState.at(data, as_of, fitted.features)
    files = {
        **model.to_files(),
        **text.encoder.to_files(),
        **state.to_files(),
        **golden_requests(data, as_of, fitted, seed=config.seed).to_files(),
    }
    metadata = {
        "name": name,
        "as_of": as_of,
        "feature_schema": fitted.features.schema.digest,
        "data": data.name,
        "items": len(data.catalogue),
        "users": len(data.users),
        "events": len(data.events),
    }
    return files, metadata


def check_bundle(bundle: Bundle) -> None:
    """Load the whole bundle and score its golden requests; an encoder's is its encoder alone.

    Raises:
        RecsysError: `golden_mismatch` or what a part's `from_files` raises.
    """
    if bundle.is_encoder:
        load_encoder(bundle.files)
        return
    state = LiveState.from_files(bundle.files)
    load_scorer(bundle, state, state.features)
    load_encoder(bundle.files)


def golden_requests(data: Dataset, as_of: float, fitted: Fit, *, seed: int = 0) -> Golden:
    """A few users' whole candidate lists with the scores that every scorer must give."""
    chosen = _golden_users(data, seed)
    requests = everyone_at(chosen.astype(np.int32), as_of, data.events)
    state = Replay(data, fitted.features)
    candidates = retrieve(requests, fitted.recommender, state, data)
    scores = fitted.recommender.score(candidates, state)
    return golden_of(data, candidates, scores.tolist())


def golden_of(data: Dataset, requests: Requests, scores: list[float]) -> Golden:
    """Requests with their scores in external ids."""
    owner = requests.request_of_row()
    return Golden(
        [f"golden-{number}" for number in owner],
        data.users.take(requests.user_index[owner]).to_list(),
        data.catalogue.ids.take(requests.item_index).to_list(),
        source_names(requests.source),
        requests.timestamp[owner].tolist(),
        scores,
    )


def _golden_users(data: Dataset, seed: int) -> Int64:
    users = len(data.users)
    count = min(GOLDEN_REQUESTS, users)
    return np.sort(np.random.default_rng(seed).choice(users, count, replace=False)).astype(np.int64)


def trained_document(trained: Trained, data: str) -> dict[str, Any]:
    """The version and its table, as plain values."""
    version = trained.version
    return {
        "data": data,
        "name": version.name,
        "version": version.number,
        "model": version.uri,
        "bundle_digest": version.digest,
        "bundle_bytes": trained.bundle_bytes,
        "as_of": version.as_of,
        "metrics": trained.metrics,
        **trained.evaluated.document,
    }


def print_trained(document: dict[str, Any], out: Console) -> None:
    """The table and where the version is."""
    print_evaluation(document, out)
    size = document["bundle_bytes"] / 1e6
    out.print(f"registered {document['model']} ({size:.1f} MB), not yet champion: recsys promote")
