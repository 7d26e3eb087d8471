"""The OpenAPI 3.1 document, made from the table of routes and the messages: it cannot say anything else."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from recsys.bundle import program_version
from serving.http.decoding import JSON_LINES_TYPES
from serving.http.door import ANY, OPEN
from serving.http.keys import SCOPES
from serving.http.routes import Route
from serving.messages import MOST_EVENTS, Problem
from serving.problems import CODES

TITLE = "recsys"
ABOUT = (
    "Ranks, recommends and learns from what it hears. Errors are RFC 9457 documents whose `code` is stable. "
    "Moments are epoch seconds, UTC."
)
EVERYWHERE = ("bad_request", "not_found", "method_not_allowed", "request_timeout", "url_too_long")
EVERYWHERE_LATER = ("head_too_large", "overloaded", "internal_failure")
BEHIND_KEYS = ("key_missing", "scope_missing", "rate_limited")

_REFERENCE = "#/components/schemas/{name}"
_ATTRIBUTES = re.compile(r"\n+Attributes:\n(.*)\Z", re.DOTALL)
_ATTRIBUTE = re.compile(r"^ {4}([\w, ]+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def openapi_document(routes: Sequence[Route]) -> dict[str, Any]:
    """The document of these routes, plain JSON."""
    paths: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for route in routes:
        paths[route.path][route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": program_version().split()[1], "description": ABOUT},
        "paths": dict(paths),
        "components": {"schemas": _schemas(routes), "securitySchemes": _security_schemes()},
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": _parameters(route),
        "responses": {"200": _success(route), **_failures(route)},
        "security": [] if route.scope == OPEN else _security(route.scope),
    }
    if route.requests:
        content = {kind: _body(route, kind) for kind in sorted(route.media_types)}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _body(route: Route, media_type: str) -> dict[str, Any]:
    if media_type in JSON_LINES_TYPES:
        return {"schema": {"type": "string", "description": "one object a line"}}
    return {"schema": _body_schema(route), "examples": {"example": {"value": route.example}}}


def _body_schema(route: Route) -> dict[str, Any]:
    references = [_reference(kind) for kind in route.requests]
    one = references[0] if len(references) == 1 else {"anyOf": references}
    if not route.batch:
        return one
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": MOST_EVENTS}]}


def _parameters(route: Route) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [
        {
            "name": "x-request-id",
            "in": "header",
            "required": False,
            "description": "comes back in the answer",
            "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
        }
    ]
    if route.parameter:
        name = {"name": route.parameter, "in": "path", "required": True}
        parameters.append(name | {"schema": {"type": "string"}, "example": "recsys"})
    for query in route.query:
        parameters.append({"name": query, "in": "query", "required": False, "schema": {"type": "boolean"}})
    return parameters


def _success(route: Route) -> dict[str, Any]:
    schema = {"type": "string"} if route.answer is None else _reference(route.answer)
    if route.name == "openapi":
        schema = {"type": "object"}
    content: dict[str, Any] = {"schema": schema}
    if route.answer_example is not None:
        content["examples"] = {"example": {"value": route.answer_example}}
    return {"description": "Done", "content": {route.answer_type: content}}


def _failures(route: Route) -> dict[str, Any]:
    """Problem answers by status, each with the codes that it may carry."""
    codes = [*EVERYWHERE, *(BEHIND_KEYS if route.scope != OPEN else ()), *route.problems, *EVERYWHERE_LATER]
    by_status: defaultdict[int, list[str]] = defaultdict(list)
    for code in dict.fromkeys(codes):
        by_status[CODES[code].status].append(code)
    return {str(status): _failure(status, by_status[status]) for status in sorted(by_status)}


def _failure(status: int, codes: Iterable[str]) -> dict[str, Any]:
    examples = {
        code: {
            "value": {
                "type": f"urn:problem-type:recsys:{code}",
                "title": CODES[code].title,
                "status": status,
                "code": code,
                "detail": "",
                "errors": [],
                "request_id": "5f1d03a2-1c",
            }
        }
        for code in codes
    }
    content = {"application/problem+json": {"schema": _reference(Problem), "examples": examples}}
    return {"description": "; ".join(CODES[code].title for code in codes), "content": content}


def _schemas(routes: Sequence[Route]) -> dict[str, Any]:
    kinds = {
        kind for route in routes for kind in (*route.requests, *([route.answer] if route.answer else ()))
    }
    ordered = sorted(kinds | {Problem}, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=_REFERENCE)
    return {name: _described(schemas[name]) for name in sorted(schemas)}


def _described(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the words of its docstring where they belong: at the properties."""
    text = inspect.cleandoc(schema.get("description", ""))
    found = _ATTRIBUTES.search(text)
    if not found:
        return schema | {"description": text}
    properties = dict(schema["properties"])
    for names, words in _ATTRIBUTE.findall(found[1]):
        for name in names.split(", "):
            if name in properties:
                properties[name] = {**properties[name], "description": " ".join(words.split())}
    return schema | {"description": text[: found.start()], "properties": properties}


def _reference(kind: type) -> dict[str, Any]:
    return {"$ref": _REFERENCE.format(name=kind.__name__)}


def _security_schemes() -> dict[str, Any]:
    scopes = f"a key with the scope that the operation names ({', '.join(sorted(SCOPES))})"
    return {
        "bearer": {"type": "http", "scheme": "bearer", "description": scopes},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": scopes},
    }


def _security(scope: str) -> list[dict[str, Any]]:
    """Either way of sending a key; OpenAPI 3.1 lets every scheme name the roles that it needs."""
    roles = [] if scope == ANY else [scope]
    return [{"bearer": roles}, {"header": roles}]
