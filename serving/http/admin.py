"""What the routes of the loopback port do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from serving.health import Swap
from serving.http.app import Answerer, Call, Reply
from serving.http.handlers import reply

Change = Callable[[], Awaitable[Swap]]


class AdminHandlers:
    """Answers the routes of the loopback port."""

    def __init__(self, reload: Change, rollback: Change) -> None:
        """Take what to do; both raise RecsysError where nothing was changed."""
        self._reload = reload
        self._rollback = rollback

    @property
    def by_name(self) -> Mapping[str, Answerer]:
        """The functions by the names of their routes."""
        return {"reload": self.reload, "rollback": self.rollback}

    async def reload(self, call: Call) -> Reply:
        """Take the version that the alias names now."""
        return reply(await self._reload())

    async def rollback(self, call: Call) -> Reply:
        """Go back to the version before."""
        return reply(await self._rollback())
