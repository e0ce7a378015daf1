"""WebSocket frames as bytes: ours are what the protocol asks for, and a client's are understood however they come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode
from websockets.streams import StreamReader

from solowire.client_protocol import MAX_MESSAGE_BYTES
from solowire.codes import CloseCode
from workers.framing import (
    Inbound,
    Received,
    close_answer,
    close_frame,
    frame_of,
    pong_frame,
    whole_message,
)

MESSAGES = st.one_of(st.text(max_size=300), st.binary(max_size=300))


def parsed(raw: bytes) -> Frame:
    """What a client makes of one frame of ours, and of all of it."""
    reader = StreamReader()
    reader.feed_data(raw)
    reader.feed_eof()
    steps = Frame.parse(reader.read_exact, mask=False)
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert not reader.buffer
    frame: Frame = end.value.value
    return frame


def masked(opcode: Opcode, payload: bytes, fin: bool = True) -> bytes:
    return Frame(opcode, payload, fin).serialize(mask=True)


def said(message: str | bytes) -> tuple[Opcode, bytes]:
    return (Opcode.TEXT, message.encode()) if isinstance(message, str) else (Opcode.BINARY, message)


def received(raw: bytes, inbound: Inbound | None = None) -> list[Received]:
    return (inbound or Inbound()).feed(raw)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 200_000])
def test_a_frame_of_any_size_is_read_as_it_was_meant(size: int) -> None:
    """The three forms of a length, at their borders, for text and for bytes."""
    text, binary = parsed(frame_of("x" * size)), parsed(frame_of(b"y" * size))
    assert (text.opcode, text.fin, bytes(text.data)) == (Opcode.TEXT, True, b"x" * size)
    assert (binary.opcode, binary.fin, bytes(binary.data)) == (Opcode.BINARY, True, b"y" * size)


def test_closes_and_pongs_are_read_as_they_were_meant() -> None:
    """A close says its code and reason; the answers repeat what the client said."""
    assert Close.parse(parsed(close_frame(4409, "replaced")).data) == Close(4409, "replaced")
    assert (parsed(close_answer(b"\x03\xe8")).opcode, parsed(close_answer(b"\x03\xe8")).data) == (8, b"\x03\xe8")
    assert (parsed(pong_frame(b"hi")).opcode, parsed(pong_frame(b"hi")).data) == (10, b"hi")


@given(MESSAGES)
def test_a_short_message_needs_no_parser(message: str | bytes) -> None:
    """One that comes whole and alone is the same with and without; a longer one is left to the parser."""
    raw = masked(*said(message))
    expected = message if len(said(message)[1]) < 126 else None
    assert whole_message(raw) == expected
    assert received(raw) == [(said(message)[0], message)]


@given(MESSAGES, st.integers(1, 400))
def test_what_is_not_exactly_one_message_is_left_to_the_parser(message: str | bytes, cut: int) -> None:
    """A part of a frame, more than one, a fragment, or a control frame is not taken for a whole message."""
    raw = masked(*said(message))
    assert whole_message(raw[: -min(cut, len(raw))]) is None
    assert whole_message(raw + raw) is None
    assert whole_message(masked(*said(message), fin=False)) is None
    assert whole_message(masked(Opcode.PING, b"")) is None
    assert whole_message(frame_of(message)) is None  # not masked


@given(st.data(), st.lists(MESSAGES, max_size=6))
def test_messages_arrive_whole_however_they_are_cut(data: st.DataObject, messages: list[str | bytes]) -> None:
    """In as many fragments, with pings between them, and in as many reads as a client and the network like."""
    raw = b""
    for message in messages:
        opcode, payload = said(message)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
        for n, part in enumerate(parts):
            raw += masked(opcode if n == 0 else Opcode.CONT, part, fin=n == len(parts) - 1)
            raw += data.draw(st.sampled_from([b"", masked(Opcode.PING, b"p"), masked(Opcode.PONG, b"")]))
    inbound, found = Inbound(), []
    while raw:
        size = data.draw(st.integers(1, len(raw)))
        found += inbound.feed(raw[:size])
        raw = raw[size:]
    assert [message for kind, message in found if kind is not Opcode.PING] == messages
    assert {message for kind, message in found if kind is Opcode.PING} <= {b"p"}


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff" * 14,  # reserved bits, reserved opcode
        b"\x81\x02hi",  # not masked
        b"\x8b\x80mask",  # reserved control opcode
        b"\x09\x80mask",  # a control frame in fragments
        b"\x80\x80mask",  # the continuation of nothing
        masked(Opcode.TEXT, b"a", fin=False) + masked(Opcode.TEXT, b"b"),  # a message within another
        masked(Opcode.TEXT, b"\xff\xfe"),  # not UTF-8
        masked(Opcode.CLOSE, b"\x03"),  # half a code
        masked(Opcode.CLOSE, b"\x03\xed"),  # 1005, which nobody may send
    ],
)
def test_what_breaks_the_protocol_is_told_after_what_was_said_before(raw: bytes) -> None:
    """A good message in the same read counts, and the fault is the last thing to be heard."""
    assert whole_message(raw) is None
    before = masked(Opcode.TEXT, b"before")
    assert received(before + raw) == [(Opcode.TEXT, "before"), (CloseCode.bad_protocol, b"")]


def test_a_close_is_heard_with_its_code() -> None:
    """With a reason, or with nothing at all."""
    assert received(masked(Opcode.CLOSE, b"\x03\xe8bye")) == [(Opcode.CLOSE, b"\x03\xe8")]
    assert received(masked(Opcode.CLOSE, b"")) == [(Opcode.CLOSE, b"")]


@given(st.binary(max_size=200))
def test_what_comes_behind_a_close_is_not_heard(rest: bytes) -> None:
    """Be it a message or no frame at all, in the same read or a later one."""
    inbound = Inbound()
    assert received(masked(Opcode.CLOSE, b"") + masked(Opcode.TEXT, b"late") + rest, inbound) == [(Opcode.CLOSE, b"")]
    assert received(rest, inbound) == []


@given(st.lists(st.one_of(st.binary(max_size=40), MESSAGES.map(lambda m: masked(*said(m)))), max_size=8))
def test_whatever_comes_is_heard_or_is_a_fault(reads: list[bytes]) -> None:
    """Any bytes: nothing is raised, and behind a fault or a close there is nothing more."""
    inbound, found = Inbound(), []
    for raw in reads:
        found += inbound.feed(raw)
    ends = [n for n, (kind, _) in enumerate(found) if isinstance(kind, CloseCode) or kind is Opcode.CLOSE]
    assert ends in ([], [len(found) - 1])


def test_a_ping_is_answered_in_the_midst_of_the_largest_message() -> None:
    """It is no part of it, and takes nothing of its room."""
    most, ping, rest = b"x" * (MAX_MESSAGE_BYTES - 1), b"p" * 125, b"y"
    raw = masked(Opcode.BINARY, most, fin=False) + masked(Opcode.PING, ping) + masked(Opcode.CONT, rest)
    assert received(raw) == [(Opcode.PING, ping), (Opcode.BINARY, most + rest)]


def test_frames_that_say_nothing_are_counted() -> None:
    """Pings, pongs and parts are; a message's last or only frame is not."""
    inbound = Inbound()
    received(masked(Opcode.PING, b"") + masked(Opcode.PONG, b"") + masked(Opcode.TEXT, b"whole"), inbound)
    received(masked(Opcode.TEXT, b"", fin=False) * 1 + masked(Opcode.CONT, b"", fin=False) * 5, inbound)
    received(masked(Opcode.CONT, b"last"), inbound)
    assert inbound.idle == 8


def test_the_largest_message_is_taken_and_a_larger_one_is_not_even_awaited() -> None:
    """In one frame its head is enough; in fragments the one that goes beyond."""
    largest = b"x" * MAX_MESSAGE_BYTES
    assert received(masked(Opcode.BINARY, largest)) == [(Opcode.BINARY, largest)]
    assert received(masked(Opcode.BINARY, largest + b"x")[:14]) == [(CloseCode.too_big, b"")]
    split, part = Inbound(), masked(Opcode.CONT, b"x" * 1024, fin=False)
    assert received(masked(Opcode.BINARY, b"x" * 1024, fin=False), split) == []
    assert [received(part, split) for _ in range(63)] == [[]] * 63
    assert received(part, split) == [(CloseCode.too_big, b"")]
