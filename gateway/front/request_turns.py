"""Turns of requests on their way to Granian: of each address so many at a time, the others in the order they came.

What it keeps true: whoever waits gets the turn of one of its address that has ended, and nobody waits where fewer are
under way than may be. So the requests of a flood wait for each other, and not everybody else's for them.
"""

from __future__ import annotations

from typing import Generic, TypeVar

RequestT = TypeVar("RequestT")


class _AddressQueue(Generic[RequestT]):
    __slots__ = ("count", "waiting")

    def __init__(self) -> None:
        self.count = 0
        self.waiting: dict[RequestT, None] = {}


class RequestTurns(Generic[RequestT]):
    """Limits how many requests of one address are answered at a time.

    at_a_time: requests of one address. Of those that wait there are as many as the address has connections.
    """

    def __init__(self, at_a_time: int) -> None:
        self._at_a_time = at_a_time
        self._addresses: dict[str, _AddressQueue[RequestT]] = {}

    def __len__(self) -> int:
        """Addresses that have requests under way."""
        return len(self._addresses)

    def acquire_turn(self, address: str, request: RequestT) -> bool:
        """Whether the request may go on; else `release_turn` returns it once it may."""
        kept = self._addresses.get(address)
        if kept is None:
            kept = self._addresses[address] = _AddressQueue()
        if kept.count >= self._at_a_time:
            kept.waiting[request] = None
            return False
        kept.count += 1
        return True

    def release_turn(self, address: str, request: RequestT) -> RequestT | None:
        """The request has ended, or waits no more; which other one has its turn now, if any."""
        kept = self._addresses[address]
        if request in kept.waiting:
            del kept.waiting[request]
            return None
        if kept.waiting:
            successor = next(iter(kept.waiting))
            del kept.waiting[successor]
            return successor
        kept.count -= 1
        if not kept.count:
            del self._addresses[address]
        return None
