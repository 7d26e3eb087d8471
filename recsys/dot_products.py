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


@njit(cache=True, nogil=True, fastmath=REORDER, error_model="numpy")
def dots_of_two(
    one: Float32, other: Float32, rows: Float32, count: int, of_one: Float32, of_other: Float32
) -> None:
    """`dots` of two vectors, which loads each row once for both; the two may be the same."""
    for j in range(0, count, 4):
        a, b, c, d = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
        e, f, g, h = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
        row_a, row_b, row_c, row_d = rows[j], rows[j + 1], rows[j + 2], rows[j + 3]
        for i in range(len(one)):
            x, y = one[i], other[i]
            in_a, in_b, in_c, in_d = row_a[i], row_b[i], row_c[i], row_d[i]
            a += x * in_a
            b += x * in_b
            c += x * in_c
            d += x * in_d
            e += y * in_a
            f += y * in_b
            g += y * in_c
            h += y * in_d
        of_one[j], of_one[j + 1], of_one[j + 2], of_one[j + 3] = a, b, c, d
        of_other[j], of_other[j + 1], of_other[j + 2], of_other[j + 3] = e, f, g, h
