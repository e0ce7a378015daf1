"""Where a server's frames end in a stream that is cut in any way: beside a straightforward reading of the whole."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from solowire.gateway.front.frame_scanner import FrameScanner

SIZES = st.one_of(st.integers(0, 130), st.sampled_from([125, 126, 127, 300, 65_535, 65_536, 70_000]))
FRAMES = st.lists(st.tuples(st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.CONT, Opcode.PING]), SIZES), max_size=5)


def frame(opcode: Opcode, size: int) -> bytes:
    payload = b"\x88\x81\x7f\xff" * (size // 4) + b"\x88" * (size % 4)  # which looks like frames itself
    raw = Frame(opcode, payload).serialize(mask=False) if opcode < 8 or size < 126 else b""
    return raw or Frame(opcode, payload[:125]).serialize(mask=False)


def cut(data: st.DataObject, raw: bytes) -> list[bytes]:
    """Into parts, of which none is empty; also byte by byte."""
    if len(raw) < 400 and data.draw(st.booleans()):
        return [raw[n : n + 1] for n in range(len(raw))]
    places = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=8)) | {0, len(raw)})
    return [raw[a:b] for a, b in pairwise(places)]


@given(st.data(), FRAMES, st.booleans())
def test_it_stands_at_a_boundary_where_a_frame_has_ended_and_nowhere_else(
    data: st.DataObject, frames: list[tuple[Opcode, int]], closes: bool
) -> None:
    """However the stream is cut, and whatever the payloads look like; a close is seen when its head has passed."""
    raws = [frame(*one) for one in frames]
    close_at = sum(map(len, raws))
    if closes:
        raws.append(Frame(Opcode.CLOSE, b"\x03\xe8bye").serialize(mask=False))
    boundaries, at = {0}, 0
    for raw in raws:
        at += len(raw)
        boundaries.add(at)
    scanner, passed = FrameScanner(), 0
    assert scanner.is_at_boundary
    for part in cut(data, b"".join(raws)):
        scanner.advance(part)
        passed += len(part)
        assert scanner.is_at_boundary is (passed in boundaries)
        assert scanner.has_closed is (closes and passed >= close_at + 2)
        assert len(scanner._head) < 10


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_the_forms_of_a_length_end_where_they_say(size: int) -> None:
    """One byte less is not the end, and one more is the next frame's."""
    raw = Frame(Opcode.BINARY, b"x" * size).serialize(mask=False)
    scanner = FrameScanner()
    scanner.advance(raw[:-1])
    assert not scanner.is_at_boundary
    scanner.advance(raw[-1:] + b"\x81")
    assert not scanner.is_at_boundary
    scanner.advance(b"\x00")
    assert scanner.is_at_boundary


def test_a_large_payload_is_passed_and_not_kept() -> None:
    """Its bytes are counted, in as many parts as they come."""
    scanner = FrameScanner()
    scanner.advance(b"\x82\x7f" + (1 << 40).to_bytes(8, "big"))
    for _ in range(100):
        scanner.advance(b"x" * 65_536)
        assert scanner._head == b""
    assert not scanner.is_at_boundary
    assert not scanner.has_closed


def test_an_empty_close_is_a_close() -> None:
    """And parts of nothing change nothing."""
    scanner = FrameScanner()
    scanner.advance(b"")
    assert scanner.is_at_boundary
    scanner.advance(b"\x88")
    scanner.advance(b"")
    assert not scanner.is_at_boundary
    assert not scanner.has_closed
    scanner.advance(b"\x00")
    assert scanner.is_at_boundary
    assert scanner.has_closed
