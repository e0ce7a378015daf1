"""Limits on open connections that have proved nothing yet: in all, and by address.

What it keeps true: what is counted in is counted out once, and nobody is refused while both counts are below their
limits. Of one address the newest is refused, never an older one ended. Where several addresses fill all the room there
is, one with less than its fair share gets room from the one with the most (`find_crowded`).

An address counts as `counted_address` says: an IPv6 one as its /64, which is what one customer gets.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network


class AcceptLimiter:
    """Counts open connections that have proved nothing yet, in all and by address.

    total: connections of all together. per_address: of one address; None: no limit of its own.
    """

    def __init__(self, total: int, per_address: int | None) -> None:
        self.rejected_count = 0
        self._total = total
        self._per_address = per_address
        self._open = 0
        self._addresses: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._open

    def is_full(self, address: str) -> bool:
        """Whether it is the address that has no room. "" stands for those that are not counted by address."""
        return bool(address) and self._per_address is not None and self._addresses[address] >= self._per_address

    def has_room(self, address: str) -> bool:
        """Whether `acquire` would count one more."""
        return self._open < self._total and not self.is_full(address)

    def find_crowded(self, address: str) -> str | None:
        """Of which address one is to be ended for one of `address`, where there is no room in all.

        None if that address has its own share of the room already, or has no room of its own.
        """
        share = self._total / (len(self._addresses) + 1)
        if self._open < self._total or self.is_full(address) or self._addresses[address] + 1 > share:
            return None
        crowded, count = max(self._addresses.items(), key=_count)
        return crowded if crowded and count > share else None

    def acquire(self, address: str) -> bool:
        """Counts one more of this address; False, and nothing is counted, if there is no room for it."""
        if not self.has_room(address):
            self.rejected_count += 1
            return False
        self._open += 1
        self._addresses[address] += 1
        return True

    def release(self, address: str) -> None:
        """One that `acquire` counted has ended, or has proved who it is."""
        self._open -= 1
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]


def _count(item: tuple[str, int]) -> int:
    return item[1]


@lru_cache(maxsize=4096)
def counted_address(text: str) -> str:
    """The address of a peer as limits count it; what is no address is taken as it is."""
    if ":" not in text:
        return text  # IPv4, which is written in one way only
    try:
        address = IPv6Address(text.partition("%")[0])
    except ValueError:
        return text
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((int(address) >> 64 << 64, 64)))
