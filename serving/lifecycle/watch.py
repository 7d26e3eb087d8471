"""The life of the model that answers: looked for, swapped in, watched, and taken back where it does badly.

The alias of a registry is looked at every few seconds. While the registry is away the model that is there
goes on, and at the start the last-known-good copy stands in.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from recsys.errors import EXIT_TEMPORARY, EXIT_UNAVAILABLE, RecsysError
from serving.engine.live_model import LiveModel
from serving.health import Swap
from serving.lifecycle.changes import ModelChanges
from serving.lifecycle.health_budget import HealthBudget, HealthCheck, Latencies
from serving.lifecycle.refusals import PASSING
from serving.lifecycle.source import Candidate
from serving.lifecycle.supply import ModelSupply
from serving.lifecycle.warm_up import RecentRequests
from serving.lifecycle.worker import Worker
from serving.messages import RankRequest

UNAVAILABLE, REJECTED = "registry_unavailable", "registry_artifact_rejected"
"""Why a copy answers and not the newest version."""

MOST_WAITING = 16


@dataclass(frozen=True)
class WatchSettings:
    """How a slot is kept at its alias.

    Attributes:
        poll_s: seconds between two looks at the alias; up to a share `jitter` of them more or less, so that
            many servers do not ask at once.
        open_s: for the registry's client to be imported, once, before the registry is asked at all: on a busy
            machine that takes longer than an answer may, and says nothing of the registry.
        resolve_s: for the registry to answer. Its own client gives up after about eight.
        first_resolve_s: likewise before there is any model: then a copy serves the sooner.
        budget: what a new model may do wrong before it goes again.
    """

    poll_s: float = 10.0
    jitter: float = 0.1
    open_s: float = 30.0
    resolve_s: float = 9.0
    first_resolve_s: float = 4.0
    budget: HealthBudget = field(default_factory=HealthBudget)

    def __post_init__(self) -> None:
        """Refuse waits that have no length or no end."""
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name.endswith("_s") and not 0.0 < value < math.inf:
                raise ValueError(f"{each.name} must be a number of seconds over 0")
        if not 0.0 <= self.jitter < 1.0:
            raise ValueError("jitter must be from 0 to below 1")


class ModelWatch:
    """Keeps one slot at the version that its source names. One change is made at a time."""

    def __init__(
        self, changes: ModelChanges, supply: ModelSupply, settings: WatchSettings | None = None
    ) -> None:
        """Take what changes the slot, and what says which version is wanted."""
        self._changes, self._supply = changes, supply
        self._settings = settings or WatchSettings()
        self._registry = Worker("registry")
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._named: tuple[int, str] | None = None
        self._recent, self._latencies = RecentRequests(), Latencies()
        self._check: HealthCheck | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Bring in the first model: the newest, else the last-known-good copy.

        Raises:
            RecsysError: why neither can be had. Then the slot is empty, and `run` goes on trying.
        """
        async with self._turn:
            try:
                await self._open()
                await self._refresh(self._settings.first_resolve_s)
            except RecsysError as error:
                good = await self._changes.known_good()
                if good is None:
                    raise
                self._changes.report.failed("last_known_good", error)
                await self._take(good, UNAVAILABLE if error.code in PASSING else REJECTED)

    async def run(self) -> None:
        """Look at the alias for ever."""
        while True:
            spread = self._settings.jitter * random.uniform(-1.0, 1.0)
            await asyncio.sleep(self._settings.poll_s * (1.0 + spread))
            await self.poll()

    async def poll(self) -> None:
        """Look once; what goes wrong is reported, and the model that is there stays."""
        async with self._turn:
            try:
                await self._refresh(self._settings.resolve_s)
            except RecsysError as error:
                self._changes.report.failed("model_unchanged", error)

    async def reload(self) -> Swap:
        """Take the version that is named now; both names are the same where it answers already.

        Raises:
            RecsysError: why it does not answer; then nothing has changed. `reload_running` where too many
                wait. A version that was refused is refused again untried, until the alias moves.
        """
        if self._waiting >= MOST_WAITING:
            raise RecsysError("reload_running", "too many reloads wait", exit_code=EXIT_TEMPORARY)
        self._waiting += 1
        try:
            async with self._turn:
                before = self._changes.slot.current
                await self._refresh(self._settings.resolve_s)
                return self._swap(before)
        finally:
            self._waiting -= 1

    async def rollback(self) -> Swap:
        """Go back to the previous model. The one that goes is not taken again before the alias moves.

        Raises:
            RecsysError: `nothing_to_roll_back`.
        """
        async with self._turn:
            before = self._changes.slot.current
            await self._roll_back("asked for")
            return self._swap(before)

    def observe(self, request: RankRequest | None, seconds: float, *, failed: bool = False) -> None:
        """Hear of a request that the current model answered, once the answer is on its way.

        Args:
            request: kept to warm the next model up with; None for one of another kind.
            seconds: that the model took.
            failed: whether it raised, and something less had to answer.
        """
        if request is not None:
            self._recent.note(request)
        self._latencies.note(seconds)
        if self._check is None:
            return
        verdict = self._check.note(seconds, failed=failed)
        if verdict != "watching":
            self._check = None
            self._spawn(self._praise if verdict == "good" else partial(self._take_back, verdict))

    async def close(self) -> None:
        """Stop what this started by itself, and its threads."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._registry.close()
        self._changes.close()

    async def _open(self) -> None:
        what = f"the registry's client was not there after {self._settings.open_s:g} s"
        late = RecsysError(UNAVAILABLE, what, exit_code=EXIT_UNAVAILABLE)
        await self._registry.run(self._supply.open, self._settings.open_s, late)

    async def _refresh(self, limit_s: float) -> None:
        what = f"no answer after {limit_s:g} s"
        late = RecsysError(UNAVAILABLE, what, exit_code=EXIT_UNAVAILABLE)
        with _as_error():
            wanted = await self._registry.run(self._supply.resolve, limit_s, late)
            named = (wanted.name.version, wanted.digest)
            if named != self._named:
                self._changes.refusals.clear()
            self._named = named
            await self._take(wanted)

    async def _take(self, candidate: Candidate, reason: str | None = None) -> None:
        if await self._changes.take(candidate, self._recent.list(), reason):
            self._check = HealthCheck(self._settings.budget, self._latencies.take())
            self._spawn(self._tidy_up)

    async def _roll_back(self, why: str) -> None:
        await self._changes.roll_back(why)
        self._check = None
        self._latencies.take()

    async def _take_back(self, verdict: str) -> None:
        """Roll back where there is something to go back to and nobody was faster."""
        bad = self._changes.slot.current
        async with self._turn:
            if self._changes.slot.current is bad:
                await self._roll_back(verdict)

    async def _praise(self) -> None:
        served = self._changes.served
        if served is not None:
            async with self._turn:
                await self._changes.note_good(served)

    async def _tidy_up(self) -> None:
        async with self._turn:
            await self._changes.tidy_up()

    def _swap(self, before: LiveModel | None) -> Swap:
        current = self._changes.slot.current
        if current is None:  # not after a change that went well
            raise RecsysError("not_ready", "no model is loaded", exit_code=EXIT_UNAVAILABLE)
        return Swap(model=current.name, previous=before.name if before is not None else None)

    def _spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.get_running_loop().create_task(self._told(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _told(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()  # made here, not before: a task may be cancelled before its first step
        except RecsysError as error:
            self._changes.report.failed("model_unchanged", error)


@contextmanager
def _as_error() -> Iterator[None]:
    """Give a want of memory or a panic in a library the form of our errors: the model goes on."""
    try:
        yield
    except RecsysError:
        raise
    except Exception as error:
        raise RecsysError("load_failed", type(error).__name__) from error
