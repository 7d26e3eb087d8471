"""`recsys evaluate --off-policy`: the clicks that our lists would have had in place of logged slates."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console

from pipelines.config import Config
from pipelines.fitting import Step, retrieve
from pipelines.terminal import table
from recsys.dataset import Dataset
from recsys.events import Float64, Int32, Slates, lengths_to_offsets
from recsys.off_policy import Attraction, estimate, fit_examination
from recsys.protocols import Split
from recsys.recommender import Recommender, State
from recsys.requests import Requests, blocks
from recsys.reranking import Reranker


def off_policy_value(
    window: Split, slates: Slates, models: Recommender, state: State, config: Config, step: Step
) -> dict[str, Any]:
    """Estimates of the models' lists, reranked as configured, on the held-out slates.

    A list is as long as its slate. The examination of places is fitted on the slates before them; the
    doubly robust estimate takes the relevance head for the attraction.

    Args:
        window: the split by slates; its requests are those of `slates`.
        slates: the held-out slates with propensities.
        models: fitted on the past of them.
        state: what each request may know.
        config: reranking (of exploration one drawing is judged) and threads.
        step: progress.

    Raises:
        RecsysError: `no_propensities`, `no_overlap`.
    """
    examination = _examination(window.train, slates)
    target = _target(window, slates, models, state, config, step)
    with step("off-policy estimates"):
        attraction = _attraction(window.requests, target, models, state, examination)
        found = estimate(slates, target, examination, attraction=attraction)
    return {**asdict(found), "examination": examination.tolist()}


def _examination(train: Dataset, slates: Slates) -> Float64:
    """Fitted on the past, and as long as the longest slate that is to be judged."""
    before = train.slates if train.slates is not None else slates
    fitted = fit_examination(before)
    longest = max(int(slates.position.max()), int(np.diff(slates.offsets).max()))
    power = -np.log(fitted[-1]) / np.log(len(fitted)) if len(fitted) > 1 else 0.0
    return np.asarray(np.arange(1, longest + 1) ** -power)


def _target(
    window: Split, slates: Slates, models: Recommender, state: State, config: Config, step: Step
) -> Int32:
    """(slates, places) our lists, cut to the length of each slate."""
    lengths = np.diff(slates.offsets)
    longest = int(lengths.max())
    with step("off-policy candidates") as progress:
        candidates = retrieve(window.requests, models, state, window.visible, progress)
    reranker = Reranker(config.reranking, window.train.catalogue, models.retriever.embeddings)
    with step("off-policy lists"):
        parts = [
            models.recommend(
                candidates.take(chosen), state, longest, threads=config.scoring.threads, reranker=reranker
            ).table(longest)
            for chosen in blocks(candidates.offsets)
        ]
    lists = np.concatenate(parts)
    return np.where(np.arange(longest) < lengths[:, None], lists, -1).astype(np.int32)


def _attraction(
    requests: Requests, target: Int32, models: Recommender, state: State, examination: Float64
) -> Attraction:
    """What the head says of the shown and of the wanted items, as if their place were looked at.

    The head's probability is one over the places that slates have; it is divided by their examination.
    """
    slate, place = np.nonzero(target >= 0)
    counts = np.bincount(slate, minlength=len(target))
    wanted = Requests.of(
        requests.user_index,
        requests.timestamp,
        requests.known,
        (lengths_to_offsets(counts), target[slate, place]),
    )
    seen = float(examination[requests.position - 1].mean())
    out = np.zeros(target.shape)
    out[slate, place] = np.minimum(_head(models, wanted, state) / seen, 1.0)
    return Attraction(np.minimum(_head(models, requests, state) / seen, 1.0), out)


def _head(models: Recommender, requests: Requests, state: State) -> Float64:
    parts = [np.zeros(0, np.float32)]
    for chosen in blocks(requests.offsets):
        block = requests.take(chosen)
        parts.append(models.head_scores(block, state.read(block)))
    return np.concatenate(parts).astype(np.float64)


def print_off_policy(document: dict[str, Any], out: Console) -> None:
    """One line an estimate."""
    names = {
        "logged": "logged slates",
        "ips": "our lists, IPS",
        "snips": "our lists, SNIPS",
        "doubly_robust": "our lists, doubly robust",
        "model": "our lists, head alone",
    }
    rows = [
        [label, "{mean:.4f} [{low:.4f}, {high:.4f}]".format(**document[name])]
        for name, label in names.items()
    ]
    out.print(table("clicks a shown item, on the held-out slates", ["policy, estimate", "95 %"], rows))
    out.print(
        f"{document['slates']:,} slates are worth {document['effective_slates']:,.0f} of our policy; the log "
        f"shows {document['overlap']:.0%} of what our lists would (100 % but for chance)"
    )
