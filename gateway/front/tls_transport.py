"""TLS between a TCP connection and the protocol that speaks HTTP or WebSocket over it, at either end of the connection.

What it keeps true: the protocol above sees a transport as it would without TLS: of what is written and not taken yet as
much waits as it allows, what it doesn't read is not read from the wire, and the end of each direction is told by
itself. Nothing is held here but a record that is not whole. asyncio's own transport for TLS can do none of the three.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, cast

from solowire.errors import TlsError
from solowire.protocol.tls_session import REFUSED_ALERT, TLS_HANDSHAKE, TlsSession
from solowire.runtime.server_certificate import compute_fingerprint
from solowire.runtime.tls_port import PLAIN_RESPONSE, TlsPort


class TlsTransport(asyncio.Transport, asyncio.BufferedProtocol):
    """What is above takes it for its transport, and the TCP connection beneath it for its protocol.

    above: the protocol. buffer: where all connections of this thread read into: what is read is taken out at once.
    """

    def __init__(self, above: asyncio.BufferedProtocol, session: TlsSession, buffer: memoryview) -> None:
        super().__init__()
        self._above = above
        self._session = session
        self._buffer = buffer
        self._beneath: asyncio.Transport
        self._is_failed = False  # what comes is of no use any more
        self._is_silent = True  # what came last said nothing
        self._still_writes: bool | None = None  # what is above with writing, since there is no more to read
        self._has_sent_end = False  # of what is written
        self._is_paused = False  # by what is above
        self._waits = False  # for something else than what is above, which keeps it from reading

    # ---------------------------------------------------------------------------------------------- what is beneath

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._beneath = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if not self._is_failed:
            self.receive(bytes(self._buffer[:nbytes]))

    def receive(self, data: bytes) -> None:
        """What has come by the wire."""
        try:
            plain = self._session.receive(data)
        except TlsError as error:
            self.fail(error)
            return
        if (output := self._session.take_output()) and not self._has_sent_end:
            self._beneath.write(output)
        self._is_silent = not plain
        self._pass_up(plain)
        if self._session.has_ended and not self._pass_end_up():
            self.close()

    def _pass_up(self, plain: bytes) -> None:
        while plain and not self._beneath.is_closing():
            buffer = cast(memoryview, self._above.get_buffer(len(plain)))
            size = min(len(plain), len(buffer))
            buffer[:size] = plain[:size]
            plain = plain[size:]
            self._above.buffer_updated(size)

    def fail(self, error: TlsError) -> None:
        """The peer's TLS is none: it is told so, if it can be."""
        self._is_failed = True
        if not self._beneath.is_closing():
            if not self._has_sent_end:
                self._beneath.write(self._session.take_output())
            self._beneath.close()

    def eof_received(self) -> bool:
        return not self._is_failed and self._pass_end_up()

    def _pass_end_up(self) -> bool:
        """Whether what is above goes on writing. It is told once, of whichever end comes first."""
        if self._still_writes is None:
            self._still_writes = bool(self._above.eof_received())
        return self._still_writes

    def connection_lost(self, exc: Exception | None) -> None:
        self._above.connection_lost(exc)

    def pause_writing(self) -> None:
        self._above.pause_writing()

    def resume_writing(self) -> None:
        self._above.resume_writing()

    # ----------------------------------------------------------------------------------------------- what is above

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self._beneath.is_closing():
            self._beneath.write(self._session.encrypt(bytes(data)))

    def write_eof(self) -> None:
        if not self._has_sent_end:
            self._send_end()
            self._beneath.write_eof()

    def _send_end(self) -> None:
        """Once: beneath nothing may be written behind it."""
        if not self._has_sent_end:
            self._has_sent_end = True
            if last := self._session.end():
                self._beneath.write(last)

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        if not self._beneath.is_closing():
            self._send_end()
            self._beneath.close()

    def abort(self) -> None:
        self._beneath.abort()

    def is_closing(self) -> bool:
        return self._beneath.is_closing()

    def pause_reading(self) -> None:
        self._is_paused = True
        self._set_reading()

    def resume_reading(self) -> None:
        self._is_paused = False
        self._set_reading()

    def is_reading(self) -> bool:
        return self._beneath.is_reading()

    def set_waiting(self, waits: bool) -> None:
        """Whether nothing is to be read, whatever is above."""
        self._waits = waits
        self._set_reading()

    def _set_reading(self) -> None:
        if self._beneath.is_closing():
            return
        if self._is_paused or self._waits:
            self._beneath.pause_reading()
        else:
            self._beneath.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._beneath.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._beneath.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._beneath.get_extra_info(name, default)


class TlsServerTransport(TlsTransport):
    """A client's connection. What is above has it from the begin, and so counts it before its handshake is done.

    count_as: the address that a peer counts for, "" if it is not counted.
    """

    def __init__(
        self, above: asyncio.BufferedProtocol, port: TlsPort, buffer: memoryview, count_as: Callable[[str], str]
    ) -> None:
        super().__init__(above, port.open_session(), buffer)
        self._port = port
        self._count_as = count_as
        self._address = ""
        self._early = b""  # what has come, until its turn

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self._address = self._count_as(str(peer[0])) if peer else ""
        self._above.connection_made(self)

    def receive(self, data: bytes) -> None:
        if self._session.is_open and not self._is_silent:
            super().receive(data)
        elif not self._session.has_begun and data[0] != TLS_HANDSHAKE:
            self._is_failed = True
            self._beneath.write(PLAIN_RESPONSE)
            self.write_eof()  # closed with unread bytes it would be reset, and the answer might be lost
        else:
            self._early = data
            self.set_waiting(True)
            self._port.schedule(self._address, self, self._take_turn)

    def _take_turn(self) -> None:
        """Of what a client sends that says nothing, the handshake first of all, its address pays for the work."""
        if self._beneath.is_closing():
            return
        data, self._early = self._early, b""
        was_open = self._session.is_open
        self.set_waiting(False)
        super().receive(data)
        if self._session.is_open and not was_open:
            self._port.record_end(None)

    def fail(self, error: TlsError) -> None:
        if not self._session.is_open:
            self._port.record_end(error)
        super().fail(error)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._session.is_open:
            super().write(data)
        elif data and not self._session.has_begun:
            self._is_failed = True
            self._beneath.write(REFUSED_ALERT)  # which is all that can be said before the handshake

    def connection_lost(self, exc: Exception | None) -> None:
        self._port.discard(self._address, self)
        super().connection_lost(exc)


class UnknownCertificateError(OSError):
    """Whoever is at the other end has another certificate than it is known by."""


class TlsClientTransport(TlsTransport):
    """A connection to another process of this system, which is known by the fingerprint of its certificate.

    What is above has it when the handshake is done and the certificate is the right one; `opened` says so, or has an
    OSError.
    """

    def __init__(self, above: asyncio.BufferedProtocol, fingerprint: str, buffer: memoryview) -> None:
        super().__init__(above, TlsSession(CLIENT_CONTEXT, is_server=False), buffer)
        self._fingerprint = fingerprint
        self._is_handed_over = False  # to what is above
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._beneath.write(self._session.start())

    def receive(self, data: bytes) -> None:
        if self._is_handed_over:
            super().receive(data)
            return
        if self.opened.done():  # in vain
            return
        try:
            plain = self._session.receive(data)
        except TlsError as error:
            self.fail(error)
            return
        is_open = self._session.is_open
        if is_open and compute_fingerprint(self._session.read_peer_certificate()) != self._fingerprint:
            self._set_failed(UnknownCertificateError("its certificate is not the one that the router has told of"))
            self.abort()
            return
        self._beneath.write(self._session.take_output())
        if not is_open:
            return
        self._is_handed_over = True
        self._above.connection_made(self)
        self.opened.set_result(None)
        self._pass_up(plain)

    def fail(self, error: TlsError) -> None:
        self._set_failed(OSError(f"TLS: {error}"))
        super().fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_handed_over:
            super().connection_lost(exc)
        else:
            self._set_failed(OSError("TLS: the connection was closed in the handshake"))

    def eof_received(self) -> bool:
        return self._is_handed_over and super().eof_received()

    def _set_failed(self, error: OSError) -> None:
        if not self.opened.done():
            self.opened.set_exception(error)


def _make_client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # whose certificate it is, its fingerprint says
    context.verify_mode = ssl.CERT_NONE
    return context


CLIENT_CONTEXT = _make_client_context()
