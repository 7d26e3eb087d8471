"""What an encoder is worth in the full engine: the same fitted models, with its embeddings in their place.

Variants imitate the root, so that models which were fitted on the root's embeddings read theirs as they
are. Nothing is fitted again: the difference between two variants is the encoder's alone, and it is what
a live engine would see if the encoder were changed under it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from features.builder import Features
from features.replay import Replay
from pipelines.config import Config
from pipelines.fitting import Step, retrieve
from recsys.dataset import Dataset
from recsys.evaluation import headline_values
from recsys.events import Bool, Float32, Float64, Int64, concatenated_ranges
from recsys.fairness import fairness_gap, user_groups
from recsys.history_effects import explainable, few_candidates, fidelity, history_effects
from recsys.metrics.intervals import Interval, mean_interval, ratio_interval
from recsys.popularity import fit_popularity
from recsys.protocols import Protocol, Split
from recsys.recommender import Recommender
from recsys.requests import Requests

EXPLAINED_REQUESTS = 200
EXPLAINED_CANDIDATES = 20
CHANCE = {"time": 0.0, "last": 0.0, "slate": 0.5}
"""Headline of a random order: quality is told as the ratio of what lies above it."""


@dataclass(frozen=True)
class Judged:
    """What a variant does to recommendations.

    Attributes:
        values: (requests,) headline metric, NaN where it is not defined.
        effects: of each explained request's events on the same candidate.
    """

    values: Float64
    effects: list[Float64]


@dataclass(frozen=True)
class Downstream:
    """A window of requests and the models that answer them, fitted on the root's embeddings.

    Attributes:
        models: the recommender; its popularity is of the window.
        state: what the requests may know.
        window: what is asked, and what came next.
        protocol: how it is asked.
        threads: of the ranker.
        groups: masks over requests that fairness compares.
        explained: some of the requests with their best candidates under the root.
        rows: the row of `explained` that is explained, one a request.
        root: what the root does.
    """

    models: Recommender
    state: Replay
    window: Split
    protocol: Protocol
    threads: int
    groups: dict[str, Bool]
    explained: Requests
    rows: Int64
    root: Judged

    def judge(self, models: Recommender, step: Step) -> Judged:
        """What these models do: those of the window, changed somewhere."""
        requests, scores = answers(models, self.state, self.window, self.protocol, self.threads, step)
        values = headline_values(requests, scores, self.window.positives, self.protocol)
        with step("explanations"):
            effects = history_effects(models, self.explained, self.rows, self.state)
        return Judged(values, effects)


def downstream(
    fitted: Recommender,
    features: Features,
    window: Split,
    protocol: Protocol,
    data: Dataset,
    config: Config,
    step: Step,
    *,
    seed: int = 0,
) -> Downstream:
    """Ask fitted models about a window that may lie later than what they were fitted on.

    Popularity is of the window's own past, as it is every night; everything else stays as fitted.
    """
    popularity = fit_popularity(window.visible, config.popularity)
    models = replace(fitted, retriever=replace(fitted.retriever, popularity=popularity))
    state, threads = Replay(window.visible, features), config.scoring.threads
    requests, scores = answers(models, state, window, protocol, threads, step)
    values = headline_values(requests, scores, window.positives, protocol)
    explained, rows = _explained(requests, scores, state, seed)
    with step("explanations"):
        effects = history_effects(models, explained, rows, state)
    start, stop = window.visible.histories.until(requests.user_index, requests.known)
    groups = user_groups(data, requests.user_index, stop - start)
    return Downstream(
        models, state, window, protocol, threads, groups, explained, rows, Judged(values, effects)
    )


def answers(
    models: Recommender, state: Replay, window: Split, protocol: Protocol, threads: int, step: Step
) -> tuple[Requests, Float64]:
    """Candidates (what was shown, or what these models retrieve) and their scores."""
    requests = window.requests
    if protocol != "slate":
        with step("candidates") as progress:
            requests = retrieve(requests, models, state, window.visible, progress)
    with step("scores"):
        return requests, models.score(requests, state, threads=threads)


def _explained(requests: Requests, scores: Float64, state: Replay, seed: int) -> tuple[Requests, Int64]:
    """Up to 200 requests with enough history, drawn at random, with their best 20 candidates."""
    bare = requests.with_rows(np.zeros(requests.rows, np.bool_))
    able = explainable(state.read(bare).history)
    able = able[np.diff(requests.offsets)[able] > 1]
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(able, min(EXPLAINED_REQUESTS, len(able)), replace=False))
    rows = concatenated_ranges(requests.offsets[chosen], requests.offsets[chosen + 1])
    return few_candidates(requests.take(chosen), scores[rows], EXPLAINED_CANDIDATES)


@dataclass(frozen=True)
class Verdict:
    """A variant against the root, over one window or several: means with their intervals."""

    quality: Interval
    quality_ratio: Interval
    explanation_fidelity: Interval
    fairness_gap: Interval


def verdict(windows: Sequence[Downstream], judged: Sequence[Judged]) -> Verdict:
    """Compare over all requests of the windows together, whole users drawn."""
    protocol = windows[0].protocol
    users = np.concatenate([each.window.requests.user_index for each in windows])
    values = np.concatenate([each.values for each in judged])
    root = np.concatenate([each.root.values for each in windows])
    agreed = [fidelity(mine.effects, each.root.effects) for each, mine in zip(windows, judged, strict=True)]
    names = dict.fromkeys(name for each in windows for name in each.groups)
    groups = {
        name: np.concatenate(
            [each.groups.get(name, np.zeros(len(each.window.requests), np.bool_)) for each in windows]
        )
        for name in names
    }
    chance = CHANCE[protocol]
    return Verdict(
        mean_interval(values, users),
        ratio_interval(values, root, users, chance=chance),
        mean_interval(np.concatenate(agreed)),
        fairness_gap(values, users, groups, chance=chance),
    )


def with_embeddings(models: Recommender, embeddings: Float32) -> Recommender:
    """The same models over other embeddings of the same items."""
    retriever = models.retriever
    sequence = replace(retriever.sequence, embeddings=embeddings)
    return replace(models, retriever=replace(retriever, embeddings=embeddings, sequence=sequence))
