"""What people do next: item-to-item transition strengths from the order of each user's history.

A pair (a, b) counts when b follows a within a few steps. Strengths are damped by the popularity of
both ends, so that a bestseller does not follow everything. Where the log tells a click from a purchase,
pairs that end in more than a click are counted apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import save
from scipy import sparse

from recsys.dataset import Dataset
from recsys.events import Bool, Float64, Int32
from recsys.numeric_storage import Storage, load_arrays
from recsys.pairs import SparsePairs, keep_strongest
from recsys.requests import DAY_S

_TRANSITIONS_FILE, _COVISITATION_FILE = "transitions.safetensors", "covisitation.safetensors"


@dataclass(frozen=True)
class TransitionConfig:
    """Settings of the transition counts.

    Attributes:
        steps: how far apart two events of one history may stand; a pair s steps apart counts 1/s.
        backward: share of a forward count that the reverse pair gets.
        gap_half_life_days: time between the two events at which the pair counts half.
        damping: exponent of the popularity of each end in the denominator.
        neighbours: successors kept per item.
    """

    steps: int = 3
    backward: float = 0.7
    gap_half_life_days: float = 60.0
    damping: float = 0.5
    neighbours: int = 200


@dataclass(frozen=True)
class CovisitationConfig:
    """Settings of the counts by type pair.

    Attributes:
        steps: how far apart two events of one history may stand; a pair s steps apart counts 1/s.
        backward: share of its count that a pair gets whose outcome came first.
        gap_half_life_days: time between the two events at which the pair counts half.
        damping: exponent of the popularity of each end in the denominator.
        neighbours: pairs kept per item.
    """

    steps: int = 8
    backward: float = 0.7
    gap_half_life_days: float = 7.0
    damping: float = 0.5
    neighbours: int = 100


@dataclass(frozen=True)
class Covisitation:
    """Pairs of events by their types; outcomes are the target events that weigh more than the lightest.

    `to_outcome` counts pairs that lead from any event to an outcome, `between_outcomes` those from one
    outcome to another. Both are empty in a log whose target events all weigh the same.
    """

    to_outcome: SparsePairs
    between_outcomes: SparsePairs

    def rounded(self, storage: Storage) -> Covisitation:
        """Both with values that `storage` can hold; see `SparsePairs.rounded`."""
        return Covisitation(self.to_outcome.rounded(storage), self.between_outcomes.rounded(storage))

    def to_files(self) -> dict[str, bytes]:
        """Arrays for the bundle."""
        arrays = self.to_outcome.to_arrays("to_outcome") | self.between_outcomes.to_arrays("between_outcomes")
        return {_COVISITATION_FILE: save(arrays)}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Covisitation:
        """Read what `to_files` wrote; raises RecsysError where it is missing or damaged."""
        arrays = load_arrays(files, _COVISITATION_FILE, "transitions_invalid")
        names = ("to_outcome", "between_outcomes")
        return cls(*(SparsePairs.from_arrays(arrays, name) for name in names))


def fit_transitions(data: Dataset, config: TransitionConfig) -> SparsePairs:
    """Count over all histories of `data`; row a holds the strengths of its successors."""
    everything = np.ones(len(data.histories.item_index), np.bool_)
    return _count(data, config, everything, everything)


def fit_covisitation(data: Dataset, config: CovisitationConfig) -> Covisitation:
    """Count over all histories of `data`; an outcome's row or column is what its type makes it."""
    weight = data.weights[data.histories.type_index]
    outcome = weight > weight.min() if len(weight) else np.zeros(0, np.bool_)
    if not outcome.any():
        nothing = SparsePairs.empty(len(data.catalogue))
        return Covisitation(nothing, nothing)
    anything = np.ones(len(weight), np.bool_)
    return Covisitation(_count(data, config, anything, outcome), _count(data, config, outcome, outcome))


def _count(
    data: Dataset, config: TransitionConfig | CovisitationConfig, source: Bool, target: Bool
) -> SparsePairs:
    """Damped strengths from history events in `source` to those in `target`, both (history events,)."""
    histories = data.histories
    items = len(data.catalogue)
    item, timestamp = histories.item_index, histories.timestamp
    owner = np.repeat(np.arange(len(histories.offsets) - 1), np.diff(histories.offsets))
    counts = sparse.csr_matrix((items, items), dtype=np.float64)
    for step in range(1, config.steps + 1):
        same = (owner[step:] == owner[:-step]) & (item[step:] != item[:-step])
        first, second = np.flatnonzero(same), np.flatnonzero(same) + step
        gap_days = (timestamp[second] - timestamp[first]) / DAY_S
        value = np.exp2(-gap_days / config.gap_half_life_days) / step
        forward, reverse = source[first] & target[second], source[second] & target[first]
        counts = counts + _pairs(item[first[forward]], item[second[forward]], value[forward], items)
        back = config.backward * value[reverse]
        counts = counts + _pairs(item[second[reverse]], item[first[reverse]], back, items)
    popularity = np.maximum(np.bincount(item, minlength=items), 1).astype(np.float64)
    damp = sparse.diags(popularity**-config.damping)
    damped = (damp @ counts @ damp).tocsr().astype(np.float32)
    return SparsePairs.from_csr(keep_strongest(damped, config.neighbours))


def _pairs(rows: Int32, columns: Int32, values: Float64, items: int) -> sparse.csr_matrix:
    return sparse.coo_matrix((values, (rows, columns)), shape=(items, items)).tocsr()


def transitions_to_files(pairs: SparsePairs) -> dict[str, bytes]:
    """Arrays for the bundle."""
    return {_TRANSITIONS_FILE: save(pairs.to_arrays("transitions"))}


def transitions_from_files(files: Mapping[str, bytes]) -> SparsePairs:
    """Read what `transitions_to_files` wrote; raises RecsysError where it is missing or damaged."""
    arrays = load_arrays(files, _TRANSITIONS_FILE, "transitions_invalid")
    return SparsePairs.from_arrays(arrays, "transitions")
