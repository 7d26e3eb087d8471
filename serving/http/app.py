"""The ASGI application: finds the route, lets the client in or not, and turns every end into an answer."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import count
from time import perf_counter
from typing import Any, NamedTuple

from serving.http.bodies import Bodies, ClientGone, Receive
from serving.http.door import ANY, OPEN, Door
from serving.http.routes import PUBLIC, Route, Table
from serving.logs import LineLog
from serving.meters import Meters
from serving.problems import Refusal, problem_bytes, problem_headers

UNKNOWN = "unknown"
JSON = b"application/json"

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

_PROBES = frozenset(route.path for route in PUBLIC if route.scope == OPEN)
"""Asked every second by balancers: only what goes wrong there is logged."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_STOPS = (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit)


class Reply(NamedTuple):
    """What goes back."""

    body: bytes
    status: int = 200
    headers: Headers = ((b"content-type", JSON),)


@dataclass(slots=True)
class Call:
    """One request on its way.

    Attributes:
        headers: by lower-case name; the last of several.
        query: after the question mark.
        request_id: the client's, or ours.
        parameter: last step of the path where the route has one there.
        client: name of the key, or address.
        is_read: whether the body was.
    """

    scope: Scope
    receive: Receive
    bodies: Bodies
    headers: Mapping[bytes, bytes]
    query: bytes
    request_id: str
    parameter: str = ""
    client: str = ""
    is_read: bool = False

    async def read(self) -> bytes:
        """The body; raises what `Bodies.read` raises."""
        body = await self.bodies.read(self.receive, self.headers)
        self.is_read = True
        return body

    @property
    def since(self) -> float:
        """When the request was whole, as of `perf_counter`; now, while it is not."""
        whole: float = self.scope["state"].get("whole") or perf_counter()
        return whole


Answerer = Callable[[Call], Awaitable[Reply]]


class Phase:
    """Where in its life the server is.

    Attributes:
        draining: it was told to go, and finishes what it has.
    """

    draining: bool = False


class App:
    """Answers the routes of one table."""

    def __init__(
        self,
        table: Table,
        answerers: Mapping[str, Answerer],
        door: Door,
        bodies: Bodies,
        phase: Phase,
        watch: tuple[Meters, LineLog],
    ) -> None:
        """Take the routes, the functions that answer them by name, and who looks on."""
        self._table = table
        self._answerers = answerers
        self._door = door
        self._bodies = bodies
        self._phase = phase
        self._meters, self._log = watch
        self._prefix = secrets.token_hex(4)
        self._numbers = count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = dict(scope["headers"])
        call = Call(scope, receive, self._bodies, headers, scope["query_string"], self._request_id(headers))
        label, reply = UNKNOWN, None
        address = scope["client"][0] if scope["client"] else ""
        call.client = address
        try:
            methods, call.parameter = self._table.find(scope["path"])
            route = methods.get(scope["method"])
            label = next(iter(methods.values())).path if methods else UNKNOWN
            call.client = self._door.enter(headers, address, route.scope if route else ANY)
            reply = await self._answerers[_present(route, methods).name](call)
        except ClientGone:
            return
        except BaseException as error:  # some libraries panic past Exception
            if isinstance(error, _STOPS):
                raise
            reply = self._failed(call, error)
        await self._send(send, call, reply)
        seconds = perf_counter() - call.since
        if reply.status == HTTPStatus.OK and label in _PROBES:
            self._meters.answered(label, reply.status, seconds)
        else:
            self.report(label, reply.status, seconds, call.request_id, call.client)

    def report(self, label: str, status: int, seconds: float, request_id: str, client: str) -> None:
        """Count and log one answer."""
        self._meters.answered(label, status, seconds)
        self._log.request(label, status, seconds, request_id, self._log.hashed(client))

    def refused(self, refusal: Refusal, address: str) -> None:
        """Count and log what was refused before it became a request."""
        self.report(UNKNOWN, refusal.status, 0.0, "", address)

    def _failed(self, call: Call, error: BaseException) -> Reply:
        refusal = Refusal.of_any(error, self._log.failure)
        headers = problem_headers(refusal)
        if b"expect" in call.headers and not call.is_read:
            headers.append((b"connection", b"close"))  # whether the body will come is not known
        return Reply(problem_bytes(refusal, call.request_id), refusal.status, headers)

    async def _send(self, send: Send, call: Call, reply: Reply) -> None:
        headers = [
            *reply.headers,
            (b"content-length", b"%d" % len(reply.body)),
            (b"x-request-id", call.request_id.encode()),
        ]
        if self._phase.draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    def _request_id(self, headers: Mapping[bytes, bytes]) -> str:
        given = headers.get(b"x-request-id", b"")
        if _REQUEST_ID.fullmatch(given):
            return given.decode()
        return f"{self._prefix}-{next(self._numbers):x}"


def _present(route: Route | None, methods: Mapping[str, Route]) -> Route:
    if route is not None:
        return route
    if not methods:
        raise Refusal("not_found")
    allow = ", ".join(sorted(methods))
    raise Refusal("method_not_allowed", f"allowed: {allow}", headers=[(b"allow", allow.encode())])
