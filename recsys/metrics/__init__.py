"""What a ranking is worth: metrics per user or per slate first, their means and intervals after.

Nothing here knows a model, a split or a file. A unit (user, slate) whose metric is undefined is NaN,
and leaving it out of a mean, and counting it, is the caller's business (`mean_interval` leaves it out).
"""

from recsys.metrics.beyond import category_entropy, coverage, intra_list_similarity, novelty
from recsys.metrics.calibration import Reliability, expected_calibration_error, reliability
from recsys.metrics.intervals import Interval, mean_interval, paired_interval
from recsys.metrics.slate import slate_metrics
from recsys.metrics.topk import topk_metrics

__all__ = [
    "Interval",
    "Reliability",
    "category_entropy",
    "coverage",
    "expected_calibration_error",
    "intra_list_similarity",
    "mean_interval",
    "novelty",
    "paired_interval",
    "reliability",
    "slate_metrics",
    "topk_metrics",
]
