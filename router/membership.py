"""The membership of peers, by join and heartbeat.

What it keeps true: a shard is in the ring from when it can take users until its goodbye, its wish to leave or a few
seconds of silence; of two processes on one machine that claim one index, the one that said hello last is the shard, as
it has been started again; of two on different machines the one that was there first, as long as it is heard of: else
they would take turns, and the users with them. The ring's version
grows with every change. A router that has restarted presumes the shards of before, so that nobody is moved by its
restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from solowire.backplane.messages import DEAD_AFTER_SECONDS, Join, ShardAddress, ShardStats

PAUSE_SECONDS = DEAD_AFTER_SECONDS / 2
"""Ticks come twice a second: one that comes so late tells of a router that was stopped or stuck."""


@dataclass(slots=True)
class Peer:
    """A shard or a gateway (address None).

    last_heard_at: seconds, monotonic. is_presumed: it has not said hello yet. is_starting: it takes no users yet, and
    nobody expects it to: a process that starts in the place of one that is in the ring stays there.
    """

    name: bytes
    incarnation: str
    address: ShardAddress | None
    last_heard_at: float
    is_draining: bool = False
    is_presumed: bool = False
    is_starting: bool = False
    stats: ShardStats = field(default_factory=ShardStats)


class Membership:
    """All peers by name. After each call `shards` and `version` say what the ring is."""

    def __init__(self) -> None:
        self.version = 0
        self._ticked_at: float | None = None
        self._peers: dict[bytes, Peer] = {}

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._peers.values()))

    def get_peer(self, name: bytes) -> Peer | None:
        return self._peers.get(name)

    def find_shard(self, index: int) -> Peer | None:
        """The peer that is the shard of this index, leaving or not."""
        found = (p for p in self._peers.values() if p.address is not None and p.address.index == index)
        return next((p for p in found if not p.is_presumed), None)

    @property
    def shards(self) -> list[ShardAddress]:
        """Those that are in the ring, in the order of their indexes."""
        takes_users = (p for p in self._peers.values() if not p.is_draining and not p.is_starting)
        found = [p.address for p in takes_users if p.address is not None]
        return sorted(found, key=lambda address: address.index)

    @property
    def gateway_count(self) -> int:
        return sum(p.address is None for p in self._peers.values())

    def presume(self, shards: Iterable[ShardAddress], version: int, now: float) -> None:
        """Takes over the ring of a router before: each has as long as any peer to be heard of."""
        self.version = version
        for address in shards:
            name = b"presumed-%d" % address.index
            self._peers[name] = Peer(name, address.incarnation, address, now, is_presumed=True)

    def find_rival(self, name: bytes, message: Join) -> Peer | None:
        """The process on another machine that is this shard, so that the one who joins has to wait until it is gone."""
        if message.shard is None or not message.shard.machine:
            return None
        for other in self._peers.values():
            theirs = other.address
            if theirs is None or theirs.index != message.shard.index or other.name == name:
                continue
            if theirs.machine and theirs.machine != message.shard.machine:
                return other
        return None

    def add_peer(self, name: bytes, message: Join, now: float) -> list[Peer]:
        """Takes a peer in. Returns the processes whose place it takes."""
        known = self._peers.get(name)
        if known is not None and known.incarnation == message.incarnation and known.address == message.shard:
            known.last_heard_at = now
            before = self.shards
            known.is_draining = message.is_draining
            known.is_starting = known.is_starting and message.is_starting
            self._update_version(before)
            return []
        before = self.shards
        is_expected = message.shard is not None and any(s.index == message.shard.index for s in before)
        superseded = []
        if message.shard is not None:
            for other in self:
                if other.address is not None and other.address.index == message.shard.index:
                    del self._peers[other.name]
                    if not other.is_presumed and other.name != name:
                        superseded.append(other)
        is_starting = message.is_starting and not is_expected
        self._peers[name] = Peer(
            name, message.incarnation, message.shard, now, message.is_draining, is_starting=is_starting
        )
        self._update_version(before)
        return superseded

    def record_heartbeat(self, name: bytes, incarnation: str, stats: ShardStats | None, now: float) -> bool:
        """False if the peer is not known, and must be asked who it is."""
        peer = self._peers.get(name)
        if peer is None or peer.incarnation != incarnation:
            return False
        peer.last_heard_at = now
        if stats is not None:
            peer.stats = stats
        return True

    def mark_draining(self, name: bytes) -> None:
        """The shard wants no more users; it stays a peer."""
        before = self.shards
        peer = self._peers.get(name)
        if peer is not None:
            peer.is_draining = True
        self._update_version(before)

    def remove_peer(self, name: bytes) -> None:
        """The peer has said goodbye."""
        before = self.shards
        self._peers.pop(name, None)
        self._update_version(before)

    def tick(self, now: float) -> list[Peer]:
        """Removes who has been silent for too long; returns them.

        After a pause of the router itself everybody seems silent: what they said meanwhile is not read yet, so the
        pause is not held against them.
        """
        if self._ticked_at is not None and now - self._ticked_at > PAUSE_SECONDS:
            for peer in self._peers.values():
                peer.last_heard_at += now - self._ticked_at
        self._ticked_at = now
        silent = [p for p in self._peers.values() if now - p.last_heard_at > DEAD_AFTER_SECONDS]
        before = self.shards
        for peer in silent:
            del self._peers[peer.name]
        self._update_version(before)
        return silent

    def _update_version(self, before: list[ShardAddress]) -> None:
        if before != self.shards:
            self.version += 1
