"""Compressed messages: what goes in comes out, all else is refused, and nothing costs memory without end."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.errors import InvalidMessage
from solowire.protocol import messages as c
from solowire.protocol.deflate import MARK, MAX_INFLATED_BYTES, WORTH_BYTES, deflate_message, inflate_message
from solowire.protocol.messages import Codec
from tests.support.examples import examples

COMPRESSED = [codec for codec in Codec if codec.is_deflated]
EVENTS = [
    c.ReceivedEvent(n, f"id-{n}", "record_created", "normal", "2026-01-01T00:00:00Z", {"zone": "é.org", "n": n})
    for n in range(20)
]
codecs = pytest.mark.parametrize("codec", COMPRESSED)

texts = st.text(max_size=30)
events = st.builds(
    c.ReceivedEvent,
    offset=st.integers(0, 2**63 - 1),
    id=texts,
    type=texts,
    priority=st.sampled_from(["critical", "normal"]),
    timestamp=texts,
    data=st.dictionaries(texts, texts | st.integers(-(2**63), 2**63) | st.booleans() | st.none(), max_size=8),
    key=st.none() | texts,
)


def frame_of(codec: Codec, found: list[c.ReceivedEvent], compacted: dict[str, int] | None = None) -> str | bytes:
    encode = msgspec.json.encode if codec.is_json else msgspec.msgpack.encode
    return codec.encode_events(7, [encode(event) for event in found], compacted)


def compressed(codec: Codec) -> bytes:
    frame = frame_of(codec, EVENTS)
    assert isinstance(frame, bytes)
    assert frame[:1] == MARK
    return frame


@contextmanager
def refused(words: str) -> Iterator[None]:
    with pytest.raises(InvalidMessage, match=words) as caught:
        yield
    assert caught.value.code == "invalid_message"


@codecs
@given(found=st.lists(events, max_size=20), compacted=st.dictionaries(texts, st.integers(0, 2**40), max_size=3))
@settings(deadline=None, max_examples=examples(200))
def test_every_frame_comes_back(codec: Codec, found: list[c.ReceivedEvent], compacted: dict[str, int]) -> None:
    """Any frame is read as it was written, plain or compressed, and is never larger than the plain one."""
    frame = frame_of(codec, found, compacted)
    assert codec.decode_server(frame) == c.Events(7, found, compacted)
    plain = frame_of(codec.without_deflate, found, compacted)
    if frame == plain:
        return
    assert isinstance(frame, bytes)
    body = plain.encode() if isinstance(plain, str) else plain
    assert WORTH_BYTES <= len(body) > len(frame)
    assert inflate_message(frame) == body


@given(message=st.binary(max_size=2_000))
@settings(deadline=None)
def test_any_bytes_come_back(message: bytes) -> None:
    """What was compressed is what it was; what was not is short, or would not have become smaller."""
    packed = deflate_message(message)
    if packed is not None:
        assert len(packed) < len(message)
        assert inflate_message(packed) == message


@codecs
def test_a_frame_is_one_whole_stream_behind_the_mark(codec: Codec) -> None:
    """As docs/protocol.md says it: 0xC1, then what any inflater of raw deflate takes, and nothing else."""
    frame = compressed(codec)
    stream = zlib.decompressobj(wbits=-15)
    plain = frame_of(codec.without_deflate, EVENTS)
    assert stream.decompress(frame[1:]) == (plain.encode() if isinstance(plain, str) else plain)
    assert (stream.eof, stream.unused_data) == (True, b"")


@codecs
def test_a_frame_needs_no_other(codec: Codec) -> None:
    """The same events give the same bytes each time: no frame leans on one that came before."""
    assert compressed(codec) == compressed(codec)


@codecs
def test_a_short_frame_stays_plain(codec: Codec) -> None:
    """One event alone is sent as it is, in the codec's usual kind of WebSocket message."""
    assert frame_of(codec, EVENTS[:1]) == frame_of(codec.without_deflate, EVENTS[:1])


@codecs
def test_what_would_not_get_smaller_stays_plain(codec: Codec) -> None:
    """Data without any pattern is not sent larger than it is."""
    chance = Random(1)
    noise = "".join(chr(chance.randrange(0x20, 0xD800)) for _ in range(2_000))
    event = msgspec.structs.replace(EVENTS[0], data={"x": noise})
    frame, plain = frame_of(codec, [event]), frame_of(codec.without_deflate, [event])
    assert len(frame) <= len(plain.encode() if isinstance(plain, str) else plain)
    assert deflate_message(chance.randbytes(4_000)) is None


@codecs
@pytest.mark.parametrize("message", [c.Pong("x" * 2_000), c.Reply({"x": "x" * 2_000}), c.Error("x", "x" * 2_000)])
def test_an_answer_is_never_compressed(codec: Codec, message: c.ServerMessage) -> None:
    """Whatever is no `events` frame is as in the codec without the suffix, however long it is."""
    assert codec.encode(message) == codec.without_deflate.encode(message)


@codecs
def test_any_message_may_come_compressed(codec: Codec) -> None:
    """A later server may compress what this one doesn't: a reader goes by the mark alone."""
    welcome = c.Welcome("s", "u", "r", "e", 1, True, ["x" * 600], [], 25.0, c.Reconnect(1, 2))
    plain = codec.encode(welcome)
    packed = deflate_message(plain.encode() if isinstance(plain, str) else plain)
    assert packed is not None
    assert codec.decode_server(packed) == welcome


@codecs
def test_a_client_speaks_plainly(codec: Codec) -> None:
    """The server inflates nothing: a compressed message of a client is a bad one."""
    packed = deflate_message(msgspec.json.encode(c.Subscribe(["x" * 600])))
    assert packed is not None
    with refused("it is not valid (JSON|MessagePack)"):
        codec.decode(packed)


@codecs
def test_who_did_not_ask_for_it_takes_none(codec: Codec) -> None:
    """Without the suffix a compressed message is none of the protocol's."""
    with refused("it is not valid (JSON|MessagePack)"):
        codec.without_deflate.decode_server(compressed(codec))


# ------------------------------------------------------------------------------------------- what is refused


@codecs
def test_a_truncated_frame_is_refused(codec: Codec) -> None:
    """A frame that was cut off at any byte is an error, never a shorter frame."""
    frame = compressed(codec)
    for length in range(1, len(frame)):
        with refused("cut off"):
            codec.decode_server(frame[:length])


@codecs
def test_more_than_one_stream_is_refused(codec: Codec) -> None:
    """Bytes behind the stream's end are not ours, be they another stream."""
    for more in (b"\0", compressed(codec)[1:]):
        with refused("something follows"):
            codec.decode_server(compressed(codec) + more)


@codecs
@given(at=st.integers(1, 10_000), byte=st.integers(0, 255))
@settings(deadline=None, max_examples=examples(300))
def test_a_damaged_frame_is_refused_or_read(codec: Codec, at: int, byte: int) -> None:
    """A frame with a byte changed on the way is a message or InvalidMessage, and nothing else is raised."""
    frame = bytearray(compressed(codec))
    frame[at % len(frame)] = byte
    try:
        codec.decode_server(bytes(frame))
    except InvalidMessage:
        return


@codecs
@given(rest=st.binary(max_size=300))
@settings(deadline=None, max_examples=examples(200))
def test_garbage_behind_the_mark_is_refused(codec: Codec, rest: bytes) -> None:
    """Any bytes behind the mark are a message or InvalidMessage."""
    try:
        codec.decode_server(MARK + rest)
    except InvalidMessage:
        return


@codecs
def test_a_compressed_message_in_a_compressed_message_is_refused(codec: Codec) -> None:
    """What is inside is looked at as it is: nobody is made to inflate twice."""
    twice = MARK + zlib.compress(compressed(codec), wbits=-15)
    with refused("it is not valid (JSON|MessagePack)"):
        codec.decode_server(twice)


def test_a_bomb_is_refused_at_the_bound() -> None:
    """A few KB that would become 256 MB are refused in clear words, and cost no more than the bound."""
    press = zlib.compressobj(9, wbits=-15)
    bomb = b"".join((MARK, *(press.compress(bytes(2**20)) for _ in range(256)), press.flush()))
    tracemalloc.start()
    try:
        with refused(f"more than {MAX_INFLATED_BYTES} bytes when inflated"):
            inflate_message(bomb)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 3 * MAX_INFLATED_BYTES


@pytest.mark.parametrize("more", [0, 1])
def test_the_bound_itself_may_be_reached(more: int) -> None:
    """So many bytes are taken, one more is not."""
    message = MARK + zlib.compress(bytes(MAX_INFLATED_BYTES + more), wbits=-15)
    if more:
        with refused("when inflated"):
            inflate_message(message)
    else:
        assert inflate_message(message) == bytes(MAX_INFLATED_BYTES)
