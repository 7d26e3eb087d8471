"""The kernels of decayed counters over a log: build, find what was known, and read.

Replay reads by `read_states` what `accumulate` made, the live state by `read_cells` what `apply_cells` made
(`live_cells`): the same arithmetic in the same order (state · e^(-Δt · rate) + weight, float64), so both give
the same bits.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from recsys.events import Float32, Float64, Int64
from recsys.transcendental import exp64

_DAY_S = 86_400.0


@njit(cache=True, nogil=True)
def group_by_slot(slots: Int64, size: int) -> tuple[Int64, Int64]:
    """Counting sort: (size + 1,) offsets, and the rows with slot >= 0 ordered by (slot, row)."""
    offsets = np.zeros(size + 1, np.int64)
    for slot in slots:
        if slot >= 0:
            offsets[slot + 1] += 1
    for slot in range(size):
        offsets[slot + 1] += offsets[slot]
    place = offsets[:-1].copy()
    order = np.empty(offsets[size], np.int64)
    for row in range(len(slots)):
        if slots[row] >= 0:
            order[place[slots[row]]] = row
            place[slots[row]] += 1
    return offsets, order


@njit(cache=True, nogil=True, inline="always")
def decayed(amount: float, elapsed: float, rate: float) -> float:
    """The amount · e^(-elapsed · rate), the amount itself where nothing has elapsed or decays."""
    return amount * exp64(-elapsed * rate)


@njit(cache=True, nogil=True)
def accumulate(offsets: Int64, timestamp: Float64, weight: Float64, rates: Float64) -> Float64:
    """(rows, rates) state of the slot just after each of its rows; rows grouped by slot, in time order."""
    state = np.empty((len(timestamp), len(rates)), np.float64)
    for slot in range(len(offsets) - 1):
        for row in range(offsets[slot], offsets[slot + 1]):
            for h in range(len(rates)):
                if row == offsets[slot]:
                    state[row, h] = weight[row]
                else:
                    elapsed = timestamp[row] - timestamp[row - 1]
                    state[row, h] = decayed(state[row - 1, h], elapsed, rates[h]) + weight[row]
    return state


@njit(cache=True, nogil=True)
def last_known(
    offsets: Int64, sequence: Int64, slots: Int64, requests: Int64, limits: Int64
) -> tuple[Int64, Int64]:
    """The last row with sequence < limit, and the first row, of each candidate's slot.

    Args:
        offsets: (size + 1,) rows of each slot.
        sequence: (log rows,) ascending within a slot.
        slots: (rows,) slot of each candidate row, negative ones are passed through.
        requests: (r + 1,) candidate rows of each request.
        limits: (r,) sequence numbers that each request may not reach.

    Returns:
        Two arrays (rows,): row numbers, -2 where nothing is known yet, -1 where the slot is -1.
    """
    last = np.empty(len(slots), np.int64)
    first = np.empty(len(slots), np.int64)
    seen = np.full(len(offsets), -1, np.int64)
    for request in range(len(requests) - 1):
        begin, limit = requests[request], limits[request]
        for row in range(begin, requests[request + 1]):
            slot = slots[row]
            if slot < 0:
                last[row] = first[row] = slot
                continue
            if seen[slot] >= begin:
                last[row], first[row] = last[seen[slot]], first[seen[slot]]
                continue
            seen[slot] = row
            low, high = offsets[slot], offsets[slot + 1]
            if high > low and sequence[high - 1] < limit:
                low = high
            while low < high:
                middle = (low + high) // 2
                if sequence[middle] < limit:
                    low = middle + 1
                else:
                    high = middle
            known = low > offsets[slot]
            last[row] = low - 1 if known else -2
            first[row] = offsets[slot] if known else -2
    return last, first


@njit(cache=True, nogil=True)
def read_states(
    last: tuple[Int64, Float64, Float64],
    first: tuple[Int64, Float64],
    requests: tuple[Int64, Float64],
    rates: Float64,
    columns: Int64,
    out: Float32,
) -> None:
    """Write each row's states, decayed to its request's moment, into their columns of `out`.

    Args:
        last: per candidate row a place, -1 or -2; and by place the moment and the sums (places, rates).
        first: the same for the first moment.
        requests: (r + 1,) candidate rows and (r,) moments.
        rates: (h,) decay a second.
        columns: (h + 2,) where the sums, the days since last and the days since first go; -1 nowhere.
        out: (states, rows) float32.
    """
    place, moment_last, state = last
    place_first, moment_first = first
    offsets, moments = requests
    width = len(rates)
    for request in range(len(offsets) - 1):
        now = moments[request]
        for row in range(offsets[request], offsets[request + 1]):
            at = place[row]
            if row > offsets[request] and at == place[row - 1]:
                for column in columns:
                    if column >= 0:
                        out[column, row] = out[column, row - 1]
                continue
            touched = at >= 0 and not math.isnan(moment_last[at])
            nothing = math.nan if at == -1 else 0.0
            elapsed = max(now - moment_last[at], 0.0) if touched else 0.0
            for h in range(width):
                out[columns[h], row] = decayed(state[at, h], elapsed, rates[h]) if touched else nothing
            if columns[width] >= 0:
                out[columns[width], row] = elapsed / _DAY_S if touched else math.nan
            if columns[width + 1] >= 0:
                since = max(now - moment_first[place_first[row]], 0.0) if touched else math.nan
                out[columns[width + 1], row] = since / _DAY_S
