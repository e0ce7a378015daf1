"""One connection's TLS, as bytes in and bytes out: what is said and what goes over the wire. No socket, no clock.

What it keeps true: what the peer said comes out in order and whole records at a time; what is to be sent has to be sent
in the order in which it came from here. A session that has failed says why, once, and is of no more use; so is one
whose peer makes work and says nothing. What a session holds stays small: OpenSSL's memory buffers never shrink, so they
are filled and emptied piece by piece; what comes behind the peer's own end, which OpenSSL would keep and never read, is
forgotten.
"""

from __future__ import annotations

import ssl
from contextlib import suppress

from solowire.errors import TlsError

TLS_HANDSHAKE = 0x16
"""The first byte that a TLS client sends (RFC 8446, section 5.1)."""
REFUSED_ALERT = b"\x15\x03\x03\x00\x02\x02\x50"
"""The alert `internal_error`: the only word that a client understands with which no handshake has begun."""
HANDSHAKE_BYTES = 16 * 1024
"""What a peer may send until the handshake is done: a few KB are usual, and OpenSSL would keep 128 KB of a greeting."""
PIECE_BYTES = 4 * 1024
READ_BYTES = 16 * 1024
"""A record has no more (RFC 8446, section 5.1)."""
OVERHEAD_BYTES, RECORD_BYTES = 20 * 1024, 29
"""What a peer may send that says nothing, beside as much as it says: RECORD_BYTES for each record, and a record that is
not whole yet. A new key takes 27 bytes to ask for, and 200 times as long as to send; OpenSSL takes any number of them.
"""


class TlsSession:
    """One side of one connection. is_server: whether this is the side that has been connected to.

    is_open: the handshake is done. has_ended: the peer has said that it says no more.
    """

    __slots__ = ("_incoming", "_object", "_outgoing", "_received_count", "_spare", "has_ended", "is_open")

    def __init__(self, context: ssl.SSLContext, *, is_server: bool = True) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=is_server)
        self._received_count = 0
        self._spare = OVERHEAD_BYTES  # what it may still send that says nothing
        self.is_open = False
        self.has_ended = False

    @property
    def has_begun(self) -> bool:
        """Whether the peer has said anything."""
        return self._received_count > 0

    def start(self) -> bytes:
        """What a client sends first."""
        self._shake_hands()
        return self._outgoing.read()

    def receive(self, data: bytes) -> bytes:
        """What the peer says with these bytes: nothing, or any number of records.

        Raises TlsError if it breaks the protocol; what `take_output` returns then tells it so.
        """
        found = []
        for at in range(0, len(data), PIECE_BYTES):
            if self.has_ended:
                break
            piece = data[at : at + PIECE_BYTES]
            self._incoming.write(piece)
            if self.is_open:
                self._spare -= len(piece)
            else:
                self._received_count += len(piece)
                if not self._shake_hands():
                    continue
            found.append(self._read_records())
            if self._spare < 0:
                raise TlsError("too_much_overhead")
            self._spare = min(self._spare, OVERHEAD_BYTES)
        return found[0] if len(found) == 1 else b"".join(found)

    def take_output(self) -> bytes:
        """What has to be sent for the protocol's own sake: parts of the handshake, alerts, answers to the peer's."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def encrypt(self, data: bytes) -> bytes:
        """What goes over the wire to say this. Raises TlsError."""
        try:
            if not data:
                return b""
            if len(data) <= PIECE_BYTES:
                self._object.write(data)
                return self._outgoing.read()
            pieces = []
            for at in range(0, len(data), PIECE_BYTES):
                self._object.write(data[at : at + PIECE_BYTES])
                pieces.append(self._outgoing.read())
            return b"".join(pieces)
        except ssl.SSLError as error:
            raise TlsError(_name_fault(error)) from None

    def end(self) -> bytes:
        """What goes over the wire to say that nothing more will come; nothing, if the handshake is not done."""
        if not self.is_open:
            return b""
        with suppress(ssl.SSLError):  # it would wait for the peer's own end
            self._object.unwrap()
        return self.take_output()

    def read_peer_certificate(self) -> bytes:
        """The other side's certificate (DER), b"" if it has shown none."""
        return self._object.getpeercert(binary_form=True) or b""

    def _shake_hands(self) -> bool:
        """Whether the handshake is done. Raises TlsError."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            if self._received_count > HANDSHAKE_BYTES:
                raise TlsError("handshake_too_large") from None
            return False
        except ssl.SSLError as error:
            raise TlsError(_name_fault(error)) from None
        self.is_open = True
        return True

    def _read_records(self) -> bytes:
        """What can be read of what has come. Raises TlsError."""
        found = []
        try:
            while self._incoming.pending or self._object.pending():
                data = self._object.read(READ_BYTES)
                if not data:
                    self.has_ended = True
                    break
                found.append(data)
                self._spare += 2 * len(data) + RECORD_BYTES
        except ssl.SSLWantReadError:
            pass  # the last record is not whole
        except ssl.SSLZeroReturnError:  # the end, where we have said ours before
            self.has_ended = True
        except ssl.SSLError as error:
            raise TlsError(_name_fault(error)) from None
        return found[0] if len(found) == 1 else b"".join(found)


def _name_fault(error: ssl.SSLError) -> str:
    """OpenSSL's own word for what is wrong, such as `no_shared_cipher` or `sslv3_alert_certificate_unknown`."""
    return (error.reason or "unknown").lower().replace(" ", "_")
