"""Which hyper-parameters are searched and between which bounds; nothing here searches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pipelines.config import Config
from pipelines.validation import WindowConfig
from recsys.dataset import Dataset
from recsys.protocols import Protocol

Parameters = Mapping[str, float | int]


@dataclass(frozen=True)
class Range:
    """Bounds of `section.key`, both included.

    Attributes:
        key: as in the configuration.
        low, high: bounds.
        log: drawn evenly in the logarithm.
        whole: whole numbers only.
    """

    key: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def around(self, value: float) -> Range:
        """The range, widened to hold `value`: what is set by hand is always a trial."""
        return replace(self, low=min(self.low, value), high=max(self.high, value))


RANKER = (
    Range("ranker.learning_rate", 0.02, 0.2, log=True),
    Range("ranker.leaves", 7, 127, log=True, whole=True),
    Range("ranker.min_data_in_leaf", 20, 1000, log=True, whole=True),
    Range("ranker.feature_fraction", 0.2, 1.0),
    Range("ranker.bagging_fraction", 0.5, 1.0),
    Range("ranker.regularization", 0.1, 100.0, log=True),
    Range("ranker.truncation", 5, 60, whole=True),
)
"""Refits the ranker only, on matrices that are there already."""

MODELS = (
    Range("collaborative.embedding_dim", 16, 192, log=True, whole=True),
    Range("collaborative.regularization", 0.002, 1.0, log=True),
    Range("collaborative.confidence", 1.0, 60.0, log=True),
    Range("collaborative.neighbours", 50, 500, log=True, whole=True),
    Range("transitions.steps", 1, 8, whole=True),
    Range("transitions.backward", 0.0, 1.0),
    Range("transitions.gap_half_life_days", 1.0, 720.0, log=True),
    Range("transitions.damping", 0.0, 1.0),
    Range("popularity.half_life_days", 1.0, 180.0, log=True),
    Range("sequence.learning_rate", 5e-4, 5e-3, log=True),
    Range("sequence.dropout", 0.0, 0.5),
    Range("head.learning_rate", 5e-4, 1e-2, log=True),
    Range("head.dropout", 0.0, 0.4),
)
"""Refits every model below the ranker and builds the matrices again."""

RETRIEVAL = (
    Range("retrieval.als", 10, 150, whole=True),
    Range("retrieval.item_item", 10, 150, whole=True),
    Range("retrieval.transition", 10, 150, whole=True),
    Range("retrieval.sequence", 10, 150, whole=True),
    Range("retrieval.text", 10, 150, whole=True),
    Range("retrieval.popular", 5, 60, whole=True),
    Range("retrieval.half_life_days", 7.0, 1000.0, log=True),
    Range("retrieval.position_decay", 0.5, 1.0),
)
"""Likewise; left out for slates, whose candidates are given."""


def space_of(config: Config, protocol: Protocol) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
    """The ranges of the ranker and of the models below it, each widened to hold the value of `config`."""
    models = MODELS if protocol == "slate" else MODELS + RETRIEVAL
    values = parameters_of(config, RANKER + models)
    ranker, below = (tuple(r.around(values[r.key]) for r in part) for part in (RANKER, models))
    return ranker, below


def parameters_of(config: Config, ranges: tuple[Range, ...]) -> dict[str, float | int]:
    """The values that `config` has for these ranges."""
    found = {}
    for each in ranges:
        section, key = each.key.split(".")
        found[each.key] = getattr(getattr(config, section), key)
    return found


def with_parameters(config: Config, parameters: Parameters) -> Config:
    """`config` with these values, floats to four significant digits, as they are written down."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in parameters.items():
        section, key = name.split(".")
        kept = getattr(getattr(config, section), key) == value or isinstance(value, int)
        sections.setdefault(section, {})[key] = value if kept else float(f"{value:.4g}")
    changed = {name: replace(getattr(config, name), **values) for name, values in sections.items()}
    return replace(config, **changed)


def study_name(
    train: Dataset, protocol: Protocol, config: Config, space: tuple[Range, ...], windows: WindowConfig
) -> str:
    """Protocol and digests of what is learned from and of what is searched: other data, another study."""
    events, slates, catalogue = train.events, train.slates, train.catalogue
    log = hashlib.sha256(train.name.encode())
    columns = [events.user_index, events.item_index, events.type_index, events.timestamp, events.value]
    if slates is not None:
        columns += [slates.user_index, slates.timestamp, slates.offsets, slates.item_index, slates.clicked]
    for column in columns:
        log.update(np.ascontiguousarray(column).tobytes())
    for texts in (
        catalogue.ids.take(range(len(catalogue))).to_list(),
        catalogue.title,
        catalogue.description,
    ):
        log.update(json.dumps(texts).encode())
    settings = [config.flat(), [asdict(each) for each in space], asdict(windows)]
    searched = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    return f"{protocol}-{log.hexdigest()[:12]}-{searched.hexdigest()[:12]}"
