"""What a name server sends by dnstap: frames of queries and answers, and the connection that they go over."""

from __future__ import annotations

import ipaddress
import socket
import struct
from pathlib import Path

import dnstap_pb

CONTENT_TYPE = b"protobuf:dnstap.Dnstap"
ACCEPT, START, STOP, READY, FINISH = 1, 2, 3, 4, 5
TYPES = {"A": 1, "NS": 2, "MX": 15, "TXT": 16, "AAAA": 28, "HTTPS": 65, "ANY": 255}


def make_query(name: str, type: int = 1, id: int = 1, *, flags: int = 0x0100, edns: bytes | None = b"") -> bytes:
    """A DNS query of class IN. name: of plain letters. edns: the options of its OPT record; None: it has none."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.strip(".").split(".") if label)
    question = labels + b"\0" + struct.pack("!2H", type, 1)
    opt = b"" if edns is None else b"\0" + struct.pack("!HHIH", 41, 1232, 0, len(edns)) + edns
    return struct.pack("!6H", id, flags, 1, 0, 0, 1 if opt else 0) + question + opt


def make_response(query: bytes, rcode: int = 0, *, flags: int = 0x8580, answers: int = 1) -> bytes:
    """An answer to a query of `make_query`, with so many addresses."""
    end = query.index(b"\0", 12) + 5
    records = (b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + b"\xc0\0\2\1") * answers
    opt = b"\0" + struct.pack("!HHIH", 41, 1232, rcode >> 4 << 24, 0)
    return query[:2] + struct.pack("!5H", flags | rcode & 15, 1, answers, 0, 1) + query[12:end] + records + opt


def make_frame(
    kind: str,
    wire: bytes,
    *,
    client: str = "192.0.2.1",
    port: int = 5353,
    server: str = "192.0.2.53",
    at: float = 0.0,
    answered_at: float = 0.0,
    protocol: int = 1,
) -> bytes:
    """One dnstap message. kind: such as `CLIENT_QUERY`. at, answered_at: unix seconds, left out if 0."""
    outer = dnstap_pb.Dnstap(type=dnstap_pb.Dnstap.MESSAGE, identity=b"ns1", version=b"BIND 9.18")
    message = outer.message
    message.type = dnstap_pb.Message.Type.Value(kind)
    asker, asked = ipaddress.ip_address(client), ipaddress.ip_address(server)
    message.socket_family, message.socket_protocol = (1 if asker.version == 4 else 2), protocol
    message.query_address, message.response_address = asker.packed, asked.packed
    message.query_port, message.response_port = port, 53
    if at:
        message.query_time_sec, message.query_time_nsec = int(at), int(at % 1 * 1e9)
    if answered_at:
        message.response_time_sec, message.response_time_nsec = int(answered_at), int(answered_at % 1 * 1e9)
    if kind.endswith("QUERY"):
        message.query_message = wire
    else:
        message.response_message = wire
    packed: bytes = outer.SerializeToString()
    return packed


def make_control(kind: int, content_type: bytes = b"") -> bytes:
    """A control frame, with its escape."""
    field = struct.pack("!2I", 1, len(content_type)) + content_type if content_type else b""
    body = struct.pack("!I", kind) + field
    return struct.pack("!2I", 0, len(body)) + body


def add_length(frame: bytes) -> bytes:
    """A data frame as it goes over the connection."""
    return struct.pack("!I", len(frame)) + frame


class DnstapSender:
    """A name server's end of a connection to the socket at `path`, with its handshake done."""

    def __init__(self, path: Path, timeout_s: float = 10.0) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.close = self.sock.close
        try:
            self.sock.settimeout(timeout_s)
            self.sock.connect(str(path))
            self.sock.sendall(make_control(READY, CONTENT_TYPE))
            self.expect(make_control(ACCEPT, CONTENT_TYPE))
            self.sock.sendall(make_control(START, CONTENT_TYPE))
        except BaseException:
            self.close()
            raise

    def send(self, frames: list[bytes]) -> None:
        self.sock.sendall(b"".join(map(add_length, frames)))

    def expect(self, answer: bytes) -> None:
        """Raises AssertionError if something else comes."""
        found = b""
        while len(found) < len(answer) and (more := self.sock.recv(len(answer) - len(found))):
            found += more
        assert found == answer, f"{found!r} in place of {answer!r}"

    def finish(self) -> None:
        """Ends the connection as the protocol says."""
        self.sock.sendall(make_control(STOP))
        self.expect(make_control(FINISH))
        self.close()
