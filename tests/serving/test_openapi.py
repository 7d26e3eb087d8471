"""The document says what the server does: its schemas, its examples, its codes, and what a fuzzer finds."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import msgspec
import pytest

import serving
from serving.http.decoding import JSON_TYPES
from serving.http.door import OPEN
from serving.http.openapi import openapi_document
from serving.http.routes import ADMIN, PUBLIC, Route, Table
from serving.problems import CODES, kind_of
from tests.serving.running import JSON, Running

schemathesis = pytest.importorskip("schemathesis")

EVERY = [*PUBLIC, *ADMIN]
DOCUMENT = openapi_document(PUBLIC)
SOURCES = sorted(Path(serving.__file__).parent.rglob("*.py"))
COMMAND_ONLY = {
    "address_unavailable",
    "keys_empty",
    "keys_exposed",
    "keys_invalid",
    "keys_unreadable",
    "key_weak",
    "open_bind",
    "settings_invalid",
}
"""Codes with which a command ends; no client ever sees them."""


@pytest.fixture(scope="module")
def server(bundle_folder, hosted, tmp_path_factory):
    with hosted(bundle_folder, tmp_path_factory.mktemp("described"), deadline_s=10.0) as server:
        yield server


@pytest.mark.parametrize("route", EVERY, ids=lambda route: route.name)
def test_examples_are_what_the_messages_say(route: Route):
    if route.answer is not None:
        answer = msgspec.convert(route.answer_example, route.answer, strict=True)
        assert msgspec.to_builtins(answer) == route.answer_example
    examples = route.example if isinstance(route.example, list) else [route.example]
    for example in examples if route.requests else []:
        assert any(_fits(example, kind) for kind in route.requests), example


def _fits(example: object, kind: type) -> bool:
    try:
        msgspec.convert(example, kind, strict=True)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize("route", EVERY, ids=lambda route: route.name)
def test_every_operation_is_whole(route: Route):
    operation = openapi_document(EVERY)["paths"][route.path][route.method.lower()]
    assert operation["operationId"] == route.name
    assert set(operation["responses"]) > {"200", "400", "404", "405", "431", "503"}
    assert ("401" in operation["responses"]) == (route.scope != OPEN)
    assert bool(operation["security"]) == (route.scope != OPEN)
    assert ("requestBody" in operation) == bool(route.requests)
    for status, response in operation["responses"].items():
        for media in response["content"].values():
            for example in media.get("examples", {}).values():
                assert status == "200" or str(example["value"]["status"]) == status


def test_every_reference_leads_somewhere():
    text = json.dumps(DOCUMENT)
    names = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert names
    assert names <= set(DOCUMENT["components"]["schemas"])


def test_attributes_are_told_at_their_properties():
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert "Attributes:" not in schema.get("description", ""), name
    ranking = DOCUMENT["components"]["schemas"]["RankRequest"]["properties"]
    assert "duplicates collapse" in ranking["candidates"]["description"]


def test_paths_are_found_and_nothing_else():
    table = Table(EVERY)
    for route in EVERY:
        methods, value = table.find(route.path.replace("{model}", "some-model"))
        assert methods[route.method] is route
        assert value == ("some-model" if route.parameter else "")
    for path in ("", "/", "/rank", "/rank/", "/rank/a/b", "/v1/rank/x", "v1/rank"):
        assert not table.find(path)[0], path


def codes_in(source: Path) -> set[str]:
    """Every code that a module names: of errors, refusals and rejections."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            words = [*node.args[:1], *(word.value for word in node.keywords if word.arg == "code")]
            if name in ("Refusal", "RecsysError", "Rejected", "_Wrong", "_wrong", "_come_back"):
                found |= {word.value for word in words if isinstance(word, ast.Constant)}
    return {code for code in found if isinstance(code, str) and re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", code)}


ANSWERING = [
    path
    for path in SOURCES
    if path.parent.name == "http" or path.stem in {"problems", "parsing", "writer", "answering"}
]


def test_every_code_stands_in_the_table():
    named = {code for source in ANSWERING for code in codes_in(source)}
    assert {"rate_limited", "events_busy", "too_many_events", "unknown_item", "key_weak"} <= named
    assert not named - set(CODES) - COMMAND_ONLY
    assert {code for route in EVERY for code in route.problems} <= set(CODES)


def test_every_status_is_one_that_is_promised():
    assert {kind.status for kind in CODES.values() if kind.status >= 500} == {503, 507}
    assert kind_of("something_new").status == 422
    assert all(re.fullmatch(r"[a-z0-9_]+", code) for code in CODES)


def test_the_server_gives_the_document(server):
    got = server.ask("GET", "/openapi.json")
    assert got.headers["content-type"] == "application/json"
    assert got.json == DOCUMENT


@pytest.mark.parametrize("route", [route for route in PUBLIC if route.requests], ids=lambda route: route.name)
def test_every_example_works(server, route: Route):
    example = json.loads(json.dumps(route.example).replace("i42", "i02"))
    got = server.ask("POST", route.path.replace("{model}", "recsys"), json.dumps(example).encode(), JSON)
    assert got.status == 200 or got.json["code"] == "all_rejected"  # its moments lie in the past by now
    assert route.media_types >= JSON_TYPES


@pytest.mark.slow
def test_a_fuzzer_finds_no_failure(server):
    fuzz(server, 12)


@pytest.mark.soak
def test_c29_a_fuzzer_finds_no_failure_for_long(server):
    fuzz(server, 1500)


def fuzz(server: Running, examples: int) -> None:
    """Schemathesis makes requests from the document, good ones and bad ones, and holds answers against it."""
    from hypothesis import HealthCheck, given, seed, settings

    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    names = ("not_a_server_error", "status_code_conformance", "content_type_conformance")
    checks = [getattr(schemathesis.checks, name) for name in (*names, "response_schema_conformance")]
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == len(PUBLIC) - 1  # it leaves out the document itself
    quiet = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    for operation in operations:
        for mode in schemathesis.GenerationMode:

            @seed(5)
            @settings(max_examples=examples, **quiet)
            @given(operation.as_strategy(generation_mode=mode))
            def look(case):
                case.call_and_validate(checks=checks)

            look()
    assert server.process.poll() is None
