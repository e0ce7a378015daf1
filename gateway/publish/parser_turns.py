"""Turns of the gateway's loop for large publish requests, which take long to parse.

What it keeps true: of all bodies together one is parsed at a time, for TURN_SECONDS and a step at most, and then
everything else that is due has its turn before the next. Bodies that wait take turns one after the other, and of each
publisher one body at a time: so it waits for as many others as there are publishers, however many requests they send.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TypeVar

TURN_SECONDS = 0.005

T = TypeVar("T")


class _Queue:
    """One publisher's. bodies: those that are being parsed, or wait."""

    __slots__ = ("bodies", "lock")

    def __init__(self) -> None:
        self.bodies = 0
        self.lock = asyncio.Lock()  # wakes whoever has waited longest


class ParserTurns:
    """Gives the event loop its turns while a large request is parsed. clock: seconds, monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._turn = asyncio.Lock()
        self._queues: dict[str, _Queue] = {}  # of those who have any

    def __len__(self) -> int:
        """How many publishers have a body here."""
        return len(self._queues)

    async def run(self, publisher: str, steps: Iterator[T | None]) -> list[T]:
        """All that the steps yield but None, which they are run for in turns. Raises what they raise."""
        queue = self._queues.setdefault(publisher, _Queue())
        queue.bodies += 1
        try:
            async with queue.lock:
                return await self._run(steps)
        finally:
            queue.bodies -= 1
            if not queue.bodies:
                del self._queues[publisher]

    async def _run(self, steps: Iterator[T | None]) -> list[T]:
        done: list[T] = []
        while True:
            async with self._turn:
                ends_at = self._clock() + TURN_SECONDS
                for found in steps:
                    if found is not None:
                        done.append(found)
                    if self._clock() >= ends_at:
                        break
                else:
                    return done
            await asyncio.sleep(0)
