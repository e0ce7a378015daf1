"""The ring as all peers are told it.

What it keeps true: the ring and its version are in the journal before anybody hears of them, so that a restart of the
router moves nobody. All peers are told of each change, once; one that misses it sees in a HeartbeatResponse that it
knows an older one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import structlog

from solowire.algorithms.hash_ring import Ring
from solowire.algorithms.log_sampler import LogSampler
from solowire.backplane.messages import RingState, RouterMessage, ShardAddress
from solowire.router.log.earlier_epochs import load_earlier_epochs
from solowire.router.log.journal import Journal
from solowire.router.log.shard_cursor import ShardCursor
from solowire.router.membership import Membership

logger = structlog.get_logger("solowire.router")


class _StoredRing(msgspec.Struct):
    """What the journal remembers of the ring."""

    version: int
    shards: list[ShardAddress]


class RingAnnouncer:
    """Tells the peers the ring. cursors: of the shards, by peer. ring: as it was told last.

    What the journal remembers of an earlier process is presumed of the members, as of `now`.
    """

    def __init__(
        self,
        journal: Journal,
        members: Membership,
        cursors: Mapping[bytes, ShardCursor],
        send: Callable[[bytes, RouterMessage], bool],
        sampler: LogSampler,
        now: float,
    ) -> None:
        self._journal = journal
        self._members = members
        self._cursors = cursors
        self._send = send
        self._sampler = sampler
        self._earlier_epochs = load_earlier_epochs(journal)
        stored = _load_ring(journal)
        if stored is not None:
            members.presume(stored.shards, stored.version, now)
        self.ring = Ring(s.index for s in members.shards)
        self._announced_version = members.version

    def announce_change(self, reason: str, peer: bytes, lost: list[tuple[int, int]]) -> bool:
        """Tells everyone the ring if it has changed since they were told; whether it had.

        lost: shards that were lost, each with how many connections it had.
        """
        version = self._members.version
        if version == self._announced_version:
            return False
        self._announced_version = version
        self.ring = Ring(s.index for s in self._members.shards)
        stored = _StoredRing(version, self._members.shards)
        self._journal.put_metadata_item("ring", msgspec.msgpack.encode(stored))
        name, shards = peer.decode(errors="replace"), sorted(self.ring.shards)
        self._sampler.write("info", "ring_changed", reason=reason, peer=name, shards=shards)
        for shard_cursor in self._cursors.values():
            shard_cursor.add_ring(self.ring, version)
        for member in self._members:
            self._send(member.name, self._make_state(member.name, lost))
        return True

    def send_state(self, peer: bytes) -> None:
        """Tells one peer the ring that all others know."""
        self._send(peer, self._make_state(peer, []))

    def _make_state(self, peer: bytes, lost: list[tuple[int, int]]) -> RingState:
        shard_cursor = self._cursors.get(peer)
        version, journal = self._members.version, self._journal
        since = shard_cursor.personal_since if shard_cursor is not None else version
        earlier = self._earlier_epochs
        return RingState(journal.epoch, version, journal.last_offset, self._members.shards, since, lost, earlier)


def _load_ring(journal: Journal) -> _StoredRing | None:
    kept = journal.get_metadata_item("ring")
    try:
        return msgspec.msgpack.decode(kept, type=_StoredRing) if kept is not None else None
    except Exception as error:  # to be without it costs a move of users, and to stop would cost all
        logger.error(
            "metadata_unreadable",
            key="ring",
            reason=str(error),
            hint="the ring is built again from the shards that join",
        )
        return None
