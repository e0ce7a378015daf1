"""Replays for shards, beside what comes next in the log.

What it keeps true: a replay is of this epoch and of what the journal still has, from behind the cursor on and without a
hole, or it is refused with the reason. Nobody is given another user's own events. Each answer has a bound, in records,
bytes and time, and so has the queue of questions: one more than MAX_WAITING of a shard takes the place of its oldest,
which is never answered. Shards take turns, and one that the log has something live for is passed over until it has it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import structlog

from solowire.backplane.messages import REPLAY_RECORDS, ReplayRequest, ReplayResponse
from solowire.router.log.journal import Journal, JournalHole, JournalUnavailable
from solowire.router.log.shard_cursor import BYTES_A_MESSAGE

logger = structlog.get_logger("solowire.router")

READ_RECORDS = 100
PART_SECONDS = 0.005
"""For an answer so many records are read at a time, as long as it has room for more and this time isn't over."""

REST_FACTOR = 1.0
"""After an answer there is none for so many times as long as that took: half of the time at least is for others."""

MAX_WAITING = 256
"""Questions of one shard; it asks a few at a time (`SOLOWIRE_REPLAY__MAX_CONCURRENT`)."""

PASSED_OVER_SECONDS = 1.0
"""A question that has waited for so long is answered whatever is live: a shard that is always behind gets some, too."""
RETRY_SECONDS = 0.02


class ReplayQueue:
    """The questions of shards that are not answered yet. Times in seconds, monotonic.

    is_caught_up(peer): whether all that the log has for the shard is on its way to it.
    """

    def __init__(
        self,
        journal: Journal,
        send: Callable[[bytes, ReplayResponse], bool],
        is_caught_up: Callable[[bytes], bool],
        stopwatch: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._send = send
        self._is_caught_up = is_caught_up
        self._stopwatch = stopwatch
        self._rests_until = float("-inf")
        self._pending: OrderedDict[bytes, OrderedDict[int, tuple[float, ReplayRequest]]] = (
            OrderedDict()
        )  # next shard first

    def __len__(self) -> int:
        return sum(map(len, self._pending.values()))

    def add(self, peer: bytes, message: ReplayRequest, now: float) -> None:
        asked = self._pending.setdefault(peer, OrderedDict())
        asked[message.request] = (now, message)
        if len(asked) > MAX_WAITING:
            asked.popitem(last=False)
            hint = "that client is sent away, and comes back: more come back at once than the journal answers"
            logger.warning("replay_request_dropped", peer=peer.decode(errors="replace"), waiting=len(asked), hint=hint)

    def cancel(self, peer: bytes, request: int) -> None:
        """The client has gone."""
        asked = self._pending.get(peer)
        if asked is not None:
            asked.pop(request, None)
            if not asked:
                del self._pending[peer]

    def forget(self, peer: bytes) -> None:
        """The shard has gone."""
        self._pending.pop(peer, None)

    def serve_next(self, now: float) -> float | None:
        """Answers one question, if it is time; returns when it wants to be called again, None if nobody asks.

        To be called in a turn of its own: what has arrived by then, and is live, goes first.
        """
        if not self._pending:
            return None
        if now < self._rests_until:
            return self._rests_until
        found = self._next_request(now)
        if found is None:
            return now + RETRY_SECONDS
        peer, message = found
        began = self._stopwatch()
        try:
            self._send(peer, read_part(self._journal, message, self._stopwatch))
        except JournalUnavailable as error:
            # The shard sends the client away with its cursor, to ask again.
            hint = "the client comes back for it; see the disk"
            logger.error("journal_unreadable", replay=message.prev_offset, reason=str(error), hint=hint)
        self._rests_until = now + (self._stopwatch() - began) * (1 + REST_FACTOR)
        return self._rests_until if self._pending else None

    def _next_request(self, now: float) -> tuple[bytes, ReplayRequest] | None:
        """The next question, of the shard whose turn it is; None if all who ask have to get what is live first."""
        for peer, asked in self._pending.items():
            asked_at, message = next(iter(asked.values()))
            if self._is_caught_up(peer) or now - asked_at >= PASSED_OVER_SECONDS:
                self._pending.move_to_end(peer)
                self.cancel(peer, message.request)
                return peer, message
        return None


def read_part(journal: Journal, message: ReplayRequest, stopwatch: Callable[[], float] = lambda: 0.0) -> ReplayResponse:
    """The answer to a shard's question: events for one user and for all, or of that user alone; or why there are none.

    It holds as much as its bounds allow: the shard asks on from where it ends. Raises JournalUnavailable.
    """
    after = message.prev_offset
    if message.epoch != journal.epoch:
        return ReplayResponse(message.request, after, [], "epoch")
    if after > journal.last_offset:
        return ReplayResponse(message.request, after, [], "future")
    if after < journal.start_offset:
        return ReplayResponse(message.request, after, [], "retention")
    try:
        return _read(journal, message, stopwatch)
    except JournalHole:
        return ReplayResponse(message.request, after, [], "retention")


def _read(journal: Journal, message: ReplayRequest, stopwatch: Callable[[], float]) -> ReplayResponse:
    after = message.prev_offset
    user, upto = message.user, max(after, min(message.end_offset, journal.last_offset))
    events: list[tuple[int, bytes]] = []
    size = read = 0
    began = stopwatch()
    while after < upto and read < REPLAY_RECORDS:
        limit = min(READ_RECORDS, upto - after)
        records = journal.read_user(user, after, upto, limit) if message.is_user_only else journal.read(after, limit)
        for offset, owner, body in records:
            after = offset
            if owner is None or owner == user:
                events.append((offset, body))
                size += len(body)
                if size >= BYTES_A_MESSAGE:
                    return ReplayResponse(message.request, after, events)
        read += len(records)
        if len(records) < limit:
            after = upto  # there are no more of the user's own
        elif stopwatch() - began >= PART_SECONDS:
            break
    return ReplayResponse(message.request, after, events)
