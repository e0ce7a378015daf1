"""The question, the flags and the response code of a DNS message, read from the wire.

Pure, and made for speed: of a message only the header, the question and, where that is needed, the OPT record are
looked at. Names that were seen lately are looked up by their bytes. What a message costs is bounded by its length.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from solowire.errors import DnstapError
from solowire.sources.bind9.dnstap.dns_names import (
    format_name,
    name_class,
    name_rcode,
    name_type,
    read_labels,
    skip_name,
)

HEADER_BYTES = 12
KEPT_NAMES = 8_192
_HEADER = Struct("!6H")
_TWO_SHORTS = Struct("!HH")
_RECORD = Struct("!HHIH")  # type, class, TTL, length: what follows a record's name

_OPT = 41
_COOKIE = 10
_CLIENT_COOKIE_BYTES = 8
_MAX_RECORDS = 4_096
"""That are passed over to find an OPT record; a message of 64 KB has not much more."""

_RESPONSE_FLAGS = ((0x0400, "aa"), (0x0200, "tc"), (0x0100, "rd"), (0x0080, "ra"), (0x0020, "ad"), (0x0010, "cd"))
_RESPONSE_TEXTS = {
    bits: " ".join(text for bit, text in _RESPONSE_FLAGS if bits & bit)
    for bits in range(0x800)
    if not bits & ~sum(bit for bit, _ in _RESPONSE_FLAGS)
}
_FLAG_MASK = 0x07B0


class DnsQuestion(NamedTuple):
    """The question of a message. end: where it ends in the message, HEADER_BYTES being where it begins."""

    name: str
    type: str
    class_: str
    end: int


class QuestionReader:
    """Reads questions. Names are kept, up to KEPT_NAMES, so that they need not be spelled again."""

    def __init__(self) -> None:
        self._names: dict[bytes, str] = {}

    def read_question(self, wire: bytes) -> DnsQuestion | None:
        """The first question of a message; None if it has none. Raises DnstapError."""
        if len(wire) < HEADER_BYTES:
            raise DnstapError(f"a DNS message of {len(wire)} bytes")
        if wire[4:6] == b"\0\0":
            return None
        # A name that is known ends at the first NUL, and not within a label: that was looked at when it was read.
        end = wire.find(b"\0", HEADER_BYTES) + 1
        name = self._names.get(wire[HEADER_BYTES:end])
        if name is None:
            name, end = self._spell_name(wire, end)
        if end + 4 > len(wire):
            raise DnstapError("a DNS message that ends within its question")
        type_number, class_number = _TWO_SHORTS.unpack_from(wire, end)
        return DnsQuestion(name, name_type(type_number), name_class(class_number), end + 4)

    def _spell_name(self, wire: bytes, first_nul_end: int) -> tuple[str, int]:
        labels, end = read_labels(wire, HEADER_BYTES)
        name = format_name(labels)
        if end == first_nul_end:
            if len(self._names) >= KEPT_NAMES:
                self._names.clear()
            self._names[wire[HEADER_BYTES:end]] = name
        return name, end


class Edns(NamedTuple):
    """What the OPT record of a message says. cookie_bytes: of its cookie, 0 without one."""

    version: int
    is_dnssec_ok: bool
    extended_rcode: int
    cookie_bytes: int


def read_edns(wire: bytes, end: int) -> Edns | None:
    """The OPT record of a message whose question ends at `end`; None if it has none. Raises DnstapError."""
    _, _, questions, answers, authorities, additionals = _HEADER.unpack_from(wire)
    if not additionals or questions != 1:
        return None
    offset = end
    for _ in range(min(answers + authorities + additionals, _MAX_RECORDS)):
        offset = skip_name(wire, offset)
        if offset + 10 > len(wire):
            raise DnstapError("a DNS message that ends within a record")
        kind, _, ttl, length = _RECORD.unpack_from(wire, offset)
        offset += 10 + length
        if kind == _OPT:
            cookie_bytes = _find_cookie(wire, offset - length, min(offset, len(wire))) if length else 0
            return Edns(ttl >> 16 & 0xFF, bool(ttl & 0x8000), ttl >> 24, cookie_bytes)
    return None


def _find_cookie(wire: bytes, offset: int, end: int) -> int:
    while offset + 4 <= end:
        code, length = _TWO_SHORTS.unpack_from(wire, offset)
        if code == _COOKIE:
            return int(length)
        offset += 4 + length
    return 0


def format_query_flags(wire: bytes, end: int, *, is_tcp: bool) -> str:
    """The flags of a query as in BIND's query log: `+E(0)TDCK`. Raises DnstapError.

    The question ends at `end`. What only `named` itself knows is left out: `S`, that a signature was right, and `V`,
    that a cookie of its own was.
    """
    edns = read_edns(wire, end)
    text = "+" if wire[2] & 0x01 else "-"
    if edns is not None:
        text += f"E({edns.version})"
    if is_tcp:
        text += "T"
    if edns is not None and edns.is_dnssec_ok:
        text += "D"
    if wire[3] & 0x10:
        text += "C"
    if edns is not None and edns.cookie_bytes == _CLIENT_COOKIE_BYTES:
        text += "K"
    return text


def format_response_flags(wire: bytes) -> str:
    """The flags of a response as `dig` prints them, such as `aa rd ra`."""
    return _RESPONSE_TEXTS[(wire[2] << 8 | wire[3]) & _FLAG_MASK]


def read_rcode(wire: bytes, end: int | None) -> str:
    """The response code. end: where the question ends; None: it has none. Raises DnstapError for a damaged message.

    Beyond 15 a code has its upper bits in the OPT record. It is looked for only where such a code may be: BADVERS has
    the lower bits of NOERROR, BADCOOKIE those of YXRRSET, and neither comes with an answer.
    """
    rcode = wire[3] & 0x0F
    if rcode in (0, 7) and wire[6:8] == b"\0\0" and wire[10:12] != b"\0\0" and end is not None:
        edns = read_edns(wire, end)
        if edns is not None:
            rcode |= edns.extended_rcode << 4
    return name_rcode(rcode)
