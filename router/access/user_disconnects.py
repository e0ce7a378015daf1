"""Disconnects of users: one question to all shards, one answer of the sum.

What it keeps true: whoever asked is answered once, when all shards have answered or PATIENCE_SECONDS after. There are
MAX_UNDER_WAY questions at most at a time; of one more the oldest is answered with what is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from solowire.backplane.messages import DisconnectReport, DisconnectResponse

PATIENCE_SECONDS = 1.0
MAX_UNDER_WAY = 1000


@dataclass
class _PendingDisconnect:
    """A disconnect that not all shards have answered. gateway, request: to be answered. due_at: seconds, monotonic."""

    gateway: bytes
    request: int
    due_at: float
    pending_shards: set[bytes] = field(default_factory=set)
    connections: int = 0


class UserDisconnects:
    """Answers are (peer, message), to be sent."""

    def __init__(self) -> None:
        self._number = 0
        self._pending: dict[int, _PendingDisconnect] = {}

    def start_disconnect(
        self, gateway: bytes, request: int, shards: set[bytes], now: float
    ) -> tuple[int, list[tuple[bytes, DisconnectResponse]]]:
        """The number that the shards are to repeat, and answers that are due by it."""
        answers = []
        if len(self._pending) >= MAX_UNDER_WAY:
            answers.append(self._finish(next(iter(self._pending))))
        self._number += 1
        self._pending[self._number] = _PendingDisconnect(gateway, request, now + PATIENCE_SECONDS, shards)
        if not shards:
            answers.append(self._finish(self._number))
        return self._number, answers

    def record_report(self, shard: bytes, message: DisconnectReport) -> list[tuple[bytes, DisconnectResponse]]:
        question = self._pending.get(message.request)
        if question is None or shard not in question.pending_shards:
            return []
        question.pending_shards.discard(shard)
        question.connections += message.connections
        return [] if question.pending_shards else [self._finish(message.request)]

    def expire_overdue(self, now: float) -> list[tuple[bytes, DisconnectResponse]]:
        """Answers to those that have waited for long enough."""
        late = [number for number, question in self._pending.items() if question.due_at <= now]
        return [self._finish(number) for number in late]

    def _finish(self, number: int) -> tuple[bytes, DisconnectResponse]:
        question = self._pending.pop(number)
        return question.gateway, DisconnectResponse(
            question.request, question.connections, len(question.pending_shards)
        )
