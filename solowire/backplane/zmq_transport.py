"""The backplane's sockets: the only module that imports zmq.

    RouterSocket  the router's end: ROUTER, bound, knows its peers by name
    PeerSocket    a peer's end: DEALER, connected, says its name

What it keeps true: nothing here waits. A send that ZeroMQ would have to block on, or to hold for a peer that isn't
there, returns False and is the caller's to repeat: the log is the buffer, not the socket. A socket's file descriptor
is edge-triggered, so after every send the socket is looked at again, and a message that can't be handled ends no turn;
a turn takes a bounded number of messages, bytes and time (TURN_SECONDS and a message), so that a flood leaves room for
everything else in the loop, and so do messages that take long: a shard's part of the log may.

What bounds the memory of these queues is not ZeroMQ's high-water mark, which counts messages of up to some megabytes,
but what is ever under way: from a gateway its `publish.max_held_bytes`, to a shard `solowire.router.log.shard_cursor`'s
BYTES_UNDER_WAY.

`solowire.backplane.memory_transport` has the twin of both, without sockets.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
import zmq

from solowire.algorithms.log_sampler import LogSampler
from solowire.errors import ConfigError

logger = structlog.get_logger("solowire.bus")

_MESSAGES_A_TURN = 200
_BYTES_A_TURN = 2**20
TURN_SECONDS = 0.003
_HIGH_WATER_MARK = 10_000

# As numbers: pyzmq's enumerations cost more than what they are passed to.
_EVENTS, _POLLIN, _NOBLOCK = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.NOBLOCK)


class _Socket:
    def __init__(self, kind: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(kind)
        self._socket.set(zmq.LINGER, 200)  # ms: a last word, such as goodbye, gets out
        self._socket.set(zmq.SNDHWM, _HIGH_WATER_MARK)
        self._socket.set(zmq.RCVHWM, _HIGH_WATER_MARK)
        self._fd: int = self._socket.get(zmq.FD)  # type: ignore[assignment]
        self._loop = asyncio.get_running_loop()
        self._sampler = LogSampler(logger, self._loop.time, self._loop.call_later)
        self._planned_turn: asyncio.Handle | None = None
        self.dropped_count = 0  # messages that can't be ours by their form alone

    def _start_reading(self) -> None:
        self._loop.add_reader(self._fd, self._plan_turn)
        self._plan_turn()

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
                self._dispatch_parts(parts)
            except Exception as error:  # the turn goes on: no edge tells of what has come behind it
                self._sampler.write(
                    "error", "backplane_message_failed", exc_info=error, hint="a fault of ours: report this"
                )
            if self._socket.closed:
                return
            size += len(parts[-1])
            if size >= _BYTES_A_TURN or time.monotonic() >= ends_at:
                break
        self._plan_turn()

    def _has_message(self) -> bool:
        return bool(int(self._socket.get(_EVENTS)) & _POLLIN)

    def _dispatch_parts(self, parts: list[bytes]) -> None:
        raise NotImplementedError

    def _count_dropped(self, sender: bytes, parts: int) -> None:
        self.dropped_count += 1
        self._sampler.write(
            "error",
            "backplane_message_dropped",
            sender=sender.decode(errors="replace"),
            error=f"it has {parts} parts",
            dropped=self.dropped_count,
            hint="something else than Solowire writes to the router's socket",
        )

    def _send_parts(self, parts: list[bytes]) -> bool:
        if self._socket.closed:
            return False
        try:
            self._socket.send_multipart(parts, _NOBLOCK, copy=True)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        finally:
            if self._planned_turn is None and self._has_message():
                self._plan_turn()
        return True

    def close(self) -> None:
        if self._socket.closed:
            return
        self._loop.remove_reader(self._fd)
        if self._planned_turn is not None:
            self._planned_turn.cancel()
        self._destroy()

    def _destroy(self) -> None:
        self._socket.close()
        self._context.term()


class RouterSocket(_Socket):
    """Binds `address`. received(peer, payload) is called for each message. Raises ConfigError if it can't bind."""

    def __init__(self, address: str, received: Callable[[bytes, bytes], Any]) -> None:
        super().__init__(zmq.ROUTER)
        self._on_received = received
        self._address = address
        self._socket.set(zmq.ROUTER_MANDATORY, 1)
        self._socket.set(zmq.ROUTER_HANDOVER, 1)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._destroy()
            raise ConfigError(f"can't listen on {address}: {error.strerror}") from None
        self._start_reading()

    def rebind(self) -> None:
        """Listens anew where the address's file was removed; peers that are there stay. Raises OSError."""
        try:
            with suppress(zmq.ZMQError):
                self._socket.unbind(self._address)
            self._socket.bind(self._address)
        except zmq.ZMQError as error:
            raise OSError(error.errno, error.strerror) from None

    def _dispatch_parts(self, parts: list[bytes]) -> None:
        if len(parts) == 2:
            self._on_received(parts[0], parts[1])
        else:
            self._count_dropped(parts[0], len(parts) - 1)

    def send(self, peer: bytes, payload: bytes) -> bool:
        return self._send_parts([peer, payload])


class PeerSocket(_Socket):
    """Connects to `address` as `name`, now or as soon as somebody listens there, and again whenever that ends."""

    def __init__(self, address: str, name: bytes, received: Callable[[bytes], Any]) -> None:
        super().__init__(zmq.DEALER)
        self._on_received = received
        self._socket.set(zmq.IDENTITY, name)
        self._socket.set(zmq.IMMEDIATE, 1)  # queue only for a router that is there: else say so at once
        self._socket.set(zmq.RECONNECT_IVL, 50)
        self._socket.set(zmq.RECONNECT_IVL_MAX, 500)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self._destroy()
            raise ConfigError(f"can't connect to {address}: {error.strerror}") from None
        self._start_reading()

    def _dispatch_parts(self, parts: list[bytes]) -> None:
        if len(parts) == 1:
            self._on_received(parts[0])
        else:
            self._count_dropped(b"router", len(parts))

    def send(self, payload: bytes) -> bool:
        return self._send_parts([payload])
