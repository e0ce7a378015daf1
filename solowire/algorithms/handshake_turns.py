"""Turns of handshakes, which cost much for what a client sends: addresses one after the other, each within its budget.

What it keeps true: of the addresses that wait, each has one handshake taken before any has a second; one that has used
up its budget (`ADDRESS_BUDGET`) waits until it has some again, and keeps nobody else waiting. Within
one address the first to come is the first. What is discarded leaves nothing behind.

Times are seconds of any one clock.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from solowire.algorithms.token_bucket import BucketTable, Rate

ADDRESS_BUDGET = Rate(250.0, 500.0)
"""Milliseconds of work for one address, per second and at once: thousands of handshakes, then a quarter of a core."""
REMEMBERED_ADDRESSES = 10_000

KeyT = TypeVar("KeyT", bound=Hashable)
WorkT = TypeVar("WorkT")


class HandshakeTurns(Generic[KeyT, WorkT]):
    """Who is next. An item has a key, which is its connection, and what is to be done for it."""

    def __init__(self, budget: Rate = ADDRESS_BUDGET) -> None:
        self._waiting: dict[str, dict[KeyT, WorkT]] = {}  # by address; those that may go on, in turn
        self._resting: dict[str, dict[KeyT, WorkT]] = {}  # those without a budget
        self._rests: dict[str, float] = {}  # until when; they are few, as each has cost seconds of work
        self._budgets = BucketTable(budget, REMEMBERED_ADDRESSES)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values())) + sum(map(len, self._resting.values()))

    def add(self, address: str, key: KeyT, work: WorkT) -> None:
        """Has it wait, once. An address of "" has no budget of its own."""
        place = self._resting if address in self._rests else self._waiting
        place.setdefault(address, {}).setdefault(key, work)

    def discard(self, address: str, key: KeyT) -> None:
        """It waits no more, if it did."""
        for place in (self._waiting, self._resting):
            items = place.get(address)
            if items is not None and items.pop(key, None) is not None and not items:
                del place[address]

    def take_next(self, now: float) -> tuple[str, WorkT] | None:
        """Whose turn it is, and what is to be done; None if nobody may go on now."""
        for address in [address for address, until in self._rests.items() if until <= now]:
            del self._rests[address]
            if items := self._resting.pop(address, None):
                self._waiting[address] = items
        while self._waiting:
            address = next(iter(self._waiting))
            items = self._waiting.pop(address)
            if wait := self._budgets.wait_seconds(address, now, 0) if address else 0.0:
                self._rests[address] = now + wait
                self._resting[address] = items
                continue
            key = next(iter(items))
            work = items.pop(key)
            if items:
                self._waiting[address] = items  # behind the others
            return address, work
        return None

    def next_at(self) -> float | None:
        """When somebody that rests may go on; None if nobody who waits does."""
        return min((self._rests[address] for address in self._resting), default=None)

    def charge(self, address: str, now: float, seconds: float) -> None:
        """So much has been done for an address."""
        if address:
            self._budgets.charge_tokens(address, now, seconds * 1000)
