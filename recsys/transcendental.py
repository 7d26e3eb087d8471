"""Functions that numba can put into vectorised loops: the library's own are called once a number."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, inline="always")
def exp32(x: Any) -> Any:
    """The exponential of a float32, within two units of the last place, without a call.

    2 ** n times a polynomial of the rest (coefficients of Cephes' expf, Moshier 1989).
    """
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return (p * (r * r) + r + np.float32(1.0)) * power


@njit(cache=True, nogil=True, inline="always", error_model="numpy")
def exp64(x: Any) -> Any:
    """The exponential of a float64 up to 709, within two units of the last place, without a call; 1 for 0.

    2 ** n times the series of the rest, which is at most log 2 / 2. Adding 1.5 * 2 ** 52 rounds to a whole
    number n, whose bits then stand lowest. Below -708 it is what it is there, about 3e-308.
    """
    x = -708.0 if x < -708.0 else x
    shifted = x * 1.4426950408889634 + 6755399441055744.0
    n = shifted - 6755399441055744.0
    r = x - n * 6.93145751953125e-1 - n * 1.42860682030941723212e-6
    p = r * (1.0 / 479001600.0) + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = p * r + 1.0
    exponent = (np.float64(shifted).view(np.int64) << np.int64(52)) + np.int64(0x3FF0000000000000)
    power = np.int64(exponent).view(np.float64)
    return (p * r + 1.0) * power


@njit(cache=True, nogil=True, inline="always", error_model="numpy")
def log1p64(x: Any) -> Any:
    """The logarithm of 1 + x for a finite float64 x > -1, within 1e-13 of it; NaN for NaN.

    That of u = 1 + x, rounded, is 2 artanh((m - 1) / (m + 1)) + n log 2, where u = m 2 ** n with m around 1;
    what the rounding lost is put back to first order.
    """
    u = 1.0 + x
    bits = np.float64(u).view(np.int64) - np.int64(0x3FE6A09E667F3BCD)
    n = np.float64(bits >> np.int64(52))
    m = np.int64((bits & np.int64(0xFFFFFFFFFFFFF)) + np.int64(0x3FE6A09E667F3BCD)).view(np.float64)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = z * (1.0 / 17.0) + 1.0 / 15.0
    p = p * z + 1.0 / 13.0
    p = p * z + 1.0 / 11.0
    p = p * z + 1.0 / 9.0
    p = p * z + 1.0 / 7.0
    p = p * z + 1.0 / 5.0
    p = p * z + 1.0 / 3.0
    p = p * z + 1.0
    return n * 0.6931471805599453 + 2.0 * s * p + (x - (u - 1.0)) / u
