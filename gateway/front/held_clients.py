"""Clients of a dialect whose shard has gone without a word: they are held until there is another for them.

A page that comes back at once after a close of one kind, and after seconds with an older token after any other, is only
served well by that one kind, and only when there is somebody to take it. It says nothing and expects nothing meanwhile.

What it keeps true: each is closed once: when its user has a shard to come to, one after the other as gateways let users
of a lost shard back, or MAX_HELD_SECONDS later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

POLL_SECONDS = 0.1
MAX_HELD_SECONDS = 60.0


class HeldClients:
    """All that a relay holds."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # With the moment since which each is held.
        self._held: dict[object, tuple[Callable[[float], float | None], Callable[[], None], float]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._held)

    def add(self, client: object, find_delay: Callable[[float], float | None], close: Callable[[], None]) -> None:
        """Holds one. find_delay: of how long it has been held, in seconds; close: ends it.

        `find_delay` returns the seconds until it may come back, None while nobody can say.
        """
        self._held[client] = (find_delay, close, self._loop.time())
        if self._timer is None:
            self._timer = self._loop.call_later(POLL_SECONDS, self._poll)

    def discard(self, client: object) -> None:
        """It has gone by itself."""
        self._held.pop(client, None)

    def close_all(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held, self._held = self._held, {}
        for _, close, _ in held.values():
            close()

    def _poll(self) -> None:
        self._timer = None
        now = self._loop.time()
        for client, (find_delay, close, since) in list(self._held.items()):
            delay = find_delay(now - since)
            if now - since >= MAX_HELD_SECONDS or (delay is not None and delay <= 0):
                del self._held[client]
                close()
        if self._held:
            self._timer = self._loop.call_later(POLL_SECONDS, self._poll)
