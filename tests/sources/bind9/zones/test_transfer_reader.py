"""Zone transfers, message by message: what they tell, and what happens with bytes that are none."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import dns.message
import dns.name
import dns.rdata
import dns.rrset
import dns.tsig
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.errors import TransferError
from solowire.sources.bind9.zones.transfer_reader import (
    CurrentSerial,
    SerialStep,
    TransferItem,
    TransferReader,
    WholeZone,
    ZoneContent,
)
from solowire.sources.bind9.zones.zone_record import decode_owner, format_record, format_type
from tests.support.examples import examples

ZONE = dns.name.from_text("z.example")


def message(*records: str, id: int = 7, type: str = "IXFR") -> bytes:
    """An answer. records: as in a zone file, with names relative to the zone; `SOA 3` stands for an SOA."""
    answer = dns.message.make_response(dns.message.make_query(ZONE, type))
    answer.id = id
    for text in records:
        if text.startswith("SOA "):
            text = f"@ 60 IN SOA ns hostmaster {text[4:]} 1 2 3 4"
        owner, ttl, rdclass, rdtype, value = text.split(" ", 4)
        name = dns.name.from_text(owner, ZONE)
        rdata = dns.rdata.from_text(rdclass, rdtype, value, ZONE, relativize=False)
        answer.answer.append(dns.rrset.from_rdata(name, int(ttl), rdata))
    return answer.to_wire(max_size=65535)


def read(*wires: bytes, serial: int | None = 1, **options: Any) -> list[TransferItem]:
    reader = TransferReader(ZONE, 7, serial, **options)
    found = [item for wire in wires for item in reader.read_message(wire)]
    assert reader.is_done
    return found


def show(item: TransferItem) -> object:
    """An item in short."""
    match item:
        case CurrentSerial():
            return item.serial
        case SerialStep():
            return [
                [f"{decode_owner(r.owner)} {format_record(r)}" for r in part] for part in (item.removed, item.added)
            ]
        case WholeZone():
            return "whole"
        case ZoneContent():
            return [f"{decode_owner(r.owner)} {format_type(r.type)}" for r in item.records]


A = "a 60 IN A 192.0.2.1"
B = "b 60 IN A 192.0.2.2"


def test_steps_are_told_one_by_one_also_over_several_messages() -> None:
    """Wherever messages are cut, the steps are the same."""
    records = ["SOA 3", "SOA 1", A, "SOA 2", B, "SOA 2", B, "SOA 3", A, A.replace(".1", ".9"), "SOA 3"]
    expected = [
        [["a.z.example 192.0.2.1"], ["b.z.example 192.0.2.2"]],
        [["b.z.example 192.0.2.2"], ["a.z.example 192.0.2.1", "a.z.example 192.0.2.9"]],
    ]
    for cut in range(1, len(records)):
        assert [show(item) for item in read(message(*records[:cut]), message(*records[cut:]))] == expected
    assert [show(item) for item in read(message(*records))] == expected


def test_a_whole_zone_in_place_of_steps_is_told_as_one() -> None:
    """AXFR-style answers, one of nothing but the SOA too."""
    assert [show(item) for item in read(message("SOA 3", A, B), message("SOA 3"))] == [
        "whole",
        ["a.z.example A", "b.z.example A"],
    ]
    assert [show(item) for item in read(message("SOA 3", "SOA 3"))] == ["whole"]
    assert [show(item) for item in read(message("SOA 3", A, "SOA 3", type="AXFR"), serial=None)] == [
        "whole",
        ["a.z.example A"],
    ]


@pytest.mark.parametrize("serial", [1, 2**31 + 9])
def test_a_server_with_nothing_newer_says_its_serial(serial: int) -> None:
    """The same one, and one behind ours (RFC 1982)."""
    assert [show(item) for item in read(message(f"SOA {serial}"), serial=1 if serial == 1 else 3)] == [serial]


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        ((A, "SOA 3"), "begins with no SOA"),
        ((), "begins with no SOA"),
        (("SOA 3", "SOA 2", "SOA 3", "SOA 3"), "don't begin at the serial"),
        (("SOA 3", "SOA 1", A, "SOA 2", B, "SOA 4"), "don't join"),
        (("SOA 3", "SOA 1", A, "SOA 1", B, "SOA 1"), "later serial"),
        (("SOA 3", A, "SOA 2"), "has changed"),
        (("SOA 3", A, "SOA 3", B), "after its end"),
        (("SOA 3", "elsewhere. 60 IN A 192.0.2.1"), "not of the zone"),
        (("SOA 3", "a 60 CH TXT x"), "another class"),
    ],
)
def test_what_is_no_transfer_is_said_so(records: tuple[str, ...], fault: str) -> None:
    """Each fault is named."""
    with pytest.raises(TransferError, match=fault):
        read(message(*records))


def test_a_transfer_is_bounded() -> None:
    """By its bytes, and by the records of one step; an answer to another question is none."""
    wire = message("SOA 3", "SOA 1", A, "SOA 3", B, "SOA 3")
    for options, kind in (({"max_bytes": len(wire) - 1}, "too_large"), ({"max_step_records": 1}, "not_incremental")):
        with pytest.raises(TransferError) as refused:
            read(wire, **options)
        assert refused.value.kind == kind
    with pytest.raises(TransferError, match="another question"):
        read(message("SOA 1", id=8))


def test_a_record_that_does_not_fit_its_type_is_shown_as_rfc_3597_says() -> None:
    """An A record of three bytes stops no zone."""
    good = message("SOA 3", "a 60 IN TYPE65400 \\# 3 010203", "SOA 3")
    odd = good.replace((65400).to_bytes(2, "big"), b"\0\1")
    assert odd != good
    reader = TransferReader(ZONE, 7, 1)
    [_, content] = reader.read_message(odd)
    assert isinstance(content, ZoneContent)
    assert [(format_type(r.type), format_record(r)) for r in content.records] == [("A", "\\# 3 010203")]


def test_nothing_is_told_that_is_not_signed() -> None:
    """Signed transfers are verified before anything of them is told; other keys and missing signatures are faults."""
    key = dns.tsig.Key("k", "c2VjcmV0")
    query = dns.message.make_query(ZONE, "IXFR", id=7)
    query.use_tsig(key)
    query.to_wire()
    assert query.mac is not None

    def sign(wire: bytes, with_key: dns.tsig.Key) -> bytes:
        answer = dns.message.from_wire(wire, one_rr_per_rrset=True)
        answer.request_mac = query.mac or b""
        answer.use_tsig(with_key)
        return answer.to_wire()

    wire = message("SOA 1")
    for sent, fault in (
        (sign(wire, key), None),
        (wire, "not signed"),
        (sign(wire, dns.tsig.Key("k", "b3RoZXI=")), "secret"),
        (sign(wire, dns.tsig.Key("other", "c2VjcmV0")), "doesn't know the key"),
    ):
        reader = TransferReader(ZONE, 7, 1, key=key, request_mac=query.mac)
        if fault is None:
            assert reader.read_message(sent) == [CurrentSerial(1)]
        else:
            with pytest.raises(TransferError, match=fault):
                reader.read_message(sent)


@given(st.binary(max_size=600))
@settings(max_examples=examples(500))
def test_any_bytes_are_a_value_or_a_transfer_error(noise: bytes) -> None:
    """Bytes that are no message at all."""
    _read_all(noise)
    _read_all(message("SOA 3")[:12] + noise)


@given(st.data())
@settings(max_examples=examples(1000))
def test_damaged_transfers_are_a_value_or_a_transfer_error(data: st.DataObject) -> None:
    """Transfers with bytes changed, cut off and put in, and records in any order."""
    pool = ["SOA 1", "SOA 2", "SOA 3", A, B, 'a 60 IN TXT "x"', "* 0 IN MX 1 a", "@ 1 IN NS b"]
    records = data.draw(st.lists(st.sampled_from(pool), max_size=12))
    wire = bytearray(message("SOA 3", *records))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(wire) - 1))
        match data.draw(st.sampled_from(["change", "cut", "insert"])):
            case "change":
                wire[at] = data.draw(st.integers(0, 255))
            case "cut":
                del wire[at : at + data.draw(st.integers(1, 20))]
            case _:
                wire[at:at] = data.draw(st.binary(max_size=20))
        if not wire:
            break
    _read_all(bytes(wire))


def _read_all(wire: bytes) -> None:
    for serial in (None, 1):
        reader = TransferReader(ZONE, 7, serial)
        with suppress(TransferError):
            for item in reader.read_message(wire):
                for record in getattr(item, "records", []) + getattr(item, "added", []) + getattr(item, "removed", []):
                    decode_owner(record.owner)
                    format_record(record)
