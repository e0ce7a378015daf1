"""Lines come out of a pipe whatever its pieces, and journald's entries as lines of syslog; memory has a bound."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.sources.bind9.queries.query_log import parse_query
from solowire.sources.files.pipe_lines import MAX_BYTES, PipeLines

QUERY = "client @0x7f 127.0.0.1#39576 (a.example): query: a.example IN A +E(0)K (127.0.0.1)"


def read(sent: bytes, sizes: list[int] | None = None) -> tuple[list[str], int]:
    """All lines of what is sent in pieces of these sizes in turn, and how many were dropped."""
    lines, found = PipeLines(), []
    position = number = 0
    while position < len(sent):
        size = sizes[number % len(sizes)] if sizes else len(sent)
        found += lines.feed(sent[position : position + size])
        position += size
        number += 1
        assert len(lines._held) <= 2 * MAX_BYTES
    return found + lines.end(), lines.dropped_count


def entry(*fields: tuple[str, bytes], is_binary: bool = False) -> bytes:
    written = b"__CURSOR=s=1;i=2\n"
    for name, value in fields:
        if is_binary:
            written += name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
        else:
            written += name.encode() + b"=" + value + b"\n"
    return written + b"\n"


def test_plain_lines_come_as_they_are_and_the_last_needs_no_end() -> None:
    assert read(b"one\r\ntwo\nthree") == (["one\r", "two", "three"], 0)


def test_a_line_that_is_too_long_is_dropped_and_the_next_is_not() -> None:
    assert read(b"x" * (3 * MAX_BYTES) + b"\nnext\n", [1000]) == (["next"], 1)


@pytest.mark.parametrize("is_binary", [False, True])
def test_an_entry_of_journald_is_a_line_that_is_understood(is_binary: bool) -> None:
    sent = entry(
        ("__REALTIME_TIMESTAMP", b"1700000000250000"),
        ("_PID", b"12"),
        ("SYSLOG_IDENTIFIER", b"named"),
        ("MESSAGE", QUERY.encode()),
        is_binary=is_binary,
    )
    [line, again], dropped = read(sent * 2, [7])
    assert line == again == f"2023-11-14T22:13:20.250000+00:00 named: {QUERY}"
    query = parse_query(line, None)
    assert query is not None
    assert (query.timestamp, query.query_domain, dropped) == ("2023-11-14T22:13:20.250Z", "a.example", 0)


def test_an_entry_without_a_message_or_a_time_is_passed_over_or_has_none() -> None:
    without_time = entry(("MESSAGE", b"hello"), ("__REALTIME_TIMESTAMP", b"9" * 25))
    odd_program = entry(("MESSAGE", b"x"), ("__REALTIME_TIMESTAMP", b"0"), ("SYSLOG_IDENTIFIER", b"a: b"))
    found = read(entry(("PRIORITY", b"6")) + without_time + odd_program)
    assert found == (["hello", "1970-01-01T00:00:00.000000+00:00 named: x"], 0)


@pytest.mark.parametrize("is_binary", [False, True])
def test_a_field_that_is_too_long_costs_its_entry_at_most(is_binary: bool) -> None:
    sent = entry(("MESSAGE", b"x" * (4 * MAX_BYTES)), is_binary=is_binary) + entry(("MESSAGE", b"next"))
    assert read(sent, [5000]) == (["next"], 1)


@given(st.binary(max_size=300), st.lists(st.integers(1, 50), min_size=1), st.booleans())
def test_whatever_comes_there_are_lines_whatever_the_pieces(sent: bytes, sizes: list[int], is_export: bool) -> None:
    sent = (b"__CURSOR=1\n" if is_export else b"") + sent
    assert read(sent, sizes) == read(sent)
