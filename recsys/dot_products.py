"""Dot products inside compiled loops, each the same to the bit whatever else is computed beside it."""

from __future__ import annotations

import numpy as np
from numba import njit

from recsys.events import Float32

REORDER = {"reassoc", "contract", "nsz"}
"""Sums may be vectorised: the order of adding is fixed when a kernel is compiled, not by its input."""

LANES = 4
"""Rows whose dot products with a vector are taken together."""


@njit(cache=True, nogil=True, fastmath=REORDER)
def dot(a: Float32, b: Float32) -> np.float32:
    """The dot product of two vectors of one length."""
    total = np.float32(0.0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@njit(cache=True, nogil=True, fastmath=REORDER, error_model="numpy")
def dots(vector: Float32, rows: Float32, count: int, out: Float32) -> None:
    """Write vector · rows[j] to out[j] for j < count; both have room up to a multiple of LANES."""
    for j in range(0, count, 4):
        a, b, c, d = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
        row_a, row_b, row_c, row_d = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
        for i in range(len(vector)):
            x = vector[i]
            a += x * row_a[i]
            b += x * row_b[i]
            c += x * row_c[i]
            d += x * row_d[i]
        out[j], out[j + 1], out[j + 2], out[j + 3] = a, b, c, d
