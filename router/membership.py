"""Which peers are there: by hello and heartbeat.

What it keeps true: a shard is in the ring from its hello until its goodbye or three seconds of silence; of two
processes that claim one index, the one that said hello last is the shard. The ring's version grows with every change.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from solowire.backplane import DEAD_AFTER_SECONDS, Hello, ShardAddress, ShardStats

PAUSE_SECONDS = DEAD_AFTER_SECONDS / 2
"""Ticks come twice a second: one that comes so late tells of a router that was stopped or stuck."""


@dataclass(slots=True)
class Peer:
    """A shard or a gateway (address None). heard_at: seconds, monotonic."""

    name: bytes
    boot: str
    address: ShardAddress | None
    heard_at: float
    stats: ShardStats = field(default_factory=ShardStats)


class Membership:
    """All peers by name. Methods return whether the ring has changed, for the caller to tell everyone."""

    def __init__(self) -> None:
        self.version = 0
        self._ticked_at: float | None = None
        self._peers: dict[bytes, Peer] = {}

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(list(self._peers.values()))

    def get(self, name: bytes) -> Peer | None:
        return self._peers.get(name)

    @property
    def shards(self) -> list[ShardAddress]:
        """In the order of their indexes."""
        found = [p.address for p in self._peers.values() if p.address is not None]
        return sorted(found, key=lambda address: address.index)

    @property
    def gateways(self) -> int:
        return sum(p.address is None for p in self._peers.values())

    def hello(self, name: bytes, message: Hello, now: float) -> bool:
        known = self._peers.get(name)
        if known is not None and known.boot == message.boot and known.address == message.shard:
            known.heard_at = now
            return False
        before = self.shards
        if message.shard is not None:
            for other in list(self._peers.values()):
                if other.address is not None and other.address.index == message.shard.index:
                    del self._peers[other.name]
        self._peers[name] = Peer(name, message.boot, message.shard, now)
        return self._changed(before)

    def beat(self, name: bytes, boot: str, stats: ShardStats | None, now: float) -> bool | None:
        """None if the peer is not known, and must be asked who it is."""
        peer = self._peers.get(name)
        if peer is None or peer.boot != boot:
            return None
        peer.heard_at = now
        if stats is not None:
            peer.stats = stats
        return False

    def leave(self, name: bytes) -> bool:
        before = self.shards
        self._peers.pop(name, None)
        return self._changed(before)

    def tick(self, now: float) -> tuple[list[Peer], bool]:
        """Removes who has been silent for too long; returns them, and whether the ring has changed.

        After a pause of the router itself everybody seems silent: what they said meanwhile is not read yet, so the
        pause is not held against them.
        """
        if self._ticked_at is not None and now - self._ticked_at > PAUSE_SECONDS:
            for peer in self._peers.values():
                peer.heard_at += now - self._ticked_at
        self._ticked_at = now
        silent = [p for p in self._peers.values() if now - p.heard_at > DEAD_AFTER_SECONDS]
        before = self.shards
        for peer in silent:
            del self._peers[peer.name]
        return silent, self._changed(before)

    def _changed(self, before: list[ShardAddress]) -> bool:
        if before == self.shards:
            return False
        self.version += 1
        return True
