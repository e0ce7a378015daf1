"""The events of a ZeroMQ socket's connections, which the socket itself doesn't tell."""

from __future__ import annotations

import struct
from collections.abc import Callable

import zmq

from solowire.algorithms.log_sampler import LogSampler
from solowire.backplane.socket_reader import SocketReader

ACCEPTED = int(zmq.EVENT_ACCEPTED)
CONNECTED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
DISCONNECTED = int(zmq.EVENT_DISCONNECTED)
DENIED = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
"""The router has not let a key in."""
FAILED = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
"""Another handshake has failed: with a wrong router's key, without any, or by what is no ZeroMQ at all."""

_EVENT = struct.Struct("=Hi")


class ConnectionMonitor:
    """Watches a socket. mask: the events that are wanted; happened(event) is called with CONNECTED and the like."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        watched: zmq.Socket[bytes],
        mask: int,
        happened: Callable[[int], None],
        sampler: LogSampler,
    ) -> None:
        self._watched = watched
        self._on_event = happened
        address = f"inproc://events-{id(self)}"
        watched.monitor(address, mask)
        self._socket = context.socket(zmq.PAIR)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RCVHWM, 0)  # beyond it ZeroMQ's thread would wait for us
        self._socket.connect(address)
        self._reader = SocketReader(self._socket, self._read_event, sampler)

    def close(self) -> None:
        """Before the watched socket is closed."""
        self._reader.stop()
        self._watched.disable_monitor()
        self._socket.close()

    def _read_event(self, parts: list[bytes]) -> None:
        event, _ = _EVENT.unpack_from(parts[0])
        self._on_event(FAILED if event & FAILED else event)
