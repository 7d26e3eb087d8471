"""Which of two arms did better, from the impressions of one experiment, and what to doubt about it.

The intervals hold for a look at a moment that was fixed beforehand: who looks every hour and stops at the
first winner is wrong more often than one time in twenty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from recsys.metrics.intervals import Interval
from serving.experiments.experiment import Arm, Label, Mode
from serving.experiments.figures import Drafted, Split, drafted_figures, split_figures
from serving.experiments.logged import Slate

LEAST_USERS = 20
"""With an outcome, to be expected in the smaller arm if both were alike: with fewer nobody has won yet."""
RATIO_ALARM = 0.001
"""A p-value below which the users are not split as they should be."""


@dataclass(frozen=True)
class LeftOut:
    """Impressions that say nothing here.

    Attributes:
        earlier: of an earlier share or mode: who was moved would stand on both sides.
        anonymous: assigned by request: nobody knows how many people they are.
        crossed: of users that were seen in both arms.
    """

    earlier: int = 0
    anonymous: int = 0
    crossed: int = 0


@dataclass(frozen=True)
class Comparison:
    """What the log says of one experiment.

    Attributes:
        share: of the users, as the experiment has it now.
        winner: whose 95 % interval lies on one side of no difference, None as long as it does not.
        warnings: why the figures may not be what they seem.
    """

    name: str
    mode: Mode
    share: float
    winner: Arm | None
    figures: Split | Drafted
    left_out: LeftOut
    warnings: list[str] = field(default_factory=list)


def compare(slates: Sequence[Slate]) -> Comparison:
    """Compare the arms of one experiment as it is now, in whatever order the impressions come.

    Args:
        slates: at least one, all of one experiment.
    """
    newest = max(slates, key=lambda slate: (slate.timestamp, slate.impression_id)).label
    now = [slate for slate in slates if _phase(slate.label) == _phase(newest)]
    known = [slate for slate in now if slate.label.unit == "user"]
    earlier, anonymous = len(slates) - len(now), len(now) - len(known)
    if newest.arm is Arm.INTERLEAVED:
        left_out = LeftOut(earlier, anonymous)
        return _of_drafts(newest, drafted_figures(known), left_out)
    figures = split_figures(known, newest.share)
    return _of_split(newest, figures, LeftOut(earlier, anonymous, figures.crossed))


def _phase(label: Label) -> tuple[bool, float]:
    """What must be the same for impressions to be compared; how many lists are drafted does not matter."""
    is_drafted = label.arm is Arm.INTERLEAVED
    return is_drafted, 0.0 if is_drafted else label.share


def _of_split(label: Label, figures: Split, left_out: LeftOut) -> Comparison:
    acting = figures.control.acting + figures.treatment.acting
    is_enough = acting * min(label.share, 1.0 - label.share) >= LEAST_USERS
    winner = _side(figures.difference, 0.0) if is_enough else None
    warnings = [*_ratio_warning(figures, label.share), *_warnings(left_out)]
    return Comparison(label.name, "split", label.share, winner, figures, left_out, warnings)


def _of_drafts(label: Label, figures: Drafted, left_out: LeftOut) -> Comparison:
    is_enough = sum(figures.users_for.values()) >= 2 * LEAST_USERS
    winner = _side(figures.share, 0.5) if is_enough else None
    warnings = _warnings(left_out)
    if figures.uncredited:
        warnings.append(f"{figures.uncredited:,} outcomes are of items that neither side placed")
    return Comparison(label.name, "interleave", label.share, winner, figures, left_out, warnings)


def _side(interval: Interval, nothing: float) -> Arm | None:
    """On whose side the interval lies as a whole; bounds that are NaN lie nowhere."""
    if interval.low > nothing:
        return Arm.TREATMENT
    return Arm.CONTROL if interval.high < nothing else None


def _ratio_warning(figures: Split, share: float) -> list[str]:
    if not figures.ratio_p < RATIO_ALARM:
        return []
    users = figures.control.users + figures.treatment.users
    return [
        f"sample ratio mismatch: {figures.treatment.users:,} of {users:,} users have the treatment, not "
        f"{share:.1%} (p = {figures.ratio_p:.1g}): impressions are missing on one side, trust no winner"
    ]


def _warnings(left_out: LeftOut) -> list[str]:
    said = []
    if left_out.earlier:
        said.append(f"{left_out.earlier:,} impressions of an earlier share or mode are left out")
    if left_out.anonymous:
        said.append(
            f"{left_out.anonymous:,} impressions without a user in their request are left out: "
            "send an id of the visitor or the session as user_id"
        )
    if left_out.crossed:
        said.append(f"{left_out.crossed:,} impressions of users that were in both arms are left out")
    return said
