"""A zone transfer, read message by message: single steps of serials, or a whole zone (RFC 1995, RFC 5936).

Pure: bytes in, values out. What it keeps true:

* Every step that the server tells is told, in order, each with the records that it removed and added.
* Nothing is told that was not verified: of a signed transfer, messages wait for the next one with a signature.
* Memory is bounded: by one message of 64 KB, the steps of UNSIGNED_MESSAGES of them, and `max_step_records`.
* Whatever bytes come, it is a value or a TransferError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import Enum, auto

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdatatype
import dns.tsig
import dns.wire
import msgspec

from solowire.errors import TransferError
from solowire.sources.bind9.zones.answer_faults import explain_rcode, explain_signature
from solowire.sources.bind9.zones.zone_record import IN, SOA, ZoneRecord, is_serial_before, make_record, parse_soa

UNSIGNED_MESSAGES = 100
"""In a row, at most (RFC 8945, section 5.3.1)."""


class CurrentSerial(msgspec.Struct, frozen=True):
    """The server has nothing newer: its serial, which may be behind ours."""

    serial: int


class SerialStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a zone, with its SOA before and after. removed, added: records, without the SOA.

    newest: the SOA to which the last step of the transfer leads.
    """

    soa_before: ZoneRecord
    soa: ZoneRecord
    newest: ZoneRecord
    removed: list[ZoneRecord]
    added: list[ZoneRecord]


class WholeZone(msgspec.Struct, frozen=True):
    """The server sends the whole zone; its records follow. soa: the zone's."""

    soa: ZoneRecord


class ZoneContent(msgspec.Struct, frozen=True):
    """Records of a whole zone, without the SOA."""

    records: list[ZoneRecord]


TransferItem = CurrentSerial | SerialStep | WholeZone | ZoneContent


class _Stage(Enum):
    first = auto()  # the answer's first SOA
    second = auto()  # what tells steps from a whole zone
    removed = auto()
    added = auto()
    whole = auto()
    done = auto()


class TransferReader:
    """Reads the answer to one question for a zone.

    serial: the one that steps were asked from, None if the whole zone was. key, request_mac: of a signed question.
    """

    def __init__(
        self,
        zone: dns.name.Name,
        query_id: int,
        serial: int | None,
        *,
        key: dns.tsig.Key | None = None,
        request_mac: bytes = b"",
        max_bytes: int = 2**31,
        max_step_records: int = 200_000,
    ) -> None:
        self.zone = zone
        self.is_done = False
        self._id = query_id
        self._serial = serial
        self._key = key
        self._mac = request_mac
        self._signature: dns.tsig.HMACTSig | dns.tsig.GSSTSig | None = None
        self._unsigned_count = 0
        self._waiting: list[TransferItem] = []
        self._bytes_left = max_bytes
        self._max_step_records = max_step_records
        self._stage = _Stage.first
        self._newest: ZoneRecord | None = None
        self._soa_before: ZoneRecord | None = None
        self._soa: ZoneRecord | None = None
        self._removed: list[ZoneRecord] = []
        self._added: list[ZoneRecord] = []

    def read_message(self, wire: bytes) -> list[TransferItem]:
        """What the next message tells. Raises TransferError: then nothing more can be read."""
        self._bytes_left -= len(wire)
        if self._bytes_left < 0:
            raise TransferError(
                "too_large", "the transfer is larger than it may be", "see source.zones in the settings"
            )
        if self.is_done:
            raise _make_fault("something comes after its end")
        message = self._parse_message(wire)
        content: list[ZoneRecord] = []
        items: list[TransferItem] = []
        for record in _list_records(message, wire, self.zone):
            if self._stage is _Stage.whole and record.type != SOA:
                content.append(record)
            else:
                items += self._take_record(record, content)
        if self._stage is _Stage.first:
            raise _make_fault("it begins with no SOA record")
        if content:
            items.append(ZoneContent(content))
        self.is_done = self._stage is _Stage.done
        return self._verify_items(message, items)

    def _verify_items(self, message: dns.message.Message, items: list[TransferItem]) -> list[TransferItem]:
        if self._key is None:
            return items
        self._waiting += items
        if message.had_tsig:
            self._unsigned_count = 0
            items, self._waiting = self._waiting, []
            return items
        self._unsigned_count += 1
        if self.is_done or self._signature is None or self._unsigned_count >= UNSIGNED_MESSAGES:
            raise TransferError("failed", "the answer is not signed", "the server must know the key that was used")
        return []

    def _parse_message(self, wire: bytes) -> dns.message.Message:
        try:
            message = dns.message.from_wire(
                wire,
                keyring=self._key,
                request_mac=self._mac,
                tsig_ctx=self._signature,
                multi=True,
                one_rr_per_rrset=True,
                continue_on_error=True,
            )
        except (dns.exception.DNSException, ValueError, struct.error, ArithmeticError) as error:
            raise _make_fault(str(error) or type(error).__name__) from None
        for fault in message.errors:
            is_unknown_key = isinstance(fault.exception, dns.message.UnknownTSIGKey)
            if is_unknown_key or type(fault.exception).__module__ == "dns.tsig":
                raise explain_signature(fault.exception)
        if message.id != self._id or not message.flags & dns.flags.QR:
            raise _make_fault("it answers another question")
        if message.rcode() != dns.rcode.NOERROR:
            raise explain_rcode(message.rcode(), is_incremental=self._serial is not None)
        if message.flags & dns.flags.TC:
            raise _make_fault("it is cut")
        if any(question.name != self.zone for question in message.question):
            raise _make_fault("it is of another zone")
        self._signature = message.tsig_ctx
        return message

    def _take_record(self, record: ZoneRecord, content: list[ZoneRecord]) -> Iterator[TransferItem]:
        match self._stage:
            case _Stage.first:
                if record.type != SOA:
                    raise _make_fault("it begins with no SOA record")
                self._newest = record
                newest = _read_serial(record)
                if self._serial is not None and not is_serial_before(self._serial, newest):
                    self._stage = _Stage.done
                    yield CurrentSerial(newest)
                else:
                    self._stage = _Stage.second
            case _Stage.second:
                yield from self._take_second(record, content)
            case _Stage.removed | _Stage.added:
                yield from self._take_changed(record)
            case _Stage.whole:
                if self._newest is None or record.data != self._newest.data:
                    raise _make_fault("the zone has changed while it was sent")
                if content:
                    yield ZoneContent(content.copy())
                    content.clear()
                self._stage = _Stage.done
            case _Stage.done:
                raise _make_fault("something comes after its end")

    def _take_second(self, record: ZoneRecord, content: list[ZoneRecord]) -> Iterator[TransferItem]:
        assert self._newest is not None  # noqa: S101 - the first stage has set it
        if record.type != SOA:
            self._stage = _Stage.whole
            yield WholeZone(self._newest)
            content.append(record)
        elif self._serial is not None and _read_serial(record) == self._serial:
            self._stage = _Stage.removed
            self._soa_before = record
        elif record.data == self._newest.data:  # a zone of nothing but its SOA
            self._stage = _Stage.done
            yield WholeZone(self._newest)
        else:
            raise _make_fault("its steps don't begin at the serial that was asked for")

    def _take_changed(self, record: ZoneRecord) -> Iterator[TransferItem]:
        if record.type != SOA:
            (self._removed if self._stage is _Stage.removed else self._added).append(record)
            if len(self._removed) + len(self._added) > self._max_step_records:
                raise TransferError("not_incremental", f"a step has more than {self._max_step_records} records")
        elif self._stage is _Stage.removed:
            self._soa = record
            self._stage = _Stage.added
        else:
            assert self._soa_before is not None  # noqa: S101 - the stages before have set them
            assert self._soa is not None  # noqa: S101
            assert self._newest is not None  # noqa: S101
            if record.data != self._soa.data:
                raise _make_fault("its steps don't join")
            if not is_serial_before(_read_serial(self._soa_before), _read_serial(self._soa)):
                raise _make_fault("a step doesn't lead to a later serial")
            yield SerialStep(
                soa_before=self._soa_before,
                soa=self._soa,
                newest=self._newest,
                removed=self._removed,
                added=self._added,
            )
            self._removed, self._added = [], []
            self._soa_before = record
            self._stage = _Stage.done if record.data == self._newest.data else _Stage.removed


def _list_records(message: dns.message.Message, wire: bytes, zone: dns.name.Name) -> Iterator[ZoneRecord]:
    if message.errors:
        yield from _read_records(wire, zone)
        return
    for rrset in message.answer:
        if rrset.rdclass != IN:
            raise _make_fault("a record is of another class")
        _check_owner(rrset.name, rrset.rdtype, zone)
        for rdata in rrset:
            yield make_record(rrset.name, rdata, rrset.ttl)


def _read_records(wire: bytes, zone: dns.name.Name) -> Iterator[ZoneRecord]:
    """The same of a message with a record that doesn't fit its type: servers carry such ones, so they are shown."""
    try:
        parser = dns.wire.Parser(wire)
        _, _, questions, answers, _, _ = parser.get_struct("!HHHHHH")
        for _ in range(questions):
            parser.get_name()
            parser.get_bytes(4)
        for _ in range(answers):
            owner = parser.get_name(decompress=True)
            type, rdclass, ttl, size = parser.get_struct("!HHIH")
            if rdclass != IN:
                raise _make_fault("a record is of another class")
            _check_owner(owner, type, zone)
            start = parser.current
            data = parser.get_bytes(size)
            try:
                rdata = dns.rdata.from_wire(IN, type, wire, start, size)
            except (dns.exception.DNSException, ValueError, ArithmeticError):
                rdata = dns.rdata.GenericRdata(IN, dns.rdatatype.RdataType.make(type), data)
            yield make_record(owner, rdata, ttl if ttl < 2**31 else 0)
    except (dns.exception.DNSException, ValueError, struct.error) as error:
        raise _make_fault(str(error) or error.__class__.__name__) from None


def _check_owner(owner: dns.name.Name, type: int, zone: dns.name.Name) -> None:
    if not owner.is_subdomain(zone) or (type == SOA and owner != zone):
        raise _make_fault("a record is not of the zone")


def _read_serial(record: ZoneRecord) -> int:
    try:
        return parse_soa(record).serial
    except ValueError:
        raise _make_fault("an SOA record can't be read") from None


def _make_fault(what: str) -> TransferError:
    return TransferError("malformed", f"the answer is no zone transfer: {what}", "it is asked for again")
