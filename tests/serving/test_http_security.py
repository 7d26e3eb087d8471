"""Who may do what, and what is never written down: every route is gone through, none by hand."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from recsys.errors import EXIT_CONFIG
from serving.http.door import ANY, OPEN
from serving.http.keys import SCOPES
from serving.http.routes import ADMIN, PUBLIC, Route
from tests.serving.running import JSON, refused, start, with_keys

HERE = {scope: f"the-key-for-{scope}-{'x' * 16}" for scope in SCOPES}
EXPIRED = "a-key-that-has-had-its-day"
WRONG = "a-key-that-nobody-ever-made"
CLOSED = [route for route in (*PUBLIC, *ADMIN) if route.scope != OPEN]
ODD_PATHS = [
    "/docs",
    "/redoc",
    "/admin/reload",
    "/admin/rollback",
    "//v1/rank",
    "/v1/rank/",
    "/%2e%2e/v1/rank",
]

EXPECTED = {"all_rejected", "no_shadow", "nothing_to_roll_back", "unknown_item"}
"""What the examples may be refused for: they are of another world and of a moment long ago."""


@pytest.fixture(scope="module")
def server(bundle_folder, hosted, tmp_path_factory):
    yesterday = (datetime.now(UTC) - timedelta(days=1)).date()
    lines = [f"{key} {scope}" for scope, key in HERE.items()] + [f"{EXPIRED} {','.join(SCOPES)} {yesterday}"]
    folder = tmp_path_factory.mktemp("guarded")
    options = with_keys(folder, *lines)
    with hosted(bundle_folder, folder, options=options, most_failures=10**6, deadline_s=10.0) as server:
        yield server


def ask(server, route: Route, key: str | None, method: str | None = None, **headers: str):
    path = route.path.replace("{model}", "recsys")
    body = json.dumps(route.example).encode() if route.requests else None
    named = {"authorization": f"Bearer {key}"} if key else {}
    return server.ask(method or route.method, path, body, JSON | named | headers, admin=route in ADMIN)


@pytest.mark.parametrize("route", CLOSED, ids=lambda route: route.name)
def test_every_route_is_closed_to_everybody_else(server, route):
    ask(server, route, None).problem(401, "key_missing")
    ask(server, route, WRONG).problem(401, "key_unknown")
    ask(server, route, EXPIRED).problem(401, "key_expired")
    for scope in SCOPES - {route.scope}:
        got = ask(server, route, HERE[scope])
        if route.scope == ANY:
            assert got.status == 200
        else:
            got.problem(403, "scope_missing")


@pytest.mark.parametrize("route", [*PUBLIC, *ADMIN], ids=lambda route: route.name)
def test_every_route_is_open_to_its_key(server, route):
    scope = HERE["rank"] if route.scope in (OPEN, ANY) else HERE[route.scope]
    got = ask(server, route, scope)
    assert got.status in (200, 404, 409, 422), got.body
    assert got.status == 200 or got.json["code"] in EXPECTED


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"])
@pytest.mark.parametrize("route", CLOSED, ids=lambda route: route.name)
def test_no_method_is_a_way_around(server, route, method):
    assert ask(server, route, None, method).status == 401
    assert ask(server, route, WRONG, method, **{"x-http-method-override": route.method}).status == 401


@pytest.mark.parametrize("path", ODD_PATHS)
def test_no_path_is_a_way_around(server, path):
    server.ask("POST", path, b"{}", JSON).problem(401, "key_missing")
    key = {"authorization": f"Bearer {HERE['admin']}"}
    server.ask("POST", path, b"{}", JSON | key).problem(404, "not_found")


def test_percent_signs_do_not_change_the_scope(server):
    key = {"authorization": f"Bearer {HERE['metrics']}"}
    server.ask("POST", "/v1/%72ank", b"{}", JSON | key).problem(403, "scope_missing")


def test_health_needs_no_key(server):
    assert server.ask("GET", "/healthz").status == 200
    assert server.ask("GET", "/readyz").status == 200


def test_the_admin_port_has_nothing_else(server):
    key = {"authorization": f"Bearer {HERE['admin']}"}
    for route in PUBLIC:
        server.ask(route.method, route.path, b"{}", JSON | key, admin=True).problem(404, "not_found")


def test_both_ports_listen_on_loopback_alone(server):
    inodes = Path(f"/proc/{server.process.pid}/net/tcp").read_text().splitlines()[1:]
    ports = {f"{server.port:04X}", f"{server.admin_port:04X}"}
    local = [line.split()[1] for line in inodes if line.split()[3] == "0A"]
    addresses = {address for address, _, port in (each.partition(":") for each in local) if port in ports}
    assert addresses == {"0100007F"}


def test_no_message_takes_an_address_or_a_path():
    fields = {
        name for route in (*PUBLIC, *ADMIN) for kind in route.requests for name in kind.__struct_fields__
    }
    assert not {
        name for name in fields if any(word in name for word in ("url", "uri", "path", "file", "host"))
    }


def test_wrong_keys_end_in_a_429(bundle_folder, hosted, tmp_path):
    options = with_keys(tmp_path, f"{HERE['rank']} rank")
    with hosted(None, tmp_path, options=options, most_failures=5) as server:
        codes = [server.ask("GET", "/version", headers={"x-api-key": WRONG}).status for _ in range(8)]
        assert codes == [401] * 5 + [429] * 3
        server.ask("GET", "/version", headers={"x-api-key": WRONG}).problem(429, "too_many_failures")
        assert server.ask("GET", "/version", headers={"x-api-key": HERE["rank"]}).status == 200
        assert server.ask("GET", "/healthz").status == 200


def test_clients_that_come_too_often_are_told_when_to_come_again(hosted, tmp_path):
    with hosted(None, tmp_path, rate=0.001, burst=3.0) as server:
        got = [server.ask("GET", "/version") for _ in range(5)]
        assert [each.status for each in got] == [200] * 3 + [429] * 2
        got[-1].problem(429, "rate_limited")
        assert 900 < int(got[-1].headers["retry-after"]) <= 1001
        assert server.ask("GET", "/readyz").status == 503  # not limited, and no model


@pytest.mark.parametrize(
    ("keys", "arguments", "code"),
    [
        ([""], {}, "keys_empty"),
        (["x rank"], {}, "key_weak"),
        (None, {"environment": {"RECSYS_API_KEYS": ""}}, "keys_empty"),
        (None, {"host": "10.9.8.7"}, "open_bind"),
        (None, {"deadline_s": -1}, "settings_invalid"),
    ],
)
def test_the_start_is_refused(server_home, tmp_path, keys, arguments, code):
    options = [] if keys is None else with_keys(tmp_path, *keys)
    process = start(None, tmp_path, home=server_home, options=options, **arguments)
    exit_code, line = refused(process, tmp_path)
    assert exit_code == EXIT_CONFIG
    assert line.startswith(f"error: {code}: ")


FORGED = [
    '\n{"level":"info","event":"forged"}',
    "\x1b[31mred\x1b[0m",
    "%s%n%x",
    "=cmd()|calc",
    "'; DROP TABLE events; --",
    "../../../../var/forged",
    "\r\nset-cookie: forged=1",
    "\u2028\u2029\x85",
]


def test_nothing_of_a_client_is_written_down(server, tmp_path):
    secret = f"user-{'s' * 30}"
    rank, events = HERE["rank"], HERE["events"]
    before = set(Path(server.folder).iterdir())
    for text in FORGED:
        user = secret + text
        body = {"user_id": user, "candidates": [text]}
        got = server.post("/v1/rank", body, authorization=f"Bearer {rank}")
        assert got.json["items"][0]["id"] == text
        server.post("/v1/rank", {"user_id": user, text: 1}, authorization=f"Bearer {rank}").problem(
            422, "invalid_value"
        )
        event = {
            "event_id": user,
            "user_id": user,
            "item_id": text,
            "event_type": "click",
            "timestamp": time.time(),
        }
        assert server.post("/v1/events", event, authorization=f"Bearer {events}").json["accepted"] == 1
        asked = {"authorization": f"Bearer {rank}", "x-request-id": "forged id", "user-agent": secret}
        server.ask("GET", f"/{secret}", headers=asked).problem(404, "not_found")
    for number in range(300):
        server.ask("GET", "/version", headers={"x-api-key": f"{secret}-{number}"}).problem(401, "key_unknown")
    server.raw(b"GET /" + secret.encode() + b" HTTP/1.1\r\n\x00: " + secret.encode() + b"\r\n\r\n")
    time.sleep(0.6)
    exposition = server.ask("GET", "/metrics", headers={"x-api-key": HERE["metrics"]}).body.decode()
    told = server.log + exposition + Path(f"/proc/{server.process.pid}/cmdline").read_text()
    assert not [key for key in (*HERE.values(), EXPIRED, WRONG, secret) if key in told]
    assert "forged" not in told
    assert "127.0.0.1" not in told.replace('"host": "127.0.0.1"', "")
    lines = [json.loads(line) for line in server.log.splitlines()]
    [swap] = [line for line in lines if line["event"] != "request"]
    assert {**swap, "time": 0} == {"time": 0, "event": "model_swapped", "model": "recsys", "version": 0}
    lines.remove(swap)
    assert len(lines) >= 300
    assert all(
        set(line) == {"time", "event", "route", "status", "ms", "request_id", "client"} for line in lines
    )
    routes = {route.path for route in (*PUBLIC, *ADMIN)} | {"unknown"}
    assert {line["route"] for line in lines} <= routes
    assert set(Path(server.folder).iterdir()) - before <= {
        server.folder / f"events.db{end}" for end in ("-wal", "-shm")
    }


def test_the_metrics_count_what_happened(server):
    def count(name: str) -> float:
        text = server.ask("GET", "/metrics", headers={"x-api-key": HERE["metrics"]}).body.decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    ok = 'recsys_requests_total{route="/v1/rank",status="200"}'
    bad = 'recsys_requests_total{route="/v1/rank",status="422"}'
    unknown = 'recsys_degraded_total{reason="unknown_user"}'
    timed = 'recsys_request_seconds_count{route="/v1/rank"}'
    before, timings = [count(name) for name in (ok, bad, unknown)], count(timed)
    server.post("/v1/rank", {"candidates": ["i01"]}, x_api_key=HERE["rank"])
    server.post("/v1/rank", {}, x_api_key=HERE["rank"])
    assert [count(name) for name in (ok, bad, unknown)] == [each + 1 for each in before]
    assert count(timed) == timings + 2


def test_keys_leave_the_environment(hosted, tmp_path):
    environment = {"RECSYS_API_KEYS": f"{HERE['rank']} rank"}
    with hosted(None, tmp_path, environment=environment) as server:
        server.ask("GET", "/version").problem(401, "key_missing")
        assert server.ask("GET", "/version", headers={"x-api-key": HERE["rank"]}).status == 200
