"""Fitting, stacked out of time: models on an earlier window, the ranker on a later one, models again.

The text embeddings come in finished; what is fitted here is everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np

from features.builder import Features
from features.replay import Replay
from pipelines.config import Config
from recsys.collaborative_training import fit_collaborative
from recsys.compression.bundle_parts import stored_as
from recsys.dataset import Dataset
from recsys.events import Bool, Float32, Int64
from recsys.newcomers import newcomer_share
from recsys.popularity import fit_popularity
from recsys.protocols import (
    Protocol,
    Split,
    positives_of,
    slates_from,
    split,
    split_last,
    split_rolling,
    time_cut,
    with_both_classes,
    with_labels,
)
from recsys.ranker_training import RankerReport, fit_ranker
from recsys.recommender import Recommender, State, request_blocks
from recsys.relevance import RelevanceHead
from recsys.relevance_examples import Examples, SamplingConfig, sampled_examples, slate_examples
from recsys.relevance_training import HeadReport, fit_head
from recsys.requests import HistoryBatch, Requests
from recsys.retrieval import Retriever, seen_items
from recsys.sequence_training import SequenceReport, fit_sequence
from recsys.transitions import fit_covisitation, fit_transitions

Step = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Opens a named step of work and gives the function that reports its progress (done, total)."""


@dataclass(frozen=True)
class Stacked:
    """What the ranker learns from: `rows` with labels, and their `matrix` (rows, features) in schema order.

    `early` are the models behind the matrix, fitted before the rows; `state` gave the rows their past.
    `newcomers` is the share of items that nobody had touched in what was chosen.
    """

    early: Recommender
    features: Features
    state: Replay
    rows: Requests
    matrix: Float32
    newcomers: float


@dataclass(frozen=True)
class Fit:
    """A recommender ready to rank, its features, and how the fits of its parts went."""

    recommender: Recommender
    features: Features
    sequence: SequenceReport
    head: HeadReport
    ranker: RankerReport


def fit(
    train: Dataset,
    visible: Dataset,
    protocol: Protocol,
    embeddings: Float32,
    config: Config,
    step: Step,
    *,
    seed: int = 0,
) -> Fit:
    """Fit everything that is learned from behaviour on `train`, for requests of `protocol`'s kind.

    Args:
        train: what may be fitted on.
        visible: the log that popularity may read at the moment of each request.
        protocol: how the requests will come: all at the end (`time`), each at its moment (`last`),
            or as slates.
        embeddings: (items, dim) item text embeddings.
        config: hyper-parameters.
        step: progress.
        seed: of every random choice.
    """
    stacked = stack(train, protocol, embeddings, config, step, seed=seed)
    return complete(stacked, train, visible, embeddings, config, step, seed=seed)


def stack(
    train: Dataset, protocol: Protocol, embeddings: Float32, config: Config, step: Step, *, seed: int = 0
) -> Stacked:
    """The ranker's training rows: models fitted on an earlier window of `train` than the rows are from."""
    features = Features(history_limit=config.scoring.history_limit)
    inner = stacking_split(train, protocol, config)
    early, _ = fit_models(inner.train, inner.visible, embeddings, features, config, step, seed=seed)
    state = Replay(inner.visible, features)
    rows = labelled_requests(inner, early, state, config, step, seed=seed)
    with step("ranker features") as progress:
        matrix = early.matrix_in_blocks(rows, state, progress)
    newcomers = 0.0
    if config.scoring.newcomers:
        newcomers = newcomer_share(early.retriever.popularity, inner.requests, inner.positives)
    return Stacked(early, features, state, rows, matrix, newcomers)


def complete(
    stacked: Stacked,
    train: Dataset,
    visible: Dataset,
    embeddings: Float32,
    config: Config,
    step: Step,
    *,
    seed: int = 0,
) -> Fit:
    """The ranker of these rows over models of the whole of `train`."""
    features = stacked.features
    with step("ranker"):
        ranker, ranker_report = fit_ranker(
            stacked.matrix,
            stacked.rows,
            features.schema.names,
            features.schema.digest,
            config.ranker,
            seed=seed,
        )
    final, reports = fit_models(
        train, visible, embeddings, features, config, step, earlier=stacked.early, seed=seed
    )
    ranked = stored_as(final.with_ranker(ranker, stacked.newcomers), config.storage)
    return Fit(ranked, features, *reports, ranker_report)


def stacking_split(train: Dataset, protocol: Protocol, config: Config) -> Split:
    """The window on which the ranker learns: the future part of `train`, asked as `protocol` asks."""
    if protocol == "time":
        cut = time_cut(train, config.stacking.share)
        moments = cut + (train.end - cut) * np.arange(config.stacking.moments) / config.stacking.moments
        return split_rolling(train, moments.tolist())
    if protocol == "slate" and train.slates is not None:
        cut = float(np.quantile(train.slates.timestamp, 1.0 - config.stacking.slate_share))
        return slates_from(train, cut)
    if protocol == "last":
        return split_last(train, most=config.stacking.moments, one_in=config.stacking.one_in)
    return split(train, protocol)


def fit_models(
    train: Dataset,
    visible: Dataset,
    embeddings: Float32,
    features: Features,
    config: Config,
    step: Step,
    *,
    earlier: Recommender | None = None,
    seed: int = 0,
) -> tuple[Recommender, tuple[SequenceReport, HeadReport]]:
    """Everything but the ranker; the sequence model goes on from that of `earlier`, fitted on less."""
    with step("collaborative filtering"):
        collaborative = fit_collaborative(train, config.collaborative, seed=seed)
        transitions = fit_transitions(train, config.transitions)
        covisitation = fit_covisitation(train, config.covisitation)
        popularity = fit_popularity(visible, config.popularity)
    with step("sequence model") as progress:
        sequence, sequence_report = fit_sequence(
            train,
            embeddings,
            config.sequence,
            start=earlier.retriever.sequence if earlier else None,
            seed=seed,
            progress=progress,
        )
    with step("relevance head") as progress:
        head, head_report = head_of(train, embeddings, config, progress, seed=seed)
    retriever = Retriever(
        collaborative,
        transitions,
        covisitation,
        sequence,
        embeddings,
        popularity,
        train.weights,
        config.retrieval,
    )
    known = known_users(train)
    recommender = Recommender(retriever, head, None, features, known, train.catalogue.category)
    return stored_as(recommender, config.storage), (sequence_report, head_report)


def head_of(
    train: Dataset,
    embeddings: Float32,
    config: Config,
    progress: Callable[[int, int], None],
    *,
    seed: int = 0,
) -> tuple[RelevanceHead, HeadReport]:
    """The relevance head, fitted on the newest of what `train` shows."""
    examples = head_examples(train, config, seed=seed)
    history = HistoryBatch.of(train.histories, examples.requests, limit=config.head.history_limit)
    settings = replace(config.head, seed=seed)
    return fit_head(
        examples,
        history,
        embeddings,
        train.weights,
        settings,
        on_epoch=lambda epoch, _: progress(epoch, settings.epochs),
    )


def known_users(train: Dataset) -> Bool:
    """(users,) who has an event that the collaborative models count."""
    counted = train.events.user_index[train.is_target[train.events.type_index]]
    return np.bincount(counted, minlength=len(train.users)) > 0


def head_examples(train: Dataset, config: Config, *, seed: int = 0) -> Examples:
    """The newest slates where there are any, else the newest events with sampled candidates."""
    if train.slates is not None:
        newest = np.arange(len(train.slates))[-config.stacking.head_requests :]
        requests = Requests.from_slates(train.slates.take(newest), train.events)
        return slate_examples(requests, train.events, train.weights)
    sampling = SamplingConfig(max_requests=config.stacking.head_requests, seed=seed)
    return sampled_examples(
        train.events, train.is_target, train.weights, train.catalogue.created_at, sampling
    )


def labelled_requests(
    window: Split, models: Recommender, state: State, config: Config, step: Step, *, seed: int = 0
) -> Requests:
    """The window's requests with candidates and labels, those with a positive and a negative only."""
    requests = window.requests
    if not requests.rows:
        requests = retrieve_labelled(window, models, state, config, step, seed=seed)
    kept = requests.take(with_both_classes(requests))
    return kept.take(_within_rows(kept, config.stacking.max_rows, seed))


def retrieve_labelled(
    window: Split, models: Recommender, state: State, config: Config, step: Step, *, seed: int = 0
) -> Requests:
    """Candidates for the window's requests, in time order, labelled by what the users did next."""
    asked = fewer_strangers(window, config.stacking.strangers, seed)
    order = asked[np.argsort(window.requests.timestamp[asked], kind="stable")]
    with step("candidates") as progress:
        candidates = retrieve(window.requests.take(order), models, state, window.visible, progress)
    positives = positives_of(window.positives, order)
    return with_labels(candidates, positives, len(window.visible.catalogue))


def fewer_strangers(window: Split, strangers: float, seed: int = 0) -> Int64:
    """Numbers of the window's requests, with at most `strangers` without a history for each one with one.

    What a ranker sees of a user without history is what is popular, once a request and always the same:
    many of them teach it the items of the window by heart.
    """
    start, stop = window.visible.histories.until(window.requests.user_index, window.requests.known)
    known, unknown = np.flatnonzero(stop > start), np.flatnonzero(stop <= start)
    most = int(len(known) * strangers)
    if len(known) and len(unknown) > most:
        unknown = np.random.default_rng(seed).permutation(unknown)[:most]
    return np.sort(np.concatenate([known, unknown]))


def retrieve(
    requests: Requests,
    models: Recommender,
    state: State,
    visible: Dataset,
    progress: Callable[[int, int], None] | None = None,
) -> Requests:
    """Candidates of every request, block by block."""
    parts = []
    for chosen in request_blocks(len(requests)):
        block = requests.take(chosen)
        parts.append(models.candidates(block, state, seen_items(visible.histories, block)))
        if progress:
            progress(int(chosen[-1]) + 1, len(requests))
    return Requests.concatenate(parts) if parts else requests


def _within_rows(requests: Requests, most: int, seed: int) -> Int64:
    """Numbers of a random choice of requests with at most `most` rows in all, in their order."""
    if requests.rows <= most:
        return np.arange(len(requests), dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(requests))
    rows = np.cumsum(np.diff(requests.offsets)[order])
    return np.sort(order[rows <= most])
