"""A peer's link to the router: says hello, beats, answers Who, and knows whether the router is there.

What it keeps true: the router is *away* as soon as nothing has been heard of it for some beats, whatever ZeroMQ thinks
of the connection. A peer says hello again whenever the router asks, whenever a Beat tells of another ring than it was
told, and instead of beating while the router is away: so either may restart alone, and no message that is lost is
missed for longer than a beat. Peers beat at times of their own, so that they don't come back all at once. A pause of
this process is not held against the router: what it said meanwhile is not read yet.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import structlog

from solowire.algorithms.log_sampler import LogSampler
from solowire.backplane import messages as backplane
from solowire.backplane.messages import (
    Beat,
    Heartbeat,
    Hello,
    PeerMessage,
    RingState,
    RouterMessage,
    ShardStats,
    Slots,
    Who,
)
from solowire.backplane.zmq_transport import Spoke
from solowire.errors import BackplaneError

log = structlog.get_logger("solowire.link")

SAY_AFTER_SECONDS = 5.0
"""A router that is away for so long is said: longer than it takes to start all processes, or the router again."""
SAY_AGAIN_SECONDS = 60.0


class Link:
    """hello: makes this peer's Hello, each time anew. received: gets all but what the link answers by itself.

    stats, slots: what goes along with each heartbeat. What comes along with a Beat is received like other messages.
    revocations: the version of those that this peer knows.
    """

    def __init__(
        self,
        address: str,
        name: str,
        hello: Callable[[], Hello],
        received: Callable[[RouterMessage], None],
        stats: Callable[[], ShardStats | None] = lambda: None,
        slots: Callable[[], Slots | None] = lambda: None,
        revocations: Callable[[], int] = lambda: -1,
    ) -> None:
        self._hello = hello
        self._received = received
        self._stats = stats
        self._slots = slots
        self._revocations = revocations
        self._loop = asyncio.get_running_loop()
        self._sampler = LogSampler(log, self._loop.time, self._loop.call_later)
        self._address = address
        self._heard_at = float("-inf")
        self._away_since: float | None = self._loop.time()
        self._said_at: float | None = None  # since it is away
        self._ring = ("", -1)  # epoch and version, as told last
        self.dropped = 0
        self._spoke = Spoke(address, name.encode(), self._take)
        self._due = self._loop.time()  # of the next beat
        self._timer: asyncio.Handle = self._loop.call_soon(self._beat)

    @property
    def router_alive(self) -> bool:
        return self._loop.time() - self._heard_at < backplane.DEAD_AFTER_SECONDS

    def send(self, message: PeerMessage) -> bool:
        """Whether ZeroMQ took it for a router that is connected; that it arrived is for the answer to tell."""
        return self._spoke.send(backplane.encode(message))

    def close(self, *, goodbye: bool = True) -> None:
        """Nothing is sent or heard any more. goodbye: tells the router that the process has let go of all it had."""
        self._timer.cancel()
        if goodbye:
            self.send(backplane.Goodbye())
        self._spoke.close()

    def greet(self) -> None:
        """Says hello (again): the router tells the ring, and goes on with the log from where the hello says."""
        self.send(self._hello())

    def _beat(self) -> None:
        now = self._loop.time()
        if now - self._due > backplane.HEARTBEAT_SECONDS:
            self._heard_at += now - self._due
        pause = backplane.HEARTBEAT_SECONDS * random.uniform(0.9, 1.1)  # noqa: S311
        try:
            hello = self._hello()
            self._tell_whether_it_is_there(now)
            if self.router_alive:
                self.send(Heartbeat(hello.boot, self._stats(), self._slots()))
            elif not self.send(hello):
                # Until the router is there, look for it more often than one beats: a start takes no second longer.
                pause = 0.05
        finally:  # a beat that fails is not the last one
            self._due = now + pause
            self._timer = self._loop.call_at(self._due, self._beat)

    def _tell_whether_it_is_there(self, now: float) -> None:
        if self.router_alive:
            if self._said_at is not None:
                log.info("router_found", address=self._address)
            self._away_since = self._said_at = None
            return
        if self._away_since is None:
            self._away_since = now
        if now - self._away_since >= SAY_AFTER_SECONDS and (
            self._said_at is None or now - self._said_at >= SAY_AGAIN_SECONDS
        ):
            self._said_at = now
            log.warning(
                "router_awaited",
                address=self._address,
                waited_s=round(now - self._away_since, 1),
                hint="does `solowire router` run, with the data directory or SOLOWIRE_BACKPLANE of this process? "
                "If its socket was removed, start it again",
            )

    def _take(self, raw: bytes) -> None:
        try:
            message = backplane.decode_from_router(raw)
        except BackplaneError as error:
            self.dropped += 1
            self._sampler.write(
                "error",
                "backplane_message_dropped",
                sender="router",
                error=str(error),
                dropped=self.dropped,
                hint="do all processes run one version?",
            )
            return
        self._heard_at = self._loop.time()
        match message:
            case Who():
                self.greet()
            case Beat():
                versions = (message.epoch, message.version, message.revocations)
                if versions != (*self._ring, self._revocations()):
                    self.greet()
                for carried in (message.lease, message.doors):
                    if carried is not None:
                        self._received(carried)
            case _:
                if isinstance(message, RingState):
                    self._ring = (message.epoch, message.version)
                self._received(message)
