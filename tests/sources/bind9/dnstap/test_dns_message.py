"""Questions, flags and response codes as BIND writes them, from whatever bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.dnstap_frames import make_query, make_response
from solowire.errors import DnstapError
from solowire.sources.bind9.dnstap.dns_message import (
    HEADER_BYTES,
    QuestionReader,
    format_query_flags,
    format_response_flags,
    read_rcode,
)
from solowire.sources.bind9.dnstap.dns_names import format_name, name_class, name_rcode, name_type, read_labels

HEADER = struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0)
CLIENT_COOKIE = struct.pack("!2H", 10, 8) + b"12345678"
BOTH_COOKIES = struct.pack("!2H", 10, 24) + b"x" * 24


def ask(labels: list[bytes], type: int = 1, class_: int = 1) -> bytes:
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return HEADER + name + struct.pack("!2H", type, class_)


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        ([], "."),
        ([b"www", b"z", b"example"], "www.z.example"),
        ([b"WWW", b"Z"], "WWW.Z"),
        ([b"a.b c$@;", b"z"], r"a\.b\032c\$\@\;.z"),
        ([b"\0\x7f\xff", b'(\\)"'], r"\000\127\255.\(\\\)\""),
        ([b"x" * 63, b"y" * 63, b"z" * 63, b"w" * 61], f"{'x' * 63}.{'y' * 63}.{'z' * 63}.{'w' * 61}"),
    ],
)
def test_a_name_is_spelled_as_bind_does(labels: list[bytes], name: str) -> None:
    wire = ask(labels)
    reader = QuestionReader()
    for _ in range(2):  # the second time from what was kept
        assert reader.read_question(wire) == (name, "A", "IN", len(wire))


def test_a_name_with_a_nul_is_not_taken_for_another_that_ends_there() -> None:
    reader = QuestionReader()
    assert reader.read_question(ask([b"a"])) is not None
    long = ask([b"a", b"b\0c"])
    assert reader.read_question(long) == (r"a.b\000c", "A", "IN", len(long))
    assert reader.read_question(ask([b"a", b"b"])) == ("a.b", "A", "IN", len(ask([b"a", b"b"])))


@pytest.mark.parametrize(
    ("wire", "fault"),
    [
        (HEADER[:11], "a DNS message of 11 bytes"),
        (HEADER, "ends within a name"),
        (HEADER + b"\3ww", "ends within a name"),
        (HEADER + b"\1w", "ends within a name"),
        (HEADER + b"\0\0\1\0", "ends within its question"),
        (HEADER + b"\xc0\x0c\0\1\0\1", "points forward"),
        (HEADER + b"\xc0", "ends within a name"),
        (HEADER + b"\x40\0\1\0\1", "a label of an unknown kind"),
        (HEADER + (b"\x3f" + b"x" * 63) * 4 + b"\0\0\1\0\1", "more than 255 bytes"),
    ],
)
def test_a_damaged_question_is_named(wire: bytes, fault: str) -> None:
    with pytest.raises(DnstapError, match=fault):
        QuestionReader().read_question(wire)


def test_names_may_point_back_and_never_round_in_a_circle() -> None:
    assert read_labels(b"\1b\0\1a\xc0\0", 3) == ([b"a", b"b"], 7)
    with pytest.raises(DnstapError, match="points forward"):
        read_labels(b"\xc0\2\xc0\0", 2)


@given(st.binary(max_size=80), st.integers(0, 80))
def test_whatever_the_bytes_there_is_a_name_or_a_documented_error(wire: bytes, offset: int) -> None:
    try:
        labels, end = read_labels(wire, offset)
    except DnstapError:
        return
    assert end > offset
    assert sum(len(label) + 1 for label in labels) < 255
    assert format_name(labels).isascii()


@given(st.binary(max_size=90), st.booleans())
def test_whatever_the_message_there_are_values_or_a_documented_error(rest: bytes, is_tcp: bool) -> None:
    wire = HEADER + rest
    for message in (rest, wire, make_query("a.example") + rest, make_response(make_query("a.example")) + rest):
        try:
            question = QuestionReader().read_question(message)
            if question is not None:
                format_query_flags(message, question.end, is_tcp=is_tcp)
                read_rcode(message, question.end)
                format_response_flags(message)
        except DnstapError:
            continue


def test_what_bind_has_no_name_for_is_a_number() -> None:
    assert [name_type(n) for n in (0, 1, 28, 54, 65, 255, 261, 32769, 65280)] == [
        *("TYPE0", "A", "AAAA", "TYPE54", "HTTPS", "ANY", "RESINFO", "DLV", "TYPE65280")
    ]
    assert [name_class(n) for n in (1, 3, 4, 255, 7)] == ["IN", "CH", "HS", "ANY", "CLASS7"]
    assert [name_rcode(n) for n in (0, 3, 15, 16, 23, 17)] == [
        *("NOERROR", "NXDOMAIN", "RESERVED15", "BADVERS", "BADCOOKIE", "17")
    ]


@pytest.mark.parametrize(
    ("wire", "is_tcp", "flags"),
    [
        (make_query("a.example", flags=0, edns=None), False, "-"),
        (make_query("a.example"), True, "+E(0)T"),
        (make_query("a.example", flags=0x0110, edns=CLIENT_COOKIE), False, "+E(0)CK"),
        (make_query("a.example", edns=BOTH_COOKIES), False, "+E(0)"),
    ],
)
def test_the_flags_of_a_query_are_bind_s(wire: bytes, is_tcp: bool, flags: str) -> None:
    question = QuestionReader().read_question(wire)
    assert question is not None
    assert format_query_flags(wire, question.end, is_tcp=is_tcp) == flags


def test_response_codes_beyond_fifteen_are_looked_up_in_the_opt_record() -> None:
    query = make_query("a.example")
    for rcode, name in ((0, "NOERROR"), (16, "BADVERS"), (23, "BADCOOKIE"), (7, "YXRRSET"), (3, "NXDOMAIN")):
        response = make_response(query, rcode, answers=0)
        assert read_rcode(response, HEADER_BYTES + len("a.example") + 6) == name
    assert format_response_flags(make_response(query, flags=0x8000 | 0x07B0)) == "aa tc rd ra ad cd"
