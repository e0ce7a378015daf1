"""Where a request's body ends: beside h11, which is what another reader of the same bytes would say."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from solowire.errors import RequestRejected
from solowire.gateway.front.request_body import CHUNK_BYTES, FREE_CHUNKS, LINE_BYTES, TRAILER_LINES, Body, make_body
from solowire.protocol.opening_handshake import read_framing

CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
MORE = "more"
REFUSED = "refused"
Verdict = int | str
"""The bytes that are the body, that there is more of it to come, or that it is none."""


def length_head(length: str) -> bytes:
    return f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def ours(head: bytes, raw: bytes, step: int | None = None) -> Verdict:
    """step: bytes at a time; None: all at once."""
    try:
        body = make_body(read_framing(head))
        at = 0
        while at < len(raw) and not body.is_done:
            part = raw[at : at + (step or len(raw))]
            size = body.measure(part)
            assert size == len(part) or body.is_done
            at += size
    except RequestRejected:
        return REFUSED
    return at if body.is_done else MORE


def theirs(head: bytes, raw: bytes) -> Verdict:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head + raw)
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.EndOfMessage):
                return len(raw) - len(connection.trailing_data[0])
            if event is h11.NEED_DATA:
                return MORE
    except h11.RemoteProtocolError:
        return REFUSED


def chunk(data: bytes, extension: bytes = b"", leading: int = 0, upper: bool = False) -> bytes:
    size = b"0" * leading + (b"%X" if upper else b"%x") % len(data)
    return size + extension + b"\r\n" + data + b"\r\n"


CHUNKS = st.lists(
    st.builds(
        chunk,
        st.binary(min_size=1, max_size=40) | st.sampled_from([b"\r\n", b"0\r\n\r\n", b"x" * 300]),
        st.sampled_from([b"", b";a", b";a=b", b';a="b c"', b"; a = b"]),
        st.integers(0, 3),
        st.booleans(),
    ),
    max_size=5,
)
TRAILERS = st.lists(st.sampled_from([b"A: b\r\n", b"X-Sum:\r\n", b"B: \xff\r\n"]), max_size=3)
BODIES = st.builds(
    lambda chunks, last, trailers: b"".join([*chunks, last, *trailers, b"\r\n"]),
    CHUNKS,
    st.sampled_from([b"0\r\n", b"000\r\n", b"0;a=b\r\n"]),
    TRAILERS,
)
BEHIND = st.sampled_from([b"", b"\r\n", b"GET / HTTP/1.1\r\n\r\n", b"0\r\n\r\n"])


@given(BODIES, BEHIND)
def test_a_good_body_ends_where_it_ends(raw: bytes, behind: bytes) -> None:
    """Whole, byte by byte, and with the next request behind it; and one that is cut anywhere is not at its end."""
    for step in (None, 1, 7):
        assert ours(CHUNKED, raw + behind, step) == len(raw) == theirs(CHUNKED, raw + behind)
    for end in {0, 1, len(raw) // 2, len(raw) - 1}:
        assert ours(CHUNKED, raw[:end]) == ours(CHUNKED, raw[:end], 1) == MORE


@given(
    BODIES,
    BEHIND,
    st.lists(
        st.tuples(
            st.integers(0, 400),
            st.integers(0, 3),
            st.sampled_from(
                [b"", b"\r", b"\n", b"\r\n", b" ", b"\t", b"0", b"f", b"g", b"-", b"+", b"0x", b"\x00", b";"]
            ),
        ),
        min_size=1,
        max_size=3,
    ),
)
@example(b"5\nhello\r\n0\r\n\r\n", b"", [])
@example(b"5\r\nhello0\r\n\r\n", b"", [])
@example(b"0\r\n\n", b"", [])
@example(b"0\r\nA: b\n\r\n", b"", [])
def test_a_bad_body_is_measured_in_no_other_way(
    raw: bytes, behind: bytes, faults: list[tuple[int, int, bytes]]
) -> None:
    """With bytes left out, put in or changed, where the one reader sees an end the other sees it too, or refuses.

    This one is the stricter: line feeds alone and white space behind a size are refused. It looks at no trailer's
    words, which the server behind it does.
    """
    for at, left_out, put_in in faults:
        at %= len(raw) + 1
        raw = raw[:at] + put_in + raw[at + left_out :]
    raw += behind
    verdict = ours(CHUNKED, raw)
    assert ours(CHUNKED, raw, 1) == ours(CHUNKED, raw, 3) == verdict
    other = theirs(CHUNKED, raw)
    if REFUSED not in (verdict, other):
        assert verdict == other


@given(st.binary(max_size=60))
def test_any_bytes_are_measured_or_refused(raw: bytes) -> None:
    """Nothing else is raised, and the cuts make no difference."""
    assert ours(CHUNKED, raw) == ours(CHUNKED, raw, 1)


@given(st.integers(0, 50), st.binary(max_size=60))
def test_a_length_is_counted(length: int, raw: bytes) -> None:
    """What is beyond it is the next request's."""
    head = length_head(str(length))
    expected = length if len(raw) >= length else MORE
    assert ours(head, raw) == ours(head, raw, 1) == expected == theirs(head, raw)


@pytest.mark.parametrize("length", ["", "-1", "+1", "1_0", "0x5", "5,5", "5, 5", "5 5", "\u00b2", "1" * 19, "5.0"])
def test_a_length_that_is_none_is_refused(length: str) -> None:
    """Signs, other digits, lists, and more than any body could have."""
    with pytest.raises(RequestRejected) as refused:
        make_body(read_framing(f"POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode("latin-1")))
    assert (refused.value.status, refused.value.code) == (400, "bad_request")


@pytest.mark.parametrize(
    ("first", "more", "status"),
    [
        (b"1.1", b"Content-Length: 5\r\nContent-Length: 5\r\n", 400),
        (b"1.1", b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"1.1", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 501),
        (b"1.1", b"Transfer-Encoding: gzip, chunked\r\n", 501),
        (b"1.1", b"Transfer-Encoding: chunked, identity\r\n", 501),
        (b"1.1", b"Transfer-Encoding: identity\r\n", 501),
        (b"1.1", b"Transfer-Encoding: \x0bchunked\r\n", 400),
        (b"1.1", b"Transfer-Encoding: xchunked\r\n", 501),
        (b"1.1", b"Transfer-Encoding:\r\n", 501),
        (b"1.0", b"Transfer-Encoding: chunked\r\n", 501),
    ],
)
def test_a_body_that_could_be_measured_in_two_ways_is_refused(first: bytes, more: bytes, status: int) -> None:
    """Two lengths, a length and chunks, other codings, chunks in HTTP/1.0 (RFC 9112, sections 6.1 and 6.3)."""
    with pytest.raises(RequestRejected) as refused:
        make_body(read_framing(b"POST / HTTP/%s\r\nHost: x\r\n%s\r\n" % (first, more)))
    assert refused.value.status == status


def test_a_request_without_either_has_no_body() -> None:
    """It is at its end at once; and so is one of no bytes. Upper case is no other coding."""
    assert make_body(read_framing(b"GET / HTTP/1.1\r\n\r\n")).is_done
    assert make_body(read_framing(length_head("0"))).is_done
    assert not make_body(read_framing(CHUNKED.replace(b"chunked", b"Chunked"))).is_done


def test_lines_and_trailers_have_a_bound() -> None:
    """However they come: no more is kept than one line, and there are so many trailers and no more."""
    for part in (1, 100, 5_000):
        body = Body(None)
        for _ in range(LINE_BYTES // part):
            body.measure(b"1" * part)
        assert len(body._line) <= LINE_BYTES
        with pytest.raises(RequestRejected, match="too long"):
            body.measure(b"1" * part)
    most = b"0\r\n" + b"A: b\r\n" * (TRAILER_LINES - 1) + b"\r\n"
    assert ours(CHUNKED, most) == len(most)
    assert ours(CHUNKED, b"0\r\n" + b"A: b\r\n" * TRAILER_LINES + b"\r\n") == REFUSED


def test_a_chunk_of_any_size_is_passed_and_not_kept() -> None:
    """Sizes of up to fifteen digits are counted down; one more is refused, before anything overflows."""
    body = Body(None)
    body.measure(b"f" * 15 + b"\r\n")
    for _ in range(50):
        assert body.measure(b"x" * 65_536) == 65_536
    assert not body.is_done
    assert body._line == b""
    with pytest.raises(RequestRejected, match="size of a chunk"):
        Body(None).measure(b"0" * 16 + b"\r\n")


def test_a_body_of_single_bytes_is_refused() -> None:
    """A few small chunks are taken from anybody; more of them only beside as many bytes as make them worth it."""
    few = chunk(b"x") * FREE_CHUNKS + b"0\r\n\r\n"
    assert ours(CHUNKED, chunk(b"x" * CHUNK_BYTES) + few) == len(chunk(b"x" * CHUNK_BYTES) + few)
    for step in (None, 1, 1000):
        assert ours(CHUNKED, chunk(b"x") * 2 * FREE_CHUNKS, step) == REFUSED
    lines = chunk(b"x" * CHUNK_BYTES) * 10_000 + b"0\r\n\r\n"
    assert ours(CHUNKED, lines) == len(lines)
