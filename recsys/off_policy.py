"""What a new ranking would have earned, from the clicks on slates that another policy showed.

Off-policy estimates under the position-based click model (Richardson, Dominowska & Ragno 2007): an item is
clicked where its place is examined and it attracts, and attraction does not depend on the place. Li et al.
2018 ("Offline evaluation of ranking policies with click models") show that such a model needs far smaller
weights than whole slates do. The logged propensity is P(item here | request, items above), so that each
place of a slate is one draw of an importance sample over everything that does not stand above it, and what
does stand above it was seen outright:

    v_i = sum over the places a above i of e_a c_a / x_a  +  (e_i / p_i) c_i / x_i

has the value of the target list as its mean for every place i. Here c is the click, x the examination of the
logged place, p the propensity and e the examination of the place where the target list has the item, 0 where
it does not. A slate's v is an average of its v_i, weighted inversely to the mean square of their weights.

IPS is the mean of v (Horvitz & Thompson 1952; Strehl et al. 2010 for logs), SNIPS divides by what the same
weights say of a constant (Swaminathan & Joachims 2015), the doubly robust estimate puts the weights on the
errors of a model of the attraction only (Dudík, Langford & Li 2011). Nothing here fits a ranking.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys.errors import RecsysError
from recsys.events import Float64, Int32, Int64, Slates
from recsys.metrics.intervals import Interval, mean_interval


@dataclass(frozen=True)
class OffPolicyConfig:
    """Limits of an estimate.

    Attributes:
        most_weight: e / p is cut to this (Ionides 2008); lower means less variance and an estimate that is
            too low. Infinite cuts nothing.
        least_overlap: the least share of the target lists' examination that the log must be able to show.
    """

    most_weight: float = float("inf")
    least_overlap: float = 0.5


@dataclass(frozen=True)
class Attraction:
    """A model's P(click | examined): (rows,) of the logged rows, (slates, k) of the target lists' items."""

    logged: Float64
    target: Float64


@dataclass(frozen=True)
class OffPolicy:
    """Clicks a shown item, with 95 % intervals over users.

    Attributes:
        logged: of the slates as they were shown.
        ips, snips, doubly_robust: of the target lists; the last one is None without a model.
        model: what the model alone says; None without one.
        slates: slates in the log.
        effective_slates: as many slates of the target policy would say as much (Kong 1992).
        overlap: the weights' mean over what it would be if the log could show every target item; 1 but
            for chance.
        clipped: share of the target's logged rows whose weight was cut.
    """

    logged: Interval
    ips: Interval
    snips: Interval
    doubly_robust: Interval | None
    model: Interval | None
    slates: int
    effective_slates: float
    overlap: float
    clipped: float


def check_propensities(slates: Slates | None) -> Slates:
    """The same slates, if estimates can be made of them.

    Raises:
        RecsysError: `no_propensities` unless every shown item has a propensity in (0, 1];
            `positions_invalid` where a slate is not in the order of its places.
    """
    if slates is None or not len(slates) or np.isnan(slates.propensity).all():
        what = "off-policy estimates need impressions with a propensity of every shown item"
        raise RecsysError("no_propensities", what, "impressions: propensity")
    wrong = ~((slates.propensity > 0) & (slates.propensity <= 1))
    if wrong.any():
        what = f"{int(wrong.sum()):,} of {len(wrong):,} shown items have no propensity in (0, 1]"
        raise RecsysError("no_propensities", what, "impressions: propensity")
    falls = np.diff(slates.position.astype(np.int64)) <= 0
    falls[slates.offsets[1:-1][slates.offsets[1:-1] < len(slates.position)] - 1] = False
    if falls.any() or slates.position.min() < 1:
        what = "off-policy estimates need the shown items of a slate by rising position from 1 on"
        raise RecsysError("positions_invalid", what, "impressions: position")
    return slates


def fit_examination(slates: Slates) -> Float64:
    """(places,) probability that each place is looked at, relative to the first: place ** -eta.

    For a target that wants everything alike, v_i of every place i has the same mean, the sum of all
    attractions; eta, 0 to 2, is the power for which the places agree best, weighted by how many clicks
    each one's weights are worth. So better items in the upper places are not taken for examination. The
    power law is that of Joachims, Swaminathan & Schnabel 2017. Without clicks in two places eta is 0.
    """
    check_propensities(slates)
    place = slates.position.astype(np.int64) - 1
    weight = slates.clicked / slates.propensity.astype(np.float64)
    shown = np.maximum(np.bincount(place), 1)
    drawn = np.bincount(place, weight) / shown
    outright = np.bincount(place, slates.clicked) / shown
    squares = np.bincount(place, weight**2)
    precision = np.divide((drawn * shown) ** 2, squares, out=np.zeros(len(shown)), where=squares > 0)
    places = np.arange(1, len(shown) + 1, dtype=np.float64)
    good = precision > 0
    if good.sum() < 2:
        return np.ones(len(places))
    powers = np.linspace(0.0, 2.0, 401)
    attraction = drawn * places ** powers[:, None]
    seen = outright * places ** powers[:, None]
    total = np.log((attraction + np.cumsum(seen, axis=1) - seen)[:, good])
    middle = np.average(total, axis=1, weights=precision[good])[:, None]
    spread = np.average((total - middle) ** 2, axis=1, weights=precision[good])
    return np.asarray(places ** -powers[np.argmin(spread)])


def estimate(
    slates: Slates,
    target: Int32,
    examination: Float64,
    *,
    attraction: Attraction | None = None,
    config: OffPolicyConfig | None = None,
) -> OffPolicy:
    """Value of showing the target lists in the place of the logged slates.

    Args:
        slates: the log; rows of a slate in the order in which they were drawn, from the first place on.
        target: (slates, k) item_index, best first, -1 where the list has ended.
        examination: (places,) at least as many as the log or the target has, positive.
        attraction: a model for the doubly robust estimate; it may be wrong, but must not be fitted on
            the clicks of these slates.
        config: limits.

    Raises:
        RecsysError: those of `check_propensities`; `no_overlap` where the log hardly ever shows what the
            target would.
    """
    config = config or OffPolicyConfig()
    check_propensities(slates)
    rows = _weighted(slates, target, examination, config)
    wanted = _target_examination(target, examination)
    _check_overlap(rows, wanted, config)
    reward = slates.clicked / examination[slates.position.astype(np.int64) - 1]
    places = float((target >= 0).sum() / len(slates))
    value, mass = rows.combined(reward), rows.combined(np.ones(len(reward)))
    users = slates.user_index
    ratio = value.sum() / mass.sum()
    level = wanted.mean() * ratio
    robust = model = None
    if attraction is not None:
        said = _said(attraction, target, examination)
        corrected = said + rows.combined(reward - attraction.logged)
        robust, model = (mean_interval(values / places, users) for values in (corrected, said))
    lengths = np.diff(slates.offsets)
    clicks = np.add.reduceat(slates.clicked.astype(np.float64), slates.offsets[:-1])
    return OffPolicy(
        mean_interval(clicks / lengths.mean(), users),
        mean_interval(value / places, users),
        mean_interval((level + (value - ratio * mass) * wanted.mean() / mass.mean()) / places, users),
        robust,
        model,
        len(slates),
        float(mass.sum() ** 2 / (mass**2).sum()),
        rows.overlap(wanted),
        rows.clipped,
    )


@dataclass(frozen=True)
class _Rows:
    """The logged rows' part in the target: all (rows,) but `offsets` and `clipped`.

    `exposure` is e, `weight` e / p, cut; `whole` the same before cutting; `share` the row's part in its
    slate's average, summing to 1 in a slate.
    """

    offsets: Int64
    exposure: Float64
    weight: Float64
    whole: Float64
    share: Float64
    clipped: float

    def combined(self, reward: Float64) -> Float64:
        """(slates,) the average of each slate's v_i for this reward of every row."""
        above = _sum_above(self.exposure * reward, self.offsets)
        return np.asarray(np.add.reduceat(self.share * (above + self.weight * reward), self.offsets[:-1]))

    def overlap(self, wanted: Float64) -> float:
        """What uncut weights make of the target's examination, over what it is."""
        above = _sum_above(self.exposure, self.offsets)
        return float((self.share * (above + self.whole)).sum() / wanted.sum())


def _weighted(slates: Slates, target: Int32, examination: Float64, config: OffPolicyConfig) -> _Rows:
    lengths = np.diff(slates.offsets)
    if not lengths.all():
        raise ValueError("a slate without items has no value: leave it out")
    if len(examination) < max(int(slates.position.max()), target.shape[1]):
        raise ValueError(f"examination has {len(examination)} places, slates or lists have more")
    owner = np.repeat(np.arange(len(slates)), lengths)
    order = np.arange(len(owner)) - slates.offsets[:-1][owner]
    exposure = _exposure(slates.item_index, owner, target, examination)
    whole = exposure / slates.propensity
    weight = np.minimum(whole, config.most_weight)
    mass = _sum_above(exposure, slates.offsets) + weight
    squares = np.bincount(order, mass**2) / np.bincount(order)
    share = 1.0 / np.maximum(squares, 1e-12)[order]
    share /= np.add.reduceat(share, slates.offsets[:-1])[owner]
    shown = exposure > 0
    clipped = float((whole > weight)[shown].mean()) if shown.any() else 0.0
    return _Rows(slates.offsets, exposure, weight, whole, share, clipped)


def _exposure(items: Int32, owner: Int64, target: Int32, examination: Float64) -> Float64:
    """(rows,) examination of the place where the row's slate has its item in the target list, else 0."""
    slate, place = np.nonzero(target >= 0)
    if not len(slate):
        return np.zeros(len(items))
    span = np.int64(max(items.max(), target.max()) + 2)
    keys = slate * span + target[slate, place]
    order = np.argsort(keys)
    wanted = owner * span + items
    found = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
    return np.where((keys[found] == wanted) & (items >= 0), examination[place[found]], 0.0)


def _sum_above(values: Float64, offsets: Int64) -> Float64:
    """(rows,) sum of the values above each row in its slate."""
    running = np.concatenate([[0.0], np.cumsum(values)])
    return running[:-1] - np.repeat(running[offsets[:-1]], np.diff(offsets))


def _target_examination(target: Int32, examination: Float64) -> Float64:
    """(slates,) examination of all places that the target list fills."""
    return np.asarray(((target >= 0) * examination[: target.shape[1]]).sum(axis=1))


def _said(attraction: Attraction, target: Int32, examination: Float64) -> Float64:
    """(slates,) clicks on the target list, if the model were right."""
    places = examination[: target.shape[1]]
    return np.asarray(np.where(target >= 0, attraction.target * places, 0.0).sum(axis=1))


def _check_overlap(rows: _Rows, wanted: Float64, config: OffPolicyConfig) -> None:
    if not wanted.sum():
        raise RecsysError("no_overlap", "the target lists are empty", "off-policy")
    overlap = rows.overlap(wanted)
    if overlap < config.least_overlap:
        what = (
            f"the log can show only {overlap:.0%} of what the target lists would show "
            f"(at least {config.least_overlap:.0%} are needed): log with more exploration"
        )
        raise RecsysError("no_overlap", what, "off-policy")
