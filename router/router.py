"""The router's decisions: who is there, what is in the log, who gets what of it.

It receives a message and the time, and calls `send(peer, message)`, which returns whether the bus took it. A message
that is not taken changes nothing: the shard's part is made again from the log when it beats or acks.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from router.dispatch import Outlet
from router.journal import Journal
from router.membership import Membership
from solowire.backplane import (
    VERSION,
    Ack,
    Answer,
    Ask,
    Beat,
    Goodbye,
    Heartbeat,
    Hello,
    PeerMessage,
    Publish,
    Published,
    RingState,
    RouterMessage,
    ShardReport,
    Who,
)
from solowire.ring import Ring

log = structlog.get_logger("solowire.router")


class Router:
    """The only writer of the log and of the ring. Times are seconds, monotonic."""

    def __init__(self, journal: Journal, send: Callable[[bytes, RouterMessage], bool]) -> None:
        self.journal = journal
        self.members = Membership()
        self.events = 0
        self.duplicates = 0
        self.dropped = 0  # messages that could not be decoded
        self._send = send
        self._ring = Ring()
        self._outlets: dict[bytes, Outlet] = {}

    def receive(self, peer: bytes, message: PeerMessage, now: float) -> None:
        match message:
            case Publish():
                appended = self.journal.append(message.events, now)
                self.events += len(appended.offsets) - len(appended.duplicates)
                self.duplicates += len(appended.duplicates)
                self._send(peer, Published(message.request, self.journal.epoch, *appended))
            case Ack():
                outlet = self._outlets.get(peer)
                if outlet is not None and message.epoch == self.journal.epoch:
                    outlet.ack(message.offset, message.credit)
                    self._pump(outlet)
            case Heartbeat():
                if self.members.beat(peer, message.boot, message.stats, now) is None:
                    self._send(peer, Who())
                else:
                    self._send(peer, Beat())
            case Hello():
                self._hello(peer, message, now)
            case Ask():
                self._send(peer, self._answer(message))
            case Goodbye():
                self._outlets.pop(peer, None)
                if self.members.leave(peer):
                    self._ring_changed("shard_left", peer)

    def dispatch(self) -> None:
        """Sends every shard what is new for it. Called once after each turn of arrivals, so that they go in batches."""
        for outlet in self._outlets.values():
            self._pump(outlet)

    def tick(self, now: float) -> None:
        """Once a second: who has been silent, and who must be told how far the log has gone."""
        silent, changed = self.members.tick(now)
        for peer in silent:
            self._outlets.pop(peer.name, None)
            log.warning("peer_silent", peer=peer.name.decode(errors="replace"))
        if changed:
            self._ring_changed("shard_lost", b"")
        for outlet in self._outlets.values():
            self._pump(outlet)
            message = outlet.catch_up(self.journal.epoch)
            if message is not None and self._send(outlet.peer, message):
                outlet.sent(message)

    def _hello(self, peer: bytes, message: Hello, now: float) -> None:
        if message.version != VERSION:
            log.error("version_mismatch", peer=peer.decode(errors="replace"), theirs=message.version, ours=VERSION)
            return
        changed = self.members.hello(peer, message, now)
        self._outlets = {name: o for name, o in self._outlets.items() if self.members.get(name) is not None}
        if message.shard is not None:
            cursor = message.offset if message.epoch == self.journal.epoch else 0
            # A cursor from the future of this log would wait for events that never come.
            self._outlets[peer] = Outlet(message.shard.index, peer, min(cursor, self.journal.last), message.credit)
        if changed:
            self._ring_changed("shard_joined", peer)
        else:
            self._send(peer, self._ring_state())
        if message.shard is not None:
            self._pump(self._outlets[peer])

    def _ring_changed(self, why: str, peer: bytes) -> None:
        self._ring = Ring(s.index for s in self.members.shards)
        log.info("ring_changed", why=why, peer=peer.decode(errors="replace"), shards=sorted(self._ring.shards))
        for outlet in self._outlets.values():
            outlet.look_again()
        state = self._ring_state()
        for member in self.members:
            self._send(member.name, state)

    def _ring_state(self) -> RingState:
        return RingState(self.journal.epoch, self.members.version, self.journal.last, self.members.shards)

    def _pump(self, outlet: Outlet) -> None:
        while (message := outlet.next(self.journal, self._ring)) is not None:
            if not self._send(outlet.peer, message):
                outlet.not_sent(message)
                return
            outlet.sent(message)

    def _answer(self, message: Ask) -> Answer:
        reports = []
        for member in self.members:
            outlet = self._outlets.get(member.name)
            if member.address is not None and outlet is not None:
                behind = self.journal.last - outlet.acked
                reports.append(ShardReport(member.address, member.stats, outlet.in_flight, behind))
        reports.sort(key=lambda report: report.address.index)
        return Answer(
            message.request,
            self.journal.epoch,
            self.journal.last,
            self.events,
            self.duplicates,
            reports,
            self.members.gateways,
        )
