"""Changes to an input: of the values in a JSON document, of the numbers or lines in a text, or of bytes."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

ODD = (
    None, True, False, 0, -1, 1, 2, 49, 1000, 1001, 2**31, 2**63, -(2**63), 2**64, 10**30, 0.5, -0.0, 1e-320,
    1e308, -1e308, 1.7637e9, 1.7637e12, "", "\0", "\ud83d", "\U0001f600", "é", "a" * 257, "x" * 5000, "id",
    "1763700000000", "2025-11-21T04:40:00Z", "../x", [], {}, [[]], [1, "1"], {"id": 1},
)  # fmt: skip
NUMBERS = (
    b"0", b"-1", b"1", b"3", b"255", b"256", b"65536", b"2147483648", b"-2147483649", b"9223372036854775808",
    b"1e999", b"-1e308", b"1e-320", b"nan", b"inf", b"NaN", b"-Infinity", b"0x10", b"1_0", b"", b"1 2",
)  # fmt: skip
_NUMBER = re.compile(rb"-?[0-9][0-9.eE+-]*")

Draws = random.Random


def mutate(data: bytes, draws: Draws, other: bytes = b"") -> bytes:
    """One to four changes; parts may come from `other`."""
    for _ in range(draws.randint(1, 4)):
        data = draws.choices((_value, _number, _line, _bytes), (4, 2, 1, 3))[0](data, draws, other)
    return data


def _value(data: bytes, draws: Draws, other: bytes) -> bytes:
    """Another value somewhere in a document, or in one of its lines."""
    lines = data.split(b"\n")
    place = draws.randrange(len(lines))
    for start, text in ((None, data), (place, lines[place])):
        try:
            document = json.loads(text)
            changed = json.dumps(_changed(document, draws), ensure_ascii=draws.random() < 0.8)
            text = changed.encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError):
            continue
        return text if start is None else b"\n".join([*lines[:place], text, *lines[place + 1 :]])
    return _bytes(data, draws, other)


def _changed(value: Any, draws: Draws) -> Any:
    """A copy with one change, which most often is far inside."""
    if not isinstance(value, dict | list) or not value or draws.random() < 0.1:
        return draws.choice(ODD)
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
    at = draws.randrange(len(pairs))
    name, inner = pairs[at]
    way = draws.random()
    if way < 0.6:
        pairs[at] = (name, _changed(inner, draws))
    elif way < 0.7:
        del pairs[at]
    elif way < 0.8:
        pairs[at] = (name, draws.choice(pairs)[1])
    elif way < 0.9:
        pairs[at:at] = [(name, _changed(inner, draws))] * draws.choice((1, 1, 2, 60))
    else:
        pairs[at] = (draws.choice(("kind", "id", "timestamp", "k", "a:b", "é\0", name)), inner)
    return dict(pairs) if isinstance(value, dict) else [inner for _, inner in pairs]


def _number(data: bytes, draws: Draws, other: bytes) -> bytes:
    found = list(_NUMBER.finditer(data))
    if not found:
        return _bytes(data, draws, other)
    first, second = draws.choice(found), draws.choice(found)
    by = second[0] if draws.random() < 0.3 else draws.choice(NUMBERS)
    return data[: first.start()] + by + data[first.end() :]


def _line(data: bytes, draws: Draws, other: bytes) -> bytes:
    lines, others = data.split(b"\n"), other.split(b"\n")
    place, way = draws.randrange(len(lines)), draws.random()
    if way < 0.4:
        del lines[place]
    else:
        lines.insert(place, draws.choice(lines if way < 0.7 else others))
    return b"\n".join(lines)


def _bytes(data: bytes, draws: Draws, other: bytes) -> bytes:
    start, stop = sorted((draws.randint(0, len(data)), draws.randint(0, len(data))))
    stop = min(stop, start + draws.choice((0, 1, 4, 64)))
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: b"",
        lambda: draws.randbytes(stop - start),
        lambda: draws.randbytes(draws.randint(1, 8)),
        lambda: bytes([data[start] ^ 1 << draws.randrange(8)]) if start < len(data) else b"\0",
        lambda: data[start:stop] * 2,
        lambda: draws.choice((b"\0", b"\xff" * 4, b'"', b"{", b"[", b",", b":", b"\\ud800", b"\xed\xa0\x80")),
        lambda: other[start : start + draws.randint(0, 64)],
    )
    return data[:start] + draws.choice(ways)() + data[stop:]
