"""What the routes of the loopback port do."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from recsys.errors import RecsysError
from serving.health import Swap
from serving.http.app import Answerer, Call, Reply
from serving.http.handlers import reply
from serving.messages import Answer
from serving.problems import Refusal

Change = Callable[[], Awaitable[Swap]]

_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,79}")


def no_shadow() -> Answer:
    """What a server without a shadow has to say of it: raises Refusal `no_shadow`."""
    raise Refusal("no_shadow", "start the server with --shadow")


@dataclass(frozen=True)
class Admin:
    """What the loopback port can ask for.

    Attributes:
        reload, rollback: raise RecsysError where nothing was changed.
        shadow: gives the figures of the version that is tried beside.
    """

    reload: Change
    rollback: Change
    shadow: Callable[[], Answer] = no_shadow


class AdminHandlers:
    """Answers the routes of the loopback port."""

    def __init__(self, admin: Admin) -> None:
        """Take what to do."""
        self._admin = admin

    @property
    def by_name(self) -> Mapping[str, Answerer]:
        """The functions by the names of their routes."""
        return {"reload": self.reload, "rollback": self.rollback, "shadow": self.shadow}

    async def reload(self, call: Call) -> Reply:
        """Take the version that the alias names now."""
        return await _changed(self._admin.reload)

    async def rollback(self, call: Call) -> Reply:
        """Go back to the version before."""
        return await _changed(self._admin.rollback)

    async def shadow(self, call: Call) -> Reply:
        """Say how the version that is tried beside would have answered."""
        return reply(self._admin.shadow())


async def _changed(change: Change) -> Reply:
    """The answer to a change; where a bundle is refused, whoever deploys is told which file is wrong."""
    try:
        return reply(await change())
    except RecsysError as error:
        named = _FILE.fullmatch(error.where) is not None  # a path or an address stays inside
        raise Refusal(error.code, f"{error.what} {error.where}" if named else error.what) from None
