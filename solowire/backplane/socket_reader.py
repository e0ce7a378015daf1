"""A ZeroMQ socket, read in turns of the event loop.

What it keeps true: a socket's file descriptor is edge-triggered, so no turn ends with messages of which no edge will
tell, whatever a message does to whoever takes it. A turn takes a bounded number of messages, bytes and time
(TURN_SECONDS and a message), so that a flood leaves room for everything else in the loop, and so do messages that take
long: a shard's part of the log may.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import zmq

from solowire.algorithms.log_sampler import LogSampler

_MESSAGES_A_TURN = 200
_BYTES_A_TURN = 2**20
TURN_SECONDS = 0.003

# As numbers: pyzmq's enumerations cost more than what they are passed to.
_EVENTS, _POLLIN, _NOBLOCK = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.NOBLOCK)


class SocketReader:
    """Reads `socket` from now on. received(parts) is called for each message."""

    def __init__(self, socket: zmq.Socket[bytes], received: Callable[[list[bytes]], None], sampler: LogSampler) -> None:
        self._socket = socket
        self._on_received = received
        self._sampler = sampler
        self._fd: int = socket.get(zmq.FD)  # type: ignore[assignment]
        self._loop = asyncio.get_running_loop()
        self._planned_turn: asyncio.Handle | None = None
        self._loop.add_reader(self._fd, self._plan_turn)
        self._plan_turn()

    def look_again(self) -> None:
        """To be called after each send, which may take the edge."""
        if self._planned_turn is None and self._has_message():
            self._plan_turn()

    def stop(self) -> None:
        """Before the socket is closed."""
        self._loop.remove_reader(self._fd)
        if self._planned_turn is not None:
            self._planned_turn.cancel()

    def _plan_turn(self) -> None:
        """Something may have arrived. One turn is planned, whatever the number of edges."""
        if self._planned_turn is None:
            self._planned_turn = self._loop.call_soon(self._receive_messages)

    def _receive_messages(self) -> None:
        self._planned_turn = None
        size = 0
        ends_at = time.monotonic() + TURN_SECONDS
        for _ in range(_MESSAGES_A_TURN):
            # Asked before: to hear of it by an exception costs ten times as much, with nearly every message.
            if not self._has_message():
                return
            try:
                parts = self._socket.recv_multipart(_NOBLOCK)
            except zmq.Again:
                return
            try:
                self._on_received(parts)
            except Exception as error:  # the turn goes on: no edge tells of what has come behind it
                self._sampler.write(
                    "error", "backplane_message_failed", exc_info=error, hint="a fault of ours: report this"
                )
            if self._socket.closed:
                return
            size += sum(map(len, parts))
            if size >= _BYTES_A_TURN or time.monotonic() >= ends_at:
                break
        self._plan_turn()

    def _has_message(self) -> bool:
        return bool(int(self._socket.get(_EVENTS)) & _POLLIN)
