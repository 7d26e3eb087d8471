"""What the sequence model is trained on: stretches of histories, and which of them make up a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys.events import Histories, Int64
from recsys.sequence import SequenceConfig

NO_ITEM = -1


@dataclass(frozen=True)
class Windows:
    """Stretches of histories: window w is item_index[start[w]:stop[w]], two events or more each."""

    item_index: Int64
    start: Int64
    stop: Int64

    def batch(self, rows: Int64) -> tuple[Int64, Int64]:
        """Padded (windows, width) items read and items to come next, NO_ITEM past the end of a window."""
        lengths = self.stop[rows] - self.start[rows] - 1
        place = np.arange(lengths.max())
        inside = place < lengths[:, None]
        index = np.where(inside, self.start[rows][:, None] + place, 0)
        read = np.where(inside, self.item_index[index], NO_ITEM)
        following = np.where(inside, self.item_index[np.where(inside, index + 1, 0)], NO_ITEM)
        return read, following


def training_windows(histories: Histories, config: SequenceConfig) -> Windows:
    """Every history cut from its end into windows of `history_limit` predictions; neighbours share an event.

    Windows are in order of their newest event; with more than `events_max` events the newest remain.
    """
    starts, stops = [], []
    first, stop = histories.offsets[:-1], histories.offsets[1:]
    while True:
        some = stop - first >= 2
        if not some.any():
            break
        first, stop = first[some], stop[some]
        begin = np.maximum(first, stop - config.history_limit - 1)
        starts.append(begin)
        stops.append(stop)
        stop = begin + 1
    if not starts:
        nothing = np.zeros(0, np.int64)
        return Windows(histories.item_index.astype(np.int64), nothing, nothing)
    start, stop = np.concatenate(starts), np.concatenate(stops)
    newest = np.argsort(histories.timestamp[stop - 1], kind="stable")
    start, stop = start[newest], stop[newest]
    kept = np.cumsum((stop - start)[::-1])[::-1] <= config.events_max
    return Windows(histories.item_index.astype(np.int64), start[kept], stop[kept])


def steps_of(lengths: Int64, config: SequenceConfig) -> list[int]:
    """Number of the first window of each step, for windows of these lengths in their order.

    A step holds `batch_size` windows at most, and `batch_events` events with the padding, but one window.
    """
    first, longest = [0], 0
    for place, length in enumerate(lengths.tolist()):
        longest = max(longest, length - 1)
        count = place - first[-1] + 1
        if count > 1 and (count > config.batch_size or count * longest > config.batch_events):
            first.append(place)
            longest = length - 1
    return first
