"""The windows that hyper-parameters are judged on, all cut from the training part: the test is never seen.

`time` asks what comes after each of several moments, one after another; `slate` asks for the order of
each of the last days' slates; `last` asks for each user's last event, then for the one before it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from features.replay import Replay
from pipelines.config import Config
from pipelines.fitting import Step, fit_models, retrieve, stack
from recsys.dataset import Dataset
from recsys.errors import RecsysError
from recsys.evaluation import headline_values
from recsys.events import Float32, Float64, Int32, Int64
from recsys.newcomers import with_newcomers
from recsys.protocols import Protocol, Split, positives_of, slates_from, split, split_at, time_cut
from recsys.ranker_training import fit_ranker
from recsys.ranking import RankerConfig
from recsys.requests import DAY_S, SOURCES, Requests


@dataclass(frozen=True)
class WindowConfig:
    """Rolling validation windows.

    Attributes:
        windows: how many, each fitted on all that lies before it.
        share: share of the target events in one window (protocol `time`).
        max_rows: candidate rows judged in a window; a random choice of whole requests beyond it.
    """

    windows: int = 2
    share: float = 0.1
    max_rows: int = 500_000


def rolling_windows(train: Dataset, protocol: Protocol, config: WindowConfig) -> list[Split]:
    """Validation windows within `train`, the oldest first; fewer where the log is short.

    Raises:
        RecsysError: `nothing_to_test` where not even one window can be cut.
    """
    if protocol == "time":
        return _by_time(train, config)
    return _by_day(train, config) if protocol == "slate" else _by_place(train, config)


def _by_time(train: Dataset, config: WindowConfig) -> list[Split]:
    cuts = sorted({time_cut(train, config.share * (place + 1)) for place in range(config.windows)})
    found = []
    for cut, until in zip(cuts, [*cuts[1:], np.inf], strict=True):
        try:
            found.append(split_at(train, cut, until))
        except RecsysError:
            if cut == cuts[-1] and not found:
                raise
    return found


def _by_day(train: Dataset, config: WindowConfig) -> list[Split]:
    if train.slates is None:
        raise RecsysError("nothing_to_test", "protocol slate needs an impressions table", train.name)
    days = np.unique(np.floor(train.slates.timestamp / DAY_S))[1:][-config.windows :] * DAY_S
    if not len(days):
        raise RecsysError("nothing_to_test", "validation needs impressions on three days", train.name)
    return [slates_from(train.before(day + DAY_S), day) for day in days.tolist()]


def _by_place(train: Dataset, config: WindowConfig) -> list[Split]:
    found: list[Split] = []
    for _ in range(config.windows):
        try:
            found.insert(0, split(found[0].train if found else train, "last"))
        except RecsysError:
            if not found:
                raise
            break
    return found


def sampled(window: Split, protocol: Protocol, config: Config, max_rows: int, *, seed: int = 0) -> Split:
    """The window with a random choice of its requests, whose candidates are about `max_rows` at most."""
    requests = window.requests
    proposed = sum(getattr(config.retrieval, name) for name in SOURCES)
    each = requests.rows / len(requests) if protocol == "slate" else proposed
    return sampled_window(window, max(1, int(max_rows / max(each, 1))), seed)


def sampled_window(window: Split, most: int, seed: int) -> Split:
    """At most `most` of the window's requests, drawn at random, in their order."""
    requests = window.requests
    if len(requests) <= most:
        return window
    chosen = np.sort(np.random.default_rng(seed).choice(len(requests), most, replace=False))
    return replace(window, requests=requests.take(chosen), positives=positives_of(window.positives, chosen))


@dataclass(frozen=True)
class Prepared:
    """A window with everything but the ranker: what it learns from, and what it is judged on.

    `matrix` and `held_matrix` are (rows, features) of the candidates in `rows` and in `held`; lists are
    calibrated to the share `newcomers` of untouched items.
    """

    names: tuple[str, ...]
    rows: Requests
    matrix: Float32
    held: Requests
    held_matrix: Float32
    positives: tuple[Int64, Int32]
    newcomers: float


def prepare(
    window: Split, protocol: Protocol, embeddings: Float32, config: Config, step: Step, *, seed: int = 0
) -> Prepared:
    """Fit all but the ranker as an evaluation of this window would, and build both matrices."""
    stacked = stack(window.train, protocol, embeddings, config, step, seed=seed)
    models, _ = fit_models(
        window.train,
        window.visible,
        embeddings,
        stacked.features,
        config,
        step,
        earlier=stacked.early,
        seed=seed,
    )
    state = Replay(window.visible, stacked.features)
    held = window.requests
    if protocol != "slate":
        with step("validation candidates") as progress:
            held = retrieve(held, models, state, window.visible, progress)
    with step("validation features") as progress:
        matrix = models.matrix_in_blocks(held, state, progress)
    names = stacked.features.schema.names
    return Prepared(names, stacked.rows, stacked.matrix, held, matrix, window.positives, stacked.newcomers)


def judge(
    prepared: Prepared, protocol: Protocol, config: RankerConfig, step: Step, *, seed: int = 0
) -> Float64:
    """(requests,) the headline metric of a ranker with these settings; NaN where it is not defined."""
    with step("ranker"):
        ranker, _ = fit_ranker(prepared.matrix, prepared.rows, prepared.names, "", config, seed=seed)
        scores = ranker.score(prepared.held_matrix, "", threads=config.threads)
    scores = with_newcomers(prepared.held, scores, prepared.newcomers)
    return headline_values(prepared.held, scores, prepared.positives, protocol)
