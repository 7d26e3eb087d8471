"""`recsys tune`: Optuna within a time budget, on validation windows that the test never touches.

Two kinds of trial share one study. A *ranker* trial refits the ranker only, on matrices that are kept
for the best models so far; after several of them a *models* trial refits everything below, with the
best ranker settings so far. Trial 0 is the configuration as it was given, so the answer is never worse
than that on validation. The text encoder is not tuned: it is fitted on the oldest window's past.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from pipelines.budget import Budget, OutOfTimeError, Stopped, stopping_on_signals
from pipelines.config import Config
from pipelines.config_writing import toml_of
from pipelines.fitting import Step, stacking_split
from pipelines.home import Home
from pipelines.registered_encoder import text_model
from pipelines.search_space import Range, parameters_of, space_of, study_name, with_parameters
from pipelines.terminal import Terminal
from pipelines.validation import Prepared, WindowConfig, judge, prepare, rolling_windows, sampled
from recsys.dataset import Dataset
from recsys.errors import RecsysError
from recsys.evaluation import HEADLINE
from recsys.events import Float32, Float64
from recsys.locks import lock
from recsys.metrics.intervals import Interval, paired_interval
from recsys.protocols import Protocol, Split, split
from recsys.storage import write_atomic

RANKER_TRIALS = 8
"""Trials since the start, or since the last models trial, before the next one of those is due."""

_DONE, _LEFT = (TrialState.COMPLETE,), (TrialState.RUNNING, TrialState.WAITING)


@dataclass(frozen=True)
class Task:
    """What is tuned on what: fixed for all trials."""

    config: Config
    protocol: Protocol
    windows: list[Split]
    embeddings: Float32
    ranker: tuple[Range, ...]
    models: tuple[Range, ...]


Note = Callable[[str], None]


class Search:
    """The study with the matrices of the best models so far."""

    def __init__(self, study: optuna.Study, task: Task, folder: Path, step: Step, note: Note) -> None:
        self.study = study
        self.task = task
        self.folder = folder
        self.step = step
        self.note = note
        self.preparation_s = 0.0
        self._kept: tuple[Config, list[Prepared]] = task.config, []

    def run(self, budget: Budget) -> str:
        """Trial after trial until the time is over or a signal comes; says which."""
        try:
            while budget.left > 0 or not self._done():
                self.next_trial(budget)
        except OutOfTimeError:
            return "time"
        except Stopped:
            return "signal"
        return "time"

    def next_trial(self, budget: Budget) -> None:
        """One more trial, told to the study however it ends.

        Raises:
            RecsysError: what the first trial failed with.
            OutOfTimeError, Stopped: the trial was broken off.
        """
        kind = self._kind(budget)
        self.study.enqueue_trial(self._fixed(kind), user_attrs={"kind": kind})
        trial = self.study.ask()
        step = self.step if kind == "default" else budget.guarded(self.step)
        try:
            self._attempt(trial, step)
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
            self.note(f"trial {trial.number} ({kind}): pruned")
        except RecsysError as error:
            self.study.tell(trial, state=TrialState.FAIL)
            if kind == "default":
                raise
            self.note(f"trial {trial.number} ({kind}): {error}")
        except BaseException:
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            raise

    def _attempt(self, trial: Trial, step: Step) -> None:
        """Judge one configuration window by window, the oldest first."""
        task = self.task
        drawn = {each.key: _suggest(trial, each) for each in task.models + task.ranker}
        config = with_parameters(task.config, drawn)
        below = with_parameters(task.config, {each.key: drawn[each.key] for each in task.models})
        prepared = self._kept[1] if self._kept[0] == below else []
        if trial.user_attrs["kind"] != "models":
            self._kept = below, prepared
        values: list[Float64] = []
        for place, window in enumerate(task.windows):
            if place == len(prepared):
                prepared.append(self._prepare(window, config, step))
            values.append(judge(prepared[place], task.protocol, config.ranker, step, seed=config.seed))
            trial.report(float(np.nanmean(values[-1])), place)
            if place + 1 < len(task.windows) and trial.should_prune():
                raise optuna.TrialPruned
        self._finish(trial, (below, prepared), values)

    def _prepare(self, window: Split, config: Config, step: Step) -> Prepared:
        began = time.monotonic()
        task = self.task
        prepared = prepare(window, task.protocol, task.embeddings, config, step, seed=config.seed)
        self.preparation_s = (time.monotonic() - began) * len(task.windows)
        return prepared

    def _finish(self, trial: Trial, models: tuple[Config, list[Prepared]], values: list[Float64]) -> None:
        value = float(np.mean([np.nanmean(each) for each in values]))
        before = self.study.best_value if self._done() else -np.inf
        save_values(self.folder, trial.number, np.concatenate(values))
        if not np.isfinite(value):
            raise RecsysError("nothing_to_test", "no request of a validation window can be judged")
        self.study.tell(trial, value)
        if value > before:
            self._kept = models
        metric, kind = HEADLINE[self.task.protocol], trial.user_attrs["kind"]
        best = max(value, before)
        self.note(f"trial {trial.number} ({kind}): {metric} {value:.4f}, best {best:.4f}")

    def _done(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=_DONE)

    def _kind(self, budget: Budget) -> str:
        """The first is the default; a models trial comes after several of the ranker, if time allows."""
        if not self._done():
            return "default"
        kinds = [t.user_attrs.get("kind") for t in self.study.get_trials(deepcopy=False)]
        since = next((n for n, kind in enumerate(reversed(kinds)) if kind == "models"), len(kinds))
        due = since >= RANKER_TRIALS and budget.left > self.preparation_s
        return "models" if due else "ranker"

    def _fixed(self, kind: str) -> dict[str, Any]:
        """The parameters that are not drawn in a trial of this kind."""
        task = self.task
        if kind == "default":
            return parameters_of(task.config, task.models + task.ranker)
        part = task.ranker if kind == "models" else task.models
        best = self.study.best_params
        return {each.key: best[each.key] for each in part}


def _suggest(trial: Trial, each: Range) -> float | int:
    if each.whole:
        return trial.suggest_int(each.key, int(each.low), int(each.high), log=each.log)
    return trial.suggest_float(each.key, each.low, each.high, log=each.log)


def tune(
    data: Dataset,
    protocol: Protocol,
    config: Config,
    home: Home,
    terminal: Terminal,
    *,
    minutes: float,
    resume: bool = False,
    windows: WindowConfig | None = None,
) -> dict[str, Any]:
    """Search for about `minutes`, and tell the best configuration and what it is better by.

    Only `split(data, protocol).train` is read. The first trial always finishes.

    Raises:
        RecsysError: `nothing_to_test` for too small a log, `interrupted` where a
            signal came before the first trial ended.
    """
    budget = Budget(minutes * 60.0)
    wanted = windows or WindowConfig()
    train = split(data, protocol).train
    found = rolling_windows(train, protocol, wanted)
    asked = [sampled(each, protocol, config, wanted.max_rows, seed=config.seed) for each in found]
    ranker, models = space_of(config, protocol)
    name = study_name(train, protocol, config, (*ranker, *models), wanted)
    home.tuning.mkdir(parents=True, exist_ok=True)
    with lock(home.tuning / f"{name}.lock"), stopping_on_signals():
        study = open_study(home.tuning, name, resume=resume, seed=config.seed)
        folder = home.tuning / study.study_name
        folder.mkdir(exist_ok=True)
        try:
            early = stacking_split(found[0].train, protocol, config).train
            text = text_model(early, config, home, terminal.step, seed=config.seed)
            task = Task(config, protocol, asked, text.embeddings.matrix, ranker, models)
            stopped = Search(study, task, folder, terminal.step, terminal.note).run(budget)
        except Stopped:
            stopped = "signal"
    clusters = np.concatenate([each.requests.user_index for each in asked])
    return {
        "protocol": protocol,
        "headline": HEADLINE[protocol],
        "windows": [len(each.requests) for each in asked],
        "stopped_by": stopped,
        **outcome(study, config, (*models, *ranker), folder, clusters),
    }


def open_study(folder: Path, name: str, *, resume: bool, seed: int) -> optuna.Study:
    """A new study of this name, or with `resume` the newest; what a dead run left unfinished has failed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'studies.db'}")
    runs = [known for known in optuna.get_all_study_names(storage) if known.rpartition(".")[0] == name]
    number = len(runs) if resume and runs else len(runs) + 1
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5)
    study = optuna.create_study(
        storage=storage,
        study_name=f"{name}.{number}",
        direction="maximize",
        load_if_exists=True,
        pruner=pruner,
    )
    for trial in study.get_trials(deepcopy=False, states=_LEFT):
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            study.tell(trial.number, state=TrialState.FAIL)
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials), n_startup_trials=6)
    return study


def save_values(folder: Path, trial: int, values: Float64) -> None:
    """Keep a trial's (requests,) values, for the interval at the end."""
    write_atomic(folder / f"trial-{trial}.f64", np.asarray(values, "<f8").tobytes())


def load_values(folder: Path, trial: int) -> Float64:
    """What `save_values` kept."""
    return np.frombuffer((folder / f"trial-{trial}.f64").read_bytes(), "<f8").astype(np.float64)


def outcome(
    study: optuna.Study, config: Config, space: tuple[Range, ...], folder: Path, clusters: Any
) -> dict[str, Any]:
    """The best trial against the first, and the configuration that it stands for."""
    trials = study.get_trials(deepcopy=False)
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not done:
        raise RecsysError(
            "interrupted", "stopped before the first trial ended", study.study_name, exit_code=130
        )
    first, best = done[0], study.best_trial
    tuned = with_parameters(config, best.params)
    gap = Interval(0.0, 0.0, 0.0)
    if best.number != first.number:
        gap = paired_interval(load_values(folder, best.number), load_values(folder, first.number), clusters)
    before, after = parameters_of(config, space), parameters_of(tuned, space)
    return {
        "study": study.study_name,
        "trials": {
            state.name.lower(): sum(trial.state == state for trial in trials)
            for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        },
        "values": {trial.number: trial.value for trial in done},
        "default": first.value,
        "best": best.value,
        "best_trial": best.number,
        "difference": asdict(gap),
        "changes": {k: [before[k], after[k]] for k in before if before[k] != after[k]},
        "importances": importances(study, len(done)),
        "toml": toml_of(tuned),
    }


def importances(study: optuna.Study, done: int) -> dict[str, float]:
    """Share of the spread that each parameter explains (PED-ANOVA); empty before there are 20 trials."""
    if done < 20:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
