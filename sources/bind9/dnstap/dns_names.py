"""Numbers of DNS and what BIND 9 calls them: types, classes, response codes; and names in presentation form.

The spelling is that of BIND's query log, so that a query has the same fields whichever way it became known.
"""

from __future__ import annotations

from solowire.errors import DnstapError

MAX_NAME_BYTES = 255

# In the order of their numbers; "" where BIND has no name for it, and writes TYPE and the number.
_FIRST_TYPES = (
    " A NS MD MF CNAME SOA MB MG MR NULL WKS PTR HINFO MINFO MX TXT RP AFSDB X25 ISDN RT NSAP NSAP-PTR SIG KEY PX GPOS"
    " AAAA LOC NXT EID NIMLOC SRV ATMA NAPTR KX CERT A6 DNAME SINK OPT APL DS SSHFP IPSECKEY RRSIG NSEC DNSKEY DHCID"
    " NSEC3 NSEC3PARAM TLSA SMIMEA  HIP NINFO RKEY TALINK CDS CDNSKEY OPENPGPKEY CSYNC ZONEMD SVCB HTTPS DSYNC HHIT"
    " BRID"
)
_LATER_TYPES = {
    99: "SPF UINFO UID GID UNSPEC NID L32 L64 LP EUI48 EUI64",
    249: "TKEY TSIG IXFR AXFR MAILB MAILA ANY URI CAA AVC DOA AMTRELAY RESINFO WALLET",
    32768: "TA DLV",
}
TYPES = {number: name for number, name in enumerate(_FIRST_TYPES.split(" ")) if name} | {
    number: name for first, names in _LATER_TYPES.items() for number, name in enumerate(names.split(), start=first)
}
CLASSES = {0: "RESERVED0", 1: "IN", 3: "CH", 4: "HS", 254: "NONE", 255: "ANY"}
_FIRST_RCODES = (
    "NOERROR FORMERR SERVFAIL NXDOMAIN NOTIMP REFUSED YXDOMAIN YXRRSET NXRRSET NOTAUTH NOTZONE RESERVED11 RESERVED12"
    " RESERVED13 RESERVED14 RESERVED15 BADVERS"
)
RCODES = dict(enumerate(_FIRST_RCODES.split())) | {23: "BADCOOKIE"}

_ESCAPED = frozenset(b'@$"().;\\')
_LETTERS = [
    "\\" + chr(byte) if byte in _ESCAPED else chr(byte) if 0x20 < byte < 0x7F else f"\\{byte:03}" for byte in range(256)
]
_PLAIN = bytes(byte for byte in range(256) if len(_LETTERS[byte]) == 1)
"""What stands for itself in a name."""


def name_type(number: int) -> str:
    """What BIND calls a type, such as `AAAA` or `TYPE65280`."""
    return TYPES.get(number) or f"TYPE{number}"


def name_class(number: int) -> str:
    """What BIND calls a class, such as `IN` or `CLASS7`."""
    return CLASSES.get(number) or f"CLASS{number}"


def name_rcode(number: int) -> str:
    """What BIND calls a response code, such as `NXDOMAIN`; a number where it has no name."""
    return RCODES.get(number) or str(number)


def format_name(labels: list[bytes]) -> str:
    """A name without its final dot, odd bytes escaped; "." for the root."""
    if not labels:
        return "."
    return ".".join(
        "".join(map(_LETTERS.__getitem__, label)) if label.translate(None, _PLAIN) else label.decode("ascii")
        for label in labels
    )


def read_labels(wire: bytes, offset: int) -> tuple[list[bytes], int]:
    """The labels of the name at `offset`, and where it ends. Raises DnstapError.

    A pointer must point before the name, or before the last pointer, so that there is no loop.
    """
    labels: list[bytes] = []
    total = 1
    end = 0  # of the name; after its first pointer if it has one
    before = offset
    try:
        while length := wire[offset]:
            if length < 64:
                offset += 1
                labels.append(wire[offset : offset + length])
                offset += length
                total += length + 1
                if total > MAX_NAME_BYTES:
                    raise DnstapError("a name of more than 255 bytes")
            elif length >= 192:
                end = end or offset + 2
                offset = (length & 63) << 8 | wire[offset + 1]
                if offset >= before:
                    raise DnstapError("a name that points forward")
                before = offset
            else:
                raise DnstapError("a name with a label of an unknown kind")
    except IndexError:
        raise DnstapError("a message that ends within a name") from None
    return labels, end or offset + 1


def skip_name(wire: bytes, offset: int) -> int:
    """Where the name at `offset` ends. Raises DnstapError."""
    try:
        while length := wire[offset]:
            if length >= 192:
                return offset + 2
            if length >= 64:
                raise DnstapError("a name with a label of an unknown kind")
            offset += length + 1
    except IndexError:
        raise DnstapError("a message that ends within a name") from None
    return offset + 1
