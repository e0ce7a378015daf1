"""Records of a zone in the compact form in which they are held, and as text.

What it keeps true: two records are the same if and only if owner, type and `data` are equal, as DNS compares them
(RFC 4034, section 6: names without case); `owner` sorts in the canonical order of names, as bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.SOA

IN = dns.rdataclass.IN
SOA = dns.rdatatype.SOA


class ZoneRecord(NamedTuple):
    """One record. owner: see `encode_owner`. data: its RDATA in canonical form; shown: as written, None if the same."""

    owner: bytes
    type: int
    data: bytes
    shown: bytes | None
    ttl: int

    @property
    def key(self) -> RRsetKey:
        return RRsetKey(self.owner, self.type)


class RRsetKey(NamedTuple):
    """The name of a set of records: its owner and its type."""

    owner: bytes
    type: int


def make_record(owner: dns.name.Name, rdata: dns.rdata.Rdata, ttl: int) -> ZoneRecord:
    """The compact form of a record that was read."""
    data = bytes(rdata.to_digestable())
    shown = bytes(rdata.to_wire() or b"")
    return ZoneRecord(encode_owner(owner), int(rdata.rdtype), data, None if shown == data else shown, ttl)


@lru_cache(maxsize=4096)
def encode_owner(name: dns.name.Name) -> bytes:
    """An absolute name, last label first, in lower case; labels are joined by a NUL, which is escaped within them."""
    labels = reversed(name.canonicalize().labels[:-1])
    return b"\0".join(label.replace(b"\1", b"\1\2").replace(b"\0", b"\1\1") for label in labels)


@lru_cache(maxsize=4096)
def decode_owner(owner: bytes) -> str:
    """The name as text, in lower case and without the last dot; the root is `.`."""
    if not owner:
        return "."
    labels = [part.replace(b"\1\1", b"\0").replace(b"\1\2", b"\1") for part in owner.split(b"\0")]
    return dns.name.Name([*reversed(labels), b""]).to_text(omit_final_dot=True)


def format_type(type: int) -> str:
    """A type's name; of one that has none, `TYPE65400` (RFC 3597)."""
    return dns.rdatatype.to_text(dns.rdatatype.RdataType.make(type))


def format_record(record: ZoneRecord) -> str:
    """The RDATA in presentation form; of an unknown type, or where it doesn't fit its type, as RFC 3597 says."""
    wire = record.data if record.shown is None else record.shown
    try:
        return dns.rdata.from_wire(IN, dns.rdatatype.RdataType.make(record.type), wire, 0, len(wire)).to_text()
    except (dns.exception.DNSException, ValueError, ArithmeticError):
        return dns.rdata.GenericRdata(IN, dns.rdatatype.RdataType.make(record.type), wire).to_text()


class StartOfAuthority(NamedTuple):
    """What a zone's SOA says, as text and seconds."""

    mname: str
    rname: str
    serial: int
    refresh: int
    retry: int
    expire: int
    minimum: int
    ttl: int


def parse_soa(record: ZoneRecord) -> StartOfAuthority:
    """The fields of an SOA. Raises ValueError where it is none."""
    wire = record.data if record.shown is None else record.shown
    try:
        soa = dns.rdata.from_wire(IN, SOA, wire, 0, len(wire))
    except dns.exception.DNSException as error:
        raise ValueError(str(error)) from None
    if not isinstance(soa, dns.rdtypes.ANY.SOA.SOA):
        raise ValueError("it is no SOA record")
    return StartOfAuthority(
        soa.mname.to_text(),
        soa.rname.to_text(),
        soa.serial,
        soa.refresh,
        soa.retry,
        soa.expire,
        soa.minimum,
        record.ttl,
    )


def measure_serial_distance(serial: int, other: int) -> int:
    """How far `other` is behind `serial` in the circle of serials (RFC 1982); negative if it is before it."""
    return (other - serial + 2**31) % 2**32 - 2**31


def is_serial_before(serial: int, other: int) -> bool:
    """Whether one serial comes before another; half the range apart, neither does."""
    return measure_serial_distance(serial, other) > 0


def sort_records(records: Iterable[ZoneRecord]) -> tuple[ZoneRecord, ...]:
    """Records in canonical order."""
    return tuple(sorted(records, key=lambda record: record[:3]))
