"""Bytes that are mostly zero, in fewer bytes and without a loss: which words are not zero, and those words.

It knows nothing of what the words mean. A file is a header, one bit a word, the words that are not zero, and
the bytes after the last whole word.
"""

from __future__ import annotations

import struct

import numpy as np

from recsys.errors import RecsysError

MAGIC = b"RSP1"
WIDTHS = (1, 2, 4)
_HEADER = struct.Struct("<4sBQ")  # magic, bytes a word, bytes of the data


def squeeze(data: bytes, width: int) -> bytes:
    """The bytes without their zero words.

    Data without a zero grow by 1 / (8 `width`) and 13 bytes; only zeros leave that alone.

    Args:
        data: any bytes.
        width: of a word: 1, 2 or 4.

    Raises:
        ValueError: another width.
    """
    if width not in WIDTHS:
        raise ValueError(f"width must be one of {', '.join(map(str, WIDTHS))}, not {width}")
    whole = len(data) // width
    words = np.frombuffer(data, f"<u{width}", whole)
    filled = words != 0
    header = _HEADER.pack(MAGIC, width, len(data))
    return b"".join([header, np.packbits(filled).tobytes(), words[filled].tobytes(), data[whole * width :]])


def expand(data: bytes) -> bytes:
    """Inverse of `squeeze`, to the byte.

    Raises:
        RecsysError: `encoder_invalid` where the data are cut, too long, or something else.
    """
    width, length = _header(data)
    whole, rest = divmod(length, width)
    bits = np.frombuffer(data, np.uint8, offset=_HEADER.size)[: -(-whole // 8)]
    if 8 * len(bits) < whole:
        raise _invalid("ends within its header or mask")
    filled = np.unpackbits(bits).astype(bool)
    count = np.count_nonzero(filled)
    start = _HEADER.size + len(bits)
    if filled[whole:].any() or len(data) != start + count * width + rest:
        raise _invalid("does not hold the words that its mask promises")
    words = np.zeros(whole, f"<u{width}")
    words[filled[:whole]] = np.frombuffer(data, words.dtype, count, start)
    return words.tobytes() + data[len(data) - rest :]


def _header(data: bytes) -> tuple[int, int]:
    """Bytes a word, and of the data."""
    if len(data) < _HEADER.size:
        raise _invalid("ends within its header or mask")
    magic, width, length = _HEADER.unpack_from(data)
    if magic != MAGIC or width not in WIDTHS:
        raise _invalid("is none")
    return width, length


def _invalid(what: str) -> RecsysError:
    return RecsysError("encoder_invalid", f"the sparse file {what}")
