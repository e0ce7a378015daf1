"""Questions about history that are not answered yet, and whose turn it is.

What it keeps true: users take turns, whatever shard asks for them, and each turn is one part of an answer. The queue
has a bound: one question more than MAX_WAITING of a shard takes the place of its oldest, which is never answered.
"""

from __future__ import annotations

from collections import OrderedDict

import structlog

from solowire.backplane.messages import HistoryRequest

logger = structlog.get_logger("solowire.router")

MAX_WAITING = 256
"""Questions of one shard, which asks a few at a time (`SOLOWIRE_HISTORY__MAX_CONCURRENT`)."""


class HistoryQueue:
    """What shards have asked. A peer is a shard's name on the backplane."""

    def __init__(self) -> None:
        self._by_peer: dict[bytes, OrderedDict[int, HistoryRequest]] = {}
        self._turns: OrderedDict[str, None] = OrderedDict()  # users, who is next first

    def __len__(self) -> int:
        return sum(map(len, self._by_peer.values()))

    def add_question(self, peer: bytes, question: HistoryRequest) -> None:
        asked = self._by_peer.setdefault(peer, OrderedDict())
        asked[question.request] = question
        self._turns.setdefault(question.user)
        if len(asked) > MAX_WAITING:
            asked.popitem(last=False)
            hint = "whoever waits for it is told to ask again"
            logger.warning("history_request_dropped", peer=peer.decode(errors="replace"), waiting=len(asked), hint=hint)

    def cancel_question(self, peer: bytes, request: int) -> None:
        """Nobody waits for the answer any more."""
        asked = self._by_peer.get(peer)
        if asked is not None:
            asked.pop(request, None)
            if not asked:
                del self._by_peer[peer]

    def forget_peer(self, peer: bytes) -> None:
        """The shard has gone."""
        self._by_peer.pop(peer, None)

    def take_next(self) -> tuple[bytes, HistoryRequest] | None:
        """The question that is to be answered now; its user comes last then."""
        for user in list(self._turns):
            for peer, asked in self._by_peer.items():
                found = next((question for question in asked.values() if question.user == user), None)
                if found is not None:
                    self._turns.move_to_end(user)
                    self.cancel_question(peer, found.request)
                    return peer, found
            del self._turns[user]
        return None
