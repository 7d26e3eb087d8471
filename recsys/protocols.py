"""Splits: what may be fitted on, who is asked, when, and what they really did next.

`time` cuts the log at one moment; `last` hides each user's last event; `slate` hides the last calendar
day (UTC) of impressions. A split of a split's `train` part is the stacking window of the ranker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from recsys.dataset import Dataset
from recsys.errors import RecsysError
from recsys.events import Events, Int32, Int64, Slates, concatenated_ranges, lengths_to_offsets
from recsys.requests import DAY_S, Requests

Protocol = Literal["time", "last", "slate"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


@dataclass(frozen=True)
class Split:
    """One past and one future.

    Attributes:
        train: what models may be fitted on.
        visible: the log that causal reads walk over; `requests.known` keeps each read in its past.
        requests: who is asked and when. With slates they carry the shown items and click labels;
            otherwise they have no candidates yet.
        positives: (offsets, item_index): what each request's user did next; for slates the clicks.
    """

    train: Dataset
    visible: Dataset
    requests: Requests
    positives: tuple[Int64, Int32]


def split(data: Dataset, protocol: Protocol, *, share: float = 0.1) -> Split:
    """Split by `protocol`; `share` of the target events is the future of `time`.

    Raises:
        RecsysError: `nothing_to_test` when the log is too small for the protocol.
    """
    if protocol == "time":
        return split_at(data, time_cut(data, share))
    if protocol == "last":
        return split_last(data)
    if data.slates is None:
        raise RecsysError("nothing_to_test", "protocol slate needs an impressions table", data.name)
    return slates_from(data, last_day(data.slates))


def last_day(slates: Slates) -> float:
    """The midnight (UTC) before the last slate."""
    return float(np.floor(slates.timestamp[-1] / DAY_S) * DAY_S)


def time_cut(data: Dataset, share: float) -> float:
    """The moment from which on the newest `share` of the target events lies."""
    moments = data.events.timestamp[data.is_target[data.events.type_index]]
    if len(moments) < 10:
        raise RecsysError("nothing_to_test", f"only {len(moments)} events: at least 10 are needed", data.name)
    return float(moments[int(len(moments) * (1.0 - share))])


def split_at(data: Dataset, as_of: float, until: float = np.inf) -> Split:
    """Ask every user who does something new in [as_of, until), at `as_of`, for all of it.

    Raises:
        RecsysError: `nothing_to_test` where nobody does, or nothing lies before the cut.
    """
    train = data.before(as_of)
    if not len(train.events):
        raise RecsysError(
            "nothing_to_test", "no event lies before the cut: one moment cannot be split", data.name
        )
    requests, positives = _asked_for_new(data, train, as_of, until)
    if not len(requests):
        raise RecsysError("nothing_to_test", "no user does anything new after the cut", data.name)
    return Split(train, train, requests, positives)


def _asked_for_new(
    data: Dataset, train: Dataset, as_of: float, until: float
) -> tuple[Requests, tuple[Int64, Int32]]:
    """Users with target events in [as_of, until) on items that they have nothing of in `train`; those."""
    events = data.events
    rows = np.flatnonzero(
        (events.timestamp >= as_of) & (events.timestamp < until) & data.is_target[events.type_index]
    )
    items = len(data.catalogue)
    keys = np.unique(events.user_index[rows].astype(np.int64) * items + events.item_index[rows])
    old = train.events.take(train.is_target[train.events.type_index])
    keys = np.setdiff1d(keys, old.user_index.astype(np.int64) * items + old.item_index)
    users, counts = np.unique(keys // items, return_counts=True)
    positives = (lengths_to_offsets(counts), (keys % items).astype(np.int32))
    return _asked_at(users, as_of, len(train.events)), positives


def split_rolling(data: Dataset, moments: Sequence[float]) -> Split:
    """Ask as `split_at` does at each of these moments, ascending, for all that follows to the end of `data`.

    Models may be fitted on what lies before the first moment; a user who does something new after
    several moments is asked at each, with the history of then.

    Raises:
        RecsysError: `nothing_to_test` where nobody does after the first, or nothing lies before it.
    """
    first = split_at(data, moments[0])
    later = [_asked_for_new(data, data.before(moment), moment, np.inf) for moment in moments[1:]]
    windows = [(first.requests, first.positives), *later]
    lengths = np.concatenate([np.diff(offsets) for _, (offsets, _) in windows])
    items = np.concatenate([items for _, (_, items) in windows])
    requests = Requests.concatenate([asked for asked, _ in windows])
    return Split(first.train, data, requests, (lengths_to_offsets(lengths), items))


def slates_from(data: Dataset, as_of: float) -> Split:
    """Ask for the order of every slate shown at or after `as_of`, each at its own moment."""
    slates = data.slates
    if slates is None or not (slates.timestamp >= as_of).any() or not (slates.timestamp < as_of).any():
        raise RecsysError("nothing_to_test", "impressions are needed on both sides of the cut", data.name)
    chosen = slates.take(np.flatnonzero(slates.timestamp >= as_of))
    requests = Requests.from_slates(chosen, data.events)
    clicked = np.flatnonzero(chosen.clicked)
    counts = np.bincount(requests.request_of_row()[clicked], minlength=len(requests))
    positives = (lengths_to_offsets(counts), chosen.item_index[clicked])
    return Split(data.before(as_of), data, requests, positives)


def split_last(data: Dataset, *, most: int = 1, one_in: int = 1) -> Split:
    """Ask every user with three events or more for the newest ones, each at its own moment.

    Of n events one in `one_in` is asked for, `most` at most and one at least. Models may be fitted on what
    none of them is in; what a user did before the moment of a request may be read for it.

    Raises:
        RecsysError: `nothing_to_test` where no user has three events.
    """
    histories = data.histories
    lengths = np.diff(histories.offsets)
    users = np.flatnonzero(lengths >= 3)
    if not len(users):
        raise RecsysError("nothing_to_test", "protocol last needs users with three events", data.name)
    stop = histories.offsets[users + 1]
    asked = np.clip(lengths[users] // one_in, 1, np.minimum(most, lengths[users] - 2))
    last, users = concatenated_ranges(stop - asked, stop), np.repeat(users, asked)
    hidden = histories.sequence[last]
    keep = np.ones(len(data.events), np.bool_)
    keep[hidden] = False
    slates = data.slates
    if slates is not None:
        slates = _never_showing(slates, users, histories.item_index[last], len(data.catalogue))
    train = data.with_log(data.events.take(keep), slates)
    requests = Requests.of(
        users.astype(np.int32),
        histories.timestamp[last],
        hidden,
        (np.zeros(len(hidden) + 1, np.int64), np.zeros(0, np.int32)),
    )
    positives = (np.arange(len(hidden) + 1, dtype=np.int64), histories.item_index[last])
    return Split(train, data, requests, positives)


def _never_showing(slates: Slates, users: Int64, items: Int32, catalogue: int) -> Slates:
    """The slates that do not show its user the hidden item: their clicks would give it away."""
    owner = np.repeat(np.arange(len(slates), dtype=np.int64), np.diff(slates.offsets))
    shown = slates.user_index[owner].astype(np.int64) * catalogue + slates.item_index
    telling = np.isin(shown, users * catalogue + items) & (slates.item_index >= 0)
    return slates.take(np.setdiff1d(np.arange(len(slates)), owner[telling]))


def _asked_at(users: Int64, as_of: float, known: int) -> Requests:
    count = len(users)
    return Requests.of(
        users.astype(np.int32),
        np.full(count, as_of),
        np.full(count, known, np.int64),
        (np.zeros(count + 1, np.int64), np.zeros(0, np.int32)),
    )


def everyone_at(users: Int32, as_of: float, events: Events) -> Requests:
    """One request a user at `as_of`, knowing what came strictly before it."""
    return _asked_at(users.astype(np.int64), as_of, int(events.known_at(as_of)))


def with_labels(candidates: Requests, positives: tuple[Int64, Int32], items: int) -> Requests:
    """Label each candidate row 1 where the request's positives hold the item, else 0."""
    offsets, item_index = positives
    owner = np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))
    wanted = owner * items + item_index
    rows = candidates.request_of_row() * items + candidates.item_index
    return candidates.labelled(np.isin(rows, wanted).astype(np.float32))


def with_both_classes(requests: Requests) -> Int64:
    """Numbers of the requests whose candidates hold a positive and a negative."""
    owner = requests.request_of_row()
    hits = np.bincount(owner, weights=requests.label > 0, minlength=len(requests))
    return np.flatnonzero((hits > 0) & (hits < requests.lengths))


def positives_of(positives: tuple[Int64, Int32], requests: Int64) -> tuple[Int64, Int32]:
    """The positives of these requests, in the given order."""
    offsets, item_index = positives
    rows = concatenated_ranges(offsets[requests], offsets[requests + 1])
    return lengths_to_offsets(np.diff(offsets)[requests]), item_index[rows]


def parse_protocol(text: str) -> Protocol:
    """Read a protocol name.

    Raises:
        RecsysError: `unknown_protocol` with the allowed names.
    """
    if text not in PROTOCOLS:
        raise RecsysError("unknown_protocol", f"use one of {', '.join(PROTOCOLS)}, not", text, exit_code=64)
    return text
