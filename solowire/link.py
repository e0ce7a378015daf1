"""A peer's link to the router: says hello, beats, answers Who, and knows whether the router is there.

What it keeps true: the router is *away* as soon as nothing has been heard of it for three beats, whatever ZeroMQ
thinks of the connection, and a peer says hello again whenever the router asks, so that either may restart alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from solowire import backplane
from solowire.backplane import Beat, Heartbeat, Hello, PeerMessage, RouterMessage, ShardStats, Who
from solowire.bus import Spoke
from solowire.errors import BackplaneError

log = structlog.get_logger("solowire.link")


class Link:
    """hello: makes this peer's Hello, each time anew. received: gets all but what the link answers by itself."""

    def __init__(
        self,
        address: str,
        name: str,
        hello: Callable[[], Hello],
        received: Callable[[RouterMessage], None],
        stats: Callable[[], ShardStats | None] = lambda: None,
    ) -> None:
        self._hello = hello
        self._received = received
        self._stats = stats
        self._loop = asyncio.get_running_loop()
        self._heard_at = float("-inf")
        self._greeted = False
        self.dropped = 0
        self._spoke = Spoke(address, name.encode(), self._take)
        self._timer: asyncio.Handle = self._loop.call_soon(self._beat)

    @property
    def router_alive(self) -> bool:
        return self._loop.time() - self._heard_at < backplane.DEAD_AFTER_SECONDS

    def send(self, message: PeerMessage) -> bool:
        """Whether ZeroMQ took it for a router that is connected; that it arrived is for the answer to tell."""
        return self._spoke.send(backplane.encode(message))

    def close(self) -> None:
        self._timer.cancel()
        self.send(backplane.Goodbye())
        self._spoke.close()

    def _beat(self) -> None:
        hello = self._hello()
        if not self._greeted:
            self._greeted = self.send(hello)
        else:
            self.send(Heartbeat(hello.boot, self._stats()))
        # Until the router is there, look for it more often than one beats: a start should take no second longer.
        pause = backplane.HEARTBEAT_SECONDS if self._greeted else 0.05
        self._timer = self._loop.call_later(pause, self._beat)

    def _take(self, raw: bytes) -> None:
        try:
            message = backplane.decode_from_router(raw)
        except BackplaneError as error:
            self.dropped += 1
            log.error("backplane_message_dropped", sender="router", error=str(error))
            return
        self._heard_at = self._loop.time()
        match message:
            case Who():
                self.send(self._hello())
            case Beat():
                pass
            case _:
                self._received(message)
