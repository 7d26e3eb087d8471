"""What a server and the process that stores its events say to each other: messages in frames of their own.

A frame is the length of a message, in four bytes with the highest first, and the message as MessagePack.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TypeVar

import msgspec
from msgspec import Struct

from serving.events.log import Durability, State, Stored
from serving.events.place import LogPlace
from serving.messages import EventsAnswer

_LENGTH_BYTES = 4


class Begin(Struct, frozen=True):
    """What the server says first, once: which log, and the limits of `ServerSettings`."""

    place: LogPlace
    most_batches: int
    events_s: float


class Take(Struct, frozen=True):
    """What it says then: store the events of a body of this media type, our own or Metarank's."""

    number: int
    kind: str
    is_metarank: bool
    body: bytes


class Opened(Struct, frozen=True, tag="opened"):
    """The log is open."""

    durability: Durability


class NotOpened(Struct, frozen=True, tag="not_opened"):
    """Why the log cannot be opened, as it goes into a `RecsysError`. Nothing follows."""

    code: str
    what: str
    where: str
    exit_code: int


class Report(Struct, frozen=True, tag="report"):
    """How the log is, whenever that has changed.

    Attributes:
        state: what it would do with events now.
        openings: how often it was opened.
        damage: what was found broken since the last report.
    """

    state: State
    openings: int
    damage: list[str]


class News(Struct, frozen=True, tag="news"):
    """Everything that the log holds behind the record `after`, up to the last of these, whoever stored it."""

    after: int
    stored: list[Stored]


class Taken(Struct, frozen=True, tag="taken"):
    """What became of a body; `ignored` counts events of which nothing is kept."""

    number: int
    answer: EventsAnswer
    ignored: int


class Refused(Struct, frozen=True, tag="refused"):
    """Why nothing was stored for certain, as it goes into a `Refusal`."""

    number: int
    code: str
    detail: str
    place: tuple[str | int, ...] | None


Said = Opened | NotOpened | Report | News | Taken | Refused

T = TypeVar("T")

_ENCODER = msgspec.msgpack.Encoder()
BEGIN = msgspec.msgpack.Decoder(Begin)
TAKE = msgspec.msgpack.Decoder(Take)
SAID = msgspec.msgpack.Decoder(Said)


def frame(message: Begin | Take | Said) -> bytes:
    """A message as it is sent."""
    data = _ENCODER.encode(message)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


def receive(connection: socket.socket, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """Wait for one message; raises EOFError where the other side is gone."""
    size = int.from_bytes(_whole(connection, _LENGTH_BYTES), "big")
    return decoder.decode(_whole(connection, size))


async def next_message(reader: asyncio.StreamReader, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """The same in a loop; raises IncompleteReadError, which is an EOFError."""
    size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
    return decoder.decode(await reader.readexactly(size))


def _whole(connection: socket.socket, size: int) -> bytes:
    data = connection.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise EOFError
    return data
