"""The sockets of a shard's clients: WebSockets that this process has accepted itself, written to and read from here.

A frame written by the loop itself costs what the kernel takes (docs/decisions/0001-own-listener.md has the figures).

What it keeps true:

* A descriptor is used from `adopt`, which is given the accepted socket, until the end of the connection, when it is
  closed here and nowhere else. So what is written goes to the peer whose handshake was answered, or nowhere.
* Nothing is waited for. What the kernel doesn't take at once is kept, and written when it takes more; a connection of
  which something is kept is *busy*, and there is no other signal of backpressure.
* Frames arrive whole and in the order in which they were handed over; of a close frame all is said before it.
* `on_closed` is called once for each, whatever ends it: at once when the client goes or says good-bye, CLOSE_SECONDS
  after our close at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable
from select import EPOLLIN, EPOLLOUT, epoll
from typing import Any

import structlog
from websockets.frames import Opcode

from solowire.algorithms.token_bucket import BucketTable, Rate
from solowire.protocol.close_codes import CloseCode
from solowire.workers.connections.connection import Connection
from solowire.workers.net.client_listener import AcceptedSocket
from solowire.workers.net.frames import (
    PING_FRAME,
    FrameParser,
    decode_whole_message,
    encode_close,
    encode_close_reply,
    encode_message,
    encode_pong,
)

logger = structlog.get_logger("solowire.shard")

CLOSE_SECONDS = 1.0
READ_BYTES = 16 * 1024
DISCARD_BYTES = 128 * 1024
"""What is read at a time of one that is being closed: it says what nobody hears, and is to come to its end."""
EVENTS = 256
"""How many sockets are looked at before the loop does something else."""
IDLE_FRAMES = Rate(1000.0, 2000.0)
"""How many frames of one user may say nothing by themselves: pings, pongs, parts of a message. What they say in
messages is limited by others (`solowire.workers.session.inbound_limits`)."""
IDLE_USERS = 10_000
"""Of so many users it is known how many came last; most send one now and then, and are forgotten at once."""


class Socket:
    """One of them.

    connection: set by who has it adopted. unsent: what the kernel has not taken yet, None if nothing. pending_ping: the
    client's last one, if it is to be answered when `unsent` has gone. is_probed: a ping of ours is to show that the
    peer speaks WebSocket.
    """

    __slots__ = ("connection", "fd", "has_ended", "inbound", "is_closing", "is_probed", "pending_ping", "unsent")

    connection: Connection

    def __init__(self, number: int) -> None:
        self.fd = number
        self.unsent: deque[memoryview] | None = None
        self.inbound: FrameParser | None = None
        self.pending_ping: bytes | None = None
        self.is_closing = False
        self.has_ended = False
        self.is_probed = False


class TcpSockets:
    """`solowire.workers.connections.sockets.Sockets` over TCP, and what comes in by them.

    on_message(connection, message) is called for each message of a client; on_protocol_error(connection, code) when one
    breaks the protocol: it has to close the connection; on_probe_answered(connection) when one that was probed has sent
    any frame; on_batch_done() after all that has come in at a time. on_writable(connection): its peer has taken some of
    what it was busy with, or all. on_closed(connection): its socket is gone.
    """

    def __init__(self) -> None:
        self.on_message: Callable[[Connection, str | bytes], None] = _raise_unset
        self.on_protocol_error: Callable[[Connection, CloseCode], None] = _raise_unset
        self.on_probe_answered: Callable[[Connection], None] = _raise_unset
        self.on_batch_done: Callable[[], None] = _raise_unset
        self.on_writable: Callable[[Connection], None] = _raise_unset
        self.on_closed: Callable[[Connection], None] = _raise_unset
        self._loop = asyncio.get_running_loop()
        self._watched: dict[int, Socket] = {}
        self._idle_frames = BucketTable(IDLE_FRAMES, IDLE_USERS)  # by user: another connection gives nobody more
        # One for all of them: a reader of the loop's for each would cost a handle, and a call of its own each time.
        self._epoll = epoll()
        self._loop.add_reader(self._epoll.fileno(), self._poll)

    # ------------------------------------------------------------------------------------------ begin and end

    def __len__(self) -> int:
        return len(self._watched)

    def adopt(self, accepted: AcceptedSocket) -> Socket:
        """Takes a socket whose handshake has been answered, and is the only one to use it from now on.

        The caller sets `.connection` before the loop has its turn again. Raises OSError, and the socket is closed.
        """
        number = accepted.socket.detach()
        try:
            self._epoll.register(number, EPOLLIN)
        except (OSError, ValueError) as error:  # ValueError: this process is about to end
            os.close(number)
            raise OSError(str(error)) from None
        sock = self._watched[number] = self._make_socket(number, accepted)
        return sock

    def _make_socket(self, number: int, accepted: AcceptedSocket) -> Socket:
        return Socket(number)

    def discard(self, sock: Socket) -> None:
        """Closes one whose connection has not come about; `on_closed` is not called for it."""
        sock.has_ended = True
        self._drop(sock)

    def feed(self, sock: Socket, data: bytes) -> None:
        """What the client has sent together with its handshake."""
        self._handle_data_safely(sock, data)

    def finish(self) -> None:
        """Closes what is still open; no more will come."""
        if self._epoll.closed:
            return
        for sock in list(self._watched.values()):
            self._drop(sock)
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _drop(self, sock: Socket) -> None:
        number = sock.fd
        if number < 0:
            return
        sock.fd = -1  # which nothing can be written to: the number may be another's from here on
        sock.is_closing = True
        sock.unsent = None
        del self._watched[number]
        self._epoll.unregister(number)
        os.close(number)
        self._report_closed(sock)

    def _report_closed(self, sock: Socket) -> None:
        if not sock.has_ended:
            sock.has_ended = True
            self.on_closed(sock.connection)

    # ------------------------------------------------------------------------------------------------- sending

    def send(self, frame: str | bytes, connections: Iterable[Connection]) -> list[Connection]:
        raw = encode_message(frame)  # one for all
        size = len(raw)
        busy = []
        for connection in connections:
            sock: Socket = connection.socket
            if sock.unsent is not None:
                busy.append(connection)
                continue
            try:  # `_write` written out: once for every frame and connection
                taken = os.write(sock.fd, raw)
            except BlockingIOError:
                taken = 0
            except OSError:
                continue  # it has gone, which its reader hears
            if taken < size:
                self._keep_unsent(sock, memoryview(raw)[taken:])
        return busy

    def queue(self, frame: str | bytes, connection: Connection) -> None:
        sock: Socket = connection.socket
        if not sock.is_closing:  # nothing comes behind a close frame
            self._write(sock, encode_message(frame))

    def is_busy(self, connection: Connection) -> bool:
        return connection.socket.unsent is not None

    def close(self, connection: Connection, code: int, reason: str) -> None:
        sock: Socket = connection.socket
        if not sock.is_closing:
            self._close(sock, encode_close(code, reason))
            self._loop.call_later(CLOSE_SECONDS, self._drop, sock)

    def ping(self, connection: Connection) -> None:
        """Asks its client for a sign that it speaks WebSocket; `on_probe_answered` is called when it gives one."""
        sock: Socket = connection.socket
        sock.is_probed = True
        if not sock.is_closing:
            self._write(sock, PING_FRAME)

    def keep_open(self, connection: Connection) -> None:
        sock: Socket = connection.socket
        if not sock.is_closing and sock.unsent is None:  # else something is passing, or is to
            self._write(sock, PING_FRAME)

    def _close(self, sock: Socket, last: bytes) -> None:
        """What is said is all: the client sees the end behind it, and closes for its part, which is our end."""
        sock.is_closing = True
        self._write_last(sock, last)
        if sock.unsent is None:
            _shut(sock.fd, socket.SHUT_WR)

    def _write(self, sock: Socket, raw: bytes) -> None:
        if sock.unsent is not None:
            sock.unsent.append(memoryview(raw))
            return
        try:
            taken = os.write(sock.fd, raw)
        except BlockingIOError:
            taken = 0
        except OSError:
            return  # it has gone, which its reader hears
        if taken < len(raw):
            self._keep_unsent(sock, memoryview(raw)[taken:])

    def _write_last(self, sock: Socket, raw: bytes) -> None:
        self._write(sock, raw)

    def _keep_unsent(self, sock: Socket, rest: memoryview) -> None:
        sock.unsent = deque((rest,))
        self._epoll.modify(sock.fd, EPOLLIN | EPOLLOUT)

    def _write_unsent(self, sock: Socket) -> None:
        left = sock.unsent
        while left:
            try:
                taken = os.write(sock.fd, left[0])
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
            if not sock.is_closing:
                self.on_writable(sock.connection)
            return
        sock.unsent = None
        self._epoll.modify(sock.fd, EPOLLIN)
        if sock.is_closing:
            _shut(sock.fd, socket.SHUT_WR)
        elif sock.pending_ping is not None:
            ping, sock.pending_ping = sock.pending_ping, None
            self._write(sock, encode_pong(ping))
        if not sock.is_closing:
            self.on_writable(sock.connection)

    # ------------------------------------------------------------------------------------------------ receiving

    def _poll(self) -> None:
        for number, events in self._epoll.poll(0, EVENTS):
            sock = self._watched.get(number)
            if sock is None:
                continue
            if events & EPOLLOUT:
                self._write_unsent(sock)
            if events & ~EPOLLOUT:
                self._read(sock)
        self.on_batch_done()

    def _read(self, sock: Socket) -> None:
        try:
            data = os.read(sock.fd, DISCARD_BYTES if sock.is_closing else READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(sock)
        elif not sock.is_closing:  # else it is read only to see the end of it
            self._receive(sock, data)

    def _receive(self, sock: Socket, data: bytes) -> None:
        """What has come by the wire."""
        self._handle_data_safely(sock, data)

    def _handle_data_safely(self, sock: Socket, data: bytes) -> None:
        try:
            self._handle_data(sock, data)
        except Exception:  # a fault of ours: it ends this connection, and neither the others nor the process
            logger.exception("message_failed", session=sock.connection.session)
            self._drop(sock)

    def _handle_data(self, sock: Socket, data: bytes) -> None:
        inbound = sock.inbound
        if inbound is None:
            message = decode_whole_message(data)
            if message is not None:
                self.on_message(sock.connection, message)
                if sock.is_probed:
                    self._answer_probe(sock)
                return
            inbound = sock.inbound = FrameParser()
        user, now = sock.connection.identity.user, self._loop.time()
        inbound.idle_limit = int(self._idle_frames.tokens_left(user, now))
        found = inbound.feed(data)
        spoken = bool(found or inbound.idle_count)
        if inbound.idle_count:
            self._idle_frames.charge_tokens(user, now, min(inbound.idle_count, inbound.idle_limit))
            inbound.idle_count = 0
        for kind, payload in found:
            if sock.is_closing:
                return
            if isinstance(kind, CloseCode):
                self.on_protocol_error(sock.connection, kind)
            elif kind is Opcode.PING:
                if sock.unsent is None:
                    self._write(sock, encode_pong(payload))
                else:  # the last ping stands for all (RFC 6455, 5.5.3): who doesn't read has one kept, and no more
                    sock.pending_ping = payload  # type: ignore[assignment]
            elif kind is Opcode.CLOSE:
                self._close(sock, encode_close_reply(payload))
                self._report_closed(sock)
                # Closed with unread bytes it would be reset, and the client might never see our answer.
                self._loop.call_later(CLOSE_SECONDS, self._drop, sock)
            elif kind is not Opcode.PONG:
                self.on_message(sock.connection, payload)
        if sock.is_probed and spoken and not sock.is_closing:
            self._answer_probe(sock)

    def _answer_probe(self, sock: Socket) -> None:
        sock.is_probed = False
        self.on_probe_answered(sock.connection)


def _shut(number: int, how: int) -> None:
    with contextlib.suppress(OSError):  # the client was faster
        held = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fileno=number)
        try:
            held.shutdown(how)
        finally:
            held.detach()


def _raise_unset(*what: Any) -> None:
    raise RuntimeError("nobody receives yet")
