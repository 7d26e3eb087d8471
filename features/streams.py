"""Which log rows belong to a stream, with what weight: the same rule for the log and for the live server."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from features.declaration import Stream
from recsys.dataset import Dataset
from recsys.events import EventRole, Float64

_CLICK = "click"

StreamWeights = dict[Stream, Float64]
"""(types,) weight by type_index for each event stream; 0 where the type does not belong to it."""


def stream_weights(event_types: Sequence[str], roles: Sequence[EventRole]) -> StreamWeights:
    """The rule. `click` counts clicks where the log has that type, else every target event."""
    target = np.array([role.target and not role.negative for role in roles], np.float64)
    click = np.array([kind == _CLICK for kind in event_types], np.float64) * target
    return {
        "target": target * np.array([role.weight for role in roles], np.float64),
        "outcome": target,
        "click": click if click.any() else target,
        "negative": np.array([role.negative for role in roles], np.float64),
        "any": np.ones(len(roles), np.float64),
    }


def weights_of(dataset: Dataset) -> StreamWeights:
    """`stream_weights` of a dataset's event types."""
    return stream_weights(dataset.event_types, dataset.roles)
