"""One server put together: models and their watches, the log and who follows it, and the site in front."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from recsys.errors import EXIT_CONFIG, EXIT_NO_INPUT, RecsysError
from recsys.signing import load_public_keys
from recsys.versions import parse_model_uri
from serving.events.log import Stored
from serving.events.place import LogPlace
from serving.events.tail import LogTail
from serving.experiments.experiment import Experiment
from serving.http.admin import Admin, no_shadow
from serving.http.intake_process import IntakeProcess
from serving.http.services import Observer
from serving.http.settings import ServerSettings
from serving.http.site import Parts, Watched
from serving.http.turns import Turns
from serving.lifecycle.cached_bundles import CachedBundles, open_registry
from serving.lifecycle.changes import ModelChanges
from serving.lifecycle.embedding import TextEmbedding
from serving.lifecycle.following import Follower
from serving.lifecycle.report import MAIN, ModelReport
from serving.lifecycle.shadow import Shadow, ShadowSettings
from serving.lifecycle.slot import ModelSlot
from serving.lifecycle.source import FolderSource, RegistrySource, Source
from serving.lifecycle.supply import ModelSupply
from serving.lifecycle.watch import ModelWatch, WatchSettings
from serving.logs import LineLog
from serving.messages import FAILING, OVERLOADED, Ranking, RankRequest
from serving.meters import Meters

REGISTRY = "models:/"
DAMAGE_S = 1.0
"""The log of events is asked so often what it has found broken."""


@dataclass(frozen=True)
class HostSettings:
    """What is served, and from where.

    Attributes:
        model: `models:/NAME@ALIAS`, `models:/NAME/NUMBER`, or a folder with one bundle.
        home: where copies of bundles are kept, and where a registry is looked for without `tracking_uri`.
        tracking_uri: of a tracking server.
        public_keys: files; where there are any, only bundles signed with one of them are served.
        experiment: compares two aliases of the model.
        shadow: another version, as `model`, that is tried on a share of the requests.
        server, watch, shadowing: limits and periods.
    """

    model: str
    home: Path
    tracking_uri: str | None = None
    public_keys: tuple[Path, ...] = ()
    experiment: Experiment | None = None
    shadow: str | None = None
    server: ServerSettings = field(default_factory=ServerSettings)
    watch: WatchSettings = field(default_factory=WatchSettings)
    shadowing: ShadowSettings = field(default_factory=ShadowSettings)


class Station:
    """One model that answers, with what brings it in and watches it."""

    def __init__(
        self,
        uri: str,
        role: str,
        settings: HostSettings,
        told: tuple[Meters, LineLog],
        events: LogTail,
        pause: Callable[[], Awaitable[None]],
    ) -> None:
        """Open what the model comes from; nothing is fetched yet.

        Args:
            uri: as `HostSettings.model`.
            role: names it, and the folder of its copies, which no other station touches.
            settings: of the server.
            told: hear of changes.
            events: the log that it follows.
            pause: lets requests have their turn between events.

        Raises:
            RecsysError: `model_uri_invalid`, `cache_unsafe`; of `load_public_keys`.
        """
        self.slot, self._report = ModelSlot(), ModelReport(*told, role)
        cache = CachedBundles(settings.home / "cache" / "served" / role)
        supply = ModelSupply(_source(uri, settings, cache), cache, load_public_keys(settings.public_keys))
        changes = ModelChanges(self.slot, supply, self._report, events)
        self.watch = ModelWatch(changes, supply, settings.watch)
        # Each station has its own: one that is far behind, or whose encoder hangs, holds up no other.
        self.follower = Follower(events, [self.slot], told[1].failure, pause)
        self._embedding = TextEmbedding([self.slot], told[1].failure)

    @property
    def watched(self) -> Watched:
        """The slot with its watch, for the site."""
        return Watched(self.slot, self.observe)

    def observe(self, request: RankRequest | None, answer: Ranking, now: float, seconds: float) -> None:
        """Let the watch see one answer."""
        self.watch.observe(request, seconds, failed=answer.degraded_reason == FAILING)

    async def close(self) -> None:
        """End what goes on by itself, once `live` and `work` have ended."""
        await self.watch.close()
        self.follower.close()
        self._embedding.close()

    def work(self) -> list[Coroutine[Any, Any, None]]:
        """What goes on beside `live`, for ever."""
        return [self.follower.run(), self._embedding.run()]

    async def live(self, *, required: bool) -> None:
        """Bring the first model in, and keep to its alias for ever.

        Raises:
            RecsysError: where a `required` model cannot come by waiting: nothing of that name is registered,
                or the registry's client is not installed.
        """
        try:
            await self.watch.start()
        except RecsysError as error:
            if required and (error.exit_code == EXIT_NO_INPUT or error.code == "missing_extra"):
                raise
            self._report.failed("no_model", error)
        await self.watch.run()


class Host:
    """The parts of one server, alive between `async with`.

    Entering gives a future that ends only by a failure with which serving makes no sense.
    """

    def __init__(
        self, settings: HostSettings, place: LogPlace, intake: IntakeProcess, meters: Meters, log: LineLog
    ) -> None:
        """Put the parts together.

        Args:
            settings: what is served.
            place: of the log of events.
            intake: stores events there; closed in the end.
            meters: count.
            log: hears of everything, in lines.

        Raises:
            RecsysError: of `Station`.
        """
        self.turns = Turns(settings.server.most_waiting, settings.server.deadline_s)
        self._intake, self._events = intake, LogTail(place, intake.damage)

        def station(uri: str, role: str) -> Station:
            return Station(uri, role, settings, (meters, log), self._events, self.turns.lull)

        self._main = station(settings.model, MAIN)
        self._stations = [self._main]
        if settings.experiment is not None:
            self._stations.append(station(_treatment(settings.model, settings.experiment), "treatment"))
        self._shadow: Shadow | None = None
        if settings.shadow is not None:
            self._stations.append(station(settings.shadow, "shadow"))
            self._shadow = Shadow(self._stations[-1].slot, lambda: self.turns.is_busy, settings.shadowing)
        self._settings, self._meters, self._log = settings, meters, log
        self._tasks: list[asyncio.Task[None]] = []

    def parts(self) -> Parts:
        """What the site is made of."""
        experiment, shadow = self._settings.experiment, self._shadow
        return Parts(
            main=Watched(self._main.slot, self._observer()),
            challenge=None if experiment is None else (experiment, self._stations[1].watched),
            intake=self._intake,
            admin=Admin(
                reload=self._main.watch.reload,
                rollback=self._main.watch.rollback,
                shadow=no_shadow if shadow is None else shadow.figures,
            ),
            turns=self.turns,
            background=self,
            meters=self._meters,
            log=self._log,
        )

    async def __aenter__(self) -> asyncio.Future[None]:
        """Begin with everything that goes on by itself."""
        first, *others = self._stations
        required = asyncio.ensure_future(first.live(required=True))
        work: list[Coroutine[Any, Any, None]] = [station.live(required=False) for station in others]
        work += [part for station in self._stations for part in station.work()]
        work += [
            self._intake.run(self._hear, self._events.renew, self._log.failure),
            self._tell_of_damage(),
        ]
        if self._shadow is not None:
            work.append(self._shadow.run())
        self._tasks = [required, *(asyncio.ensure_future(each) for each in work)]
        for task in self._tasks[1:]:
            task.add_done_callback(self._ended)
        return required

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it, and put on the disk what was taken."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for station in self._stations:
            await station.close()
        self._events.close()
        self._intake.close()

    def _hear(self, after: int, stored: Sequence[Stored]) -> None:
        for station in self._stations:
            station.follower.hear(after, stored)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Tell of work that should have gone on for ever."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.failure("work_ended", error)

    async def _tell_of_damage(self) -> None:
        """Say once of each finding what of the log is broken: when it was opened, and whenever it is read."""
        told = 0
        while True:
            for place in self._intake.damage.places[told:]:
                self._log.write({"time": time.time(), "event": "events_damaged", "what": place[:200]})
                told += 1
            await asyncio.sleep(DAMAGE_S)

    def _observer(self) -> Observer:
        shadow, main = self._shadow, self._main
        if shadow is None:
            return main.observe

        def observe(request: RankRequest | None, answer: Ranking, now: float, seconds: float) -> None:
            main.observe(request, answer, now, seconds)
            if request is not None and answer.degraded_reason not in (OVERLOADED, FAILING):
                shadow.offer(request, answer, now)

        return observe


def _source(uri: str, settings: HostSettings, cache: CachedBundles) -> Source:
    if uri.startswith(REGISTRY):
        return RegistrySource(uri, lambda: open_registry(settings.home, settings.tracking_uri), cache)
    folder = Path(uri)
    if not folder.is_dir():
        what = "no folder of this name; a registered model is models:/NAME@ALIAS:"
        raise RecsysError("unknown_model", what, uri, exit_code=EXIT_NO_INPUT)
    return FolderSource(folder)


def _treatment(model: str, experiment: Experiment) -> str:
    """The other side of an experiment; the server's own model must be its control."""
    name, wanted = parse_model_uri(model)
    if wanted != experiment.control:
        what = f"the control of the experiment is {experiment.control!r}: serve"
        where = f"{REGISTRY}{name}@{experiment.control}"
        raise RecsysError("experiment_invalid", what, where, exit_code=EXIT_CONFIG)
    return f"{REGISTRY}{name}@{experiment.treatment}"
