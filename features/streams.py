"""Which log rows belong to a stream, with what weight: the same rule for the log and for the live server."""

from __future__ import annotations

import numpy as np

from features.declaration import Stream
from recsys.dataset import Dataset
from recsys.events import Float64

_CLICK = "click"

StreamWeights = dict[Stream, Float64]
"""(types,) weight by type_index for each event stream; 0 where the type does not belong to it."""


def weights_of(dataset: Dataset) -> StreamWeights:
    """The rule. `click` counts events of that type where the log has any, else every target event."""
    target = dataset.is_target.astype(np.float64)
    seen = np.bincount(dataset.events.type_index, minlength=len(target)) > 0
    click = target * seen * np.array([kind == _CLICK for kind in dataset.event_types], np.float64)
    return {
        "target": target * np.array([role.weight for role in dataset.roles], np.float64),
        "outcome": target,
        "click": click if click.any() else target,
        "negative": dataset.is_negative.astype(np.float64),
        "any": np.ones(len(target), np.float64),
    }
