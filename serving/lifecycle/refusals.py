"""Versions that were refused, so that none is fetched and tried again at every look at the registry."""

from __future__ import annotations

import math
import time

from recsys.errors import RecsysError

PASSING = frozenset(
    {
        "catch_up_slow",
        "events_blocked",
        "load_slow",
        "missing_extra",
        "registry_unavailable",
        "storage_failed",
        "storage_full",
        "trial_timeout",
        "unknown_alias",
        "unknown_model",
        "unknown_version",
    }
)
"""Codes that say nothing against a bundle: it is tried again after a while."""


class Refusals:
    """Errors by the digest of the bundle that they were about."""

    def __init__(self, retry_s: float) -> None:
        """Take the seconds for which a passing failure counts."""
        self._retry_s = retry_s
        self._found: dict[str, tuple[RecsysError, float]] = {}

    def note(self, digest: str, error: RecsysError) -> None:
        """Remember why a bundle was refused."""
        until = time.monotonic() + self._retry_s if error.code in PASSING else math.inf
        self._found[digest] = (_copy(error), until)

    def check(self, digest: str) -> None:
        """Raise what was noted of a bundle, unless it has passed."""
        error, until = self._found.get(digest, (None, 0.0))
        if error is not None and time.monotonic() < until:
            raise _copy(error)

    def clear(self) -> None:
        """Forget everything: the alias has moved."""
        self._found.clear()


def _copy(error: RecsysError) -> RecsysError:
    """The same without its traceback, which would keep alive whatever was being loaded."""
    return RecsysError(error.code, error.what, error.where, exit_code=error.exit_code)
