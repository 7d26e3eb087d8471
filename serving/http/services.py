"""What the routes work with: models, logs and registries as they look from there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from serving.engine.live_model import LiveModel
from serving.experiments.experiment import Experiment
from serving.http.app import Phase
from serving.http.ladder import Ladder
from serving.http.turns import Turns
from serving.messages import EventsAnswer, Ranking, RankRequest
from serving.meters import Meters


class Slot(Protocol):
    """Where the model that answers stands."""

    @property
    def current(self) -> LiveModel | None:
        """The model, None while there is none."""

    @property
    def degraded_reason(self) -> str | None:
        """Why not the newest version stands there, None where it does."""


class Observer(Protocol):
    """Hears of every list that the whole model was asked for."""

    def __call__(self, request: RankRequest | None, answer: Ranking, now: float, seconds: float) -> None:
        """Take the request (None for one without candidates), its answer, the moment, and what it took."""


class Intake(Protocol):
    """Where events go."""

    @property
    def state(self) -> str:
        """Whether events can be stored: ok, blocked or unavailable."""

    @property
    def durability(self) -> str:
        """What an acknowledgement means: fsync, os or none."""

    async def take(self, body: bytes, kind: str) -> EventsAnswer:
        """Store a body of our own events; `kind` is its media type. Raises Refusal or RecsysError."""

    async def take_metarank(self, body: bytes, kind: str) -> tuple[EventsAnswer, int]:
        """Store a body of Metarank's events, and say how many were ignored. Raises likewise."""


@dataclass(frozen=True)
class Side:
    """A model that answers: where it stands, how much of it does, and who watches it."""

    slot: Slot
    ladder: Ladder
    observe: Observer


@dataclass(frozen=True)
class Challenge:
    """A running experiment and its treatment, which has a ladder and a watch of its own."""

    experiment: Experiment
    side: Side


@dataclass(frozen=True)
class Services:
    """What the routes work with.

    Attributes:
        main: the model that answers outside of experiments.
        challenge: the experiment, None without one.
        intake: takes events.
        meters: count.
        phase: whether the server is going down.
        turns: orders rank requests.
        openapi: the document, encoded.
    """

    main: Side
    challenge: Challenge | None
    intake: Intake
    meters: Meters
    phase: Phase
    turns: Turns
    openapi: bytes
