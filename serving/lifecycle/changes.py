"""Putting another model into a slot: loaded beside the one that answers, brought to the same events, swapped.

It runs in the loop's thread and never blocks it: what takes long happens in a worker thread, and each wait
has an end. One call at a time; whoever calls takes care of that.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from recsys.errors import EXIT_TEMPORARY, RecsysError
from serving.engine.live_model import LiveModel
from serving.lifecycle.catching_up import Log, catch_up
from serving.lifecycle.refusals import Refusals
from serving.lifecycle.report import ModelReport
from serving.lifecycle.slot import ModelSlot
from serving.lifecycle.source import Candidate
from serving.lifecycle.supply import ModelSupply
from serving.lifecycle.worker import Worker
from serving.messages import RankRequest

ROLLED_BACK = "rolled_back"

T = TypeVar("T")


@dataclass(frozen=True)
class ChangeLimits:
    """How long the steps of a change may take.

    Attributes:
        load_s: fetching, trying, loading and warming up. A registry's artefacts may come slowly.
        catch_up_s: reading the events since the bundle was made: a million take about a minute.
        retry_s: what failed for a passing reason is left alone for so long.
    """

    load_s: float = 300.0
    catch_up_s: float = 300.0
    retry_s: float = 60.0


class ModelChanges:
    """Changes of one slot."""

    def __init__(
        self,
        slot: ModelSlot,
        supply: ModelSupply,
        report: ModelReport,
        log: Log | None = None,
        limits: ChangeLimits | None = None,
    ) -> None:
        """Take the slot, where models come from, who hears of changes, and the log of events."""
        self.slot, self.report, self.refusals = slot, report, Refusals((limits or ChangeLimits()).retry_s)
        self.served: Candidate | None = None
        self._supply, self._log, self._limits = supply, log, limits or ChangeLimits()
        self._worker = Worker("model")

    async def take(
        self, candidate: Candidate, requests: Sequence[RankRequest], reason: str | None = None
    ) -> bool:
        """Let a version answer, and say whether another model does now.

        Args:
            candidate: the version.
            requests: to warm up with.
            reason: why it is not the newest version.

        Raises:
            RecsysError: why it cannot answer, now or the last time; then nothing has changed.
        """
        current = self.slot.current
        if current is not None and current.digest == candidate.digest:
            current.name = candidate.name
            self.slot.swap(current, reason)
            return False
        self.refusals.check(candidate.digest)
        try:
            model = await self._model_of(candidate, requests)
            await self._swap(model, reason)
        except RecsysError as error:
            self.refusals.note(candidate.digest, error)
            self.report.rejected_bundle(candidate.name, error)
            raise
        self.served = candidate
        self.report.swapped(candidate.name)
        gc.freeze()  # a collection would look at all of the model for 50 ms; it goes by its last reference
        return True

    async def roll_back(self, why: str) -> None:
        """Go back to the previous model, and do not take the one that goes before the alias moves.

        Raises:
            RecsysError: `nothing_to_roll_back`.
        """
        model, bad = self.slot.to_go_back_to(), self.slot.current
        try:
            await self._swap(model, ROLLED_BACK)
        except RecsysError as error:  # a model that lacks some events is better than one that fails
            self.report.failed("events_unread", error)
            self.slot.swap(model, ROLLED_BACK)
        self.slot.drop_previous()
        self.served = None
        self.report.rolled_back(model.name, why)
        if bad is not None:
            what = f"version {bad.name.version} was rolled back ({why}); it comes again when the alias moves"
            self.refusals.note(bad.digest, RecsysError(ROLLED_BACK, what))

    async def tidy_up(self) -> None:
        """Remove copies that nobody needs; the first version that serves at all is also the best known."""
        kept = [model.digest for model in (self.slot.current, self.slot.previous) if model is not None]
        if self.served is not None and await self.known_good() is None:
            await self.note_good(self.served)
        await self._blocking(lambda: self._supply.prune(kept))

    async def known_good(self) -> Candidate | None:
        """The version that served well last."""
        return await self._blocking(self._supply.known_good)

    async def note_good(self, candidate: Candidate) -> None:
        """Remember that a version served well; raises RecsysError `storage_full`."""
        await self._blocking(lambda: self._supply.note_good(candidate))

    async def _model_of(self, candidate: Candidate, requests: Sequence[RankRequest]) -> LiveModel:
        """The previous model where it is that version: it was tried and loaded before."""
        previous = self.slot.previous
        if previous is not None and previous.digest == candidate.digest:
            previous.name = candidate.name
            return previous
        is_first = self.slot.current is None  # nobody can be answered before it is there
        return await self._blocking(lambda: self._supply.load(candidate, requests, encoder_later=is_first))

    async def _swap(self, model: LiveModel, reason: str | None) -> None:
        try:
            await catch_up(model, self._log, self.slot, self._worker, self._limits.catch_up_s)
            self.slot.swap(model, reason)
        finally:
            self.slot.go_on()

    def close(self) -> None:
        """End the thread that loads."""
        self._worker.close()

    async def _blocking(self, call: Callable[[], T]) -> T:
        what = f"not done after {self._limits.load_s:g} s"
        late = RecsysError("load_slow", what, exit_code=EXIT_TEMPORARY)
        return await self._worker.run(call, self._limits.load_s, late)
