"""What a ranking is worth: metrics per user or per slate first, their means and intervals after.

Nothing here knows a model, a split or a file. A unit (user, slate) whose metric is undefined is NaN,
and leaving it out of a mean, and counting it, is the caller's business (`mean_interval` leaves it out).
"""

from recsys.metrics.intervals import Interval, mean_interval, paired_interval
from recsys.metrics.slate import slate_metrics
from recsys.metrics.topk import topk_metrics

__all__ = ["Interval", "mean_interval", "paired_interval", "slate_metrics", "topk_metrics"]
