"""`recsys evaluate`: fit on the past, rank the future, compare with the baselines in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.replay import Replay
from pipelines.ablation import (
    HeldOut,
    Worth,
    ablated_rankers,
    ablated_values,
    ablation_document,
)
from pipelines.config import Config
from pipelines.encoding import TextModel
from pipelines.fitting import Fit, Step, complete, retrieve, stack, stacking_split
from pipelines.home import Home
from pipelines.off_policy import off_policy_value
from pipelines.registered_encoder import text_model
from pipelines.reranking import Scored, reranking_prices
from pipelines.terminal import Terminal
from recsys.baselines import BASELINES, among, baseline_scorers, slate_scores, top_lists
from recsys.dataset import Dataset
from recsys.errors import EXIT_USAGE, RecsysError
from recsys.evaluation import CUTOFFS, Evaluation, evaluate_lists, evaluate_slates, training_counts
from recsys.events import Float32, Float64, Int64, Slates
from recsys.off_policy import check_propensities
from recsys.protocols import Protocol, Split, last_day, split
from recsys.ranked import top_ranked
from recsys.recommender import Recommender, State
from recsys.requests import HistoryBatch, Requests, blocks
from recsys.reranking.rules import Rules
from recsys.retrieval import seen_items
from recsys.tracking import Registry

Scores = dict[str, NDArray[Any]]
LIST_LENGTH = max(CUTOFFS)


@dataclass(frozen=True)
class Evaluated:
    """An evaluation and what was fitted for it; `fits` has one entry a seed, `ablations` one or none.

    `further` are the documents of what else was asked for, of the first seed: `reranking`, `off_policy`.
    """

    split: Split
    evaluation: Evaluation
    text: TextModel
    fits: list[Fit]
    protocol: Protocol
    ablations: list[Worth]
    further: dict[str, Any]

    @cached_property
    def document(self) -> dict[str, Any]:
        """What the table holds, as plain values; the intervals are drawn once."""
        evaluation = self.evaluation
        document = {
            "protocol": self.protocol,
            "users": len(np.unique(evaluation.clusters)),
            "requests": len(self.split.requests),
            "headline": evaluation.headline,
            "best_baseline": evaluation.best_baseline,
            "models": evaluation.models(),
            "differences": evaluation.differences(),
            "slices": evaluation.slice_table(),
            "newcomers": self.fits[0].recommender.newcomers,
            "calibration_error": self.fits[0].head.ece,
            "sequence": asdict(self.fits[0].sequence),
            "head": asdict(self.fits[0].head),
            "ranker": asdict(self.fits[0].ranker),
            "text": self.text.report,
        }
        if self.ablations:
            full = evaluation.values["full"][evaluation.headline]
            document["ablation"] = ablation_document(full, self.ablations, evaluation.clusters, self.protocol)
        return document | self.further


def evaluate(
    data: Dataset,
    protocol: Protocol,
    config: Config,
    home: Home,
    terminal: Terminal,
    *,
    seeds: Sequence[int] = (0,),
    baselines: bool = True,
    ablate: bool = False,
    rerank: bool = False,
    off_policy: bool = False,
    registry: Registry | None = None,
) -> Evaluated:
    """Fit on the past of `data` and score its future; metrics are averaged over the seeds per user.

    The encoder is fitted once, with the first seed, or comes from `registry`; everything else once a seed.
    `ablate` fits the ranker again without each feature family and each source; `rerank` tells the price of
    rerankers (not for slates), `off_policy` what our lists would have earned in place of logged slates (for
    slates only).
    """
    slates = _held_out_slates(data, protocol, config, rerank=rerank, off_policy=off_policy)
    window = split(data, protocol)
    past = stacking_split(window.train, protocol, config).train
    text = text_model(past, config, home, terminal.step, registry=registry, seed=seeds[0])
    first = Asked(BASELINES if baselines else ("popularity",), ablate, rerank, slates)
    later = Asked(BASELINES if baselines else (), ablate, rerank=False, slates=None)
    vectors = text.embeddings.matrix
    runs = [
        _run(window, vectors, protocol, config, terminal, later if place else first, seed=seed)
        for place, seed in enumerate(seeds)
    ]
    return Evaluated(
        window,
        _averaged([run.measured for run in runs]),
        text,
        [run.fit for run in runs],
        protocol,
        [run.worth for run in runs if run.worth],
        runs[0].further,
    )


@dataclass(frozen=True)
class Asked:
    """What is measured beside the full model: baselines by name, and slates for the off-policy estimates."""

    baselines: tuple[str, ...]
    ablate: bool
    rerank: bool
    slates: Slates | None


@dataclass(frozen=True)
class SeedRun:
    """What one seed gave; `worth` is empty where nothing was ablated."""

    fit: Fit
    measured: Evaluation
    worth: Worth
    further: dict[str, Any]


def _run(
    window: Split,
    vectors: Float32,
    protocol: Protocol,
    config: Config,
    terminal: Terminal,
    asked: Asked,
    *,
    seed: int,
) -> SeedRun:
    """Fit once and measure what is asked for."""
    step = terminal.step
    stacked = stack(window.train, protocol, vectors, config, step, seed=seed)
    fitted = complete(stacked, window.train, window.visible, vectors, config, step, seed=seed)
    ablated = ablated_rankers(stacked, config, step, seed=seed) if asked.ablate else []
    del stacked
    models, state = fitted.recommender, Replay(window.visible, fitted.features)
    candidates = candidates_of(window, models, state, protocol, step)
    scores = model_scores(candidates, models, state, config, step)
    outputs = scores if protocol == "slate" else lists_of(candidates, scores)
    worth: Worth = {}
    if asked.ablate:
        held = HeldOut(models, state, candidates, window.positives, protocol)
        worth = ablated_values(ablated, held, config, step)
    history = history_of(window, config)
    if asked.baselines:
        outputs |= baseline_outputs(
            window, models, history, protocol, terminal, seed=seed, names=asked.baselines
        )
    further: dict[str, Any] = {}
    if asked.rerank:
        scored = Scored(candidates, scores["full"], window.positives, window.train.catalogue, vectors)
        further["reranking"] = reranking_prices(scored, config.reranking, step, seed=seed)
    if asked.slates is not None:
        further["off_policy"] = off_policy_value(window, asked.slates, models, state, config, step)
    cold = {}
    if protocol != "slate":
        cold = cold_lists(window, candidates, scores["full"], models, history, step)
    return SeedRun(
        fitted, _measure(window, outputs, cold, np.diff(history.offsets), protocol), worth, further
    )


def _held_out_slates(
    data: Dataset, protocol: Protocol, config: Config, *, rerank: bool, off_policy: bool
) -> Slates | None:
    """The held-out slates where off-policy estimates are wanted; what cannot be done is refused at once.

    Raises:
        RecsysError: `usage` (exit 64), `rule_invalid` (78), `no_propensities`.
    """
    if rerank and protocol == "slate":
        raise RecsysError("usage", "--rerank needs --protocol time or last", exit_code=EXIT_USAGE)
    if off_policy and protocol != "slate":
        raise RecsysError("usage", "--off-policy needs --protocol slate", exit_code=EXIT_USAGE)
    Rules(config.reranking.rules, data.catalogue)
    if not off_policy:
        return None
    slates = check_propensities(data.slates)
    return slates.take(np.flatnonzero(slates.timestamp >= last_day(slates)))


def history_of(window: Split, config: Config) -> HistoryBatch:
    """The histories that baselines may use."""
    return HistoryBatch.of(window.visible.histories, window.requests, limit=config.scoring.history_limit)


def candidates_of(
    window: Split, models: Recommender, state: State, protocol: Protocol, step: Step
) -> Requests:
    """The test requests with what is to be ranked: the slates as they were shown, else what we retrieve."""
    if protocol == "slate":
        return window.requests
    with step("test candidates") as progress:
        return retrieve(window.requests, models, state, window.visible, progress)


def model_scores(
    candidates: Requests, models: Recommender, state: State, config: Config, step: Step
) -> Scores:
    """(rows,) scores of the full model and of the head alone."""
    with step("test scores"):
        full = models.score(candidates, state, threads=config.scoring.threads)
        return {"full": full, "head": head_scores(models, candidates, state).astype(np.float64)}


def lists_of(candidates: Requests, scores: Scores) -> Scores:
    """Top lists by these scores."""
    rung = np.zeros(len(candidates), np.int8)
    return {
        name: top_ranked(candidates, values, LIST_LENGTH, rung).table(LIST_LENGTH)
        for name, values in scores.items()
    }


def cold_lists(
    window: Split,
    candidates: Requests,
    full: Float64,
    models: Recommender,
    history: HistoryBatch,
    step: Step,
) -> Scores:
    """The best among items without fitted events: of the full model's candidates, and of text neighbours."""
    cold = training_counts(window.train) == 0
    keep = cold[candidates.item_index]
    lists = lists_of(candidates.with_rows(keep), {"full": full[keep]})
    scorer = among(baseline_scorers(window, models.retriever)["text_neighbours"], cold)
    seen = seen_items(window.visible.histories, window.requests)
    with step("cold items"):
        lists["text_neighbours"] = top_lists(scorer, window.requests, history, seen, LIST_LENGTH)
    return lists


def head_scores(models: Recommender, requests: Requests, state: State) -> Float32:
    """(rows,) the head alone, block by block."""
    parts = [
        models.head_scores(part, state.read(part)) for part in map(requests.take, blocks(requests.offsets))
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def baseline_outputs(
    window: Split,
    models: Recommender,
    history: HistoryBatch,
    protocol: Protocol,
    terminal: Terminal,
    *,
    seed: int = 0,
    names: Sequence[str] = BASELINES,
) -> Scores:
    """Top lists (or slate scores) of the baselines, fitted on the same past."""
    scorers = baseline_scorers(window, models.retriever, seed=seed)
    seen = seen_items(window.visible.histories, window.requests)
    outputs: Scores = {}
    with terminal.step("baselines") as progress:
        for place, name in enumerate(names):
            if protocol == "slate":
                outputs[name] = slate_scores(scorers[name], window.requests, history)
            else:
                outputs[name] = top_lists(scorers[name], window.requests, history, seen, LIST_LENGTH)
            progress(place + 1, len(names))
    return outputs


def _measure(window: Split, outputs: Scores, cold: Scores, lengths: Int64, protocol: Protocol) -> Evaluation:
    if protocol == "slate":
        return evaluate_slates(window, outputs, lengths)
    return evaluate_lists(window, outputs, lengths, protocol, {m: cold[m] for m in cold if m in outputs})


def _averaged(runs: list[Evaluation]) -> Evaluation:
    """Per-unit means over the seeds of every model that the first run has."""
    if len(runs) == 1:
        return runs[0]
    first = runs[0]
    return replace(
        first,
        values=_mean_of([run.values for run in runs]),
        item_recall=_mean_of([run.item_recall for run in runs]),
    )


def _mean_of(trees: Sequence[Any]) -> Any:
    """Element-wise mean of arrays in equal nests; a key of the first that another lacks counts without it."""
    if not isinstance(trees[0], dict):
        return np.mean(trees, axis=0)
    return {key: _mean_of([tree[key] for tree in trees if key in tree]) for key in trees[0]}
