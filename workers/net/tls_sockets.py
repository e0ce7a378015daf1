"""The sockets of a shard's clients where they speak TLS: a session stands between what is said and what is sent.

What it keeps true: all that `tcp_sockets` does. What the kernel doesn't take is kept as it goes over the wire, so a
frame is encrypted once, and only for a connection that is not busy; the end is said before the socket is shut.
"""

from __future__ import annotations

from collections.abc import Iterable

from solowire.errors import TlsError
from solowire.protocol.tls_session import TlsSession
from solowire.workers.connections.connection import Connection
from solowire.workers.net.client_listener import AcceptedSocket
from solowire.workers.net.frames import encode_message
from solowire.workers.net.tcp_sockets import Socket, TcpSockets


class TlsSocket(Socket):
    """One of them, with its session."""

    __slots__ = ("session",)

    def __init__(self, number: int, session: TlsSession) -> None:
        super().__init__(number)
        self.session = session


class TlsSockets(TcpSockets):
    """`TcpSockets` of a port that speaks TLS."""

    def _make_socket(self, number: int, accepted: AcceptedSocket) -> Socket:
        assert accepted.session is not None, "the port speaks TLS"  # noqa: S101
        return TlsSocket(number, accepted.session)

    def send(self, frame: str | bytes, connections: Iterable[Connection]) -> list[Connection]:
        raw = encode_message(frame)
        busy = []
        for connection in connections:
            sock: TlsSocket = connection.socket
            if sock.unsent is None:
                self._write(sock, raw)
            else:
                busy.append(connection)
        return busy

    def _write(self, sock: Socket, raw: bytes) -> None:
        try:
            super()._write(sock, sock.session.encrypt(raw))  # type: ignore[attr-defined]
        except TlsError:
            return  # it has failed, which its reader has heard

    def _write_last(self, sock: Socket, raw: bytes) -> None:
        self._write(sock, raw)
        super()._write(sock, sock.session.end())  # type: ignore[attr-defined]

    def _receive(self, sock: Socket, data: bytes) -> None:
        session: TlsSession = sock.session  # type: ignore[attr-defined]
        try:
            plain = session.receive(data)
        except TlsError:
            super()._write(sock, session.take_output())
            self._drop(sock)
            return
        if output := session.take_output():
            super()._write(sock, output)
        if plain:
            self._handle_data_safely(sock, plain)
        if session.has_ended and not sock.is_closing:
            self._drop(sock)
