"""What clients send, right and wrong, over real sockets: every end is an answer, and none of them a 500."""

from __future__ import annotations

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.serving.running import JSON, exchange, wait_until

ITEMS = [f"i{number:02d}" for number in range(40)]
HEAD = b"POST /v1/rank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
MIB = 2**20


CANARY = {"user_id": "u03", "candidates": ITEMS[:10], "timestamp": 31 * 86_400.0}


@pytest.fixture(scope="module")
def server(bundle_folder, hosted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with hosted(bundle_folder, folder, head_s=1.5, body_s=1.5, deadline_s=10.0) as server:
        yield server
        assert server.process.poll() is None


@pytest.fixture(scope="module")
def canary(server):
    """What one request was answered with before everything else."""
    return server.post("/v1/rank", CANARY, x_request_id="canary").body


def ask(server, body: bytes, **headers: str):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.ask("POST", "/v1/rank", body, JSON | named)


def test_a_ranking_is_what_the_contract_says(server, canary):
    assert len(json.loads(canary)["items"]) == 10
    candidates = ["i05", {"id": "i01", "source": "als", "score": 2.0}, "i05", "nobody-knows-me"]
    got = server.post("/v1/rank", {"user_id": "u01", "candidates": candidates}, x_request_id="r-1")
    ranked = got.json
    assert got.status == 200
    assert sorted(item["id"] for item in ranked["items"]) == ["i01", "i05", "nobody-knows-me"]
    assert [item["rank"] for item in ranked["items"]] == [1, 2, 3]
    scores = [item["score"] for item in ranked["items"]]
    assert scores == sorted(scores, reverse=True)
    assert ranked["model"] == {"name": "recsys", "version": 0, "alias": None}
    assert ranked["request_id"] == got.headers["x-request-id"] == "r-1"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"candidates":[}', "invalid_json"),
        (b'{"candidates":[]} x', "invalid_json"),
        (b'{"candidates":[],}', "invalid_json"),
        (b"\xef\xbb\xbf{}", "invalid_json"),
        (b'{"candidates":[NaN]}', "invalid_json"),
        (b'{"candidates":[],"user_id":"\t"}', "invalid_json"),
        (b'{"candidates":[],"user_id":"\xff"}', "invalid_utf8"),
        (b'{"candidates":[],"user_id":"\xed\xa0\x80"}', "invalid_utf8"),
        ('{"candidates":[]}'.encode("utf-16"), "invalid_utf8"),
        (b'{"candidates":' + b"[" * 33 + b"]" * 33 + b"}", "too_deep"),
        (b"[" * 100_000, "too_deep"),
        (b'{"candidates":[],"k":1,"k":2}', "duplicate_key"),
        (b'{"candidates":[{"id":"a","id":"b"}]}', "duplicate_key"),
        (b'{"candidates":[],"k":1,"\\u006b":2}', "duplicate_key"),
    ],
)
def test_what_is_no_json_is_a_400(server, body, code):
    ask(server, body).problem(400, code)


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ("[]", []),
        ("null", []),
        ("{}", ["candidates"]),
        ('{"candidates":null}', ["candidates"]),
        ('{"candidates":[],"unknown":1}', ["unknown"]),
        ('{"candidates":[{"id":"a","x":1}]}', ["candidates", 0, "x"]),
        ('{"candidates":["a",""]}', ["candidates", 1]),
        ('{"candidates":[true]}', ["candidates", 0]),
        ('{"candidates":[],"history":[{"item_id":"a"}]}', ["history", 0, "timestamp"]),
        *((f'{{"candidates":[],"k":{k}}}', ["k"]) for k in ("0", "-5", str(2**70), "true", "10.5", '"10"')),
        ('{"candidates":[],"k":1' + "0" * 5000 + "}", ["k"]),
        ('{"candidates":[],"k":1e999}', ["k"]),
        ('{"candidates":[{"id":"a","score":-1e999}]}', ["candidates", 0, "score"]),
        ('{"candidates":[],"timestamp":1e999}', ["timestamp"]),
        ('{"candidates":[],"timestamp":"nan"}', ["timestamp"]),
        ('{"candidates":[],"timestamp":1e300}', ["timestamp"]),
        ('{"candidates":["a\\u0000"]}', ["candidates", 0]),
        ('{"candidates":[{"id":"\\ud800"}]}', ["candidates", 0, "id"]),
        ('{"candidates":[],"user_id":"\\udc00\\ud800"}', ["user_id"]),
        ('{"candidates":[],"\\ud800":1}', []),
    ],
)
def test_what_does_not_fit_is_a_422_with_its_place(server, document, place):
    got = ask(server, document.encode())
    problem = got.problem(422, got.json["code"])
    assert problem["errors"][0]["loc"] == place
    assert ("unknown field" in problem["detail"]) == ('"unknown"' in document or '"x":1' in document)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("field", ['"k":{}', '"timestamp":{}', '"candidates":[{{"id":1,"score":{}}}]'])
def test_literals_that_are_no_json_numbers_are_a_400(server, literal, field):
    ask(server, ("{" + field.format(literal) + "}").encode()).problem(400, "invalid_json")


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": ""},
        {},
    ],
)
def test_other_types_are_a_415(server, headers):
    got = server.ask("POST", "/v1/rank", b'{"candidates":[]}', headers)
    got.problem(415, "unsupported_media_type")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity"])
def test_encoded_bodies_are_a_415(server, encoding):
    got = ask(server, b'{"candidates":[]}', content_encoding=encoding)
    got.problem(415, "unsupported_encoding")
    assert got.headers["accept-encoding"] == "identity"


def test_utf8_may_be_named(server):
    for kind in ("application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'):
        assert ask(server, b'{"candidates":[]}', content_type=kind).status == 200


def test_a_body_over_a_mebibyte_is_a_413(server):
    ask(server, b'{"candidates":["' + b"x" * MIB + b'"]}').problem(413, "body_too_large")


def test_a_body_of_a_mebibyte_is_read(server):
    body = b'{"candidates":[]}'
    assert ask(server, body + b" " * (MIB - len(body))).status == 200


def test_the_connection_goes_on_after_a_413(server):
    with contextlib.closing(server.connection()) as connection:
        exchange(connection, "POST", "/v1/rank", b"x" * 3 * MIB, JSON).problem(413, "body_too_large")
        assert exchange(connection, "POST", "/v1/rank", b'{"candidates":[]}', JSON).status == 200


def test_a_body_in_chunks_is_stopped_at_the_cap(server):
    """It never ends, and is answered all the same."""
    with server.socket() as connection:
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent <= MIB + 65536:
                connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
                sent += 65536
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_is_read(server):
    head = HEAD + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    body = head + b'5\r\n{"can\r\nc\r\ndidates":[]}\r\n0\r\n\r\n'
    assert [got.status for got in server.raw(body)] == [200]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD"])
def test_other_methods_are_a_405(server, method):
    got = server.ask(method, "/v1/rank")
    assert (got.status, got.headers["allow"]) == (405, "POST")
    if method != "HEAD":
        got.problem(405, "method_not_allowed")


@pytest.mark.parametrize(
    "path", ["/", "/v1/rank/", "//v1/rank", "/v1/../v1/rank", "/docs", "/v1", "/rank/", "/%00"]
)
def test_other_paths_are_a_404(server, path):
    server.ask("POST", path, b"{}", JSON).problem(404, "not_found")


def test_a_long_url_is_a_414(server):
    server.ask("GET", "/healthz?" + "x" * 9000).problem(414, "url_too_long")


@pytest.mark.parametrize("count", [1, 300])
def test_large_headers_are_a_431(server, count):
    lines = b"".join(b"x-%d: %s\r\n" % (number, b"y" * (20_000 // count)) for number in range(count))
    [got] = server.raw(b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + lines + b"\r\n")
    got.problem(431, "head_too_large")


def test_a_header_without_end_is_a_431(server):
    pieces = [b"GET /healthz HTTP/1.1\r\nx: ", *[b"y" * 4000] * 8]
    [got] = server.raw(*pieces, pause_s=0.02)
    got.problem(431, "head_too_large")


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 17\r\ncontent-length: 16\r\n\r\n",
        b"content-length: 17\r\ntransfer-encoding: chunked\r\n\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 17\r\n\r\n",
        b"transfer-encoding: gzip, chunked, x\r\n\r\n",
        b"content-length: -1\r\n\r\n",
        b"content-length: 1e3\r\n\r\n",
        b"content length: 17\r\n\r\n",
        b"\x00: 1\r\n\r\n",
    ],
)
def test_what_is_no_http_is_a_400(server, head):
    [got] = server.raw(HEAD + head + b'{"candidates":[]}')
    got.problem(400, "bad_request")
    assert got.headers["connection"] == "close"


@pytest.mark.parametrize(
    "head",
    [
        b"hello\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01" * 9,
    ],
)
def test_another_protocol_is_a_400(server, head):
    [got] = server.raw(head)
    got.problem(400, "bad_request")


def test_connect_and_star_do_no_harm(server):
    assert [got.status for got in server.raw(b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n")] == [400]
    star = b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    assert [got.status for got in server.raw(star)] == [404]


def test_an_upgrade_is_answered_as_if_it_were_none(server):
    head = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    assert [got.status for got in server.raw(head)] == [200]


def test_a_body_that_ends_too_early_is_a_400(server):
    with server.socket() as connection:
        connection.sendall(HEAD + b'content-length: 100\r\n\r\n{"candi')
        connection.shutdown(1)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_half_closed_connections_get_their_answers(server):
    with server.socket() as connection:
        connection.sendall(HEAD + b'content-length: 17\r\n\r\n{"candidates":[]}')
        connection.shutdown(1)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_are_answered_in_order(server):
    one = HEAD + b'x-request-id: %d\r\ncontent-length: 17\r\n\r\n{"candidates":[]}'
    last = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    got = server.raw(b"".join(one % number for number in range(40)) + last)
    assert [each.status for each in got] == [200] * 41
    assert [each.headers["x-request-id"] for each in got[:40]] == [str(number) for number in range(40)]


def test_a_bad_request_behind_good_ones_is_answered_last(server):
    good = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    got = server.raw(good * 3 + b"\x00\r\n\r\n")
    assert [each.status for each in got] == [200, 200, 200, 400]


def test_thousands_of_pipelined_requests_are_cut_short(server):
    got = server.raw(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n" * 5000)
    assert {each.status for each in got[:-1]} == {200}
    got[-1].problem(503, "overloaded")


def test_expectations_are_met(server):
    with server.socket() as connection:
        connection.sendall(HEAD + b"content-length: 17\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b'{"candidates":[]}')
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_nobody_wants_need_not_be_sent(server):
    head = HEAD + b"content-length: 9999999\r\nexpect: 100-continue\r\n\r\n"
    [got] = server.raw(head)
    got.problem(413, "body_too_large")
    assert got.headers["connection"] == "close"


@pytest.mark.parametrize(
    "text",
    [
        "\N{FAMILY}\N{ZERO WIDTH JOINER}\N{BOY}",
        "\N{RIGHT-TO-LEFT OVERRIDE}abc",
        "e" + "\N{COMBINING ACUTE ACCENT}" * 255,
        "\N{ZERO WIDTH NO-BREAK SPACE}x",
        "\u00e9",
        "e\u0301",
        "\U0010ffff",
        "\ufdd0\uffff",
        'a:b\\"{}[],:',
        "\x1b[31m\n\r",
        "../../etc/passwd",
        "%s%n",
        "=cmd()",
        "\\u0000",
        " ",
    ],
)
def test_ids_come_back_as_they_came(server, text):
    for ascii_only in (True, False):
        body = json.dumps({"candidates": [text, "i01"], "user_id": text}, ensure_ascii=ascii_only).encode()
        got = ask(server, body)
        assert got.status == 200
        assert {item["id"] for item in got.json["items"]} == {text, "i01"}


def test_composed_and_decomposed_ids_are_two(server):
    got = server.post("/v1/rank", {"candidates": ["\u00e9", "e\u0301"]})
    assert {item["id"] for item in got.json["items"]} == {"\u00e9", "e\u0301"}


@pytest.mark.parametrize("size", [10_000, 200_000, 900_000])
def test_long_texts_are_refused_in_no_time(server, size):
    for text in ("x" * size, "e" + "\N{COMBINING ACUTE ACCENT}" * (size // 2)):
        begin = time.perf_counter()
        got = ask(server, json.dumps({"candidates": [], "user_id": text}, ensure_ascii=False).encode())
        problem = got.problem(422, "invalid_value")
        assert problem["errors"][0]["loc"] == ["user_id"]
        assert time.perf_counter() - begin < 0.5


@pytest.mark.parametrize(
    ("request_body", "count"),
    [
        ({"candidates": []}, 0),
        ({"candidates": ["i01"]}, 1),
        ({"candidates": ["i01", "i02"], "k": 1000}, 2),
        ({"candidates": ["never", "seen", "before"], "user_id": "u01"}, 3),
        ({"candidates": ITEMS, "user_id": "nobody"}, 40),
        ({"candidates": ITEMS, "user_id": None, "k": 3}, 3),
        ({"candidates": ["i01"], "user_id": 5}, 1),
        ({"candidates": [7, "7"], "user_id": "u01"}, 2),
    ],
)
def test_unknown_and_empty_are_answered(server, request_body, count):
    got = server.post("/v1/rank", request_body)
    assert (got.status, len(got.json["items"])) == (200, count)


def test_who_is_not_known_is_told_so(server):
    got = server.post("/v1/rank", {"candidates": ITEMS, "user_id": "nobody"}).json
    assert (got["degraded"], got["degraded_reason"]) == (True, "unknown_user")
    got = server.post("/v1/rank", {"candidates": ["new"], "user_id": "u01"}).json
    assert (got["degraded"], got["degraded_reason"]) == (True, "cold_items")


def test_a_thousand_candidates_are_ranked(server):
    got = server.post("/v1/rank", {"candidates": [f"x{number}" for number in range(1000)], "user_id": "u01"})
    assert (got.status, len(got.json["items"])) == (200, 1000)


@pytest.mark.parametrize(
    ("count", "status", "code"), [(1001, 422, "too_many_candidates"), (200_000, 413, "body_too_large")]
)
def test_more_candidates_are_refused_at_once(server, count, status, code):
    body = json.dumps({"candidates": [f"i{number}" for number in range(count)]}).encode()
    begin = time.perf_counter()
    ask(server, body).problem(status, code)
    assert time.perf_counter() - begin < 0.5


def test_an_item_with_ten_thousand_fields_is_refused(server):
    item = {"id": "a"} | {f"f{number}": number for number in range(10_000)}
    server.post("/v1/rank", {"candidates": [item]}).problem(422, "invalid_value")


def test_the_order_does_not_depend_on_the_request(server):
    moment = time.time()
    one = server.post("/v1/rank", {"user_id": "u02", "candidates": ITEMS, "timestamp": moment}).json
    other = {"user_id": "u02", "candidates": ITEMS[::-1] + ITEMS[:7], "timestamp": moment}
    two = server.post("/v1/rank", other).json
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(lambda _: server.post("/v1/rank", other).json["items"], range(12)))
    assert one["items"] == two["items"]
    assert all(each == one["items"] for each in many)


def test_recommendations_and_similar_items(server):
    got = server.post("/v1/recommend", {"user_id": "u01", "k": 5, "categories": ["c1"]}).json
    assert 0 < len(got["items"]) <= 5
    assert all(int(item["id"][1:]) % 3 == 1 for item in got["items"])
    got = server.post("/v1/similar", {"item_id": "i01", "k": 4}).json
    assert 0 < len(got["items"]) <= 4
    assert "i01" not in {item["id"] for item in got["items"]}
    server.post("/v1/similar", {"item_id": "never"}).problem(404, "unknown_item")


def test_reasons_are_given_when_they_are_asked_for(server):
    got = server.post("/v1/rank", {"user_id": "u01", "candidates": ITEMS[:3], "explain": True}).json
    assert all(item["reasons"] for item in got["items"])
    got = server.post("/v1/rank", {"user_id": "u01", "candidates": ITEMS[:3]}).json
    assert not any("reasons" in item for item in got["items"])


def test_the_server_is_what_it_was_before_all_that(server, canary):
    """Stands behind everything that changes nothing, and before what stores events."""
    assert server.post("/v1/rank", CANARY, x_request_id="canary").body == canary


def click(event_id: str, **changes):
    event = {
        "event_id": event_id,
        "user_id": "writer",
        "item_id": "i03",
        "event_type": "click",
        "timestamp": time.time(),
    }
    return event | changes


def knows(server, user: str, candidates: list[str]) -> bool:
    """Whether the events of a user have come to the model."""
    got = server.post("/v1/rank", {"user_id": user, "candidates": candidates})
    assert got.json["degraded_reason"] in ("unknown_user", None)
    return got.json["degraded_reason"] is None


def test_events_are_stored_once_and_seen_by_the_next_request(server):
    before = server.post("/v1/rank", {"user_id": "writer", "candidates": ITEMS}).json
    assert before["degraded_reason"] == "unknown_user"
    batch = [click("a-1"), click("a-2", item_id="i06")]
    assert server.post("/v1/events", batch).json == {"accepted": 2, "duplicate": 0, "rejected": []}
    assert server.post("/v1/events", batch).json == {"accepted": 0, "duplicate": 2, "rejected": []}
    wait_until(lambda: knows(server, "writer", ITEMS))


def test_one_bad_event_does_not_spoil_the_others(server):
    batch = [
        click("b-1"),
        click("b-2", timestamp=1e300),
        click("b-3", user_id="\0"),
        click("b-4", what=1),
        {"kind": "nothing"},
        5,
        click("a-1", item_id="i09"),
    ]
    got = server.post("/v1/events", batch).json
    assert (got["accepted"], [each["index"] for each in got["rejected"]]) == (1, [1, 2, 3, 4, 5, 6])
    codes = [each["code"] for each in got["rejected"]]
    assert codes == [
        "timestamp_out_of_range",
        "invalid_id",
        "invalid_event",
        "unknown_kind",
        "invalid_event",
        "id_conflict",
    ]


def test_a_lone_surrogate_spoils_its_event_only(server):
    good, bad = json.dumps(click("c-1")), json.dumps(click("c-2", user_id="\ud800"))
    got = server.ask("POST", "/v1/events", f"[{good},{bad}]".encode(), JSON).json
    assert (got["accepted"], got["rejected"][0]["index"]) == (1, 1)


def test_a_large_batch_is_judged_like_a_small_one(server):
    """Two hundred kilobytes with every sort of spoilt event among good ones."""
    good = [click(f"l-{number}", event_type="x" * 200) for number in range(600)]
    large = {"event_id": "l-x", "user_id": "u", "timestamp": time.time(), "kind": "impression"}
    spoilt = {
        7: click("l-7", user_id="\ud800"),
        77: large | {"shown": [[]] * 30_000},
        177: click("l-177", item_id="\\ud800 \ud83d\ude00 \udc00"),
        277: click("l-277", timestamp=0),
        377: [[]] * 20_000,
        477: None,
    }
    batch = json.dumps([spoilt.get(place, event) for place, event in enumerate(good)])
    got = server.ask("POST", "/v1/events", batch.encode(), JSON).json
    assert (got["accepted"], [each["index"] for each in got["rejected"]]) == (594, sorted(spoilt))
    whole = json.dumps([click("l-w", item_id="\\ud800 \ud83d\ude00"), *good])
    assert server.ask("POST", "/v1/events", whole.encode(), JSON).json["accepted"] == 1 + 6
    server.ask("POST", "/v1/events", batch.encode()[:-9], JSON).problem(400, "invalid_json")
    twice = batch.replace('"event_id": "l-9",', '"event_id": "l-9", "event_id": "l-9",')
    server.ask("POST", "/v1/events", twice.encode(), JSON).problem(400, "duplicate_key")


def test_a_large_event_is_taken(server):
    shown = [f"{'s' * 60}-{number}" for number in range(1000)]
    event = {
        "event_id": "i-1",
        "kind": "impression",
        "user_id": "u",
        "timestamp": time.time(),
        "shown": shown,
    }
    assert server.post("/v1/events", event).json["accepted"] == 1
    assert server.post("/v1/events", [click("i-2"), event]).json == {
        "accepted": 1,
        "duplicate": 1,
        "rejected": [],
    }


def test_json_lines_are_taken_and_a_cut_line_is_told(server):
    lines = "\n".join(json.dumps(click(f"d-{number}")) for number in range(120)) + '\n{"event_id":'
    for kind in ("application/x-ndjson", "application/jsonl; charset=utf-8"):
        got = server.ask("POST", "/v1/events", lines.encode(), {"content-type": kind}).json
        assert got["accepted"] + got["duplicate"] == 120
        assert [each["index"] for each in got["rejected"]] == [120]


def test_nothing_of_a_bad_batch_is_stored(server):
    events = [click(f"e-{number}") for number in range(1001)]
    server.post("/v1/events", events).problem(413, "too_many_events")
    server.ask("POST", "/v1/events", json.dumps(events[:5]).encode()[:-9], JSON).problem(400, "invalid_json")
    assert server.post("/v1/events", events[:5]).json["accepted"] == 5


def test_a_batch_of_nothing_but_bad_events_is_a_422(server):
    bad = [click(f"\n{'x' * 300}{number}") for number in range(100)]
    problem = server.post("/v1/events", bad).problem(422, "all_rejected")
    assert problem["errors"][0]["loc"] == [0]
    assert problem["errors"][0]["code"] == "invalid_event"


def test_metaranks_clients_are_understood(server):
    now_ms = str(round(time.time() * 1e3))
    request = {
        "id": "m-0",
        "timestamp": now_ms,
        "user": "u01",
        "session": "s1",
        "fields": [{"name": "query", "value": "thing"}],
        "items": [{"id": "i03", "fields": [{"name": "relevancy", "value": 2.0}]}, {"id": "i01"}],
    }
    got = server.post("/rank/recsys?explain=true", request)
    assert got.status == 200
    assert sorted(item["item"] for item in got.json["items"]) == ["i01", "i03"]
    assert got.json["items"][0]["features"]
    assert isinstance(got.json["took"], int)
    for name in ("another", "champion", "None"):  # a folder is served under no alias
        server.post(f"/rank/{name}", request).problem(404, "unknown_model")


def test_metaranks_events_are_stored(server):
    now_ms = round(time.time() * 1e3)
    common = {"timestamp": str(now_ms), "user": "alice", "session": "s"}
    events = [
        {"event": "ranking", "id": "m-1", "items": [{"id": "i01"}, {"id": "i02"}], **common},
        {"event": "interaction", "id": "m-2", "ranking": "m-1", "type": "click", "item": "i02", **common},
        {
            "event": "item",
            "id": "m-3",
            "item": "brand-new",
            "timestamp": now_ms,
            "fields": [
                {"name": "title", "value": "a red thing"},
                {"name": "category", "value": ["c1", "c2"]},
            ],
        },
        {"event": "user", "id": "m-4", "fields": [{"name": "age", "value": 33}], **common},
        {"event": "interaction", "id": "m-5", "type": "click", **common},
        {"event": "interaction", "id": "m-6", "type": "click", "item": "i02"}
        | common
        | {"timestamp": "soon"},
    ]
    got = server.post("/feedback", events).json
    assert (got["accepted"], got["ignored"], got["status"]) == (3, 1, "rejected")
    assert [(each["index"], each["code"]) for each in got["rejected"]] == [
        (4, "invalid_event"),
        (5, "timestamp_out_of_range"),
    ]
    single = {"event": "interaction", "id": "m-7", "type": "click", "item": "i02", **common}
    assert server.post("/feedback", single).json["accepted"] == 1
    wait_until(lambda: knows(server, "alice", ["i01", "brand-new"]))


def test_head_says_what_get_would(server):
    get, head = server.ask("GET", "/healthz"), server.ask("HEAD", "/healthz")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(get.body)))


def test_ready_says_what_stands_behind_it(server):
    got = server.ask("GET", "/readyz").json
    assert got["ready"]
    assert (got["events"], got["durability"]) == ("ok", "fsync")


def test_without_a_model_the_server_lives_but_is_not_ready(hosted, tmp_path):
    with hosted(None, tmp_path) as server:
        assert server.ask("GET", "/healthz").status == 200
        server.ask("GET", "/readyz").problem(503, "not_ready")
        server.post("/v1/rank", {"candidates": []}).problem(503, "not_ready")
        assert server.ask("GET", "/version").json["model"] is None
        assert server.post("/v1/events", [click("f-1")]).json["accepted"] == 1
