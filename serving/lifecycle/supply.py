"""From a source to a model that may answer: fetched, verified, tried, loaded, warm. Every call here blocks.

Nothing of a bundle is parsed in this process before a child process has parsed the same bytes and lived.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from recsys.errors import EXIT_DATA, EXIT_UNAVAILABLE, RecsysError
from recsys.signing import PublicKeys, check_signature
from serving.engine.live_model import LiveModel
from serving.lifecycle.cached_bundles import CachedBundles, KnownGood
from serving.lifecycle.source import Candidate, Source
from serving.lifecycle.trial import TrialLimits, try_bundle
from serving.lifecycle.warm_up import golden_requests, warm_up
from serving.messages import ModelName, RankRequest

FIRST_TRIAL_S = 300.0
"""The first trial after an installation compiles the kernels: a minute, on a slow machine more."""


class ModelSupply:
    """Models of one source."""

    def __init__(
        self,
        source: Source,
        cache: CachedBundles,
        keys: PublicKeys | None = None,
        limits: TrialLimits | None = None,
    ) -> None:
        """Take where versions come from and what they must pass.

        Args:
            source: says which version is wanted.
            cache: keeps copies and notes.
            keys: whose signatures count; none: no signature is asked for.
            limits: of a trial.
        """
        self._source, self._cache = source, cache
        self._keys, self._limits = keys or {}, limits or TrialLimits()

    def open(self) -> None:
        """Get ready to be asked, which takes long; raises RecsysError as `resolve` does."""
        with _as_error("registry_unavailable", self._source.uri, EXIT_UNAVAILABLE):
            self._source.open()

    def resolve(self) -> Candidate:
        """The version that is wanted now; raises RecsysError, `registry_unavailable` among others."""
        with _as_error("registry_unavailable", self._source.uri, EXIT_UNAVAILABLE):
            return self._source.resolve()

    def load(
        self, candidate: Candidate, requests: Sequence[RankRequest] = (), *, encoder_later: bool = False
    ) -> LiveModel:
        """The model of a version, as of the moment that its bundle was made.

        Args:
            candidate: as `resolve` or `known_good` gave it.
            requests: what it answers to get warm, beside its golden requests.
            encoder_later: as `LiveModel.load`; the trial has loaded it.

        Raises:
            RecsysError: of the source, `check_signature`, `try_bundle` and `LiveModel.load`;
                `digest_mismatch` where the folder was replaced meanwhile; `load_failed` for anything else.
        """
        with _as_error("load_failed", candidate.name.name, EXIT_DATA):
            bundle, folder = self._source.fetch(candidate)
            if self._keys:
                check_signature(bundle, self._keys)
            if not self._cache.has_passed(bundle.digest):
                passed = try_bundle(folder, self._trial_limits())
                if passed.digest != bundle.digest:
                    what = "the bundle was replaced while it was tried:"
                    raise RecsysError("digest_mismatch", what, folder.name)
                self._cache.note_passed(bundle.digest)
            model = LiveModel.load(bundle, candidate.name, encoder_later=encoder_later)
            warm_up(model, [*golden_requests(bundle), *requests], time.time())
        return model

    def known_good(self) -> Candidate | None:
        """The last version of this source that served well, where its copy is there."""
        good = self._cache.known_good(self._source.uri)
        if good is None or not self._cache.path(good.digest).is_dir():
            return None
        return Candidate(ModelName(name=good.name, version=good.version, alias=good.alias), good.digest)

    def note_good(self, candidate: Candidate) -> None:
        """Remember that a version served well; raises RecsysError `storage_full`."""
        name = candidate.name
        self._cache.note_good(
            self._source.uri, KnownGood(candidate.digest, name.name, name.version, name.alias)
        )

    def prune(self, keep: Collection[str]) -> None:
        """Remove old copies but those to `keep` and the last-known-good ones."""
        self._cache.prune(keep)

    def _trial_limits(self) -> TrialLimits:
        if not self._cache.is_new:
            return self._limits
        return replace(self._limits, wall_s=max(self._limits.wall_s, FIRST_TRIAL_S))


@contextmanager
def _as_error(code: str, where: str, exit_code: int) -> Iterator[None]:
    """Give everything that a registry's client or a parser may raise the form of our errors."""
    try:
        yield
    except (RecsysError, MemoryError):
        raise
    except Exception as error:
        raise RecsysError(code, f"{type(error).__name__}:", where, exit_code=exit_code) from error
