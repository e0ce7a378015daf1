"""A Frame Stream is split whatever its pieces, and ends at the first fault, with bounded memory."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.dnstap_frames import ACCEPT, CONTENT_TYPE, FINISH, READY, START, STOP, add_length, make_control
from solowire.errors import DnstapError
from solowire.sources.bind9.dnstap.frame_stream import MAX_FRAME_BYTES, FrameStream, StreamState

GREETING = make_control(READY, CONTENT_TYPE) + make_control(START, CONTENT_TYPE)


def start_stream() -> FrameStream:
    stream = FrameStream()
    stream.feed(GREETING)
    return stream


def test_the_handshake_is_answered_and_the_frames_between_start_and_stop_come_out() -> None:
    stream = FrameStream()
    assert stream.feed(make_control(READY, CONTENT_TYPE)).reply == make_control(ACCEPT, CONTENT_TYPE)
    assert stream.feed(make_control(START, CONTENT_TYPE)).reply == b""
    assert stream.feed(add_length(b"one") + add_length(b"two")).frames == [b"one", b"two"]
    assert stream.feed(make_control(STOP)).reply == make_control(FINISH)
    assert stream.state is StreamState.finished


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.lists(st.integers(1, 40), min_size=1))
def test_it_does_not_matter_where_the_pieces_end(frames: list[bytes], sizes: list[int]) -> None:
    sent = GREETING + b"".join(map(add_length, frames)) + make_control(STOP)
    stream = FrameStream()
    found: list[bytes] = []
    reply = b""
    position = number = 0
    while position < len(sent):
        size = sizes[number % len(sizes)]
        step = stream.feed(sent[position : position + size])
        found += step.frames
        reply += step.reply
        position += size
        number += 1
    assert found == frames
    assert reply == make_control(ACCEPT, CONTENT_TYPE) + make_control(FINISH)


@given(st.lists(st.binary(max_size=60), max_size=20), st.booleans())
def test_whatever_comes_is_frames_or_a_documented_error(pieces: list[bytes], is_greeted: bool) -> None:
    stream = start_stream() if is_greeted else FrameStream()
    for piece in pieces:
        try:
            stream.feed(piece)
        except DnstapError:
            return


@pytest.mark.parametrize(
    ("sent", "fault"),
    [
        (add_length(b"early"), "a data frame, where it should have sent READY"),
        (make_control(START, CONTENT_TYPE), "a control frame of type 2, where it should have sent READY"),
        (make_control(READY, b"text/plain"), "frames of b'text/plain'"),
        (make_control(READY, CONTENT_TYPE) + add_length(b"x"), "a data frame, where it should have sent START"),
        (GREETING + make_control(READY), "a control frame of type 4"),
        (GREETING + make_control(STOP) + add_length(b"late"), "a data frame, where it should have sent nothing"),
        (GREETING + struct.pack("!I", MAX_FRAME_BYTES + 1), f"a frame of {MAX_FRAME_BYTES + 1} bytes"),
        (struct.pack("!2I", 0, 513), "a control frame of 513 bytes"),
        (struct.pack("!2I", 0, 3), "a control frame of 3 bytes"),
        (struct.pack("!4I", 0, 8, READY, 1), "half a field"),
        (struct.pack("!5I", 0, 12, READY, 2, 0), "a field that does not exist"),
        (struct.pack("!5I", 0, 12, READY, 1, 9), "a field that does not exist"),
    ],
)
def test_what_is_no_stream_of_dnstap_is_named(sent: bytes, fault: str) -> None:
    with pytest.raises(DnstapError, match=fault.replace("(", r"\(")):
        FrameStream().feed(sent)


def test_a_sender_that_offers_several_kinds_is_told_ours() -> None:
    field = struct.pack("!2I", 1, 5) + b"other" + struct.pack("!2I", 1, len(CONTENT_TYPE)) + CONTENT_TYPE
    ready = struct.pack("!3I", 0, 4 + len(field), READY) + field
    assert FrameStream().feed(ready).reply == make_control(ACCEPT, CONTENT_TYPE)
