"""The whole of reranking: scored candidates in, lists out, always in the same order of steps.

Filter, then boost and bury, then diversity, then caps, then exploration. So a boosted item can still be
too like the one above it, a cap holds for what diversity chose, and exploration, which comes last so that its
probabilities are exact, keeps to the filters but not to the caps. The `score` of a list is the ranker's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from recsys.dataset import Catalogue
from recsys.events import Bool, Float32, Float64, Int32, Int64, lengths_to_offsets
from recsys.ranked import Ranked, top_ranked
from recsys.requests import Requests
from recsys.reranking.diversity import DiversityConfig, cut, diversified
from recsys.reranking.exploration import ExplorationConfig, explored
from recsys.reranking.rules import Rule, Rules, rule_of


@dataclass(frozen=True)
class RerankingConfig:
    """What is done to lists after ranking; by default nothing.

    Attributes:
        diversity: maximal marginal relevance.
        exploration: random places.
        rules: business rules.
    """

    diversity: DiversityConfig = field(default_factory=DiversityConfig)
    exploration: ExplorationConfig = field(default_factory=ExplorationConfig)
    rules: tuple[Rule, ...] = ()

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> RerankingConfig:
        """Inverse of `dataclasses.asdict`, through JSON; an empty document is the default."""
        return cls(
            DiversityConfig(**document.get("diversity", {})),
            ExplorationConfig(**document.get("exploration", {})),
            tuple(rule_of(dict(rule)) for rule in document.get("rules", ())),
        )

    @property
    def explores(self) -> bool:
        """Whether lists have random places, and so propensities."""
        return self.exploration.share > 0.0

    @property
    def diversifies(self) -> bool:
        """Whether lists are made more diverse."""
        return self.diversity.relevance_share < 1.0

    @property
    def is_off(self) -> bool:
        """Whether lists stay as the ranker orders them."""
        return not (self.explores or self.diversifies or self.rules)


class Reranker:
    """A configuration over one catalogue."""

    def __init__(self, config: RerankingConfig, catalogue: Catalogue, embeddings: Float32) -> None:
        """Check the rules.

        Args:
            config: what to do.
            catalogue: the items that candidates name.
            embeddings: (items, dim) of length 1, zeros where there is none.

        Raises:
            RecsysError: `rule_invalid` (exit 78).
        """
        self.config = config
        self._rules = Rules(config.rules, catalogue)
        self._embeddings = embeddings

    def rerank(self, requests: Requests, scores: Float64, k: int, rung: NDArray[np.int8]) -> Ranked:
        """At most k of each request's candidates.

        Args:
            requests: with candidates.
            scores: (rows,) the ranker's; a score that is not a number comes last.
            k: length of a list. Filters and caps can leave fewer.
            rung: (requests,) handed on.

        Returns:
            With everything off the same as `top_ranked`. `propensity` is set where exploration is on.
        """
        if self.config.is_off:
            return top_ranked(requests, scores, k, rung)
        relevance = relevance_of(requests, scores) + self._rules.shift(requests)
        order = _ordered(requests, scores, relevance, self._rules.kept(requests))
        lists = self._rules.capped(self._diversified(order, requests, relevance, k), requests.item_index, k)
        offsets, rows = cut(lists, k)
        propensity = None
        if self.config.explores:
            whole = list_first((offsets, rows), order, requests.rows)
            rows, propensity = explored(whole, np.diff(offsets), requests, self.config.exploration)
        return Ranked(
            offsets, requests.item_index[rows], scores[rows], requests.source[rows], rung, propensity
        )

    def _diversified(
        self, order: tuple[Int64, Int64], requests: Requests, relevance: Float64, k: int
    ) -> tuple[Int64, Int64]:
        """The candidates that caps choose from: as many as they may need."""
        config = self.config.diversity
        if not self.config.diversifies:
            return order
        pool = cut(order, max(config.pool, k))
        depth = max(config.pool, k) if self._rules.has_caps else k
        return diversified(
            pool, requests.item_index, relevance, self._embeddings, config.relevance_share, depth
        )


def relevance_of(requests: Requests, scores: Float64) -> Float64:
    """(rows,) scores of each request brought to 0..1 by its lowest and highest finite score.

    Min-max normalisation (Lee 1997, "Analyses of multiple evidence combination"): the order stays, so with
    nothing else to weigh the list does too. A request of one score has 0; scores that are not finite
    have the bound that they lie at, and NaN has -1.
    """
    owner = requests.request_of_row()
    finite = np.isfinite(scores)
    low, high = np.full(len(requests), np.inf), np.full(len(requests), -np.inf)
    np.minimum.at(low, owner[finite], scores[finite])
    np.maximum.at(high, owner[finite], scores[finite])
    low, high = np.where(low <= high, low, 0.0), np.where(low <= high, high, 0.0)
    span = np.where(high > low, high - low, 1.0)
    scaled = (np.clip(scores, low[owner], high[owner]) - low[owner]) / span[owner]
    return np.nan_to_num(scaled, nan=-1.0)


def list_first(
    lists: tuple[Int64, Int64], order: tuple[Int64, Int64], rows_in_all: int
) -> tuple[Int64, Int64]:
    """The rows of each request's list, then its other rows in their order."""
    offsets, rows = order
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    place = np.full(rows_in_all, rows_in_all, np.int64)
    place[lists[1]] = np.arange(len(lists[1]))
    return offsets, rows[np.lexsort((place[rows], owner))]


def _ordered(requests: Requests, scores: Float64, relevance: Float64, kept: Bool) -> tuple[Int64, Int64]:
    """(offsets, rows) of the kept candidates, most relevant first, then by score, then by item number."""
    rows = np.flatnonzero(kept)
    offsets = lengths_to_offsets(np.bincount(requests.request_of_row()[rows], minlength=len(requests)))
    best = -np.nan_to_num(scores, nan=-np.inf)
    _sort(offsets, rows, (requests.item_index, best, -relevance))
    return offsets, rows


@njit(cache=True, nogil=True)
def _sort(offsets: Int64, rows: Int64, keys: tuple[Int32, Float64, Float64]) -> None:
    """Sort the rows of each request in place by the last key, then the one before it, and so on."""
    for request in range(len(offsets) - 1):
        own = rows[offsets[request] : offsets[request + 1]]
        own[:] = own[np.argsort(keys[0][own], kind="mergesort")]
        own[:] = own[np.argsort(keys[1][own], kind="mergesort")]
        own[:] = own[np.argsort(keys[2][own], kind="mergesort")]
