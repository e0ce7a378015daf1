"""The bus in memory: the twin of `solowire.backplane.zmq_transport`, for tests without sockets.

It keeps what the real one promises and no more: order between one pair, delivery in a later turn of the loop, a name
that is taken over by whoever connects with it last, and a send that says False if nobody is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class MemoryTransport:
    """What an address is to the real one: one hub, and spokes that find it.

    later: runs a call in a later turn, such as a loop's `call_soon`.
    """

    def __init__(self, later: Callable[..., Any]) -> None:
        self.call_later = later
        self.router_socket: MemoryRouterSocket | None = None
        self.peer_sockets: dict[bytes, MemoryPeerSocket] = {}


class MemoryRouterSocket:
    """The router's end."""

    def __init__(self, bus: MemoryTransport, received: Callable[[bytes, bytes], Any]) -> None:
        self._bus = bus
        self._on_received = received
        bus.router_socket = self

    def send(self, peer: bytes, payload: bytes) -> bool:
        spoke = self._bus.peer_sockets.get(peer)
        if spoke is None or self._bus.router_socket is not self:
            return False
        spoke.enqueue(payload)
        return True

    def enqueue(self, peer: bytes, payload: bytes) -> None:
        self._bus.call_later(self._deliver, peer, payload)

    def _deliver(self, peer: bytes, payload: bytes) -> None:
        if self._bus.router_socket is self:
            self._on_received(peer, payload)

    def close(self) -> None:
        if self._bus.router_socket is self:
            self._bus.router_socket = None


class MemoryPeerSocket:
    """A peer's end, called `name`."""

    def __init__(self, bus: MemoryTransport, name: bytes, received: Callable[[bytes], Any]) -> None:
        self._bus = bus
        self._name = name
        self._on_received = received
        bus.peer_sockets[name] = self

    def send(self, payload: bytes) -> bool:
        hub = self._bus.router_socket
        if hub is None or self._bus.peer_sockets.get(self._name) is not self:
            return False
        hub.enqueue(self._name, payload)
        return True

    def enqueue(self, payload: bytes) -> None:
        self._bus.call_later(self._deliver, payload)

    def _deliver(self, payload: bytes) -> None:
        if self._bus.peer_sockets.get(self._name) is self:
            self._on_received(payload)

    def close(self) -> None:
        if self._bus.peer_sockets.get(self._name) is self:
            del self._bus.peer_sockets[self._name]
