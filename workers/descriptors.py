"""Which of this process's file descriptors is the connection of a certain peer.

Granian tells an application who its peer is, and keeps the socket to itself. The kernel gives a new connection the
lowest number that is free: so the numbers that had nothing when last looked at are looked at first, from the lowest on,
and the first of them is nearly always the one. What is found on the way is remembered for those who ask next.

What it keeps true: a number that `find` returned had that peer at that moment, no other number was seen to have it, and
it is not found again before it was given back by `release`.
"""

from __future__ import annotations

import os
import socket
from bisect import insort
from collections.abc import Collection
from errno import EBADF
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

Peer = tuple[str, int]

AHEAD = 8
"""How many numbers that have nothing are looked at before the search goes on among the others."""

LOOKS = 2_000
"""How many of the others are looked at for one connection, a few milliseconds: whoever holds thousands that say nothing
may make it come again, and not keep those waiting who are here."""


class Descriptors:
    """Of TCP connections, IPv4 or IPv6.

    A number that is not taken is in `_others`, with its peer, if it had something when it was last looked at; else it
    is in `_free`, or beyond.
    """

    def __init__(self) -> None:
        self._taken: set[int] = set()
        self._free: list[int] = []  # in order
        self._top = 0  # where beyond begins
        self._others: dict[int, Peer | None] = {}
        self._by_peer: dict[Peer, set[int]] = {}

    def find(self, host: str, port: int) -> int | None:
        """The number of the connection from there; None if there is none (any more), or more than one.

        Two have the same peer where the process listens at several addresses: nobody can tell which of them is meant.
        """
        peer = (_plain(host), port)
        found = {number for number in self._by_peer.get(peer, ()) if _look_at(number)[1] == peer}
        found |= self._among_free(peer)
        if not found:
            found = self._among(self._others, peer)
        if not found:
            found = self._among_all(peer)
        if len(found) != 1:
            return None
        (number,) = found
        self._forget(number)
        self._taken.add(number)
        return number

    def release(self, number: int) -> None:
        """The connection with this number is its owner's again, who closes it."""
        self._taken.discard(number)
        insort(self._free, number)

    def _among_free(self, peer: Peer) -> set[int]:
        found = set()
        nothing = 0
        while nothing < AHEAD:
            if nothing == len(self._free):
                self._free += range(self._top, self._top + AHEAD)
                self._top += AHEAD
            number = self._free[nothing]
            used, whose = _look_at(number)
            if not used:
                nothing += 1
                continue
            del self._free[nothing]
            self._note(number, whose)
            if whose == peer:
                found.add(number)
        return found

    def _among(self, numbers: Collection[int], peer: Peer) -> set[int]:
        """Looks at numbers that may have something else than when they were looked at last, the lowest first."""
        found = set()
        for number in sorted(numbers)[:LOOKS]:
            used, whose = _look_at(number)
            if used:
                if whose != self._others.get(number, ()):
                    self._note(number, whose)
            elif number in self._others:
                self._forget(number)
                insort(self._free, number)
            if whose == peer:
                found.add(number)
        return found

    def _among_all(self, peer: Peer) -> set[int]:
        """Lists what the process has: a new connection may be behind a gap of free numbers."""
        listed = {int(name) for name in os.listdir("/proc/self/fd")} - self._taken
        found = self._among(listed, peer)
        self._top = max(self._top, *listed, *self._others) + 1
        self._free = sorted(set(range(self._top)) - self._taken - self._others.keys())
        return found

    def _note(self, number: int, whose: Peer | None) -> None:
        self._forget(number)
        self._others[number] = whose
        if whose is not None:
            self._by_peer.setdefault(whose, set()).add(number)

    def _forget(self, number: int) -> None:
        whose = self._others.pop(number, None)
        if whose is not None:
            numbers = self._by_peer[whose]
            numbers.discard(number)
            if not numbers:
                del self._by_peer[whose]


def _look_at(number: int) -> tuple[bool, Peer | None]:
    """Whether the number has anything, and whose connection it is, if it is one."""
    try:
        # As of IPv6, whose addresses are the longer ones: of which family it is its address tells.
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=number)
    except OSError as error:
        return error.errno != EBADF, None
    try:
        match sock.getpeername():
            case (str(host), int(port), *_):
                return True, (_plain(host), port)
            case _:
                return True, None  # a socket, but not TCP
    except OSError:  # not connected (any more)
        return True, None
    finally:
        sock.detach()  # it is not ours to close


@lru_cache(maxsize=4096)
def _plain(host: str) -> str:
    """One spelling for an address, whoever has written it."""
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)
