"""The cursor of each shard in the log, with its credit, and nothing queued.

    told ≤ cursor ≤ journal.last
    told    up to where the shard has been told
    cursor  up to where the log has been looked through for it; between them is nothing of its business

What it keeps true: a shard gets events of everybody, and events for one user only if a ring gives it that user: the
present one, or an earlier one whose moves it has not finished, so that users who wait for their turn to move miss
nothing. At most `credit` events and BYTES_UNDER_WAY are under way to it; the rest waits in the log. Other users' events
cost it no message: its cursor passes over them, and the next message, or `progress_message` twice a second, tells it.
"""

from __future__ import annotations

from collections import deque

from solowire.algorithms.hash_ring import Ring
from solowire.backplane.messages import LogBatch
from solowire.router.log.journal import Journal

EVENTS_A_MESSAGE = 200
BYTES_A_MESSAGE = 256 * 1024
BYTES_UNDER_WAY = 16 * 2**20
"""What ZeroMQ may have to hold for a shard that reads nothing, give or take a message."""


class ShardCursor:
    """One shard's place in the log. cursor: everything up to it is known to the shard, or none of its business."""

    def __init__(self, shard: int, peer: bytes, cursor: int, credit: int, ring: Ring, version: int) -> None:
        self.shard = shard
        self.peer = peer
        self.cursor = cursor
        self.last_sent = cursor
        self.acked = cursor
        self.credit = credit
        self.in_flight = 0
        self.bytes_in_flight = 0
        self.is_caught_up = False  # whether it has followed the log closely since its process said hello
        self.joined_at = 0.0  # when that was, monotonic
        self._record_bytes = 1  # of one, by those that were read last
        self._rings = [(version, ring)]  # oldest first; the last one is the present one
        self._unacked: deque[tuple[int, int, int]] = deque()  # (upto, events, bytes) of messages that aren't acked

    @property
    def personal_since(self) -> int:
        """The version of the oldest ring by which the shard gets its users' own events."""
        return self._rings[0][0]

    @property
    def first_unacked(self) -> int:
        """The oldest offset that may be its business and that it has not acked."""
        return (self.acked if self._unacked else self.cursor) + 1

    def ack(self, offset: int, credit: int) -> None:
        """All up to `offset` has arrived."""
        self.credit = credit
        self.acked = max(self.acked, offset)
        while self._unacked and self._unacked[0][0] <= offset:
            _, events, size = self._unacked.popleft()
            self.in_flight -= events
            self.bytes_in_flight -= size

    def add_ring(self, ring: Ring, version: int) -> None:
        """What was passed over for another shard's users may be this one's business now: the log is looked at again."""
        if version != self._rings[-1][0]:
            self._rings.append((version, ring))
            self.cursor = self.last_sent

    def rebalance_done(self, version: int) -> None:
        """The shard has sent away everybody whom the rings up to `version` took away."""
        while len(self._rings) > 1 and self._rings[0][0] < version:
            del self._rings[0]

    def owns(self, user: str) -> bool:
        return any(ring.owner(user) == self.shard for _, ring in self._rings)

    def has_owned(self, user: str) -> bool:
        """Whether an earlier ring, whose moves are not done, gave it the user: it may still have connections of it."""
        return any(ring.owner(user) == self.shard for _, ring in self._rings[:-1])

    def next_batch(self, journal: Journal) -> LogBatch | None:
        """The next message for the shard; None if there is nothing for it or it may have no more now.

        The caller tells `mark_sent` when it is on its way.
        """
        if self.cursor < journal.start_offset:
            self.cursor = self.last_sent = (
                journal.start_offset
            )  # trimmed: the shard sees the jump in `after`, and says so
        while self.cursor < journal.last_offset:
            room = min(EVENTS_A_MESSAGE, self.credit - self.in_flight)
            if room <= 0 or self.bytes_in_flight >= BYTES_UNDER_WAY:
                return None
            events: list[tuple[int, bytes]] = []
            size = 0
            records = journal.read(self.cursor, min(room, BYTES_A_MESSAGE // self._record_bytes + 1))
            # What is read and doesn't fit is read again: of large events as few are asked for as fit.
            self._record_bytes = sum(len(record.body) for record in records) // max(1, len(records)) + 1
            for offset, user, body in records:
                self.cursor = offset
                if user is None or self.owns(user):
                    events.append((offset, body))
                    size += len(body)
                    if size >= BYTES_A_MESSAGE:
                        break
            if events:
                return LogBatch(journal.epoch, self.last_sent, self.cursor, events)
        return None

    def progress_message(self, epoch: str) -> LogBatch | None:
        """A message without events, if the shard hasn't been told how far the log has gone without it."""
        return LogBatch(epoch, self.last_sent, self.cursor, []) if self.last_sent < self.cursor else None

    def skip_to(self, upto: int) -> None:
        """What lies up to there is gone for good; as if it had been trimmed."""
        self.cursor = self.last_sent = upto

    def mark_sent(self, message: LogBatch) -> None:
        size = sum(len(body) for _, body in message.events)
        self.last_sent = message.end_offset
        self.in_flight += len(message.events)
        self.bytes_in_flight += size
        self._unacked.append((message.end_offset, len(message.events), size))

    def mark_not_sent(self, message: LogBatch) -> None:
        """ZeroMQ didn't take it: it is made again from the log."""
        self.cursor = message.prev_offset
