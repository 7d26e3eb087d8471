"""Reading bodies: not past a cap for each, nor past a sum for all of them together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from serving.problems import Refusal

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientGone(Exception):  # noqa: N818 - nobody is there to be told
    """The client went away before its request was whole."""


class Bodies:
    """Bodies that are being read."""

    def __init__(self, longest: int, most: int) -> None:
        """Take the bytes that one body, and all of them, may have."""
        self._longest = longest
        self._most = most
        self._held = 0

    async def read(self, receive: Receive, headers: Mapping[bytes, bytes]) -> bytes:
        """A whole body.

        Raises:
            Refusal: `body_too_large`, at once where the header says so and else at the cap; `overloaded`
                where too much of other bodies is held.
            ClientGone: the connection ended.
        """
        declared = headers.get(b"content-length", b"0")
        if len(declared) > 18 or int(declared) > self._longest:
            raise self._too_large()
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            return self._checked(message["body"])
        return await self._read_on(receive, message)

    async def _read_on(self, receive: Receive, message: MutableMapping[str, Any]) -> bytes:
        parts: list[bytes] = []
        held = 0
        try:
            while message["type"] == "http.request":
                parts.append(message["body"])
                held += len(parts[-1])
                self._held += len(parts[-1])
                if held > self._longest:
                    raise self._too_large()
                if self._held > self._most:
                    raise Refusal("overloaded", "too many bodies are being read")
                if not message.get("more_body"):
                    return b"".join(parts)
                message = await receive()
            raise ClientGone
        finally:
            self._held -= held

    def _checked(self, body: bytes) -> bytes:
        if len(body) > self._longest:
            raise self._too_large()
        return body

    def _too_large(self) -> Refusal:
        return Refusal("body_too_large", f"at most {self._longest} bytes")
