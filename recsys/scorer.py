"""From ids to scores: a model over a state, for callers that name users and items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from recsys.bundle import Bundle
from recsys.dataset import Ids
from recsys.events import Float64, Int32, lengths_to_offsets
from recsys.golden import check_golden
from recsys.model import Model
from recsys.recommender import FeatureBuilder, State
from recsys.requests import Requests, source_mask


class Scorer:
    """Scores rows of (request, user, item) against the other rows of their request."""

    def __init__(self, model: Model, state: State, as_of: float) -> None:
        """Take a model, the state to read and the moment that counts where a row gives none."""
        self.model = model
        self.state = state
        self.as_of = as_of

    def score(
        self,
        request_ids: Sequence[str],
        user_ids: Sequence[str | int],
        item_ids: Sequence[str | int],
        sources: Sequence[str],
        timestamps: Sequence[float] | Float64,
    ) -> Float64:
        """Scores (rows,) in the order of the rows; higher is better, comparable within a request only.

        Args:
            request_ids: rows of one id form one request; its first row names its user and its moment.
            user_ids: unknown users are ranked by what is known of the items.
            item_ids: unknown items are scored without text, counters and neighbours.
            sources: retrievers of each candidate joined by "+", "" for none.
            timestamps: epoch seconds; NaN is the bundle's `as_of`.
        """
        if not len(request_ids):
            return np.zeros(0)
        _, first, owner = np.unique(np.asarray(request_ids), return_index=True, return_inverse=True)
        order = np.argsort(owner, kind="stable")
        moment = np.asarray(timestamps, np.float64)[first]
        requests = Requests.of(
            self._rows(self.model.users, user_ids)[first],
            np.where(np.isnan(moment), self.as_of, moment),
            np.full(len(first), np.iinfo(np.int64).max),
            (
                lengths_to_offsets(np.bincount(owner)),
                self._rows(self.model.catalogue.ids, item_ids)[order],
            ),
            source_mask(sources)[order],
        )
        scores = np.empty(len(order))
        scores[order] = self.model.recommender.score(requests, self.state)
        return scores

    @staticmethod
    def _rows(ids: Ids, values: Sequence[str | int]) -> Int32:
        return ids.index(pl.Series(list(values)))


def load_scorer(bundle: Bundle, state: State, features: FeatureBuilder) -> Scorer:
    """Build the scorer of a verified bundle and hold it against the bundle's golden scores.

    Args:
        bundle: the verified bytes.
        state: the bundle's live state.
        features: the features that the state was kept for.

    Raises:
        RecsysError: `feature_mismatch`, `golden_mismatch`, `non_finite_scores`, or what a part's
            `from_files` raises.
    """
    scorer = Scorer(Model.from_files(bundle.files, features), state, bundle.manifest.as_of)
    golden = bundle.golden()
    if golden is not None:
        actual = scorer.score(golden.request, golden.user_id, golden.item_id, golden.source, golden.timestamp)
        check_golden(golden.score, actual)
    return scorer
