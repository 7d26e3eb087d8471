"""The scorer of a bundle, over the live state that the bundle carries."""

from __future__ import annotations

from features.live import LiveState
from recsys.bundle import Bundle
from recsys.scorer import Scorer
from recsys.scorer import load_scorer as scorer_over


def load_scorer(bundle: Bundle) -> Scorer:
    """Build the scorer of a verified bundle and hold it against the bundle's golden scores.

    Raises:
        RecsysError: `feature_mismatch`, `golden_mismatch`, `non_finite_scores`, or what a part's
            `from_files` raises.
    """
    state = LiveState.from_files(bundle.files)
    return scorer_over(bundle, state, state.features)
