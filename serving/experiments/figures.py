"""What the impressions of an experiment add up to, with intervals that draw whole users.

Nothing here depends on the order of what comes in, and nothing here says who has won.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr

from recsys.events import Float64
from recsys.metrics.intervals import LEVEL, Interval, mean_interval
from serving.experiments.experiment import Arm
from serving.experiments.interleaving import Teams
from serving.experiments.logged import Slate

RESAMPLES = 2000
SIDES = (Arm.CONTROL, Arm.TREATMENT)


@dataclass(frozen=True)
class ArmFigures:
    """One arm of a split.

    Attributes:
        users: with an impression.
        acting: of them, with an outcome.
        impressions, outcomes: their sums; an item counts once an impression.
        rate: mean over users of each one's outcomes an impression.
    """

    users: int
    acting: int
    impressions: int
    outcomes: int
    rate: Interval


@dataclass(frozen=True)
class Split:
    """Two groups of users.

    Attributes:
        difference: of the rates, treatment minus control.
        lift: the same as a share of the control's rate; NaN where that is 0.
        ratio_p: probability of group sizes at least so far from the share, by chance (chi-square, one
            degree of freedom); NaN where the share is 0 or 1.
        crossed: impressions of users that were seen in both arms; they are left out.
    """

    control: ArmFigures
    treatment: ArmFigures
    difference: Interval
    lift: float
    ratio_p: float
    crossed: int


@dataclass(frozen=True)
class Drafted:
    """Lists drafted from two.

    Attributes:
        users, impressions: in the experiment.
        wins: impressions where a side placed more of the items with an outcome than the other one.
        ties: all other impressions.
        uncredited: outcomes of items without a team.
        share: the treatment's of the impressions that somebody won; 0.5 where both are alike.
        users_for: users with more wins of a side than of the other one.
        sign_p: probability of `users_for` at least so uneven, by chance (exact sign test).
    """

    users: int
    impressions: int
    wins: dict[Arm, int]
    ties: int
    uncredited: int
    share: Interval
    users_for: dict[Arm, int]
    sign_p: float


def split_figures(slates: Sequence[Slate], share: float) -> Split:
    """The figures of a split.

    Args:
        slates: labelled with control or treatment.
        share: of the users that should have the treatment.
    """
    users: dict[Arm, defaultdict[str, list[int]]] = {arm: defaultdict(lambda: [0, 0]) for arm in SIDES}
    for slate in slates:
        counts = users[slate.label.arm][slate.user_id]
        counts[0] += 1
        counts[1] += len(slate.acted)
    both = users[Arm.CONTROL].keys() & users[Arm.TREATMENT].keys()
    crossed = sum(users[arm].pop(user)[0] for user in both for arm in SIDES)
    rng = np.random.default_rng(0)
    (control, control_draws), (treatment, treatment_draws) = (_figures(users[arm], rng) for arm in SIDES)
    mean = treatment.rate.mean - control.rate.mean
    lift = mean / control.rate.mean if control.rate.mean else math.nan
    ratio_p = ratio_test((control.users, treatment.users), (1.0 - share, share))
    difference = _bounded(mean, treatment_draws - control_draws)
    return Split(control, treatment, difference, lift, ratio_p, crossed)


def drafted_figures(slates: Sequence[Slate]) -> Drafted:
    """The figures of interleaved lists: an impression has one vote at most, a user one in the sign test."""
    nets: defaultdict[str, int] = defaultdict(int)
    users, votes, uncredited = [], [], 0
    for slate in slates:
        teams = _credited(slate)
        uncredited += teams.count(None)
        ahead = teams.count(Arm.TREATMENT) - teams.count(Arm.CONTROL)
        if ahead:
            users.append(slate.user_id)
            votes.append(float(ahead > 0))
            nets[slate.user_id] += 1 if ahead > 0 else -1
    won = int(sum(votes))
    behind, before = sum(net < 0 for net in nets.values()), sum(net > 0 for net in nets.values())
    return Drafted(
        users=len({slate.user_id for slate in slates}),
        impressions=len(slates),
        wins={Arm.CONTROL: len(votes) - won, Arm.TREATMENT: won},
        ties=len(slates) - len(votes),
        uncredited=uncredited,
        share=mean_interval(np.array(votes, np.float64), np.array(users, np.str_), resamples=RESAMPLES),
        users_for={Arm.CONTROL: behind, Arm.TREATMENT: before},
        sign_p=sign_test(behind, before),
    )


def ratio_test(counts: Sequence[int], shares: Sequence[float]) -> float:
    """P-value of two counts if users fall into two groups by these shares (chi-square).

    NaN for no users at all and for shares of 0.
    """
    total = sum(counts)
    if not total or min(shares) <= 0.0:
        return math.nan
    wanted = [total * share for share in shares]
    distance = sum((count - each) ** 2 / each for count, each in zip(counts, wanted, strict=True))
    return math.erfc(math.sqrt(distance / 2.0))


def sign_test(first: int, second: int) -> float:
    """Two-sided p-value of two counts if both are equally likely; 1 for none."""
    return min(1.0, 2.0 * float(bdtr(min(first, second), first + second, 0.5)))


def _figures(users: dict[str, list[int]], rng: np.random.Generator) -> tuple[ArmFigures, Float64]:
    """The figures of an arm, and its rate in each resample."""
    counts = np.array(list(users.values()), np.int64).reshape(-1, 2)
    impressions, outcomes = counts.sum(axis=0).tolist()
    rates = counts[:, 1] / counts[:, 0]
    draws = _resampled_means(rates, rng)
    mean = math.fsum(rates) / len(rates) if len(rates) else math.nan
    acting = int((counts[:, 1] > 0).sum())
    return ArmFigures(len(counts), acting, impressions, outcomes, _bounded(mean, draws)), draws


def _resampled_means(values: Float64, rng: np.random.Generator) -> Float64:
    """(RESAMPLES,) means after drawing as many values with replacement; NaN for fewer than two.

    How often each different value is drawn has a multinomial distribution, which is drawn at once.
    """
    if len(values) < 2:
        return np.full(RESAMPLES, np.nan)
    distinct, counts = np.unique(values, return_counts=True)
    times = rng.multinomial(len(values), counts / len(values), size=RESAMPLES)
    return np.asarray(times @ distinct / len(values))


def _bounded(mean: float, draws: Float64) -> Interval:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high))


def _credited(slate: Slate) -> list[Arm | None]:
    """Whose the items with an outcome are; an item that was shown twice counts where it was first."""
    teams = Teams.parse(slate.label.teams)
    return [teams.find(item, slate.shown.index(item)) for item in slate.acted]
