"""Arrays of safetensors files, which lie where the file was read: no number of a large table is copied.

`Handover` is for a reader that wants a bundle's tables once. Nothing here opens a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

Bytes = NDArray[np.uint8]
Arrays = dict[str, NDArray[Any]]

_DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "F16": np.float16,
    "U32": np.uint32, "I32": np.int32, "F32": np.float32, "U64": np.uint64, "I64": np.int64,
    "F64": np.float64,
}  # fmt: skip
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # of the format


class Handover(Mapping[str, bytes]):
    """Verified files on their way to one reader, who takes the large ones away.

    What was taken is not here any more, so its memory goes with the last array that lies in it.
    """

    def __init__(self, files: Mapping[str, Bytes]) -> None:
        """Take the bytes of the files, which nobody else holds."""
        self._files = dict(files)

    def __getitem__(self, name: str) -> bytes:
        """A copy of a file that was not taken."""
        return self._files[name].tobytes()

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def take(self, name: str) -> Bytes:
        """The file itself, which may be written into; KeyError where it is not here."""
        return self._files.pop(name)


def read_arrays(files: Mapping[str, bytes], name: str) -> Arrays:
    """The arrays of one safetensors file, which may be written into; all of them keep all of its bytes alive.

    Args:
        files: bytes by name; the file is taken out of a `Handover`, and copied once from anything else.
        name: of the file.

    Raises:
        KeyError: it is not there.
        SafetensorError: it is damaged, or holds numbers of a type that numpy lacks.
    """
    data = (
        files.take(name) if isinstance(files, Handover) else np.frombuffer(bytearray(files[name]), np.uint8)
    )
    header, body = _parts(data)
    arrays: Arrays = {}
    end = 0
    for key, dtype, shape, offsets in sorted(map(_entry, header.items()), key=lambda entry: entry[3]):
        begin, size = end, math.prod(shape) * dtype.itemsize
        end = begin + size
        if offsets != (begin, end) or end > len(body):
            raise SafetensorError(f"{key[:80]!r} is not where and as long as it must be")
        arrays[key] = _array(body[begin:end], dtype, shape)
    if end != len(body):
        raise SafetensorError("bytes that belong to no array")
    return arrays


def _parts(data: Bytes) -> tuple[dict[str, Any], Bytes]:
    """What the header says of each array, and the bytes behind it."""
    length = int.from_bytes(data[:_LENGTH_BYTES].tobytes(), "little")
    if len(data) < _LENGTH_BYTES or length > min(_LONGEST_HEADER, len(data) - _LENGTH_BYTES):
        raise SafetensorError("the header is longer than the file")
    body = _LENGTH_BYTES + length
    try:
        header = json.loads(data[_LENGTH_BYTES:body].tobytes().decode())
    except (ValueError, RecursionError) as error:
        raise SafetensorError(f"the header is no JSON: {str(error)[:80]}") from None
    if not isinstance(header, dict):
        raise SafetensorError("the header is no JSON object")
    header.pop("__metadata__", None)
    return header, data[body:]


def _entry(item: tuple[str, Any]) -> tuple[str, np.dtype[Any], tuple[int, ...], tuple[int, int]]:
    """Name, type, shape and place of an array."""
    name, found = item
    try:
        dtype = np.dtype(_DTYPES[found["dtype"]])
        shape, (begin, end) = tuple(found["shape"]), found["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise SafetensorError(f"{name[:80]!r} is not described: {str(error)[:80]}") from None
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)) or len(shape) > 32:
        raise SafetensorError(f"{name[:80]!r} has no possible shape or place")
    return name, dtype, shape, (begin, end)


def _array(values: Bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The bytes as numbers: in place, or moved to where numbers of that type may lie.

    It is no numpy view of the whole file: scipy copies an array that is a small part of another.
    """
    if values.ctypes.data % dtype.alignment:
        values = values.copy()
    try:
        return np.frombuffer(values.data, dtype).reshape(shape)
    except (ValueError, OverflowError):  # an axis of length 0 beside ones that no array can have
        raise SafetensorError(f"no array has the shape {shape}") from None
