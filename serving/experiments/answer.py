"""The list that a request of a running experiment gets, with the label that its impression has to carry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from msgspec.structs import replace

from serving.experiments.experiment import Arm, Experiment, Label
from serving.experiments.interleaving import interleaved
from serving.messages import FAILING, Ranking
from serving.problems import Refusal

Ask = Callable[[Arm], Ranking]
"""The list of the control or of the treatment; raises Refusal `internal_failure` where that model fails."""


def answer_in(
    experiment: Experiment, user_id: str | int | None, request_id: str, k: int | None, ask: Ask
) -> Ranking:
    """Answer a request as its assignment says.

    A treatment that fails costs nobody an answer: the control's list is given. In a split it keeps the
    treatment's label, because who was assigned is compared, and a model must not win by failing on the hard
    requests; an interleaved list that was not drafted takes no part.

    Args:
        experiment: that runs; both models are loaded.
        user_id: null for somebody unknown.
        request_id: decides the draft, and the arm of somebody unknown; becomes the impression's id.
        k: items wanted, None for all.
        ask: gives at least k items where there are so many.

    Returns:
        The list; `arm` is the label, None outside the experiment.

    Raises:
        RecsysError, Refusal: of `ask`.
    """
    label = experiment.assign(user_id, request_id)
    if label is None:
        return ask(Arm.CONTROL)
    if label.arm is Arm.CONTROL:
        return replace(ask(Arm.CONTROL), arm=str(label))
    if label.arm is Arm.TREATMENT:
        return replace(_treated(ask) or _instead(ask), arm=str(label))
    return _drafted(label, k, experiment.seed(request_id), ask)


def _drafted(label: Label, k: int | None, seed: int, ask: Ask) -> Ranking:
    treatment = _treated(ask)
    if treatment is None:
        return _instead(ask)
    ranking, teams = interleaved(ask(Arm.CONTROL), treatment, k, seed=seed)
    return replace(ranking, arm=str(dataclasses.replace(label, teams=str(teams))))


def _treated(ask: Ask) -> Ranking | None:
    try:
        return ask(Arm.TREATMENT)
    except Refusal as refusal:
        if refusal.code != "internal_failure":
            raise
        return None


def _instead(ask: Ask) -> Ranking:
    return replace(ask(Arm.CONTROL), degraded=True, degraded_reason=FAILING)
