"""The shard's client port: accepts connections and reads their request heads, nothing more.

What it keeps true: a connection costs one descriptor and one entry until its head is whole, for `head_s` seconds at
most. Of such connections there are no more than `limiter` allows, in all and of one address, and of all sockets
together no more than `max_sockets`: beyond that the newest is told so and closed, whatever the others do; but where
addresses with more than their share have all the room, the newest of one of those makes room for another's. A refusal
reaches its client: the connection is closed when the client has closed it, or LINGER_SECONDS later.

Where the port speaks TLS all of this holds from the accept on: a handshake is a part of the head, and has its time.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from errno import EMFILE, ENFILE, ENOBUFS, ENOMEM
from functools import partial
from select import EPOLLIN, epoll

import structlog

from solowire.algorithms.accept_limiter import AcceptLimiter, counted_address
from solowire.errors import RequestRejected, TlsError
from solowire.protocol.opening_handshake import HEAD_BYTES, HEAD_END, check_beginning, render_full, render_rejection
from solowire.protocol.tls_session import HANDSHAKE_BYTES, REFUSED_ALERT, TLS_HANDSHAKE, TlsSession
from solowire.runtime.tls_port import PLAIN_RESPONSE, TlsPort

logger = structlog.get_logger("solowire.shard")

LINGER_SECONDS = 2.0
ACCEPTS = 64
"""How many connections are accepted before the loop does something else."""
EVENTS = 32
SWEEP_SECONDS = 0.5
PAUSE_SECONDS = 0.5
"""How long nothing is accepted when the system has no more descriptors or memory for it."""
_EXHAUSTED = (EMFILE, ENFILE, ENOBUFS, ENOMEM)
_EXHAUSTED_HINT = "raise the limit of open files (ulimit -n) or the machine's memory, or add shards"

_FULL = {
    "total": (
        "as many connections as may be are open here that have sent no request yet",
        "SOLOWIRE_LISTEN__MAX_PENDING",
    ),
    "address": (
        "as many connections of your address as may be are open here that have sent no request yet",
        "SOLOWIRE_LISTEN__MAX_PENDING_PER_ADDRESS",
    ),
    "files": ("this shard has as many open files as its process may have", "that limit (ulimit -n)"),
}
FULL_RESPONSES = {limit: render_full(*problem) for limit, problem in _FULL.items()}
"""By the limit that is reached."""
HEAD_TOO_LARGE_RESPONSE = render_rejection(
    RequestRejected(
        431, "head_too_large", f"a request head may have {HEAD_BYTES} bytes", "send fewer or shorter headers"
    )
)


class AcceptedSocket:
    """A connection whose head has come.

    peer: its address. head: with its end. rest: what was sent together with it. session: of one that speaks TLS.
    """

    __slots__ = ("head", "peer", "rest", "session", "socket")

    def __init__(
        self, accepted: socket.socket, peer: str, head: bytes, rest: bytes, session: TlsSession | None = None
    ) -> None:
        self.socket = accepted
        self.peer = peer
        self.head = head
        self.rest = rest
        self.session = session

    def send(self, data: bytes) -> None:
        """Says so little that a new socket takes it at once. Raises OSError, TlsError."""
        self.socket.send(data if self.session is None else self.session.encrypt(data))


class _PendingSocket:
    """A socket whose request head has not come yet.

    is_watched: epoll says when something comes. has_ended: it has been closed, or handed over. session: of one that
    speaks TLS. data: of its head. undecrypted: waits for its turn.
    """

    __slots__ = (
        "address",
        "data",
        "ends_at",
        "has_ended",
        "is_refused",
        "is_watched",
        "peer",
        "session",
        "socket",
        "undecrypted",
    )

    def __init__(self, accepted: socket.socket, peer: str, address: str, ends_at: float) -> None:
        self.undecrypted = b""
        self.session: TlsSession | None = None  # not before anything has come: it takes 10 KB
        self.socket = accepted
        self.peer = peer
        self.address = address
        self.ends_at = ends_at
        self.data = b""
        self.is_refused = False
        self.is_watched = False
        self.has_ended = False


class ClientListener:
    """Accepts sockets and reads their request heads.

    handle: takes a connection over and returns None, or returns the answer that refuses it.

    socket_count: how many sockets are open that `handle` has taken over. max_sockets: those and the pending ones.
    tls: of a port that speaks it.
    """

    def __init__(
        self,
        listening_socket: socket.socket,
        handle: Callable[[AcceptedSocket], bytes | None],
        limiter: AcceptLimiter,
        *,
        head_s: float,
        socket_count: Callable[[], int],
        max_sockets: int,
        tls: TlsPort | None = None,
    ) -> None:
        self._socket = listening_socket
        self._handle = handle
        self._limiter = limiter
        self._head_s = head_s
        self._socket_count = socket_count
        self._max_sockets = max_sockets
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, _PendingSocket] = {}
        self._by_age: deque[_PendingSocket] = deque()
        self._sweeping: asyncio.TimerHandle | None = None
        self._resuming: asyncio.TimerHandle | None = None
        self._epoll = epoll()

    @property
    def pending_count(self) -> int:
        """Connections whose head has not come, or whose refusal is on its way."""
        return len(self._pending)

    @property
    def refused_count(self) -> int:
        """Connections that were refused before anything was read."""
        return self._limiter.rejected_count

    def start(self) -> None:
        self._loop.add_reader(self._epoll.fileno(), self._read_pending)
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def finish(self) -> None:
        """Accepts no more, and closes what has said nothing."""
        if self._epoll.closed:
            return
        for timer in (self._sweeping, self._resuming):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_reader(self._epoll.fileno())
        self._socket.close()
        for pending in list(self._pending.values()):
            self._close(pending)
        self._epoll.close()
        if self._tls is not None:
            self._tls.finish()

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                accepted, peer = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    continue  # a fault of that connection's network, accept(2) says: there are others
                self._pause(error)
                return
            self._admit(accepted, str(peer[0]))

    def _admit(self, accepted: socket.socket, peer: str) -> None:
        accepted.setblocking(False)
        address = counted_address(peer)
        is_out_of_files = self._socket_count() + len(self._pending) >= self._max_sockets
        if not is_out_of_files and (crowded := self._limiter.find_crowded(address)) is not None:
            self._make_room(crowded)
        if is_out_of_files or not self._limiter.acquire(address):
            limit = "files" if is_out_of_files else "address" if self._limiter.is_full(address) else "total"
            _reject(accepted, FULL_RESPONSES[limit] if self._tls is None else REFUSED_ALERT)
            return
        pending = _PendingSocket(accepted, peer, address, self._loop.time() + self._head_s)
        self._read(pending)  # the head has usually come already; else it is waited for
        if not (pending.is_watched or pending.has_ended):
            self._watch(pending)

    def _watch(self, pending: _PendingSocket) -> None:
        """Watches it, and ends it when its time has come."""
        number = pending.socket.fileno()
        pending.is_watched = True
        self._pending[number] = pending
        self._epoll.register(number, EPOLLIN)
        self._by_age.append(pending)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _make_room(self, crowded: str) -> None:
        """Closes the newest of an address that has more than its share."""
        for pending in reversed(self._by_age):
            if pending.address == crowded and self._pending.get(pending.socket.fileno()) is pending:
                self._close(pending)
                return

    def _read_pending(self) -> None:
        for number, _ in self._epoll.poll(0, EVENTS):
            pending = self._pending.get(number)
            if pending is not None:
                self._read(pending)

    def _read(self, pending: _PendingSocket) -> None:
        try:
            data = pending.socket.recv(HEAD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(pending)
        elif not pending.is_refused:  # else it is read only to see the end of it
            if self._tls is None:
                self._add_data(pending, data)
            else:
                self._read_tls(pending, self._tls, data)

    def _read_tls(self, pending: _PendingSocket, port: TlsPort, data: bytes) -> None:
        session = pending.session
        if session is None:
            if data[0] != TLS_HANDSHAKE:
                self._refuse(pending, PLAIN_RESPONSE)
                return
            session = pending.session = port.open_session()
        if len(pending.undecrypted) > HANDSHAKE_BYTES:
            self._close(pending)
            return
        pending.undecrypted += data
        port.schedule(pending.address, pending, partial(self._decrypt, pending, session, port))

    def _decrypt(self, pending: _PendingSocket, session: TlsSession, port: TlsPort) -> None:
        """Its turn has come: of what it sends until its head is whole, all is work that its address pays for."""
        data, pending.undecrypted = pending.undecrypted, b""
        was_open = session.is_open
        try:
            plain = session.receive(data)
        except TlsError as error:
            if not was_open:
                port.record_end(error)
            self._refuse(pending, b"")
            return
        if session.is_open and not was_open:
            port.record_end(None)
        try:
            if output := session.take_output():
                pending.socket.send(output)  # a new socket takes so little at once
        except OSError:
            self._close(pending)
            return
        if plain:
            self._add_data(pending, plain)
        elif session.has_ended:
            self._close(pending)

    def _add_data(self, pending: _PendingSocket, data: bytes) -> None:
        whole = pending.data + data if pending.data else data
        end = whole.find(HEAD_END, max(0, len(pending.data) - len(HEAD_END) + 1))
        try:
            check_beginning(whole)
        except RequestRejected as fault:
            self._refuse(pending, render_rejection(fault))
            return
        if end < 0 and len(whole) <= HEAD_BYTES:
            pending.data = whole
        elif end < 0 or end > HEAD_BYTES:
            self._refuse(pending, HEAD_TOO_LARGE_RESPONSE)
        else:
            end += len(HEAD_END)
            self._hand_over(pending, whole[:end], whole[end:])

    def _hand_over(self, pending: _PendingSocket, head: bytes, rest: bytes) -> None:
        self._forget(pending)
        pending.data = b""
        try:
            answer = self._handle(AcceptedSocket(pending.socket, pending.peer, head, rest, pending.session))
        except Exception:  # a fault of ours: it ends this connection, and neither the others nor the process
            logger.exception("handshake_failed", address=pending.peer)
            pending.socket.close()
            return
        if answer is not None:
            if not self._limiter.acquire(pending.address):
                pending.socket.close()
                return
            pending.has_ended = False
            self._refuse(pending, answer)

    def _refuse(self, pending: _PendingSocket, answer: bytes) -> None:
        pending.is_refused = True
        pending.data = b""
        pending.ends_at = self._loop.time() + LINGER_SECONDS
        if pending.is_watched:
            self._by_age.append(pending)  # once more, since the order is that of times
        else:
            self._watch(pending)
        try:
            if pending.session is not None:
                answer = _encrypt_last(pending.session, answer)
            pending.socket.send(answer)  # a new socket takes so little at once
            pending.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(pending)

    def _sweep(self) -> None:
        """Closes whoever has taken too long; of the two kinds each is in the order of its time."""
        now = self._loop.time()
        left: deque[_PendingSocket] = deque()
        for pending in self._by_age:
            if self._pending.get(pending.socket.fileno()) is not pending:
                continue
            if pending.ends_at <= now:
                self._close(pending)
            else:
                left.append(pending)
        self._by_age = left
        self._sweeping = self._loop.call_later(SWEEP_SECONDS, self._sweep) if left else None

    def _forget(self, pending: _PendingSocket) -> None:
        pending.has_ended = True
        if self._tls is not None:
            self._tls.discard(pending.address, pending)
        if pending.is_watched:
            pending.is_watched = False
            number = pending.socket.fileno()
            del self._pending[number]
            self._epoll.unregister(number)
        self._limiter.release(pending.address)

    def _close(self, pending: _PendingSocket) -> None:
        self._forget(pending)
        pending.socket.close()

    def _pause(self, error: OSError) -> None:
        logger.error(
            "accept_paused",
            reason=error.strerror,
            pause_s=PAUSE_SECONDS,
            sockets=self._socket_count(),
            hint=_EXHAUSTED_HINT,
        )
        self._loop.remove_reader(self._socket.fileno())
        self._resuming = self._loop.call_later(PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        self._loop.add_reader(self._socket.fileno(), self._accept)


def _encrypt_last(session: TlsSession, answer: bytes) -> bytes:
    """What is said last, with the end of it; of a session that has failed, why."""
    with suppress(TlsError):
        return session.take_output() + session.encrypt(answer) + session.end()
    return session.take_output()


def _reject(accepted: socket.socket, answer: bytes) -> None:
    """There is no room for it, not even to wait until it has heard so."""
    with suppress(OSError):
        accepted.recv(HEAD_BYTES)  # closed with that unread it would be reset, and the answer might be lost
    with suppress(OSError):
        accepted.send(answer)
    accepted.close()
