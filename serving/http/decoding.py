"""From the bytes of a body to a message: what is not exactly right is refused, by name and place.

Bytes are parsed without types first, because only then can duplicate keys and depth be told, and then
held against the schema. Both are exact, and cheap where nothing is wrong.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from itertools import chain
from typing import Any, TypeVar

import msgspec

from serving.messages import LONGEST_TEXT
from serving.problems import Place, Refusal

MOST_DEPTH = 32
LARGE_BODY = 2**15
"""From this size on the schema is tried first: it refuses in no time what takes long to parse freely."""

JSON_TYPES = frozenset({"application/json"})
JSON_LINES_TYPES = frozenset({"application/x-ndjson", "application/jsonl", "application/x-jsonlines"})

_UTF8_NAMES = frozenset({"utf-8", "utf8"})
_CONTAINERS = frozenset({dict, list})
_PARSER = msgspec.json.Decoder()
_LONGEST_NUMBER = 400
_LONGEST_NAME = 80
_LONGEST_PATH = 300
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
_TOO_LONG = re.compile(r"Expected `(array|str)` of length <= (\d+)")
_NAMED = re.compile(r"Object (?:contains unknown|missing required) field `(.*)`", re.DOTALL)

T = TypeVar("T")


def media_type(headers: Mapping[bytes, bytes], allowed: frozenset[str] = JSON_TYPES) -> str:
    """The type of the body, lower case and without parameters.

    Raises:
        Refusal: `unsupported_media_type` for one that is missing or not `allowed`, or a charset other
            than UTF-8; `unsupported_encoding` for any content encoding.
    """
    if headers.get(b"content-encoding"):
        raise Refusal(
            "unsupported_encoding", "send the body as it is", headers=[(b"accept-encoding", b"identity")]
        )
    value = headers.get(b"content-type", b"").decode("latin-1").lower()
    if value in allowed:
        return value
    name, *parameters = value.split(";")
    if name.strip() not in allowed or not all(_is_utf8(parameter) for parameter in parameters):
        raise Refusal("unsupported_media_type", f"send {' or '.join(sorted(allowed))} in UTF-8")
    return name.strip()


def decode_message(body: bytes, kind: type[T]) -> T:
    """The message in a body.

    Raises:
        Refusal: what `parse` and `fit` raise.
    """
    if len(body) >= LARGE_BODY:
        try_schema(body, kind)
    return fit(parse(body), kind)


def fit(document: Any, kind: type[T]) -> T:
    """Hold a parsed document against a schema.

    Raises:
        Refusal: `invalid_value`, `text_too_long`, `too_many_candidates`, `too_many_items` or
            `timestamp_out_of_range` with the place of the first value that does not fit.
    """
    try:
        return msgspec.convert(document, kind, strict=True)
    except msgspec.ValidationError as error:
        raise mismatch(error) from None


def parse(body: bytes) -> Any:
    """The JSON document in a body: no duplicate keys, at most 32 levels, finite numbers, whole texts.

    Raises:
        Refusal: `invalid_utf8`, `invalid_json`, `too_deep`, `duplicate_key` (400); `number_out_of_range`
            or `bad_character` (422) with the place.
    """
    try:
        document = _PARSER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise unparsable(body, error) from None
    keys = count_keys(document)
    if body.count(b":") != keys and _STRING.sub(b"", body).count(b":") != keys:
        raise _duplicate(body)
    if b"\\u0000" in body and _NUL.search(body):
        small = len(body) < LARGE_BODY
        raise (small and _odd_value(document, ())) or Refusal("bad_character", "NUL is not allowed", ())
    return document


def try_schema(body: bytes, kind: type[Any]) -> None:
    """Refuse what does not fit before it is parsed freely, which can take a hundred times as long.

    Raises:
        Refusal: what `parse` and `fit` raise.
    """
    try:
        msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        if "out of range" not in str(error):
            _skim(body)
            raise mismatch(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise unparsable(body, error) from None


def unparsable(body: bytes, error: Exception) -> Refusal:
    """Why a body cannot be parsed; the second, slower parser knows what the first one does not say."""
    try:
        text = body.decode()
    except UnicodeDecodeError as wrong:
        return Refusal("invalid_utf8", f"at byte {wrong.start}")
    if isinstance(error, RecursionError):
        return Refusal("too_deep", f"at most {MOST_DEPTH} levels")
    if len(body) >= LARGE_BODY:
        return _by_message(str(error))
    try:
        document = json.loads(text, parse_constant=_no_number, parse_int=_integer)
        count_keys(document)
    except json.JSONDecodeError as wrong:
        return Refusal("invalid_json", f"line {wrong.lineno}, column {wrong.colno}: {wrong.msg}")
    except Refusal as refusal:
        return refusal
    except (ValueError, RecursionError) as wrong:
        return Refusal("invalid_json", str(wrong))
    return _odd_value(document, ()) or _by_message(str(error))


def count_keys(document: Any) -> int:
    """Number of keys in all objects of a document; raises Refusal `too_deep` past 32 levels.

    Each key has exactly one colon outside of texts: a document with more colons than keys had duplicates.
    """
    keys, depth = 0, 0
    level = [document]
    while not _CONTAINERS.isdisjoint(kinds := set(map(type, level))):
        depth += 1
        if depth > MOST_DEPTH:
            raise Refusal("too_deep", f"at most {MOST_DEPTH} levels")
        objects, lists = _of(dict, level, kinds), _of(list, level, kinds)
        keys += sum(map(len, objects))
        level = [*chain.from_iterable(map(dict.values, objects)), *chain.from_iterable(lists)]
    return keys


def mismatch(error: msgspec.ValidationError) -> Refusal:
    """What msgspec has to say, as a refusal with a place."""
    text, mark, path = str(error).rpartition(" - at `$")
    if not mark:
        text, path = path, ""
    place: Place = tuple(name or int(number) for name, number in _STEP.findall(path[:_LONGEST_PATH]))
    named = _NAMED.fullmatch(text)
    if named:
        return _wrong_field(text, named[1], place)
    return Refusal(_mismatch_code(text, place), text, place)


def _of(kind: type, level: list[Any], kinds: set[type]) -> list[Any]:
    """The nodes of one type; a level of nothing else need not be looked through."""
    if kinds == {kind}:
        return level
    return [node for node in level if type(node) is kind] if kind in kinds else []


def _is_utf8(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name.strip() != "charset" or value.strip().strip('"') in _UTF8_NAMES


def _skim(body: bytes) -> None:
    """Raise for what is no JSON, without making anything of it."""
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
        body.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise unparsable(body, error) from None


def _wrong_field(text: str, name: str, place: Place) -> Refusal:
    short = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
    what = "an unknown field" if text.startswith("Object contains") else "a missing field"
    return Refusal("invalid_value", f"{what}: {short}", (*place, short))


def _mismatch_code(text: str, place: Place) -> str:
    limit = _TOO_LONG.fullmatch(text)
    if limit and limit[1] == "array":
        return "too_many_candidates" if place[-1:] == ("candidates",) else "too_many_items"
    if limit and int(limit[2]) == LONGEST_TEXT:
        return "text_too_long"
    if place[-1:] == ("timestamp",) and text.startswith(("Expected `float` >=", "Expected `float` <=")):
        return "timestamp_out_of_range"
    return "invalid_value"


def _by_message(text: str) -> Refusal:
    """The refusal without a place, from the first parser's words alone."""
    if "out of range" in text:
        return Refusal("number_out_of_range", text, ())
    return Refusal("bad_character" if "surrogate" in text else "invalid_json", text)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _LONGEST_NUMBER else float("inf")


def _duplicate(body: bytes) -> Refusal:
    seen_twice: list[str] = []

    def check(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        if not seen_twice and len(set(names)) < len(names):
            seen_twice.append(next(name for place, name in enumerate(names) if name in names[:place]))

    json.loads(body, object_pairs_hook=check)
    return Refusal("duplicate_key", place=tuple(name[:_LONGEST_NAME] for name in seen_twice))


def _odd_value(value: Any, place: Place) -> Refusal | None:
    """The first number that is not finite or text with a NUL or half a character, None without one."""
    if isinstance(value, str) and not _is_whole(value):
        return Refusal("bad_character", "NUL and lone surrogates are not allowed", place)
    if isinstance(value, float) and math.isinf(value):
        return Refusal("number_out_of_range", "no such number can be kept", place)
    if not isinstance(value, (dict, list)):
        return None
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, below in pairs:
        odd = _odd_value(key, place) or _odd_value(below, (*place, key))
        if odd:
            return odd
    return None


def _is_whole(text: str) -> bool:
    return "\0" not in text and (text.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in text))
