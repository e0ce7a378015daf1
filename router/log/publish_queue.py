"""The publish requests that the router has received and not appended yet, in fair order.

What it keeps true: publishers take turns by the bytes of what they send, and not by how much they send: a request waits
for about as much of each other publisher as it has itself, however many requests of theirs came before. Those of one
publisher keep their order. Nothing has a bound here: what is under way to a router has one at each gateway
(`solowire.gateway.publish.publish_limiter`).

This is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): a request starts where its publisher's last one
ends, but not before the one that is being served; the next is the one that starts first.
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from solowire.backplane.messages import PublishRequest

FORGET_ABOVE = 1000
"""With so many more publishers known than have a request here, those who have none are forgotten."""


class QueuedRequest(NamedTuple):
    """A request of a gateway. is_heavy: its publisher has sent much lately."""

    peer: bytes
    message: PublishRequest
    is_heavy: bool


class PublishQueue:
    """The requests that wait for the log."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, QueuedRequest]] = []
        self._ends: dict[str, float] = {}  # by publisher: where the last one of theirs ends
        self._served = 0.0  # where the one that was taken last starts
        self._order = count()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: QueuedRequest, size: int) -> None:
        """Takes a request of so many bytes."""
        publisher = request.message.publisher
        start = max(self._served, self._ends.get(publisher, 0.0))
        self._ends[publisher] = start + size
        heappush(self._waiting, (start, next(self._order), request))
        if len(self._ends) > len(self._waiting) + FORGET_ABOVE:
            here = {waiting.message.publisher for _, _, waiting in self._waiting}
            self._ends = {name: end for name, end in self._ends.items() if name in here}

    def take_next(self) -> QueuedRequest:
        """The request whose turn it is. Raises IndexError if none waits."""
        self._served, _, request = heappop(self._waiting)
        if not self._waiting:
            self._ends.clear()
            self._served = 0.0
        return request
