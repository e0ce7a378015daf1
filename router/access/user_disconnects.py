"""Closing all connections of a user, on whatever shards they are: one question to all, one answer of the sum.

What it keeps true: whoever asked is answered once, when all shards have answered or PATIENCE_SECONDS after. There are
MAX_UNDER_WAY questions at most at a time; of one more the oldest is answered with what is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from solowire.backplane.messages import Disconnected, UserDisconnected

PATIENCE_SECONDS = 1.0
MAX_UNDER_WAY = 1000


@dataclass
class _Question:
    """gateway, request: to be answered. due: seconds, monotonic."""

    gateway: bytes
    request: int
    due: float
    waits_for: set[bytes] = field(default_factory=set)
    connections: int = 0


class UserDisconnects:
    """Answers are (peer, message), to be sent."""

    def __init__(self) -> None:
        self._number = 0
        self._questions: dict[int, _Question] = {}

    def begin(
        self, gateway: bytes, request: int, shards: set[bytes], now: float
    ) -> tuple[int, list[tuple[bytes, UserDisconnected]]]:
        """The number that the shards are to repeat, and answers that are due by it."""
        answers = []
        if len(self._questions) >= MAX_UNDER_WAY:
            answers.append(self._finish(next(iter(self._questions))))
        self._number += 1
        self._questions[self._number] = _Question(gateway, request, now + PATIENCE_SECONDS, shards)
        if not shards:
            answers.append(self._finish(self._number))
        return self._number, answers

    def answered(self, shard: bytes, message: Disconnected) -> list[tuple[bytes, UserDisconnected]]:
        question = self._questions.get(message.request)
        if question is None or shard not in question.waits_for:
            return []
        question.waits_for.discard(shard)
        question.connections += message.connections
        return [] if question.waits_for else [self._finish(message.request)]

    def give_up(self, now: float) -> list[tuple[bytes, UserDisconnected]]:
        """Answers to those that have waited for long enough."""
        late = [number for number, question in self._questions.items() if question.due <= now]
        return [self._finish(number) for number in late]

    def _finish(self, number: int) -> tuple[bytes, UserDisconnected]:
        question = self._questions.pop(number)
        return question.gateway, UserDisconnected(question.request, question.connections, len(question.waits_for))
