"""A peer's link to the router: joins, sends heartbeats, joins again when asked, and knows whether the router is there.

What it keeps true: the router is *away* as soon as nothing has been heard of it for some beats, whatever ZeroMQ thinks
of the connection. A peer says hello again whenever the router asks, whenever a HeartbeatResponse tells of another ring
than it was told, and instead of beating while the router is away: so either may restart alone, and no message that is
lost is missed for longer than a beat. Peers beat at times of their own, so that they don't come back all at once. A
pause of this process is not held against the router: what it said meanwhile is not read yet.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import structlog

from solowire.algorithms.log_sampler import LogSampler
from solowire.algorithms.warning_pace import WarningPace
from solowire.backplane import messages as backplane
from solowire.backplane.curve_keys import MemberKeys
from solowire.backplane.messages import (
    Heartbeat,
    HeartbeatResponse,
    Join,
    LeaseUsage,
    PeerMessage,
    RejoinRequired,
    RingState,
    RouterMessage,
    ShardStats,
)
from solowire.backplane.zmq_transport import PeerSocket
from solowire.errors import BackplaneError

logger = structlog.get_logger("solowire.link")

SAY_AFTER_SECONDS = 5.0
"""A router that is away for so long is said: longer than it takes to start all processes, or the router again."""


class RouterLink:
    """A peer's connection to the router: it joins, sends heartbeats, and notices when the router is gone.

    make_join: makes this peer's Join, each time anew. received: gets all but what the link answers by itself.

    stats, lease_usage: what goes along with each heartbeat. What its answer brings along is received like other
    messages. revocations: the version of those that this peer knows. keys: needed where the address is tcp.
    """

    def __init__(
        self,
        address: str,
        name: str,
        make_join: Callable[[], Join],
        received: Callable[[RouterMessage], None],
        stats: Callable[[], ShardStats | None] = lambda: None,
        lease_usage: Callable[[], LeaseUsage | None] = lambda: None,
        revocations: Callable[[], int] = lambda: -1,
        keys: MemberKeys | None = None,
    ) -> None:
        self._make_join = make_join
        self._on_received = received
        self._read_stats = stats
        self._lease_usage = lease_usage
        self._read_revocations_version = revocations
        self._loop = asyncio.get_running_loop()
        self._sampler = LogSampler(logger, self._loop.time, self._loop.call_later)
        self._address = address
        self._away_since: float | None = self._loop.time()
        self._absence = WarningPace()
        self._was_said = False  # since it is away
        self._last_heard_at = float("-inf")
        self._known_ring = ("", -1)  # epoch and version, as told last
        self.dropped_count = 0
        self._socket = PeerSocket(address, name.encode(), self._on_message, keys)
        self._next_beat_at = self._loop.time()  # of the next beat
        self._timer: asyncio.Handle = self._loop.call_soon(self._send_heartbeat)

    @property
    def is_router_alive(self) -> bool:
        return self._loop.time() - self._last_heard_at < backplane.DEAD_AFTER_SECONDS

    def send(self, message: PeerMessage) -> bool:
        """Whether ZeroMQ took it for a router that is connected; that it arrived is for the answer to tell."""
        return self._socket.send(backplane.encode(message))

    def close(self, *, goodbye: bool = True) -> None:
        """Nothing is sent or heard any more. goodbye: tells the router that the process has let go of all it had."""
        self._timer.cancel()
        if goodbye:
            self.send(backplane.Leave())
        self._socket.close()

    def send_join(self) -> None:
        """Says hello (again): the router tells the ring, and goes on with the log from where the hello says."""
        self.send(self._make_join())

    def _send_heartbeat(self) -> None:
        now = self._loop.time()
        if now - self._next_beat_at > backplane.HEARTBEAT_SECONDS:
            self._last_heard_at += now - self._next_beat_at
        pause = backplane.HEARTBEAT_SECONDS * random.uniform(0.9, 1.1)  # noqa: S311
        try:
            hello = self._make_join()
            self._report_absence(now)
            if self.is_router_alive:
                self.send(Heartbeat(hello.incarnation, self._read_stats(), self._lease_usage()))
            elif not self.send(hello):
                # Until the router is there, look for it more often than one beats: a start takes no second longer.
                pause = 0.05
        finally:  # a beat that fails is not the last one
            self._next_beat_at = now + pause
            self._timer = self._loop.call_at(self._next_beat_at, self._send_heartbeat)

    def _report_absence(self, now: float) -> None:
        if self.is_router_alive:
            if self._was_said:
                logger.info("router_connected", address=self._address)
                self._absence.reset()
            self._away_since, self._was_said = None, False
            return
        if self._away_since is None:
            self._away_since = now
        if now - self._away_since >= SAY_AFTER_SECONDS:
            self._socket.doubt()
        if now - self._away_since >= SAY_AFTER_SECONDS and self._absence.is_due(self._socket.failure, now):
            self._was_said = True
            logger.warning(
                "router_unreachable",
                address=self._address,
                waited_s=round(now - self._away_since, 1),
                **({"reason": self._socket.failure} if self._socket.failure else {}),
                hint="does `solowire router` run, with the data directory or SOLOWIRE_BACKPLANE, and the keys, of this "
                "process? If its socket was removed, start it again",
            )

    def _on_message(self, raw: bytes) -> None:
        try:
            message = backplane.decode_from_router(raw)
        except BackplaneError as error:
            self.dropped_count += 1
            self._sampler.write(
                "error",
                "backplane_message_dropped",
                sender="router",
                error=str(error),
                dropped=self.dropped_count,
                hint="do all processes run one version?",
            )
            return
        self._last_heard_at = self._loop.time()
        match message:
            case RejoinRequired():
                self.send_join()
            case HeartbeatResponse():
                versions = (message.epoch, message.ring_version, message.revocations_version)
                if versions != (*self._known_ring, self._read_revocations_version()):
                    self.send_join()
                for carried in (message.lease, message.admission_state):
                    if carried is not None:
                        self._on_received(carried)
            case _:
                if isinstance(message, RingState):
                    self._known_ring = (message.epoch, message.version)
                self._on_received(message)
