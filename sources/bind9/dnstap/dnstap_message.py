"""One dnstap message, as far as it tells of queries: who asked whom, when, and the DNS message itself.

Pure. The protobuf is `dnstap_pb`'s (generated from dnstap.proto, on protobuf's C parser). `named` calls a query of a
client CLIENT_QUERY or AUTH_QUERY, as recursion was asked for or not, and one that it sends on FORWARDER_QUERY or
RESOLVER_QUERY, for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import dnstap_pb
import msgspec
from google.protobuf.message import DecodeError

from solowire.errors import DnstapError
from solowire.sources.bind9.dnstap.dns_message import HEADER_BYTES

_LATEST_S = 253_402_300_799
"""Seconds of the year 9999's end; a time beyond it is none."""
_OPCODE_BITS = 0x78


class MessageKind(IntEnum):
    """What a dnstap message tells of, as far as it is of interest here."""

    query = 1
    response = 2
    upstream_query = 3
    upstream_response = 4


_KINDS = {
    1: MessageKind.query,  # AUTH_QUERY
    2: MessageKind.response,  # AUTH_RESPONSE
    3: MessageKind.upstream_query,  # RESOLVER_QUERY
    4: MessageKind.upstream_response,  # RESOLVER_RESPONSE
    5: MessageKind.query,  # CLIENT_QUERY
    6: MessageKind.response,  # CLIENT_RESPONSE
    7: MessageKind.upstream_query,  # FORWARDER_QUERY
    8: MessageKind.upstream_response,  # FORWARDER_RESPONSE
}
_FORWARDER_TYPES = (7, 8)
_PROTOCOLS = {1: "UDP", 2: "TCP", 3: "DOT", 4: "DOH", 5: "DNSCryptUDP", 6: "DNSCryptTCP", 7: "DOQ"}


class TappedMessage(msgspec.Struct, frozen=True, gc=False):
    """One DNS message. asker, asked: who sent the query and who got it, as bytes of an address, b"" if unknown.

    protocol: such as `UDP`; "" if unknown. asked_at, answered_at: unix seconds, 0.0 if unknown. is_forwarded: it went
    to a forwarder, or came from one. wire: the DNS message, with a whole header.
    """

    kind: MessageKind
    asker: bytes
    asker_port: int
    asked: bytes
    asked_port: int
    protocol: str
    asked_at: float
    answered_at: float
    is_forwarded: bool
    wire: bytes


def make_message_decoder() -> Callable[[bytes], TappedMessage | None]:
    """Makes a function that decodes frames; it returns None for what is no query or answer to one.

    It raises DnstapError for what is no dnstap, or holds no whole DNS header.
    """
    outer = dnstap_pb.Dnstap()
    parse = outer.ParseFromString

    def decode(frame: bytes) -> TappedMessage | None:
        try:
            parse(frame)
        except (DecodeError, RuntimeError) as error:
            raise DnstapError(f"a frame that is no dnstap message: {error}") from None
        message = outer.message
        number = message.type
        kind = _KINDS.get(number)
        if kind is None or outer.type != 1:
            return None
        wire = message.response_message if kind & 1 == 0 else message.query_message
        if len(wire) < HEADER_BYTES:
            raise DnstapError(f"a DNS message of {len(wire)} bytes")
        if wire[2] & _OPCODE_BITS:  # an answer to a NOTIFY looks like one to a query
            return None
        return TappedMessage(
            kind,
            message.query_address,
            message.query_port,
            message.response_address,
            message.response_port,
            _PROTOCOLS.get(message.socket_protocol, ""),
            _read_time(message.query_time_sec, message.query_time_nsec),
            _read_time(message.response_time_sec, message.response_time_nsec) if kind & 1 == 0 else 0.0,
            number in _FORWARDER_TYPES,
            wire,
        )

    return decode


def _read_time(seconds: int, nanoseconds: int) -> float:
    return seconds + nanoseconds * 1e-9 if seconds <= _LATEST_S and nanoseconds < 1_000_000_000 else 0.0
