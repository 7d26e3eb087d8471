"""Who comes in: the key's scope, the rate, and the end of patience with wrong keys."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic, time

from serving.http.keys import Keys
from serving.http.rates import Buckets
from serving.http.settings import ServerSettings
from serving.problems import Refusal

OPEN = "open"
"""Scope of what everybody may see."""
ANY = "any"
"""Scope of what every key is good for."""


class Door:
    """Lets requests in or not."""

    def __init__(self, keys: Keys, settings: ServerSettings) -> None:
        """Take the keys, of which there may be none, and the limits."""
        self._keys = keys
        self._rates = Buckets(settings.rate, settings.burst) if settings.rate > 0 else None
        self._failures = Buckets(settings.most_failures / 60, settings.most_failures)

    def enter(self, headers: Mapping[bytes, bytes], address: str, scope: str) -> str:
        """The client's name: of its key, or its address where none is needed.

        A right key is let in from an address that sent many wrong ones too: clients behind one proxy share
        an address, and a key of 16 characters is not found by trying.

        Args:
            headers: names in lower case.
            address: where the request comes from.
            scope: what the route asks for.

        Raises:
            Refusal: `key_missing`, `key_unknown`, `key_expired`, `too_many_failures`, `scope_missing`,
                `rate_limited`.
        """
        if scope == OPEN:
            return address
        client = self._client(headers, address, scope) if len(self._keys) else address
        wait = 0.0 if self._rates is None else self._rates.take(client, monotonic())
        if wait:
            raise _come_back("rate_limited", wait)
        return client

    def _client(self, headers: Mapping[bytes, bytes], address: str, scope: str) -> str:
        try:
            key = self._keys.find(headers, time())
        except Refusal:
            wait = self._failures.take(address, monotonic())
            if wait:
                raise _come_back("too_many_failures", wait) from None
            raise
        if scope not in (ANY, *key.scopes):
            raise Refusal("scope_missing", f"this needs the scope {scope}")
        return key.client


def _come_back(code: str, wait_s: float) -> Refusal:
    return Refusal(code, headers=[(b"retry-after", b"%d" % (int(wait_s) + 1))])
