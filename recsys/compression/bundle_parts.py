"""Compression of what lies beside the text encoder in a bundle: rounded tables and fewer trees.

A part is named `part=value`, as in `factors=int8`. Numbers are rounded here, before anything is scored;
that the files of a rounded table are smaller is the business of `recsys.numeric_storage`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from recsys import numeric_storage
from recsys.numeric_storage import Storage
from recsys.recommender import Recommender
from recsys.text.embeddings import DIGEST_BYTES, ItemEmbeddings
from recsys.transitions import transitions_to_files

BUNDLE_PARTS: Mapping[str, tuple[str, ...]] = {
    "trees": (),
    "factors": ("float32", "float16", "int8"),
    "embeddings": ("float32", "float16", "int8"),
    "pairs": ("float32", "float16"),
}
"""Name of each part, to the values that it takes; none are listed for `trees`, a share above 0, up to 1."""


@dataclass(frozen=True)
class StorageConfig:
    """How much of its models a bundle keeps; the defaults keep everything.

    Attributes:
        factors: numbers of the ALS factors and of the sequence model's learned item rows.
        embeddings: numbers of the item text embeddings.
        pairs: numbers of item-to-item scores: item-item, EASE, transitions and co-visitation.
        trees: share of the ranker's trees that are kept, the first of them; one at least.
    """

    factors: Storage = "float32"
    embeddings: Storage = "float32"
    pairs: Literal["float32", "float16"] = "float32"
    trees: float = 1.0

    def __post_init__(self) -> None:
        """Refuse shares that are none."""
        if not 0.0 < self.trees <= 1.0:
            raise ValueError(f"trees must be a share above 0, up to 1, not {self.trees}")


def parse_parts(names: Sequence[str]) -> StorageConfig:
    """The settings that `part=value` names stand for; parts that are not named keep everything.

    Raises:
        ValueError: an unknown part or value, with those allowed, or a part that is named twice.
    """
    settings: dict[str, Any] = {}
    for name in names:
        part, _, value = name.partition("=")
        if part not in BUNDLE_PARTS:
            raise ValueError(f"unknown part {name}: one of {', '.join(BUNDLE_PARTS)}, as in factors=int8")
        if part in settings:
            raise ValueError(f"{part} is named twice")
        settings[part] = _share(value) if part == "trees" else value
        if part != "trees" and value not in BUNDLE_PARTS[part]:
            raise ValueError(f"unknown value in {name}: {part} is one of {', '.join(BUNDLE_PARTS[part])}")
    return StorageConfig(**settings)


def compress_parts(recommender: Recommender, names: Sequence[str]) -> Recommender:
    """The recommender with the named parts compressed; `recommender` is not changed.

    Raises:
        ValueError: what `parse_parts` refuses, or a number too large for its kind.
    """
    return stored_as(recommender, parse_parts(names))


def stored_as(recommender: Recommender, config: StorageConfig) -> Recommender:
    """The recommender that scores with what `config` keeps of it.

    A table of item embeddings beside it must be rounded alike (`ItemEmbeddings.rounded`). Without a ranker
    there are no trees to drop. Rounding twice changes nothing; a share of trees is taken each time.
    """
    retriever, ranker = recommender.retriever, recommender.ranker
    embeddings = numeric_storage.rounded(retriever.embeddings, config.embeddings)
    smaller = replace(
        retriever,
        collaborative=retriever.collaborative.rounded(factors=config.factors, pairs=config.pairs),
        transitions=retriever.transitions.rounded(config.pairs),
        covisitation=retriever.covisitation.rounded(config.pairs),
        sequence=replace(retriever.sequence.rounded(config.factors), embeddings=embeddings),
        embeddings=embeddings,
    )
    if ranker is not None and config.trees < 1.0:
        ranker = ranker.with_trees(max(1, round(config.trees * ranker.trees)))
    return replace(recommender, retriever=smaller, ranker=ranker)


def part_bytes(recommender: Recommender) -> dict[str, int]:
    """Bytes of each file that a bundle holds of the recommender, by name, the heaviest first.

    Items, users, the text encoder and the live state are not the recommender's, and not here.
    """
    retriever = recommender.retriever
    digests = np.zeros((len(retriever.embeddings), DIGEST_BYTES), np.uint8)
    files = {
        **ItemEmbeddings(retriever.embeddings, digests).to_files(),
        **retriever.collaborative.to_files(),
        **transitions_to_files(retriever.transitions),
        **retriever.covisitation.to_files(),
        **retriever.sequence.to_files(),
        **retriever.popularity.to_files(),
        **recommender.head.to_files(),
        **(recommender.ranker.to_files() if recommender.ranker else {}),
    }
    return {name: len(files[name]) for name in sorted(files, key=lambda name: (-len(files[name]), name))}


def _share(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"trees must be a share above 0, up to 1, not {value!r}") from None
