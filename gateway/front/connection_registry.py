"""The registry of connections at the gateway's public port, counted in all and by address.

What it keeps true: connections have a limit, in all and of one address. Where there is no room, one that is only kept
for a next request makes it, or one of an address that has more than its share: that has sent no request, or else that
waits for its client, to send or to read. Where there is none, the newest is refused.
"""

from __future__ import annotations

import sys
from itertools import chain, islice
from typing import Generic, Protocol, TypeVar

from solowire.algorithms.accept_limiter import AcceptLimiter
from solowire.protocol.opening_handshake import render_full

FILES_OF_HTTP, FILES_OF_TUNNEL = 3, 2
"""Open files of a connection: the client's, and both ends of the one to Granian, or ours of the one to the shard."""

_FULL = {
    "total": ("this gateway has as many HTTP connections as it may have", "SOLOWIRE_GATEWAY__MAX_HTTP_CONNECTIONS"),
    "address": (
        "as many HTTP connections are open from your address as one address may have",
        "SOLOWIRE_GATEWAY__MAX_HTTP_CONNECTIONS_PER_ADDRESS, or names the proxy in SOLOWIRE_LISTEN__TRUSTED_PROXIES",
    ),
    "files": ("this gateway has as many open files as its process may have", "that limit (ulimit -n)"),
}
FULL_RESPONSES = {limit: render_full(*reason) for limit, reason in _FULL.items()}
"""By the limit that is reached."""


class RegisteredConnection(Protocol):
    """What is asked of a connection when there is no room for another."""

    @property
    def is_silent(self) -> bool:
        """Whether it has not sent a request yet, or is kept for another."""

    @property
    def waits_for_client(self) -> bool:
        """Whether it is up to the client how long it takes: to send, to read, to close; or up to others of its own."""

    def is_counted_of(self, address: str) -> bool:
        """Whether it is of that address, and among those that have a limit together."""

    def close_idle(self) -> None:
        """Makes room for somebody else."""


C = TypeVar("C", bound=RegisteredConnection)


class ConnectionRegistry(Generic[C]):
    """The connections of one port. max_files: open files of all together, tunnels included."""

    def __init__(self, limiter: AcceptLimiter, max_files: int = sys.maxsize) -> None:
        self.clients: dict[C, None] = {}  # oldest first
        self._idle: dict[str, dict[C, None]] = {}  # kept for a next request, by address, oldest first
        self.limiter = limiter
        self._max_files = max_files

    def admit(self, address: str) -> str | None:
        """Counts a connection of this address, and closes an idle one if there is no room else.

        None, or, where there is no room, which limit is reached: `files`, `address` or `total`.

        An idle one of the address itself, if that is what is full, else of whichever address has been idle first. Where
        there is none, and all have no room together, the newest of an address with too many that has sent no request,
        or else that waits for its client.
        """
        http = len(self.limiter)
        if FILES_OF_HTTP * http + FILES_OF_TUNNEL * (len(self.clients) - http) >= self._max_files:
            self.limiter.rejected_count += 1
            return "files"
        if not self.limiter.has_room(address):
            own = self._idle.get(address) if self.limiter.is_full(address) else next(iter(self._idle.values()), None)
            if own:
                next(iter(own)).close_idle()
            elif (crowded := self.limiter.find_crowded(address)) is not None:
                newest = [c for c in reversed(self.clients) if c.is_counted_of(crowded)]
                silent = (c for c in newest if c.is_silent)
                for client in islice(chain(silent, (c for c in newest if c.waits_for_client)), 1):
                    client.close_idle()
        if self.limiter.acquire(address):
            return None
        return "address" if self.limiter.is_full(address) else "total"

    def add(self, client: C) -> None:
        """It was admitted."""
        self.clients[client] = None

    def discard(self, client: C) -> None:
        """It has ended."""
        self.clients.pop(client, None)

    def release(self, address: str, client: C) -> None:
        """It counts for this address no more."""
        self.forget_idle(address, client)
        self.limiter.release(address)

    def note_idle(self, address: str, client: C) -> None:
        """It waits for a next request."""
        self._idle.setdefault(address, {})[client] = None

    def forget_idle(self, address: str, client: C) -> None:
        """It waits no more."""
        clients = self._idle.get(address)
        if clients is not None:
            clients.pop(client, None)
            if not clients:
                del self._idle[address]
