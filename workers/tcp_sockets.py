"""The sockets of a shard: each WebSocket that Granian has accepted is written to and read from here.

Granian has the handshake, and all HTTP; from then on nobody asks it for this connection again until it is over. A
`send()` of Granian's costs a task, two copies of the frame and a wake-up of its threads, and its first `receive()` 128
KB for good (docs/architecture.md has the figures): a frame written by the loop itself costs what the kernel takes.

What it keeps true:

* Nothing is waited for. What the kernel doesn't take at once is kept, and written when it takes more; a connection of
  which something is kept is *busy*, and there is no other signal of backpressure.
* Frames arrive whole and in the order in which they were handed over; of a close frame all is said before it.
* A descriptor is used from `take` to `release` only, and is nobody else's from `reserve` on; it is the socket by which
  Granian has answered this very handshake. Granian closes it when the ASGI call returns, and must find nothing in its
  way then, so the connection is shut down first.
* `Socket.ended` comes for each, whatever ends it: at once when the client goes, CLOSE_SECONDS after our close at most.

What a client sends before its handshake is answered, which the protocol forbids (RFC 6455, 4.1), is lost to Granian.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from select import EPOLLIN, EPOLLOUT, epoll
from typing import Any

import structlog
from websockets.frames import Opcode

from solowire.codes import CloseCode
from solowire.rates import Rate
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
SO_COOKIE = 57
NOTSENT_AT, SENT_AT, TCP_INFO_BYTES = 144, 200, 208
"""Of struct tcp_info: what of `tcpi_notsent_bytes` and `tcpi_bytes_sent` (Linux 4.19 or newer) is where."""
READ_BYTES = 16 * 1024
EVENTS = 256
"""How many sockets are looked at before the loop does something else."""
IDLE_FRAMES = Rate(1000.0, 2000.0)
"""How many frames of one client may say nothing by themselves: pings, pongs, parts of a message. What they say in
messages is limited by others (`workers.listening`)."""


class Socket:
    """One of them.

    connection: set by who takes it. left: what the kernel has not taken yet, None if nothing. ping: the client's last
    one, if it is to be answered when `left` has gone. idle_until: the bucket of its IDLE_FRAMES.
    """

    __slots__ = ("closing", "connection", "ended", "idle_until", "inbound", "left", "number", "ping")

    connection: Connection

    def __init__(self, number: int, ended: asyncio.Future[None]) -> None:
        self.number = number
        self.ended = ended
        self.left: deque[memoryview] | None = None
        self.inbound: Inbound | None = None
        self.ping: bytes | None = None
        self.idle_until = 0.0
        self.closing = False


@dataclass(frozen=True, slots=True)
class Handshake:
    """One that is being answered. cookie: the kernel's name for the socket; written: how many bytes were sent by it."""

    peer: tuple[str, int]
    number: int
    done: asyncio.Future[None]
    cookie: bytes
    written: int


class TcpSockets:
    """`workers.sockets.Sockets` over TCP, and what comes in by them.

    received(connection, message) is called for each message of a client; broken(connection, code) when one breaks the
    protocol: it has to close the connection; heard() after all that has come in at a time. took(connection): its peer
    has taken some of what it was busy with, or all.
    """

    def __init__(self) -> None:
        self.received: Callable[[Connection, str | bytes], None] = _nobody
        self.broken: Callable[[Connection, CloseCode], None] = _nobody
        self.heard: Callable[[], None] = _nobody
        self.took: Callable[[Connection], None] = _nobody
        self._loop = asyncio.get_running_loop()
        self._descriptors = Descriptors()
        self._under_way: dict[tuple[str, int], asyncio.Future[None]] = {}  # handshakes, by their peers
        self._watched: dict[int, Socket] = {}
        # One for all of them: a reader of the loop's for each would cost a handle, and a call of its own each time.
        self._epoll = epoll()
        self._loop.add_reader(self._epoll.fileno(), self._look)

    # ------------------------------------------------------------------------------------------ begin and end

    async def alone(self, host: str, port: int) -> None:
        """Waits while another handshake from there is under way. Raises TimeoutError if it takes too long."""
        while (other := self._under_way.get((host, port))) is not None:
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.shield(other)

    def reserve(self, host: str, port: int) -> Handshake | None:
        """For a connection whose handshake is answered now; None if it has gone, or is in doubt. Only when `alone`.

        It may have ended, unseen, and its client, or a proxy, may have come again from the same port: then it is that
        one's socket that is found. So no other handshake may be answered there until `take` has seen this answer go
        out. What would still deceive it is an answer to plain HTTP on the newer connection within the same moment.
        """
        number = self._descriptors.find(host, port) if not self._epoll.closed else None
        if number is None:
            return None
        self._under_way[host, port] = done = self._loop.create_future()
        return Handshake((host, port), number, done, *_written(number))

    def drop(self, handshake: Handshake) -> None:
        """It failed. The number may be another's by now, and is left alone."""
        self._end(handshake)
        self._descriptors.release(handshake.number)

    def take(self, handshake: Handshake) -> Socket | None:
        """It is done; None, as if dropped, if its answer has not gone out by the socket that was found.

        The caller sets `.connection` before the loop has its turn again. Raises OSError, and is to be dropped then.
        """
        cookie, written = _written(handshake.number)
        if cookie != handshake.cookie or written == handshake.written or self._epoll.closed:
            self.drop(handshake)
            return None
        sock = Socket(handshake.number, self._loop.create_future())
        self._epoll.register(sock.number, EPOLLIN)
        self._watched[sock.number] = sock
        self._end(handshake)
        return sock

    def _end(self, handshake: Handshake) -> None:
        del self._under_way[handshake.peer]
        handshake.done.set_result(None)

    def release(self, sock: Socket) -> None:
        """It is over, and its descriptor goes back to Granian, who finds it shut down: nothing more can be sent."""
        self._over(sock)
        number, sock.number = sock.number, -1
        sock.closing = True
        _shut(number, socket.SHUT_RDWR)
        self._descriptors.release(number)

    def finish(self) -> None:
        """No more will come; who is left is not heard any more."""
        if self._epoll.closed:
            return
        for sock in list(self._watched.values()):
            self._over(sock)
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _over(self, sock: Socket) -> None:
        if not sock.ended.done():
            sock.ended.set_result(None)
        if self._watched.pop(sock.number, None) is not None:
            with contextlib.suppress(OSError):  # when the process ends Granian may have closed it already
                self._epoll.unregister(sock.number)

    # ------------------------------------------------------------------------------------------------- sending

    def send(self, frame: str | bytes, connections: Iterable[Connection]) -> list[Connection]:
        raw = frame_of(frame)  # one for all
        size = len(raw)
        busy = []
        for connection in connections:
            sock: Socket = connection.socket
            if sock.left is not None:
                busy.append(connection)
                continue
            try:  # `_write` written out: once for every frame and connection
                taken = os.write(sock.number, raw)
            except BlockingIOError:
                taken = 0
            except OSError:
                continue  # it has gone, which its reader hears
            if taken < size:
                self._keep(sock, memoryview(raw)[taken:])
        return busy

    def queue(self, frame: str | bytes, connection: Connection) -> None:
        sock: Socket = connection.socket
        if not sock.closing:  # nothing comes behind a close frame
            self._write(sock, frame_of(frame))

    def busy(self, connection: Connection) -> bool:
        return connection.socket.left is not None

    def close(self, connection: Connection, code: int, reason: str) -> None:
        sock: Socket = connection.socket
        if not sock.closing:
            self._close(sock, close_frame(code, reason))
            self._loop.call_later(CLOSE_SECONDS, self._over, sock)

    def _close(self, sock: Socket, last: bytes) -> None:
        """What is said is all: the client sees the end behind it, and closes for its part, which is our end."""
        sock.closing = True
        self._write(sock, last)
        if sock.left is None:
            _shut(sock.number, socket.SHUT_WR)

    def _write(self, sock: Socket, raw: bytes) -> None:
        if sock.left is not None:
            sock.left.append(memoryview(raw))
            return
        try:
            taken = os.write(sock.number, raw)
        except BlockingIOError:
            taken = 0
        except OSError:
            return  # it has gone, which its reader hears
        if taken < len(raw):
            self._keep(sock, memoryview(raw)[taken:])

    def _keep(self, sock: Socket, rest: memoryview) -> None:
        sock.left = deque((rest,))
        if sock.number in self._watched:
            self._epoll.modify(sock.number, EPOLLIN | EPOLLOUT)

    def _write_on(self, sock: Socket) -> None:
        left = sock.left
        while left:
            try:
                taken = os.write(sock.number, left[0])
            except BlockingIOError:
                break
            except OSError:
                left.clear()  # it has gone, which its reader hears
                break
            if taken < len(left[0]):
                left[0] = left[0][taken:]
                break
            left.popleft()
        if left:
            if not sock.closing:
                self.took(sock.connection)
            return
        sock.left = None
        self._epoll.modify(sock.number, EPOLLIN)
        if sock.closing:
            _shut(sock.number, socket.SHUT_WR)
        elif sock.ping is not None:
            ping, sock.ping = sock.ping, None
            self._write(sock, pong_frame(ping))
        if not sock.closing:
            self.took(sock.connection)

    # ------------------------------------------------------------------------------------------------ receiving

    def _look(self) -> None:
        for number, events in self._epoll.poll(0, EVENTS):
            sock = self._watched.get(number)
            if sock is None:
                continue
            if events & EPOLLOUT:
                self._write_on(sock)
            if events & ~EPOLLOUT:
                self._read(sock)
        self.heard()

    def _read(self, sock: Socket) -> None:
        try:
            data = os.read(sock.number, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._over(sock)
        elif not sock.closing:  # else it is read only to see the end of it
            try:
                self._take_in(sock, data)
            except Exception:  # a fault of ours: it ends this connection, and neither the others nor the process
                log.exception("message_failed", session=sock.connection.session)
                self._over(sock)

    def _take_in(self, sock: Socket, data: bytes) -> None:
        inbound = sock.inbound
        if inbound is None:
            message = whole_message(data)
            if message is not None:
                self.received(sock.connection, message)
                return
            inbound = sock.inbound = Inbound()
        found = inbound.feed(data)
        if inbound.idle and self._too_many(sock, inbound):
            self.broken(sock.connection, CloseCode.bad_protocol)
        for kind, payload in found:
            if sock.closing:
                return
            if isinstance(kind, CloseCode):
                self.broken(sock.connection, kind)
            elif kind is Opcode.PING:
                sock.ping = payload  # type: ignore[assignment]
            elif kind is Opcode.CLOSE:
                self._close(sock, close_answer(payload))
                if sock.left is None:
                    self._over(sock)
                else:
                    self._loop.call_later(CLOSE_SECONDS, self._over, sock)
            else:
                self.received(sock.connection, payload)
        # The last ping stands for all (RFC 6455, 5.5.3): who doesn't read has one kept for it, and no more.
        if sock.ping is not None and sock.left is None and not sock.closing:
            ping, sock.ping = sock.ping, None
            self._write(sock, pong_frame(ping))

    def _too_many(self, sock: Socket, inbound: Inbound) -> bool:
        idle, inbound.idle = inbound.idle, 0
        now = self._loop.time()
        if IDLE_FRAMES.wait(sock.idle_until, now, idle):
            return True
        sock.idle_until = IDLE_FRAMES.taken(sock.idle_until, now, idle)
        return False


def _written(number: int) -> tuple[bytes, int]:
    """A socket's cookie, and the bytes that were written to it; of one that isn't there any more, nothing."""
    try:
        held = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=number)
    except OSError:
        return b"", 0
    try:
        info = held.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
        (unsent,) = struct.unpack_from("I", info, NOTSENT_AT)
        (sent,) = struct.unpack_from("Q", info, SENT_AT)
        return held.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sent + unsent
    except OSError:  # no TCP
        return b"", 0
    finally:
        held.detach()


def _shut(number: int, how: int) -> None:
    with contextlib.suppress(OSError):  # the client was faster
        held = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=number)
        try:
            held.shutdown(how)
        finally:
            held.detach()  # it is Granian's to close


def _nobody(*what: Any) -> None:
    raise RuntimeError("nobody receives yet")
