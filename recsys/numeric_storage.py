"""Tables of float32 numbers in fewer bytes: rounded before they are scored with, written without a loss.

`rounded` moves a table to numbers that a narrower kind can hold; `to_arrays` writes every table in the
narrowest kind that gives back each of its bits. So what is kept is always what was scored, whoever
rounded it, and cutting or reordering rows does not undo a rounding.

An int8 row is its scale times whole numbers from -127 to 127, to the nearest. The scale is about the
largest magnitude / 127, in so few bits that scale times any of those numbers is exact in float32:
rounding again changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from recsys.array_files import read_arrays
from recsys.errors import RecsysError
from recsys.events import Float32

Storage = Literal["float32", "float16", "int8"]
Arrays = Mapping[str, NDArray[Any]]

_SCALE_BITS = 17  # and 7 of a number up to 127 are the 24 of float32
_LEAST = 2.0**-119  # a row of smaller numbers would have a subnormal scale
_BLOCK_ROWS = 1 << 16


def rounded(matrix: Float32, storage: Storage) -> Float32:
    """The nearest numbers that `storage` can hold, as float32 of the same shape; zero rows stay zero.

    An int8 row moves by half its scale at most, and becomes zero where every magnitude is below 2**-119;
    a float16 number moves by 2**-11 of itself, and by 2**-25 below 6e-5.

    Args:
        matrix: finite; (rows, dim) for int8, any shape otherwise.
        storage: the kind; float32 gives `matrix` itself.

    Raises:
        ValueError: a number is not finite or too large for the kind, int8 of another shape, or an unknown
            kind.
    """
    if storage == "float32":
        return matrix
    if storage == "float16":
        with np.errstate(over="ignore"):
            found = matrix.astype(np.float16).astype(np.float32)
    elif storage == "int8":
        found = _decoded(*_coded(matrix))
    else:
        raise ValueError(f"unknown storage {storage}: one of float32, float16, int8")
    if not np.isfinite(found).all():
        raise ValueError(f"a number is not finite or too large for {storage}")
    return found


def storage_of(matrix: Float32) -> Storage:
    """The narrowest kind that gives back every bit of `matrix`; int8 for (rows, dim) only."""
    kinds: tuple[Storage, ...] = ("int8", "float16") if matrix.ndim == 2 else ("float16",)
    return next((kind for kind in kinds if _unchanged(matrix, kind)), "float32")


def to_arrays(matrix: Float32, name: str) -> dict[str, NDArray[Any]]:
    """`matrix` in its narrowest kind: `NAME`, with `NAME_scale` (rows,) float32 beside int8."""
    storage = storage_of(matrix)
    if storage == "int8":
        codes, scale = _coded(matrix)
        return {name: codes, f"{name}_scale": scale}
    return {name: np.ascontiguousarray(matrix, np.dtype(storage))}


def from_arrays(arrays: Arrays, name: str) -> Float32:
    """Inverse of `to_arrays`, to the bit: float32, whatever the kind.

    Raises:
        RecsysError: `table_invalid` where the table is missing, of another type, or not of its scale's shape.
    """
    table, scale = arrays.get(name), arrays.get(f"{name}_scale")
    if table is None:
        raise _invalid("is missing", name)
    if (table.dtype == np.int8) != (scale is not None):
        raise _invalid("must have a scale beside int8, and only there", name)
    if scale is not None:
        if table.ndim != 2 or scale.shape != table.shape[:1] or scale.dtype != np.float32:
            raise _invalid(f"of shape {table.shape} cannot have a scale of shape {scale.shape}", name)
        if not (np.isfinite(scale) & (scale >= 0)).all():
            raise _invalid("has a scale that is negative or not finite", name)
        return _decoded(table, scale)
    if table.dtype not in (np.float32, np.float16):
        raise _invalid(f"cannot be of type {table.dtype}", name)
    return table.astype(np.float32, copy=False)


def load_arrays(files: Mapping[str, bytes], file: str, code: str) -> dict[str, NDArray[Any]]:
    """The arrays of one safetensors file; see `array_files.read_arrays`.

    Raises:
        RecsysError: `code` where the file is missing or damaged.
    """
    try:
        return read_arrays(files, file)
    except (KeyError, SafetensorError) as error:
        raise RecsysError(code, f"the file does not load: {error}", file) from error


def _coded(matrix: Float32) -> tuple[NDArray[np.int8], Float32]:
    """Whole numbers (rows, dim) and scales (rows,); NaN and infinity raise ValueError."""
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise ValueError("int8 holds finite numbers of shape (rows, dim)")
    largest = np.abs(matrix).max(axis=1, initial=0.0)
    fraction, exponent = np.frexp(largest / np.float32(127))
    bits = np.float32(2**_SCALE_BITS)
    scale = np.where(largest < _LEAST, np.float32(0), np.ldexp(np.rint(fraction * bits) / bits, exponent))
    divisor = np.where(scale > 0, scale, np.float32(np.inf))[:, None]
    return np.rint(matrix / divisor).astype(np.int8), np.asarray(scale, np.float32)


def _decoded(codes: NDArray[np.int8], scale: Float32) -> Float32:
    return codes.astype(np.float32) * scale[:, None]


def _unchanged(matrix: Float32, storage: Storage) -> bool:
    """Whether rounding leaves every bit, the sign of zero too; the first rows that differ end the search."""
    for start in range(0, len(matrix), _BLOCK_ROWS):
        block = np.ascontiguousarray(matrix[start : start + _BLOCK_ROWS])
        try:
            found = rounded(block, storage)
        except ValueError:
            return False
        if not np.array_equal(found.view(np.uint32), block.view(np.uint32)):
            return False
    return True


def _invalid(what: str, name: str) -> RecsysError:
    return RecsysError("table_invalid", f"the table {what}:", name)
