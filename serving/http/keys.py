"""API keys: who may do what. Only their digests are kept, and none of them is ever written anywhere.

A line of a key file is `KEY SCOPE[,SCOPE] [EXPIRES]`; one that starts with `#` is skipped. The environment
variable holds the same lines, parted by semicolons or ends of line.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hmac import compare_digest
from pathlib import Path

from recsys.errors import EXIT_CONFIG, RecsysError
from serving.problems import Refusal

VARIABLE = "RECSYS_API_KEYS"
SCOPES = frozenset({"rank", "events", "metrics", "admin"})
SHORTEST_KEY = 16
LONGEST_KEY = 512
LARGEST_FILE = 2**20

_VISIBLE = re.compile(r"[!-~]+")
_CHALLENGE = (b"www-authenticate", b'Bearer realm="recsys"')


@dataclass(frozen=True)
class ApiKey:
    """What is known of one key.

    Attributes:
        digest: SHA-256.
        scopes: what it is good for.
        expires: epoch seconds, UTC; infinite for ever.
    """

    digest: bytes
    scopes: frozenset[str]
    expires: float = float("inf")

    @property
    def client(self) -> str:
        """A name for whoever holds it, from which the key cannot be told."""
        return self.digest.hex()[:16]


class Keys:
    """The keys that are let in; with none, everybody is."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        """Take the keys."""
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, headers: Mapping[bytes, bytes], now: float) -> ApiKey:
        """The key in `Authorization: Bearer KEY` or `X-API-Key: KEY`, `now` in epoch seconds.

        Every known key is compared, in constant time each: how long it takes tells nothing.

        Raises:
            Refusal: `key_missing`, `key_unknown`, `key_expired`.
        """
        digest = hashlib.sha256(_presented(headers)).digest()
        found = None
        for key in self._keys:
            if compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise Refusal("key_unknown", headers=[_CHALLENGE])
        if now >= found.expires:
            raise Refusal("key_expired", headers=[_CHALLENGE])
        return found


def read_keys(path: Path | None, environment: Mapping[str, str]) -> Keys:
    """The keys of a file and of the environment variable RECSYS_API_KEYS.

    Raises:
        RecsysError: `keys_unreadable`, `keys_exposed` where others may read the file, `keys_empty` where a
            source is named and holds none, `key_weak` for fewer than 16 characters, `keys_invalid`.
    """
    keys: list[ApiKey] = []
    if path is not None:
        keys += _parse(_read(path).split("\n"), str(path))
    if VARIABLE in environment:
        keys += _parse(re.split(r"[;\n]", environment[VARIABLE]), VARIABLE)
    if len({key.digest for key in keys}) < len(keys):
        raise _wrong("keys_invalid", "a key stands twice")
    return Keys(keys)


def check_bind(host: str, keys: Keys) -> None:
    """Raise RecsysError `open_bind` where anybody could come in: no keys and not a loopback address."""
    if not len(keys) and not is_loopback(host):
        raise _wrong("open_bind", "without API keys only loopback addresses are served", host)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _presented(headers: Mapping[bytes, bytes]) -> bytes:
    scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
    presented = value.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
    if not presented:
        raise Refusal("key_missing", "send Authorization: Bearer KEY", headers=[_CHALLENGE])
    return presented


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_FILE:
                raise _wrong("keys_unreadable", "not a file of at most 1 MiB", str(path))
            if status.st_mode & 0o077:
                raise _wrong("keys_exposed", "others may read or write the keys: chmod 600", str(path))
            return file.read().decode()
    except OSError as error:
        raise _wrong("keys_unreadable", error.strerror or "cannot be read", str(path)) from None
    except UnicodeDecodeError:
        raise _wrong("keys_invalid", "not UTF-8", str(path)) from None


def _parse(lines: Iterable[str], where: str) -> list[ApiKey]:
    keys = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words and not words[0].startswith("#"):
            keys.append(_parse_words(words, f"{where}, line {number}"))
    if not keys:
        raise _wrong("keys_empty", "no key is there: add one, or do without", where)
    return keys


def _parse_words(words: list[str], where: str) -> ApiKey:
    if not 2 <= len(words) <= 3:
        raise _wrong("keys_invalid", "a line is KEY SCOPE[,SCOPE] [EXPIRES]", where)
    key, scopes = words[0], frozenset(words[1].split(","))
    if len(key) < SHORTEST_KEY:
        raise _wrong("key_weak", f"a key needs at least {SHORTEST_KEY} characters", where)
    if len(key) > LONGEST_KEY or not _VISIBLE.fullmatch(key):
        raise _wrong("keys_invalid", f"a key is at most {LONGEST_KEY} visible ASCII characters", where)
    if not scopes <= SCOPES:
        raise _wrong("keys_invalid", f"scopes are {', '.join(sorted(SCOPES))}", where)
    expires = _moment(words[2], where) if len(words) == 3 else float("inf")
    return ApiKey(hashlib.sha256(key.encode()).digest(), scopes, expires)


def _moment(text: str, where: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _wrong("keys_invalid", "EXPIRES is a day or a moment as in ISO 8601", where) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _wrong(code: str, what: str, where: str = "") -> RecsysError:
    return RecsysError(code, what, where, exit_code=EXIT_CONFIG)
