"""TLS as bytes in and bytes out, between two sessions in memory."""

from __future__ import annotations

import ctypes
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes.util import find_library

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.errors import TlsError
from solowire.protocol.tls_session import HANDSHAKE_BYTES, PIECE_BYTES, TlsSession
from tests.support.certificates import TRUSTING, make_server_context

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    return make_server_context(tmp_path_factory.mktemp("tls"))


def open_pair(context: ssl.SSLContext, trusting: ssl.SSLContext = TRUSTING) -> tuple[TlsSession, TlsSession]:
    """A server's and a client's session, whose handshake is done."""
    server, client = TlsSession(context), TlsSession(trusting, is_server=False)
    data = client.start()
    while data:
        assert server.receive(data) == b""
        assert client.receive(server.take_output()) == b""
        data = client.take_output()
    assert server.is_open
    assert client.is_open
    return server, client


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_said_arrives_however_it_is_cut(context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    """Records end where they like in what comes by the wire, the handshake's too."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode, trusting.maximum_version = False, ssl.CERT_NONE, version
    server, client = TlsSession(context), TlsSession(trusting, is_server=False)
    data = client.start()
    while data:
        for byte in data:
            assert server.receive(bytes([byte])) == b""
        assert client.receive(server.take_output()) == b""
        data = client.take_output()
    said = bytes(range(256)) * 300
    wire = client.encrypt(said)
    assert b"".join(server.receive(bytes([byte])) for byte in wire) == said


@given(st.lists(st.binary(max_size=3 * PIECE_BYTES), max_size=5), st.integers(1, 4 * PIECE_BYTES))
def test_what_is_said_in_pieces_arrives_in_order(pieces: list[bytes], cut: int) -> None:
    server, client = open_pair(_CONTEXT[0])
    wire = b"".join(server.encrypt(piece) for piece in pieces)
    found = [client.receive(wire[at : at + cut]) for at in range(0, len(wire), cut)]
    assert b"".join(found) == b"".join(pieces)


_CONTEXT: list[ssl.SSLContext] = []


@pytest.fixture(autouse=True, scope="module")
def _shared(context: ssl.SSLContext) -> None:
    _CONTEXT[:] = [context]


def test_the_end_of_one_direction_leaves_the_other_open(context: ssl.SSLContext) -> None:
    server, client = open_pair(context)
    assert server.receive(client.encrypt(b"the last") + client.end()) == b"the last"
    assert server.has_ended
    assert client.receive(server.encrypt(b"an answer") + server.end()) == b"an answer"
    assert client.has_ended


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_kept_of_what_comes_behind_the_end(context: ssl.SSLContext, version: ssl.TLSVersion) -> None:
    """Of any size, in one piece with the end or later: OpenSSL reads none of it any more."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode, trusting.maximum_version = False, ssl.CERT_NONE, version
    server, client = open_pair(context, trusting)
    more = b"\x17\x03\x03\x40\x00" + bytes(2**14)
    assert server.receive(client.encrypt(b"the last") + client.end() + 10 * more) == b"the last"
    for _ in range(100):
        assert server.receive(more) == b""
    assert server.has_ended
    assert server._incoming.pending <= PIECE_BYTES
    assert client.receive(server.encrypt(b"an answer")) == b"an answer"


@pytest.mark.parametrize(
    "broken",
    [b"\x16\x03\x01\x00\x05hello", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 2**16],
    ids=["greeting", "http", "length"],
)
def test_what_is_no_tls_is_named_once_and_answered(context: ssl.SSLContext, broken: bytes) -> None:
    session = TlsSession(context)
    with pytest.raises(TlsError) as caught:
        session.receive(broken)
    assert str(caught.value).replace("_", "").isalnum()
    assert session.take_output()[:1] in (b"\x15", b"")


@given(st.lists(st.binary(max_size=200), max_size=4), st.integers(0, 400), st.booleans())
def test_whatever_comes_is_taken_or_refused(pieces: list[bytes], begin: int, is_open: bool) -> None:
    """In a handshake as behind it, after any part of what is right: nothing but our own error comes out."""
    server, client = open_pair(_CONTEXT[0])
    right = client.encrypt(b"x" * 300)
    if not is_open:
        server, right = TlsSession(_CONTEXT[0]), TlsSession(TRUSTING, is_server=False).start()
    with suppress(TlsError):
        for piece in (right[:begin], *pieces):
            server.receive(piece)
    server.take_output()
    server.end()


@pytest.mark.skipif(find_library("ssl") is None, reason="needs OpenSSL's library: Python's module asks for no new keys")
@pytest.mark.parametrize("wants_answer", [0, 1])
def test_who_asks_for_new_keys_without_end_is_refused(context: ssl.SSLContext, wants_answer: int) -> None:
    """Each takes 200 times as long as to send it, and an answer that nobody may read. One now and then is well."""
    with asking_client(wants_answer, 3000) as sock, pytest.raises(TlsError, match="too_much_overhead"):
        serve_until_end(sock, TlsSession(context))
    with asking_client(wants_answer, 5) as sock:
        assert serve_until_end(sock, TlsSession(context)) == b"hello" * 5


def serve_until_end(sock: socket.socket, session: TlsSession) -> bytes:
    """What is said."""
    said = b""
    while data := sock.recv(2**14):
        said += session.receive(data)
        sock.sendall(session.take_output())
    return said


@contextmanager
def asking_client(wants_answer: int, keys: int) -> Iterator[socket.socket]:
    """The server's end of a connection whose client asks for so many new keys before each word."""
    ours, theirs = socket.socketpair()
    client = threading.Thread(target=ask_for_keys, args=(theirs, wants_answer, keys))
    client.start()
    try:
        with ours:
            yield ours
    finally:
        client.join()


def ask_for_keys(sock: socket.socket, wants_answer: int, keys: int) -> None:
    library = ctypes.CDLL(find_library("ssl"))
    for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
        getattr(library, name).restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.SSL_CTX_new(ctypes.c_void_p(library.TLS_client_method())))
    session = ctypes.c_void_p(library.SSL_new(context))
    with sock:
        library.SSL_set_fd(session, sock.fileno())
        if library.SSL_connect(session) == 1:
            for _ in range(5):
                for _ in range(keys):
                    library.SSL_key_update(session, wants_answer)
                    library.SSL_do_handshake(session)
                library.SSL_write(session, b"hello", 5)
        with suppress(OSError):  # closed with unread bytes it would be reset
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(2**14):
                pass
    library.SSL_free(session)
    library.SSL_CTX_free(context)


def test_a_record_that_was_changed_on_its_way_ends_the_session(context: ssl.SSLContext) -> None:
    server, client = open_pair(context)
    wire = bytearray(client.encrypt(b"pay ann 1"))
    wire[-1] ^= 1
    with pytest.raises(TlsError, match="decryption_failed_or_bad_record_mac"):
        server.receive(bytes(wire))


def test_a_greeting_without_an_end_is_not_kept(context: ssl.SSLContext) -> None:
    """OpenSSL would take 128 KB of it."""
    session = TlsSession(context)
    greeting = b"\x16\x03\x01\x40\x00" + b"\x01\x01\xf0\x00" + b"x" * (2**14 - 4)
    with pytest.raises(TlsError, match="handshake_too_large"):
        session.receive(greeting * (HANDSHAKE_BYTES // len(greeting) + 1))


def test_a_client_that_does_not_trust_the_certificate_says_so(context: ssl.SSLContext) -> None:
    """The server has it in OpenSSL's word, for the metric."""
    strict = ssl.create_default_context()
    strict.check_hostname = False
    server, client = TlsSession(context), TlsSession(strict, is_server=False)
    assert server.receive(client.start()) == b""
    assert client.receive(server.take_output()) == b""  # it guesses another group first
    assert server.receive(client.take_output()) == b""
    with pytest.raises(TlsError, match="certificate_verify_failed"):
        client.receive(server.take_output())
    with pytest.raises(TlsError, match="alert_unknown_ca"):
        server.receive(client.take_output())
