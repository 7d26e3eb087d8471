"""What people do next: item-to-item transition strengths from the order of each user's history.

A pair (a, b) counts when b follows a within a few steps. Strengths are damped by the popularity of
both ends, so that a bestseller does not follow everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load, save
from scipy import sparse

from recsys.dataset import Dataset
from recsys.pairs import SparsePairs, keep_strongest
from recsys.requests import DAY_S


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


def fit_transitions(data: Dataset, config: TransitionConfig) -> SparsePairs:
    """Count over all histories of `data`; row a holds the strengths of its successors."""
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
        forward = sparse.coo_matrix((value, (item[first], item[second])), shape=(items, items)).tocsr()
        counts = counts + forward + config.backward * forward.T.tocsr()
    popularity = np.maximum(np.bincount(item, minlength=items), 1).astype(np.float64)
    damp = sparse.diags(popularity**-config.damping)
    damped = (damp @ counts @ damp).tocsr().astype(np.float32)
    return SparsePairs.from_csr(keep_strongest(damped, config.neighbours))


def transitions_to_files(pairs: SparsePairs) -> dict[str, bytes]:
    """Arrays for the bundle."""
    return {"transitions.safetensors": save(pairs.to_arrays("transitions"))}


def transitions_from_files(files: Mapping[str, bytes]) -> SparsePairs:
    """Read what `transitions_to_files` wrote."""
    return SparsePairs.from_arrays(load(files["transitions.safetensors"]), "transitions")
