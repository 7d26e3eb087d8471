"""Putting the parts of a server together: what the command does, and what the tests do."""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass

import msgspec

from serving.experiments.experiment import Experiment
from serving.http.admin import Admin, AdminHandlers
from serving.http.app import App, Phase
from serving.http.bodies import Bodies
from serving.http.door import Door
from serving.http.handlers import PublicHandlers
from serving.http.keys import Keys
from serving.http.ladder import Ladder
from serving.http.openapi import openapi_document
from serving.http.routes import ADMIN, PUBLIC, Table
from serving.http.server import Background, Listener, Site
from serving.http.services import Challenge, Intake, Observer, Services, Side, Slot
from serving.http.settings import ServerSettings
from serving.http.turns import Turns
from serving.logs import LineHandler, LineLog
from serving.meters import Meters


@dataclass(frozen=True)
class Watched:
    """A slot, and who hears of the lists that its model gave."""

    slot: Slot
    observe: Observer


@dataclass(frozen=True)
class Parts:
    """What is made elsewhere.

    Attributes:
        main: holds the model that answers.
        challenge: a running experiment with what holds its treatment.
        intake: takes events.
        admin: what the loopback port can ask for.
        turns: orders rank requests.
        background: starts before the listeners and ends after them.
        meters, log: count and tell.
    """

    main: Watched
    challenge: tuple[Experiment, Watched] | None
    intake: Intake
    admin: Admin
    turns: Turns
    background: Background
    meters: Meters
    log: LineLog


def make_site(
    parts: Parts, keys: Keys, settings: ServerSettings, public: socket.socket, admin: socket.socket
) -> Site:
    """The public and the admin application on two bound sockets."""
    phase = Phase()

    def side(watched: Watched) -> Side:
        return Side(watched.slot, Ladder(settings.deadline_s, parts.log.failure), watched.observe)

    services = Services(
        main=side(parts.main),
        challenge=parts.challenge and Challenge(parts.challenge[0], side(parts.challenge[1])),
        intake=parts.intake,
        meters=parts.meters,
        phase=phase,
        turns=parts.turns,
        openapi=msgspec.json.encode(openapi_document(PUBLIC)),
    )
    door, bodies = Door(keys, settings), Bodies(settings.longest_body, settings.most_buffered)
    watch = (parts.meters, parts.log)
    apps = (
        App(Table(PUBLIC), PublicHandlers(services).by_name, door, bodies, phase, watch),
        App(Table(ADMIN), AdminHandlers(parts.admin).by_name, door, bodies, phase, watch),
    )
    listeners = [
        Listener(app, listening, settings) for app, listening in zip(apps, (public, admin), strict=True)
    ]
    return Site(listeners, phase, settings, parts.background)


def log_to(log: LineLog) -> None:
    """Let Python's own logging go to the same place."""
    root = logging.getLogger()
    root.handlers[:] = [LineHandler(log)]
