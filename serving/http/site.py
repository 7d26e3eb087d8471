"""Putting the parts of a server together: what the command does, and what the tests do."""

from __future__ import annotations

import logging
import socket
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import msgspec

from serving.http.admin import AdminHandlers, Change
from serving.http.app import App, Phase
from serving.http.bodies import Bodies
from serving.http.door import Door
from serving.http.handlers import PublicHandlers
from serving.http.keys import Keys
from serving.http.ladder import Ladder
from serving.http.openapi import openapi_document
from serving.http.routes import ADMIN, PUBLIC, Table
from serving.http.server import Listener, Site
from serving.http.services import Intake, Observer, Services, Slot
from serving.http.settings import ServerSettings
from serving.http.turns import Turns
from serving.logs import LineHandler, LineLog
from serving.meters import Meters


@dataclass(frozen=True)
class Parts:
    """What is made elsewhere.

    Attributes:
        slot: holds the model that answers.
        intake: takes events.
        reload, rollback: of the admin port; raise RecsysError where nothing was changed.
        observe: hears of lists.
        background: starts before the listeners and ends after them.
        meters, log: count and tell.
    """

    slot: Slot
    intake: Intake
    reload: Change
    rollback: Change
    observe: Observer
    background: AbstractAsyncContextManager[Any]
    meters: Meters
    log: LineLog


def make_site(
    parts: Parts, keys: Keys, settings: ServerSettings, public: socket.socket, admin: socket.socket
) -> Site:
    """The public and the admin application on two bound sockets."""
    phase = Phase()
    services = Services(
        slot=parts.slot,
        intake=parts.intake,
        meters=parts.meters,
        phase=phase,
        turns=Turns(settings.most_waiting, settings.deadline_s),
        ladder=Ladder(settings.deadline_s, parts.log.failure),
        openapi=msgspec.json.encode(openapi_document(PUBLIC)),
        observe=parts.observe,
    )
    door, bodies = Door(keys, settings), Bodies(settings.longest_body, settings.most_buffered)
    watch = (parts.meters, parts.log)
    apps = (
        App(Table(PUBLIC), PublicHandlers(services).by_name, door, bodies, phase, watch),
        App(Table(ADMIN), AdminHandlers(parts.reload, parts.rollback).by_name, door, bodies, phase, watch),
    )
    listeners = [
        Listener(app, listening, settings) for app, listening in zip(apps, (public, admin), strict=True)
    ]
    return Site(listeners, phase, settings, parts.background)


def log_to(log: LineLog) -> None:
    """Let Python's own logging go to the same place."""
    root = logging.getLogger()
    root.handlers[:] = [LineHandler(log)]
