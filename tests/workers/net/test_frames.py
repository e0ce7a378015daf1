"""WebSocket frames as bytes: ours are what the protocol asks for, and a client's are understood however they come."""

from __future__ import annotations

import sys
from itertools import accumulate, cycle, islice, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.streams import StreamReader
from websockets.utils import apply_mask

from solowire.protocol.close_codes import CloseCode
from solowire.protocol.messages import MAX_MESSAGE_BYTES
from solowire.workers.net.frames import (
    PING_FRAME,
    FrameParser,
    Received,
    decode_whole_message,
    encode_close,
    encode_close_reply,
    encode_message,
    encode_pong,
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


MASK = b"\x37\xfa\x21\x3d"


def masked(opcode: Opcode, payload: bytes, fin: bool = True) -> bytes:
    """A client's frame; also one that nobody should send, such as a control frame in parts, or one that is too long."""
    raw = Frame(Opcode.BINARY, payload).serialize(mask=False)
    head = raw[: len(raw) - len(payload)]
    return bytes([fin << 7 | opcode, head[1] | 0x80]) + head[2:] + MASK + apply_mask(payload, MASK)


def said(message: str | bytes) -> tuple[Opcode, bytes]:
    return (Opcode.TEXT, message.encode()) if isinstance(message, str) else (Opcode.BINARY, message)


def received(raw: bytes, inbound: FrameParser | None = None) -> list[Received]:
    return (inbound or FrameParser()).feed(raw)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 200_000])
def test_a_frame_of_any_size_is_read_as_it_was_meant(size: int) -> None:
    """The three forms of a length, at their borders, for text and for bytes."""
    text, binary = parsed(encode_message("x" * size)), parsed(encode_message(b"y" * size))
    assert (text.opcode, text.fin, bytes(text.data)) == (Opcode.TEXT, True, b"x" * size)
    assert (binary.opcode, binary.fin, bytes(binary.data)) == (Opcode.BINARY, True, b"y" * size)


def test_closes_and_pongs_are_read_as_they_were_meant() -> None:
    """A close says its code and reason; the answers repeat what the client said."""
    assert Close.parse(parsed(encode_close(4409, "replaced")).data) == Close(4409, "replaced")
    assert (parsed(encode_close_reply(b"\x03\xe8")).opcode, parsed(encode_close_reply(b"\x03\xe8")).data) == (
        8,
        b"\x03\xe8",
    )
    assert (parsed(encode_pong(b"hi")).opcode, parsed(encode_pong(b"hi")).data) == (10, b"hi")
    assert (parsed(PING_FRAME).opcode, parsed(PING_FRAME).data) == (9, b"")


@given(MESSAGES)
def test_a_short_message_needs_no_parser(message: str | bytes) -> None:
    """One that comes whole and alone is the same with and without; a longer one is left to the parser."""
    raw = masked(*said(message))
    expected = message if len(said(message)[1]) < 126 else None
    assert decode_whole_message(raw) == expected
    assert received(raw) == [(said(message)[0], message)]


@given(MESSAGES, st.integers(1, 400))
def test_what_is_not_exactly_one_message_is_left_to_the_parser(message: str | bytes, cut: int) -> None:
    """A part of a frame, more than one, a fragment, or a control frame is not taken for a whole message."""
    raw = masked(*said(message))
    assert decode_whole_message(raw[: -min(cut, len(raw))]) is None
    assert decode_whole_message(raw + raw) is None
    assert decode_whole_message(masked(*said(message), fin=False)) is None
    assert decode_whole_message(masked(Opcode.PING, b"")) is None
    assert decode_whole_message(encode_message(message)) is None  # not masked


# --------------------------------------------------------------------------------- beside the parser of `websockets`


def reference(raw: bytes) -> list[Received]:
    """What `websockets` makes of all that a client sends, in the form of `FrameParser.feed`."""
    protocol = ServerProtocol(state=State.OPEN, max_size=MAX_MESSAGE_BYTES)
    protocol.receive_data(raw)
    found: list[Received] = []
    kind, message = Opcode.CONT, b""
    for frame in protocol.events_received():
        assert isinstance(frame, Frame)
        data = bytes(frame.data)
        if frame.opcode is Opcode.CLOSE:
            found.append((Opcode.CLOSE, data[:2]))
        elif frame.opcode >= Opcode.CLOSE:
            found.append((frame.opcode, data))
        else:
            kind, message = (kind, message + data) if frame.opcode is Opcode.CONT else (frame.opcode, data)
            if kind is Opcode.TEXT and first_wrong_byte(message, whole=frame.fin) is not None:
                return [*found, (CloseCode.invalid_data, b"")]  # it leaves that to others
            if frame.fin:
                found.append((kind, message.decode() if kind is Opcode.TEXT else message))
    if protocol.parser_exc is not None:
        assert protocol.close_sent is not None
        found.append((CloseCode(protocol.close_sent.code), b""))
    return found


FOLLOWING = {
    **{first: [(0x80, 0xBF)] for first in range(0xC2, 0xE0)},
    **{first: [(0x80, 0xBF)] * 2 for first in range(0xE1, 0xF0)},
    0xE0: [(0xA0, 0xBF), (0x80, 0xBF)],
    0xED: [(0x80, 0x9F), (0x80, 0xBF)],
    **{first: [(0x80, 0xBF)] * 3 for first in range(0xF1, 0xF4)},
    0xF0: [(0x90, 0xBF), (0x80, 0xBF), (0x80, 0xBF)],
    0xF4: [(0x80, 0x8F), (0x80, 0xBF), (0x80, 0xBF)],
    **{first: [] for first in range(0x80)},
}
"""What may follow a character's first byte: table 3-7 of the Unicode standard, as it stands there."""


def first_wrong_byte(text: bytes, *, whole: bool) -> int | None:
    """Where a text can't be UTF-8 any more, whatever comes; None if it can. whole: nothing more comes."""
    expected: list[tuple[int, int]] = []
    for n, byte in enumerate(text):
        if expected:
            low, high = expected[0]
            if not low <= byte <= high:
                return n
            expected = expected[1:]
        elif byte not in FOLLOWING:
            return n
        else:
            expected = FOLLOWING[byte]
    return len(text) - 1 if whole and expected else None


SIZES = st.lists(st.one_of(st.integers(1, 5), st.integers(1, 70_000)), min_size=1, max_size=6)
"""Of reads, which come in turn: [1] is byte by byte."""


def cut(raw: bytes, sizes: list[int]) -> list[bytes]:
    """Into so many reads that a test takes no time; the last one has the rest."""
    places = [0, *islice(accumulate(cycle(sizes)), 500)]
    return [part for a, b in pairwise([*places, len(raw)]) if (part := raw[a:b])]


def fed(reads: list[bytes]) -> list[Received]:
    inbound = FrameParser()
    return [one for read in reads for one in inbound.feed(read)]


@given(st.data(), SIZES, st.lists(MESSAGES, max_size=6), st.sampled_from([None, b"", b"\x03\xe8", b"\x0b\xb8bye"]))
def test_messages_arrive_whole_however_they_are_cut(
    data: st.DataObject, sizes: list[int], messages: list[str | bytes], close: bytes | None
) -> None:
    """In fragments, with pings and pongs between them, and in as many reads as the network likes."""
    raw, controls = b"", []
    for message in messages:
        opcode, payload = said(message)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(payload)), max_size=3)))
        parts = [payload[a:b] for a, b in pairwise([0, *cuts, len(payload)])]
        for n, part in enumerate(parts):
            raw += masked(opcode if n == 0 else Opcode.CONT, part, fin=n == len(parts) - 1)
            between = data.draw(st.sampled_from([None, (Opcode.PING, b"p" * 125), (Opcode.PONG, b"")]))
            if between is not None:
                controls.append(between)
                raw += masked(*between)
    if close is not None:
        controls.append((Opcode.CLOSE, close[:2]))
        raw += masked(Opcode.CLOSE, close) + masked(Opcode.TEXT, b"late")
    found = fed(cut(raw, sizes))
    assert [payload for kind, payload in found if kind in (Opcode.TEXT, Opcode.BINARY)] == messages
    assert [one for one in found if one[0] not in (Opcode.TEXT, Opcode.BINARY)] == controls
    assert found == reference(raw)


ANY_FRAMES = st.builds(
    masked,
    st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.CONT, Opcode.CONT, Opcode.PING, Opcode.PONG, Opcode.CLOSE]),
    st.one_of(
        st.text(max_size=20).map(str.encode),
        st.binary(max_size=20),
        st.sampled_from([b"\x03\xe8", b"\x03\xe8bye", b"\x03\xed", b"\x13\x88", b"\x03\xe8\xff", b"\xe2\x82", b"\xac"]),
        st.sampled_from([125, 126, 127, 1000]).map(bytes),
    ),
    st.booleans(),
)


class Bytes(bytes):
    """Which an example that fails shows in a line."""

    def __repr__(self) -> str:
        return f"{bytes(self[:24])!r}... ({len(self)} bytes)"


FRAMES = st.one_of(
    ANY_FRAMES,
    ANY_FRAMES.map(lambda raw: bytes([raw[0] | 0x40]) + raw[1:]),  # a reserved bit
    ANY_FRAMES.map(lambda raw: bytes([raw[0] | 0x03]) + raw[1:]),  # an opcode that nobody has defined
    ANY_FRAMES.map(lambda raw: bytes([raw[0], raw[1] & 0x7F]) + raw[2:]),  # no mask
    st.sampled_from([30_000, 65_535, 65_536, 65_537]).map(lambda size: masked(Opcode.BINARY, bytes(size))),
    st.sampled_from([30_000, 65_536]).map(lambda size: masked(Opcode.TEXT, bytes(size), fin=False)),
    st.sampled_from([30_000, 65_536]).map(lambda size: masked(Opcode.CONT, bytes(size), fin=False)),
).map(Bytes)


@given(SIZES, st.lists(FRAMES, max_size=8))
@example([1], [masked(Opcode.TEXT, b"a", fin=False), masked(Opcode.TEXT, b"b")])
@example([1], [masked(Opcode.CLOSE, b"\x03")])
@example([1], [masked(Opcode.CLOSE, b"\x03\xed")])  # 1005, which nobody may send
@example([1], [masked(Opcode.CLOSE, b"\x03\xe8\xff")])
@example([1], [masked(Opcode.PING, bytes(126))])
@example([1], [masked(Opcode.PING, b"", fin=False)])
def test_any_frames_in_any_cuts_are_read_as_by_another(sizes: list[int], frames: list[bytes]) -> None:
    """The same messages and the same code, be they as they should be or not."""
    raw = b"".join(frames)
    found, expected = fed(cut(raw, sizes)), reference(raw)
    assert found == fed([raw])
    if found != expected:  # a frame may be both: this one looks first whether it may come at all
        assert (found[-1][0], expected[-1][0]) == (CloseCode.protocol_error, CloseCode.too_big)
        assert found[:-1] == expected[:-1]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"\xff" * 14, CloseCode.protocol_error),  # reserved bits, reserved opcode
        (b"\x81\x02", CloseCode.protocol_error),  # not masked
        (b"\x83\x80", CloseCode.protocol_error),  # reserved opcode
        (b"\x8b\x80", CloseCode.protocol_error),  # reserved control opcode
        (b"\x09\x80", CloseCode.protocol_error),  # a control frame in fragments
        (b"\x89\xfe", CloseCode.protocol_error),  # one that is too long
        (b"\x80\x80", CloseCode.protocol_error),  # the continuation of nothing
        (b"\xc1\x80", CloseCode.protocol_error),  # compressed, which was not agreed on
        (b"\x82\xff\x80\0\0\0\0\0\0\0", CloseCode.protocol_error),  # a length of 64 bits
        (masked(Opcode.TEXT, b"a", fin=False) + b"\x81\x81", CloseCode.protocol_error),  # a message within another
        (masked(Opcode.CLOSE, b"\x03"), CloseCode.protocol_error),  # half a code
        (masked(Opcode.CLOSE, b"\x03\xed"), CloseCode.protocol_error),  # 1005, which nobody may send
        (masked(Opcode.CLOSE, b"\x03\xe8\xff"), CloseCode.invalid_data),
        (masked(Opcode.TEXT, b"a\xff later")[:-3], CloseCode.invalid_data),
        (masked(Opcode.TEXT, b"\xe2\x82"), CloseCode.invalid_data),  # half a character
        (masked(Opcode.TEXT, b"\xed\xa0\x80"), CloseCode.invalid_data),  # half of a pair
        (b"\x82\xff\0\0\0\0\0\1\0\1", CloseCode.too_big),
    ],
)
def test_what_breaks_the_protocol_is_told_after_what_was_said_before(raw: bytes, code: CloseCode) -> None:
    """A good message in the same read counts, and the fault is the last thing to be heard; also byte by byte.

    Of a frame as much is awaited as it takes to know.
    """
    assert decode_whole_message(raw) is None
    before = masked(Opcode.TEXT, b"before")
    expected = [(Opcode.TEXT, "before"), (code, b"")]
    assert received(before + raw) == expected
    assert fed([bytes([byte]) for byte in before + raw]) == expected
    assert fed([before, raw, b"\xff" * 100, masked(Opcode.TEXT, b"late")]) == expected


# ---------------------------------------------------------------------------------------------- text that is no UTF-8


WRONG = st.one_of(
    st.binary(max_size=12),
    st.lists(
        st.sampled_from(
            [*"a é € \U0001f600".encode().split(), b"\xc0", b"\xe0\x80", b"\xed\xa0", b"\xf4\x90", b"\xf5", b"\x80"]
        ),
        max_size=6,
    ).map(b"".join),
)


@given(WRONG, st.booleans())
@example(b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited", False)  # Autobahn's 6.4
def test_a_text_fails_with_the_byte_that_makes_it_wrong(text: bytes, in_fragments: bool) -> None:
    """Not later, when the frame is whole, or the message; and half a character at the end is a fault at the end."""
    if in_fragments:
        parts = [text[n : n + 1] for n in range(len(text))] or [b""]
        reads = [masked(Opcode.CONT if n else Opcode.TEXT, part, n == len(parts) - 1) for n, part in enumerate(parts)]
    else:
        whole = masked(Opcode.TEXT, text)
        head = len(whole) - len(text)
        reads = [whole[: head + 1], *(whole[n : n + 1] for n in range(head + 1, len(whole)))]
    wrong = first_wrong_byte(text, whole=True)
    inbound = FrameParser()
    for n, read in enumerate(reads):
        found = inbound.feed(read)
        if wrong is not None:
            assert found == ([(CloseCode.invalid_data, b"")] if n == wrong else [])
        else:
            assert found == ([(Opcode.TEXT, text.decode())] if n == len(reads) - 1 else [])


@given(st.text(min_size=1, max_size=30), st.data())
def test_a_character_may_be_cut_in_two_by_fragments_and_pings(text: str, data: st.DataObject) -> None:
    """Bytes are checked as the message has them, wherever frames begin; an empty last part completes it."""
    raw = text.encode()
    at = data.draw(st.integers(0, len(raw)))
    frames = [masked(Opcode.TEXT, raw[:at], fin=False), masked(Opcode.PING, b"\xff"), masked(Opcode.CONT, raw[at:])]
    assert received(b"".join(frames)) == [(Opcode.PING, b"\xff"), (Opcode.TEXT, text)]
    frames[2:] = [masked(Opcode.CONT, raw[at:], fin=False), masked(Opcode.CONT, b"")]
    assert received(b"".join(frames)) == [(Opcode.PING, b"\xff"), (Opcode.TEXT, text)]


# -------------------------------------------------------------------------------------------------------------- the end


def test_a_close_is_heard_with_its_code() -> None:
    """With a reason, or with nothing at all."""
    assert received(masked(Opcode.CLOSE, b"\x03\xe8bye")) == [(Opcode.CLOSE, b"\x03\xe8")]
    assert received(masked(Opcode.CLOSE, b"")) == [(Opcode.CLOSE, b"")]


@given(st.binary(max_size=200))
def test_what_comes_behind_a_close_is_not_heard(rest: bytes) -> None:
    """Be it a message or no frame at all, in the same read or a later one."""
    inbound = FrameParser()
    assert received(masked(Opcode.CLOSE, b"") + masked(Opcode.TEXT, b"late") + rest, inbound) == [(Opcode.CLOSE, b"")]
    assert received(rest, inbound) == []


@given(st.lists(st.one_of(st.binary(max_size=40), MESSAGES.map(lambda m: masked(*said(m)))), max_size=8))
def test_whatever_comes_is_heard_or_is_a_fault(reads: list[bytes]) -> None:
    """Any bytes: nothing is raised, and behind a fault or a close there is nothing more."""
    inbound, found = FrameParser(), []
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
    inbound = FrameParser()
    received(masked(Opcode.PING, b"") + masked(Opcode.PONG, b"") + masked(Opcode.TEXT, b"whole"), inbound)
    received(masked(Opcode.TEXT, b"", fin=False) * 1 + masked(Opcode.CONT, b"", fin=False) * 5, inbound)
    received(masked(Opcode.CONT, b"last"), inbound)
    assert inbound.idle_count == 8


def test_more_frames_that_say_nothing_than_may_come_are_not_even_looked_at() -> None:
    """To take 2,000 pings apart and then throw them away takes a shard 6 ms, for each connection that tries."""
    inbound = FrameParser()
    inbound.idle_limit = 3
    assert received(masked(Opcode.PING, b"") * 2000, inbound) == [(CloseCode.bad_protocol, b"")]
    assert inbound.idle_count == 4
    assert received(masked(Opcode.PING, b""), inbound) == []


# --------------------------------------------------------------------------------------------------------------- bounds


def held(inbound: FrameParser) -> int:
    """Bytes that it keeps of what a client has sent."""
    return sys.getsizeof(inbound._message) + sys.getsizeof(inbound._control) + sys.getsizeof(inbound._head)


def test_the_largest_message_is_taken_and_a_larger_one_is_not_even_awaited() -> None:
    """In one frame the length in its head is enough; in fragments that of the one that goes beyond."""
    largest = b"x" * MAX_MESSAGE_BYTES
    assert MAX_MESSAGE_BYTES == 64 * 1024
    assert received(masked(Opcode.BINARY, largest)) == [(Opcode.BINARY, largest)]
    head = masked(Opcode.BINARY, largest + b"x")[:10]
    inbound = FrameParser()
    assert received(head[:9], inbound) == []
    assert received(head[9:], inbound) == [(CloseCode.too_big, b"")]
    assert held(inbound) < 300
    split, part = FrameParser(), masked(Opcode.CONT, b"x" * 1024, fin=False)
    assert received(masked(Opcode.BINARY, b"x" * 1024, fin=False), split) == []
    assert [received(part, split) for _ in range(63)] == [[]] * 63
    assert received(masked(Opcode.CONT, b"", fin=False), split) == []
    assert received(masked(Opcode.CONT, b"x")[:2], split) == [(CloseCode.too_big, b"")]
    assert held(split) < 300


def test_a_message_in_very_many_fragments_takes_no_more_than_its_bytes() -> None:
    """Nor does one in parts of nothing, or one that has ended."""
    inbound, part, nothing = FrameParser(), masked(Opcode.CONT, b"x", fin=False), masked(Opcode.CONT, b"", fin=False)
    received(masked(Opcode.BINARY, b"x", fin=False), inbound)
    for size in range(2, 20_000):
        assert received(part + nothing * (size % 3), inbound) == []
        if size % 1000 == 0:
            assert held(inbound) < 1.2 * size + 300
    assert received(masked(Opcode.CONT, b""), inbound) == [(Opcode.BINARY, b"x" * 19_999)]
    assert held(inbound) < 300


@given(SIZES, st.lists(FRAMES, max_size=4))
def test_no_more_is_kept_than_one_message_and_a_head(sizes: list[int], frames: list[bytes]) -> None:
    """Whatever comes, and however it is cut; and behind a fault there is nothing."""
    inbound = FrameParser()
    for read in cut(b"".join(frames), sizes):
        found = inbound.feed(read)
        assert len(inbound._head) <= 13
        assert len(inbound._control) <= 125
        assert len(inbound._message) <= MAX_MESSAGE_BYTES
        if found and isinstance(found[-1][0], CloseCode):
            assert not inbound._message
