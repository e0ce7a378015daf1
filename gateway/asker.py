"""The connection by which the request that a task answers has come, where it has come to Granian."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol


class Asker(Protocol):
    """A connection whose client has asked something."""

    def yield_turn(self) -> None:
        """Lets others of its address go on: the request waits for something that costs nobody anything."""

    async def wait_until_taken(self) -> None:
        """Waits until the client has read what it was answered, or has gone."""

    def abort(self) -> None:
        """Cuts it."""


ASKER: ContextVar[Asker | None] = ContextVar("asker", default=None)
"""Of the task that answers the request; None if the client has gone, or there is none."""


def yield_turn() -> None:
    """The present request is going to wait, and is not to keep others of its address from being answered."""
    asker = ASKER.get()
    if asker is not None:
        asker.yield_turn()
