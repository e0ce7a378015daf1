"""The connection by which the request that a task answers has come, where it has come to Granian."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol


class TurnHolder(Protocol):
    """A connection whose request may keep others of its address waiting."""

    def yield_turn(self) -> None:
        """Lets them go on: the request waits for something that costs nobody anything."""


ASKING: ContextVar[TurnHolder | None] = ContextVar("asking", default=None)
"""Of the task that answers the request."""


def yield_turn() -> None:
    """The present request is going to wait, and is not to keep others of its address from being answered."""
    holder = ASKING.get()
    if holder is not None:
        holder.yield_turn()
