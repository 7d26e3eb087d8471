"""Random numbers that are functions of what they are for, so nothing depends on order or chunking.

A draw is a hash of (seed, stream name, keys): user 17's tastes are the same numbers whether one user
or a million are simulated, in whatever chunks, and need no memory. The mixer is SplitMix64 (Steele,
Lea & Flood 2014), applied once a key.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys.events import Float64, Int64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


class Draws:
    """Draws of one seed. Every method broadcasts its integer `keys` and returns that shape."""

    def __init__(self, seed: int) -> None:
        """Take any integer that fits 64 bits."""
        self.seed = seed

    def bits(self, stream: str, *keys: ArrayLike) -> NDArray[np.uint64]:
        """Uniform 64-bit numbers for these keys in this stream."""
        state = np.asarray((self.seed & (2**64 - 1)) ^ (zlib.crc32(stream.encode()) << 32), np.uint64)
        state = _mixed(state)
        for key in keys:
            with np.errstate(over="ignore"):
                state = _mixed(state + np.asarray(key).astype(np.uint64))
        return state

    def uniform(self, stream: str, *keys: ArrayLike) -> Float64:
        """Uniform numbers in the open interval (0, 1)."""
        return ((self.bits(stream, *keys) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52

    def normal(self, stream: str, *keys: ArrayLike) -> Float64:
        """Standard normal numbers."""
        from scipy.special import ndtri  # a server that draws uniform numbers alone starts without it

        return np.asarray(ndtri(self.uniform(stream, *keys)), np.float64)

    def integers(self, high: int, stream: str, *keys: ArrayLike) -> Int64:
        """Uniform integers in 0..high-1."""
        return (self.uniform(stream, *keys) * high).astype(np.int64)


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One SplitMix64 step, elementwise."""
    with np.errstate(over="ignore"):
        z = np.asarray(state + _GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * _FIRST
        z = (z ^ (z >> np.uint64(27))) * _SECOND
        return np.asarray(z ^ (z >> np.uint64(31)))
