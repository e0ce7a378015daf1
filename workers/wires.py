"""The sockets of a shard: each WebSocket that Granian has accepted is written to and read from here.

Granian has the handshake, and all HTTP; from then on nobody asks it for this connection again until it is over. A
`send()` of Granian's costs a task, two copies of the frame and a wake-up of its threads, and its first `receive()` 128
KB for good (docs/architecture.md has the figures): a frame written by the loop itself costs what the kernel takes.

What it keeps true:

* Nothing is waited for. What the kernel doesn't take at once is kept, and written when it takes more; a connection of
  which something is kept is *busy*, and there is no other signal of backpressure.
* Frames arrive whole and in the order in which they were handed over; of a close frame all is said before it.
* A descriptor is used from `take` to `release` only. It is Granian's: it closes it when the ASGI call returns, and must
  find nothing in its way then, so the connection is shut down first.
* `Wire.ended` comes for each, whatever ends it: at once when the client goes, CLOSE_SECONDS after our close at most.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable
from select import EPOLLIN, EPOLLOUT, epoll
from typing import Any

import structlog
from websockets.frames import Opcode

from solowire.codes import CloseCode
from workers.connection import Connection
from workers.descriptors import Descriptors
from workers.framing import (
    Inbound,
    close_answer,
    close_frame,
    frame_of,
    pong_frame,
    whole_message,
)

log = structlog.get_logger("solowire.shard")

CLOSE_SECONDS = 1.0
READ_BYTES = 64 * 1024
EVENTS = 256
"""How many sockets are looked at before the loop does something else."""


class Wire:
    """One of them. left: what the kernel has not taken yet, None if nothing; connection: set by who takes it."""

    __slots__ = ("closing", "connection", "ended", "inbound", "left", "number")

    connection: Connection

    def __init__(self, number: int, ended: asyncio.Future[None]) -> None:
        self.number = number
        self.ended = ended
        self.left: deque[memoryview] | None = None
        self.inbound: Inbound | None = None
        self.closing = False


class Wires:
    """`workers.sockets.Sockets` over TCP, and what comes in by them.

    received(connection, message) is called for each message of a client; broken(connection, code) when one breaks the
    protocol: it has to close the connection; heard() after all that has come in at a time.
    """

    def __init__(self) -> None:
        self.heard: Callable[[], None] = _nobody
        self.received: Callable[[Connection, str | bytes], None] = _nobody
        self.broken: Callable[[Connection, CloseCode], None] = _nobody
        self._loop = asyncio.get_running_loop()
        self._descriptors = Descriptors()
        self._wires: dict[int, Wire] = {}
        # One for all of them: a reader of the loop's for each would cost a handle, and a call of its own each time.
        self._epoll = epoll()
        self._loop.add_reader(self._epoll.fileno(), self._look)

    # ------------------------------------------------------------------------------------------ begin and end

    def take(self, host: str, port: int) -> Wire | None:
        """The connection from there, whose handshake is done; None if it has gone.

        The caller sets `.connection` before the loop has its turn again, which is when its messages begin to come.
        """
        number = self._descriptors.find(host, port)
        if number is None:
            return None
        wire = self._wires[number] = Wire(number, self._loop.create_future())
        self._epoll.register(number, EPOLLIN)
        return wire

    def release(self, wire: Wire) -> None:
        """It is over, and its descriptor goes back to Granian, who finds it shut down: nothing more can be sent."""
        self._over(wire)
        number, wire.number = wire.number, -1
        wire.closing = True
        del self._wires[number]
        _shut(number, socket.SHUT_RDWR)
        self._descriptors.release(number)

    def finish(self) -> None:
        """All are released, and no more will come."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _over(self, wire: Wire) -> None:
        if not wire.ended.done():
            wire.ended.set_result(None)
            self._epoll.unregister(wire.number)

    # ------------------------------------------------------------------------------------------------- sending

    def send(self, frame: str | bytes, connections: Iterable[Connection]) -> list[Connection]:
        raw = frame_of(frame)  # one for all
        size = len(raw)
        busy = []
        for connection in connections:
            wire: Wire = connection.socket
            if wire.left is not None:
                busy.append(connection)
                continue
            try:  # `_write` written out: once for every frame and connection
                taken = os.write(wire.number, raw)
            except BlockingIOError:
                taken = 0
            except OSError:
                continue  # it has gone, which its reader hears
            if taken < size:
                self._keep(wire, memoryview(raw)[taken:])
        return busy

    def queue(self, frame: str | bytes, connection: Connection) -> None:
        self._write(connection.socket, frame_of(frame))

    def busy(self, connection: Connection) -> bool:
        return connection.socket.left is not None

    def close(self, connection: Connection, code: int, reason: str) -> None:
        wire: Wire = connection.socket
        if not wire.closing:
            self._close(wire, close_frame(code, reason))
            self._loop.call_later(CLOSE_SECONDS, self._over, wire)

    def _close(self, wire: Wire, last: bytes) -> None:
        """What is said is all: the client sees the end behind it, and closes for its part, which is our end."""
        wire.closing = True
        self._write(wire, last)
        if wire.left is None:
            _shut(wire.number, socket.SHUT_WR)

    def _write(self, wire: Wire, raw: bytes) -> None:
        if wire.left is not None:
            wire.left.append(memoryview(raw))
            return
        try:
            taken = os.write(wire.number, raw)
        except BlockingIOError:
            taken = 0
        except OSError:
            return  # it has gone, which its reader hears
        if taken < len(raw):
            self._keep(wire, memoryview(raw)[taken:])

    def _keep(self, wire: Wire, rest: memoryview) -> None:
        wire.left = deque((rest,))
        if not wire.ended.done():
            self._epoll.modify(wire.number, EPOLLIN | EPOLLOUT)

    def _write_on(self, wire: Wire) -> None:
        left = wire.left
        while left:
            try:
                taken = os.write(wire.number, left[0])
            except BlockingIOError:
                return
            except OSError:
                break
            if taken < len(left[0]):
                left[0] = left[0][taken:]
                return
            left.popleft()
        wire.left = None
        self._epoll.modify(wire.number, EPOLLIN)
        if wire.closing:
            _shut(wire.number, socket.SHUT_WR)

    # ------------------------------------------------------------------------------------------------ receiving

    def _look(self) -> None:
        for number, events in self._epoll.poll(0, EVENTS):
            wire = self._wires.get(number)
            if wire is None or wire.ended.done():
                continue
            if events & EPOLLOUT:
                self._write_on(wire)
            if events & ~EPOLLOUT:
                self._read(wire)
        self.heard()

    def _read(self, wire: Wire) -> None:
        try:
            data = os.read(wire.number, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._over(wire)
        elif not wire.closing:  # else it is read only to see the end of it
            try:
                self._take_in(wire, data)
            except Exception:  # a fault of ours: it ends this connection, and neither the others nor the process
                log.exception("message_failed", session=wire.connection.session)
                self._over(wire)

    def _take_in(self, wire: Wire, data: bytes) -> None:
        connection = wire.connection
        if wire.inbound is None:
            message = whole_message(data)
            if message is not None:
                self.received(connection, message)
                return
            wire.inbound = Inbound()
        ping: str | bytes | None = None
        for kind, payload in wire.inbound.feed(data):
            if isinstance(kind, CloseCode):
                self.broken(connection, kind)
            elif kind is Opcode.PING:
                ping = payload
            elif kind is not Opcode.CLOSE:
                self.received(connection, payload)
            else:
                if not wire.closing:
                    self._close(wire, close_answer(payload))
                self._over(wire)
        if ping is not None and wire.left is None and not wire.closing:
            # The last one stands for all (RFC 6455, 5.5.3), and who doesn't read gets none: nothing gathers here.
            self._write(wire, pong_frame(ping))


def _shut(number: int, how: int) -> None:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=number)
    try:
        sock.shutdown(how)
    except OSError:
        pass  # the client was faster
    finally:
        sock.detach()  # it is Granian's to close


def _nobody(*what: Any) -> None:
    raise RuntimeError("nobody receives yet")
