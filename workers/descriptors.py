"""Which of this process's file descriptors is the connection of a certain peer.

Granian tells an application who its peer is, and keeps the socket to itself. The kernel gives a new connection the
lowest number that is free: so the numbers that had nothing when last looked at are looked at first, from the lowest on,
and the first of them is nearly always the one. What is found on the way is remembered for those who ask next.

What it keeps true: a number that `find` returned had that peer at that moment, and is not found again before it was
given back by `release`.
"""

from __future__ import annotations

import os
import socket
from bisect import insort
from errno import EBADF
from ipaddress import ip_address

Peer = tuple[str, int]

AHEAD = 32
"""How many numbers that have nothing are looked at before all that the process has are listed."""


class Descriptors:
    """Of TCP connections, IPv4 or IPv6."""

    def __init__(self) -> None:
        self._taken: set[int] = set()
        self._free: list[int] = []  # in order: had nothing when last looked at, or were given back
        self._top = 0  # all above it are free, too
        self._seen: dict[Peer, int] = {}  # connections that nobody has asked for

    def find(self, host: str, port: int) -> int | None:
        """The number of the connection from there; None if there is none (any more)."""
        peer = (_plain(host), port)
        number = self._seen.pop(peer, None)
        if number is None or _look_at(number)[1] != peer:
            number = self._among_free(peer)
            if number is None:
                number = self._among_all(peer)
        if number is not None:
            self._taken.add(number)
        return number

    def release(self, number: int) -> None:
        """The connection with this number is closed by its owner now."""
        self._taken.discard(number)
        insort(self._free, number)

    def _among_free(self, peer: Peer) -> int | None:
        nothing = at = 0
        while nothing < AHEAD:
            if at == len(self._free):
                self._free += range(self._top, self._top + AHEAD)
                self._top += AHEAD
            number = self._free[at]
            used, found = _look_at(number)
            if not used:
                nothing += 1
                at += 1
                continue
            del self._free[at]
            if found == peer:
                return number
            if found is not None:
                self._seen[found] = number
        return None

    def _among_all(self, peer: Peer) -> int | None:
        """Looks at everything that the process has: a number may have had something else when it was last looked at."""
        listed = {int(name) for name in os.listdir("/proc/self/fd")}
        self._top = max(listed) + 1
        self._free = sorted(set(range(self._top)) - listed - self._taken)
        looked_at = {number: _look_at(number)[1] for number in listed - self._taken}
        self._seen = {found: number for number, found in looked_at.items() if found is not None}
        return self._seen.pop(peer, None)


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


def _plain(host: str) -> str:
    """One spelling for an address, whoever has written it."""
    return str(ip_address(host.partition("%")[0]))
