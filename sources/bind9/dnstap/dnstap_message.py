"""One dnstap message, as far as it tells of queries: who asked whom, when, and the DNS message itself.

Pure. The protobuf is `dnstap_pb`'s (generated from dnstap.proto, on protobuf's C parser). `named` calls a query of a
client CLIENT_QUERY or AUTH_QUERY, as recursion is asked for or not, and one that it sends on RESOLVER_QUERY or
FORWARDER_QUERY. BIND 9.18 says RESOLVER_QUERY to forwarders, too: they are told by that they are asked for recursion.
"""

from __future__ import annotations

from collections.abc import Callable

import dnstap_pb
import msgspec
from google.protobuf.message import DecodeError

from solowire.errors import DnstapError
from solowire.sources.bind9.dnstap.dns_message import HEADER_BYTES

_LATEST_S = 253_402_300_799
"""Seconds of the year 9999's end; a time beyond it is none."""
_OPCODE_BITS = 0x78
_RECURSION_BIT = 0x01


_KINDS = {  # of dnstap.proto's types: whether it is an answer, and whether named is the asker
    1: (False, False),  # AUTH_QUERY
    2: (True, False),  # AUTH_RESPONSE
    3: (False, True),  # RESOLVER_QUERY
    4: (True, True),  # RESOLVER_RESPONSE
    5: (False, False),  # CLIENT_QUERY
    6: (True, False),  # CLIENT_RESPONSE
    7: (False, True),  # FORWARDER_QUERY
    8: (True, True),  # FORWARDER_RESPONSE
}
_PROTOCOLS = {1: "UDP", 2: "TCP", 3: "DOT", 4: "DOH", 5: "DNSCryptUDP", 6: "DNSCryptTCP", 7: "DOQ"}


class TappedMessage(msgspec.Struct, frozen=True, gc=False):
    """One DNS message. asker, asked: who sent the query and who got it, as bytes of an address, b"" if unknown.

    is_upstream: `named` is the asker; is_forwarded: and a forwarder is asked. protocol: such as `UDP`; "" if unknown.
    asked_at, answered_at: unix seconds, 0.0 if unknown. wire: the DNS message, with a whole header.
    """

    is_response: bool
    is_upstream: bool
    is_forwarded: bool
    asker: bytes
    asker_port: int
    asked: bytes
    asked_port: int
    protocol: str
    asked_at: float
    answered_at: float
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
        kind = _KINDS.get(message.type)
        if kind is None or outer.type != 1:
            return None
        is_response, is_upstream = kind
        wire = message.response_message if is_response else message.query_message
        if len(wire) < HEADER_BYTES:
            raise DnstapError(f"a DNS message of {len(wire)} bytes")
        if wire[2] & _OPCODE_BITS:  # an answer to a NOTIFY looks like one to a query
            return None
        return TappedMessage(
            is_response,
            is_upstream,
            is_upstream and bool(wire[2] & _RECURSION_BIT),
            message.query_address,
            message.query_port,
            message.response_address,
            message.response_port,
            _PROTOCOLS.get(message.socket_protocol, ""),
            _read_time(message.query_time_sec, message.query_time_nsec),
            _read_time(message.response_time_sec, message.response_time_nsec) if is_response else 0.0,
            wire,
        )

    return decode


def _read_time(seconds: int, nanoseconds: int) -> float:
    return seconds + nanoseconds * 1e-9 if seconds <= _LATEST_S and nanoseconds < 1_000_000_000 else 0.0
