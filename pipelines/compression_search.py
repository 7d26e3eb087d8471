"""Which combination of methods: Optuna on quality and cost at once, while time is left.

Every trial is a rung of the ladder like any other: built, measured, registered. A recipe that was measured
already is told and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from pipelines.rungs import SEARCH_FILE, Workbench, measured_of
from recsys.compression.recipe import Recipe, Step
from recsys.errors import RecsysError

HEADS, NEURONS = (1.0, 0.75, 0.5), (1.0, 0.75, 0.5, 0.25)
VOCABULARY = (0, 1, 2, 3, 5)
REPEATS = 20
"""Trials in a row that name a recipe known already, before the space counts as searched."""


class Search:
    """A study over recipes, kept in the folder of the bench."""

    def __init__(self, bench: Workbench, seed: int, note: Callable[[str], None]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = optuna.storages.RDBStorage(f"sqlite:///{bench.folder / SEARCH_FILE}")
        self._study = optuna.create_study(
            storage=storage,
            study_name=bench.name,
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            with suppress(optuna.exceptions.UpdateFinishedTrialError):
                self._study.tell(trial.number, state=TrialState.FAIL)
        self._study.sampler = optuna.samplers.TPESampler(
            seed=seed + len(self._study.trials), n_startup_trials=6
        )
        self._bench, self._note = bench, note

    def run(self, time_left: Callable[[], bool]) -> None:
        """Trials until the time is over, or nothing new is proposed."""
        repeats = 0
        while time_left() and repeats < REPEATS:
            trial = self._study.ask()
            recipe = self._recipe(trial)
            repeats = repeats + 1 if self._bench.known(recipe) else 0
            try:
                rung = self._bench.measured(recipe)
            except (ValueError, RecsysError) as error:
                self._study.tell(trial, state=TrialState.FAIL)
                self._note(f"{recipe}: {error}")
                continue
            except BaseException:
                self._study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
                raise
            self._study.tell(trial, self._values(rung))

    def recipes(self) -> list[str]:
        """Recipes of the finished trials, each once, in their order."""
        done = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return list(dict.fromkeys(str(trial.user_attrs["recipe"]) for trial in done))

    def _values(self, rung: dict[str, Any]) -> tuple[float, float]:
        quality = rung["quality_ratio"]["mean"]
        return 0.0 if quality is None else quality, measured_of(rung).cost(self._bench.config.prices)

    def _recipe(self, trial: Trial) -> Recipe:
        whole = self._bench.source.root.transformer.architecture
        shape = whole.layers[0]
        layers = trial.suggest_int("layers", 1, whole.depth)
        vocabulary = trial.suggest_categorical("vocabulary", VOCABULARY)
        heads = round(trial.suggest_categorical("heads", HEADS) * shape.heads)
        neurons = round(trial.suggest_categorical("neurons", NEURONS) * shape.feed_forward)
        runtime = trial.suggest_categorical("runtime", ("int8", "bf16"))
        steps = [
            Step("layers", layers) if layers < whole.depth else None,
            Step("vocabulary", vocabulary) if vocabulary else None,
            Step("heads", heads) if heads < shape.heads else None,
            Step("neurons", neurons) if neurons < shape.feed_forward else None,
        ]
        recipe = Recipe(tuple(step for step in steps if step), runtime)
        trial.set_user_attr("recipe", str(recipe))
        return recipe


def spread(names: Sequence[str], more: Sequence[str]) -> list[str]:
    """`names`, then those of `more` that are not among them."""
    return list(dict.fromkeys([*names, *more]))
