"""Bodies to messages: exact about what is refused, and cheap about what is not."""

from __future__ import annotations

import json
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.http.decoding import (
    JSON_LINES_TYPES,
    JSON_TYPES,
    LARGE_BODY,
    MOST_DEPTH,
    count_keys,
    decode_message,
    fit,
    media_type,
    parse,
)
from serving.messages import ItemEvent, RankRequest
from serving.problems import CODES, LONGEST_PROBLEM, Refusal, problem_bytes

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | numbers | texts
documents = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def refused(body: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse(body)
    return caught.value


def keys_of(document: object) -> int:
    inside = document.values() if isinstance(document, dict) else document
    if not isinstance(document, (dict, list)):
        return 0
    return (len(document) if isinstance(document, dict) else 0) + sum(keys_of(each) for each in inside)


@given(documents, st.booleans(), st.sampled_from([None, 1]))
def test_every_document_is_read_as_it_was_written(document, ascii_only, indent):
    body = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode()
    assert parse(body) == json.loads(body)
    assert count_keys(document) == keys_of(document)


@given(st.dictionaries(texts, leaves, min_size=1, max_size=4), st.data())
def test_every_duplicate_is_found(document, data):
    """However deep it lies, and whatever colons and quotes stand in the texts around it."""
    pairs = [f"{json.dumps(key)}:{json.dumps(value)}" for key, value in document.items()]
    pairs.append(data.draw(st.sampled_from(pairs)))
    body = "{" + ",".join(data.draw(st.permutations(pairs))) + "}"
    for _ in range(data.draw(st.integers(0, 3))):
        body = data.draw(st.sampled_from(["[%s]", '{"a:":%s}', '["\\":",%s]'])) % body
    assert refused(body.encode()).code == "duplicate_key"


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b'{"k":1,"k":1}', ("k",)),
        (b'{"a":{"b":1},"c":[{"d":1,"d":2}]}', ("d",)),
        (b'{"a:b":1,"x":"y:z","a:b":2}', ("a:b",)),
        (b'{"a\\"b":1,"a\\u0022b":2}', ('a"b',)),
        (b'{"":1,"":2}', ("",)),
    ],
)
def test_a_duplicate_is_named(body, place):
    assert (refused(body).code, refused(body).place) == ("duplicate_key", place)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_depth_is_limited(opening):
    closing = "]" if opening == "[" else "}"
    inner = "1" if opening != "[" else ""
    for depth in (1, MOST_DEPTH):
        parse((opening * depth + inner + closing * depth).encode())
    for depth in (MOST_DEPTH + 1, 900, 1_000, 5_000):
        assert refused((opening * depth + inner + closing * depth).encode()).code == "too_deep"
    assert refused((opening * 100_000).encode()).code == "too_deep"


@pytest.mark.parametrize(
    ("body", "code", "place"),
    [
        (b'{"a":[1,1e999]}', "number_out_of_range", ("a", 1)),
        (b'{"a":-1e999}', "number_out_of_range", ("a",)),
        (b'{"a":1' + b"0" * 5000 + b"}", "number_out_of_range", ("a",)),
        (b'["ok","\\u0000"]', "bad_character", (1,)),
        (b'["\\\\u0000","\\\\\\u0000"]', "bad_character", (1,)),
        (b'{"\\u0000":1}', "bad_character", ()),
        (b'{"a":"\\ud800"}', "bad_character", ("a",)),
        (b'{"a":"\\ud800\\ud800 and more text behind it"}', "bad_character", ("a",)),
        (b'["\\udfff"]', "bad_character", (0,)),
    ],
)
def test_what_json_allows_and_we_do_not_is_found(body, code, place):
    assert (refused(body).code, refused(body).place) == (code, place)


@pytest.mark.parametrize(
    "body", [b'"\\\\u0000"', b'"\\ud83d\\ude00"', b'"\\\\ud800"', b"1e308", b'"a\\u0001"']
)
def test_what_only_looks_odd_is_taken(body):
    assert parse(body) == json.loads(body)


@pytest.mark.parametrize(
    "body", [b"NaN", b"[Infinity]", b'{"a":-Infinity}', b"01", b"1.", b"+1", b".5", b"'a'"]
)
def test_what_is_no_json_is_refused(body):
    assert refused(body).code == "invalid_json"


@pytest.mark.parametrize(
    ("document", "code", "place"),
    [
        ({"candidates": [1] * 1001}, "too_many_candidates", ("candidates",)),
        ({"candidates": [], "history": [{}]}, "invalid_value", ("history", 0, "item_id")),
        ({"candidates": [], "timestamp": -1}, "timestamp_out_of_range", ("timestamp",)),
        ({"candidates": [], "timestamp": "1"}, "invalid_value", ("timestamp",)),
        ({"candidates": [{"id": 2**63}]}, "invalid_value", ("candidates", 0, "id")),
        ({"candidates": [], "explain": 1}, "invalid_value", ("explain",)),
        ({"candidates": [], "x" * 500: 1}, "invalid_value", ("x" * 80 + "...",)),
    ],
)
def test_the_place_of_a_wrong_value_is_told(document, code, place):
    with pytest.raises(Refusal) as caught:
        fit(document, RankRequest)
    assert (caught.value.code, caught.value.place) == (code, place)


@given(st.text("` -at$.[]0x", max_size=30))
def test_names_of_fields_are_no_riddle(name):
    with pytest.raises(Refusal) as caught:
        fit({"candidates": [], name: 1}, RankRequest)
    assert caught.value.code == "invalid_value"


def test_long_texts_and_long_lists_have_codes_of_their_own():
    item = {"event_id": "e", "item_id": "i", "timestamp": 1.0, "title": "x" * 4097}
    with pytest.raises(Refusal) as caught:
        fit(item, ItemEvent)
    assert (caught.value.code, caught.value.place) == ("text_too_long", ("title",))
    with pytest.raises(Refusal) as caught:
        fit({"candidates": [], "history": [{"item_id": 1, "timestamp": 1}] * 201}, RankRequest)
    assert (caught.value.code, caught.value.place) == ("too_many_items", ("history",))


def large(unit: bytes) -> bytes:
    return b'{"candidates":[' + b",".join([unit] * ((2**20 - 20) // (len(unit) + 1))) + b"]}"


@pytest.mark.parametrize("unit", [b"1", b"[]", b"{}", b'"i12345"', b'{"id":1}', b"1.5", b'{"id":1,"id":2}'])
def test_large_bodies_that_do_not_fit_are_refused_in_no_time(unit):
    """Parsed freely, the worst of them takes 0.1 s here; how long the schema needs is measured beside it."""
    body = large(unit)
    begin = time.process_time()
    with pytest.raises(Refusal) as caught:
        decode_message(body, RankRequest)
    spent = time.process_time() - begin
    assert caught.value.status == 422
    begin = time.process_time()
    msgspec.json.decode(body)
    assert spent < max(0.08, 3 * (time.process_time() - begin))


@pytest.mark.parametrize(
    ("tail", "code"),
    [
        (b"", "invalid_json"),
        (b'],"k":"\xff"}', "invalid_utf8"),
        (b'],"k":1,"k":1}', "duplicate_key"),
        (b'],"k":1e999}', "number_out_of_range"),
        (b'],"user_id":"\\ud800 and more"}', "bad_character"),
        (b'],"user_id":"\\u0000"}', "bad_character"),
        (b'],"k":[' + b"[" * 2000, "too_deep"),
    ],
)
def test_large_bodies_are_judged_like_small_ones(tail, code):
    body = b'{"candidates":[' + b",".join([b'"%s"' % (b"x" * 200)] * 500) + tail
    assert len(body) > LARGE_BODY
    with pytest.raises(Refusal) as caught:
        decode_message(body, RankRequest)
    assert caught.value.code == code


@given(st.binary(max_size=60) | documents.map(lambda document: json.dumps(document).encode()))
def test_every_body_is_a_message_or_a_refusal(body):
    try:
        message = decode_message(body, RankRequest)
    except Refusal as refusal:
        problem = msgspec.json.decode(problem_bytes(refusal))
    else:
        assert isinstance(message, RankRequest)
        return
    assert problem["code"] in CODES
    assert problem["status"] in (400, 422)


@given(st.text(), st.lists(st.text() | st.integers(0, 10), max_size=12))
def test_problems_are_short_and_strict(detail, place):
    refusal = Refusal("invalid_value", detail * 50, tuple(place))
    body = problem_bytes(refusal, "r" * 64)
    assert len(body) <= LONGEST_PROBLEM
    assert len(json.loads(body)["detail"]) <= 200


@pytest.mark.parametrize(
    ("value", "allowed", "expected"),
    [
        (b"application/json", JSON_TYPES, "application/json"),
        (b"Application/JSON ; Charset = UTF-8", JSON_TYPES, "application/json"),
        (b'application/json;charset="utf8";v=1', JSON_TYPES, "application/json"),
        (b"application/x-ndjson", JSON_LINES_TYPES, "application/x-ndjson"),
        (b"application/jsonl", JSON_TYPES, None),
        (b"application/json, text/plain", JSON_TYPES, None),
        (b"application/json;charset=utf-16", JSON_TYPES, None),
        (b"text/json", JSON_TYPES, None),
        (b"\xff", JSON_TYPES, None),
    ],
)
def test_media_types(value, allowed, expected):
    headers = {b"content-type": value}
    if expected is None:
        with pytest.raises(Refusal, match="unsupported_media_type"):
            media_type(headers, allowed)
    else:
        assert media_type(headers, allowed) == expected
