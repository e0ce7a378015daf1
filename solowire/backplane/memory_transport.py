"""The bus in memory: the twin of `solowire.backplane.zmq_transport`, for tests without sockets.

It keeps what the real one promises and no more: order between one pair, delivery in a later turn of the loop, a name
that is taken over by whoever connects with it last, and a send that says False if nobody is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class MemoryBus:
    """What an address is to the real one: one hub, and spokes that find it.

    later: runs a call in a later turn, such as a loop's `call_soon`.
    """

    def __init__(self, later: Callable[..., Any]) -> None:
        self.later = later
        self.hub: MemoryHub | None = None
        self.spokes: dict[bytes, MemorySpoke] = {}


class MemoryHub:
    """The router's end."""

    def __init__(self, bus: MemoryBus, received: Callable[[bytes, bytes], Any]) -> None:
        self._bus = bus
        self._received = received
        bus.hub = self

    def send(self, peer: bytes, payload: bytes) -> bool:
        spoke = self._bus.spokes.get(peer)
        if spoke is None or self._bus.hub is not self:
            return False
        spoke.take(payload)
        return True

    def take(self, peer: bytes, payload: bytes) -> None:
        self._bus.later(self._deliver, peer, payload)

    def _deliver(self, peer: bytes, payload: bytes) -> None:
        if self._bus.hub is self:
            self._received(peer, payload)

    def close(self) -> None:
        if self._bus.hub is self:
            self._bus.hub = None


class MemorySpoke:
    """A peer's end, called `name`."""

    def __init__(self, bus: MemoryBus, name: bytes, received: Callable[[bytes], Any]) -> None:
        self._bus = bus
        self._name = name
        self._received = received
        bus.spokes[name] = self

    def send(self, payload: bytes) -> bool:
        hub = self._bus.hub
        if hub is None or self._bus.spokes.get(self._name) is not self:
            return False
        hub.take(self._name, payload)
        return True

    def take(self, payload: bytes) -> None:
        self._bus.later(self._deliver, payload)

    def _deliver(self, payload: bytes) -> None:
        if self._bus.spokes.get(self._name) is self:
            self._received(payload)

    def close(self) -> None:
        if self._bus.spokes.get(self._name) is self:
            del self._bus.spokes[self._name]
