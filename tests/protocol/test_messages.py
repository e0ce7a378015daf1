"""The messages between a client and its shard: both codecs say the same, and nothing a client sends is a crash."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.errors import InvalidMessage
from solowire.model.subscriptions import DeniedPattern
from solowire.protocol import messages as c
from solowire.protocol.deflate import SUFFIX
from solowire.protocol.messages import JSON, MSGPACK, Codec, ReceivedEvent, choose_codec
from tests.support.examples import examples

ENCODE: dict[Codec, Any] = {codec: msgspec.json.encode if codec.is_json else msgspec.msgpack.encode for codec in Codec}
DECODE: dict[Codec, Any] = {codec: msgspec.json.decode if codec.is_json else msgspec.msgpack.decode for codec in Codec}

CLIENT: list[Any] = [
    c.Hello(),
    c.Hello("h1", ["dns.*", "custom.ü"], {"zone": ["example.com"]}, c.Resume("epoch", 2**63 - 1)),
    c.Hello(subscriptions=[]),
    c.Subscribe(["dns.*"], 7, {"zone": ["a", "b"]}),
    c.Unsubscribe(["dns.*"], "u1"),
    c.Ping(1, 12.5),
    c.Pong(),
    c.Refresh("token", "r"),
    c.Stats(3),
    c.FetchHistory("q1", "1h", "e:9", ["dns.*"], {"zone": ["a"]}, 10, "e:4:9", "desc"),
]
EVENT = ReceivedEvent(
    9, "id", "record_created", "normal", "2026-01-01T00:00:00Z", {"zone": "é.org", "ttl": 60}, source="x"
)
SERVER: list[Any] = [
    c.Welcome(
        "s", "alice", "viewer", "e", 4, False, ["a"], [DeniedPattern("b", "forbidden", "h")], 25.0, c.Reconnect(1, 2)
    ),
    c.Welcome("s", "a", "b", "e", 2**53, True, [], [], 25.0, c.Reconnect(1, 2), "2026-01-01T00:00:00Z", "epoch", 1),
    c.Events(9, [EVENT], {"dns_query_log": 3}),
    c.Events(0, []),
    c.Subscriptions(["a"], [DeniedPattern("b", "unknown_type")], "id"),
    c.Ping(time=1.5),
    c.Pong("id", 1.5),
    c.Notice("gap", "lost"),
    c.Notice("draining", "go", 5),
    c.ReconnectNow(5, "ring_changed"),
    c.Reply({"a": [1, None, {"b": 0.5}]}, "id"),
    c.Error("code", "message", "hint", 2, 0.25),
    c.Error("code", "message"),
]
codecs = pytest.mark.parametrize("codec", Codec)


def refused(codec: Codec, raw: str | bytes) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        codec.decode(raw)
    assert caught.value.code == "invalid_message"
    return caught.value


@codecs
@pytest.mark.parametrize("message", CLIENT)
def test_what_a_client_says_is_understood(codec: Codec, message: Any) -> None:
    """Every message of a client arrives as it was meant, in either codec."""
    heard = codec.decode(ENCODE[codec](message))
    assert heard == message
    assert type(heard) is type(message)


@codecs
@pytest.mark.parametrize("message", SERVER)
def test_what_a_server_says_is_understood(codec: Codec, message: Any) -> None:
    """Every message of a shard arrives as it was meant, text for JSON and binary for MessagePack."""
    frame = codec.encode(message)
    assert isinstance(frame, str if codec.is_json else bytes)
    heard = codec.decode_server(frame)
    assert heard == message
    assert type(heard) is type(message)


def test_every_message_is_covered() -> None:
    """No message of the protocol is missing from this file."""
    assert {type(m) for m in CLIENT} == set(get_args(c.ClientMessage))
    assert {type(m) for m in SERVER} == set(get_args(c.ServerMessage))


def test_json_may_come_in_either_kind_of_frame() -> None:
    """A client that sends its JSON as a binary frame is understood too."""
    assert Codec.json.decode(b'{"type":"ping","id":1}') == Codec.json.decode('{"type":"ping","id":1}')


def test_an_answer_always_has_its_id() -> None:
    """A client finds `id`, `denied` and `hint` in an answer also where there is nothing in them."""
    assert '"id":null' in str(Codec.json.encode(c.Subscriptions([], [])))
    assert '"hint":""' in str(Codec.json.encode(c.Error("code", "message")))


@codecs
@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 65_535, 65_536, 70_000])
def test_an_events_frame_of_fragments_is_an_events_frame(codec: Codec, count: int) -> None:
    """A frame that is joined of events encoded once is the same as one that is encoded whole, of any length."""
    events = [msgspec.structs.replace(EVENT, offset=n) for n in range(count)] if count < 100 else [EVENT] * count
    fragments = [ENCODE[codec](e) for e in events] if count < 100 else [ENCODE[codec](EVENT)] * count
    frame = codec.encode_events(2**40, fragments)
    compressed = codec.is_deflated and count > 2
    assert isinstance(frame, str if codec.is_json and not compressed else bytes)
    assert codec.decode_server(frame) == c.Events(2**40, events)


@pytest.mark.parametrize(
    ("offered", "codec", "answer"),
    [
        ([], Codec.json, None),
        ([JSON], Codec.json, JSON),
        ([MSGPACK], Codec.msgpack, MSGPACK),
        (["graphql-ws", MSGPACK, JSON], Codec.msgpack, MSGPACK),
        ([MSGPACK + SUFFIX, MSGPACK], Codec.msgpack_deflate, MSGPACK + SUFFIX),
        ([JSON, JSON + SUFFIX], Codec.json, JSON),
        ([JSON + "+brotli", JSON + SUFFIX, JSON], Codec.json_deflate, JSON + SUFFIX),
    ],
)
def test_the_clients_first_choice_counts(offered: list[str], codec: Codec, answer: str | None) -> None:
    """The first subprotocol of a client that is spoken here is chosen; a client that offers none gets JSON."""
    assert choose_codec(offered) == (codec, answer)


@pytest.mark.parametrize("offered", [["graphql-ws"], [""], ["solowire.v2.json", "SOLOWIRE.V1.JSON"], [JSON + "+br"]])
def test_an_unknown_subprotocol_is_refused(offered: list[str]) -> None:
    """A client that speaks only something else is told what is spoken, rather than sent JSON it can't read."""
    with pytest.raises(InvalidMessage, match=r"solowire\.v1\.json") as caught:
        choose_codec(offered)
    assert all(name in caught.value.hint for name in (JSON, MSGPACK, JSON + SUFFIX, MSGPACK + SUFFIX))
    assert caught.value.code == "unsupported_subprotocol"


# ------------------------------------------------------------------------------------------- what a client may send


@codecs
@pytest.mark.parametrize("message", CLIENT)
def test_a_truncated_message_is_refused(codec: Codec, message: Any) -> None:
    """A message that was cut off at any byte is an error, never a shorter message."""
    raw = ENCODE[codec](message)
    for length in range(len(raw)):
        refused(codec, raw[:length])


@codecs
@pytest.mark.parametrize("message", SERVER)
def test_a_truncated_frame_is_refused(codec: Codec, message: Any) -> None:
    """An SDK that gets half a frame raises InvalidMessage and nothing else."""
    raw = ENCODE[codec](message)
    for length in range(len(raw)):
        with pytest.raises(InvalidMessage):
            codec.decode_server(raw[:length])


@codecs
@given(raw=st.binary(max_size=200) | st.text(max_size=200))
@settings(deadline=None, max_examples=examples(200))
def test_garbage_is_refused(codec: Codec, raw: str | bytes) -> None:
    """Any bytes or text whatever are a message or InvalidMessage, on both sides."""
    for decode in (codec.decode, codec.decode_server):
        try:
            decode(raw)
        except InvalidMessage:
            continue


@codecs
@given(which=st.integers(0, len(CLIENT) - 1), at=st.integers(0, 10_000), byte=st.integers(0, 255))
@settings(deadline=None, max_examples=examples(200))
def test_a_damaged_message_is_refused_or_read(codec: Codec, which: int, at: int, byte: int) -> None:
    """A message with a byte changed on the way is a message or InvalidMessage."""
    raw = bytearray(ENCODE[codec](CLIENT[which]))
    raw[at % len(raw)] = byte
    try:
        codec.decode(bytes(raw))
    except InvalidMessage:
        return


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["id", "subscriptions", "event_types", "filter", "resume", "token", "time", "x"])
types = st.sampled_from(
    ["hello", "subscribe", "unsubscribe", "ping", "pong", "refresh", "stats", "events", "", 7, None]
)


@codecs
@given(message=st.dictionaries(names, values, max_size=4), type=types)
@settings(deadline=None, max_examples=examples(200))
def test_well_formed_nonsense_is_refused_or_read(codec: Codec, message: dict[str, Any], type: object) -> None:
    """Fields of any kind make a message or InvalidMessage, and a message that was read can be answered."""
    try:
        heard = codec.decode(ENCODE[codec]({"type": type, **message}))
    except InvalidMessage as error:
        codec.encode(c.Error(error.code, error.message, error.hint, error.id))
    else:
        codec.encode(c.Pong(heard.id))


@codecs
@pytest.mark.parametrize("id", ["abc", 7, None])
@pytest.mark.parametrize("message", [{"type": "nosuch"}, {"type": "subscribe"}, {"type": "ping", "time": "x"}, {}])
def test_what_is_refused_keeps_its_id(codec: Codec, id: object, message: dict[str, Any]) -> None:
    """A client learns which of its messages was refused, also where its type is not known."""
    assert refused(codec, ENCODE[codec]({**message, "id": id})).id == id


@codecs
@pytest.mark.parametrize("id", [1.5, [], {}, True])
def test_an_id_that_is_none_is_not_repeated(codec: Codec, id: object) -> None:
    """An id of the wrong kind refuses the message, and the answer has none."""
    assert refused(codec, ENCODE[codec]({"type": "ping", "id": id})).id is None


@codecs
@pytest.mark.parametrize("depth", [100, 5_000, 30_000])
@pytest.mark.parametrize("place", ["x", "id", "filter"])
def test_deep_nesting_is_refused_or_read(codec: Codec, depth: int, place: str) -> None:
    """Brackets without end cost a refusal and no stack; few of them, where nobody looks, do no harm."""
    if codec.is_json:
        raw = b'{"type":"ping","%b":%b}' % (place.encode(), b"[" * depth + b"]" * depth)
    else:
        raw = b"\x82\xa4type\xa4ping" + msgspec.msgpack.encode(place) + b"\x91" * depth + b"\x90"
    if place == "id" or depth > 1000:
        refused(codec, raw)
    else:
        assert codec.decode(raw) == c.Ping()


@pytest.mark.parametrize(
    "raw",
    [
        b'{"type":"ping","id":"\xff"}',
        b'{"type":"\xc3\x28"}',
        b'{"\xff":1,"type":"ping","id":"\xed\xa0\x80"}',
        '{"type":"ping","id":"\ud800"}',
        '{"type":"ping","id":"\\ud800"}',
    ],
)
def test_invalid_utf8_is_refused(raw: str | bytes) -> None:
    """Text that is no text is refused."""
    refused(Codec.json, raw)


@pytest.mark.parametrize("raw", [b"\x82\xa4type\xa4ping\xa2id\xa1\xff", b"\x81\xa4type\xa2\xc3\x28", "\ud800", "text"])
def test_invalid_utf8_is_refused_in_messagepack(raw: str | bytes) -> None:
    """Text that is no text, or a text frame where a binary one is spoken, is refused."""
    refused(Codec.msgpack, raw)


@pytest.mark.parametrize(
    "number", ["1" * 5_000, "-" + "1" * 5_000, "1e999", "1" * 400, "-1", "9223372036854775808", "1.5", "NaN"]
)
def test_a_cursor_out_of_range_is_refused(number: str) -> None:
    """A cursor that no log can have is refused, however many digits it has."""
    refused(Codec.json, '{"type":"hello","resume":{"epoch":"e","cursor":%s}}' % number)


@pytest.mark.parametrize("number", ["1" * 5_000, "1e999", "-" + "9" * 4_301])
@pytest.mark.parametrize("type", ["ping", "nosuch"])
def test_a_number_without_end_is_refused(number: str, type: str) -> None:
    """A number too long to be read is refused wherever it stands, also in a message that is not known."""
    refused(Codec.json, '{"type":"%s","id":%s,"time":%s}' % (type, number, number))


def test_a_long_id_is_repeated() -> None:
    """An id of more digits than a machine word is repeated as it was sent."""
    message = Codec.json.decode('{"type":"ping","id":%d}' % 10**30)
    assert '"id":%d' % 10**30 in str(Codec.json.encode(c.Pong(message.id)))


@pytest.mark.parametrize(
    "tail", [b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
)
def test_a_length_that_promises_gigabytes_is_refused(tail: bytes) -> None:
    """A few bytes that announce four thousand million more cost a refusal and no memory."""
    refused(Codec.msgpack, b"\x82\xa4type\xa9subscribe\xabevent_types" + tail)
    refused(Codec.msgpack, tail)


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"type": "hello", "subscription": ["custom.*"]}, "did you mean 'subscriptions'"),
        ({"type": "hello", "subscriptions": ["custom.*"], "filtr": {}}, "did you mean 'filter'"),
        ({"type": "hello", "resume": {"epoch": "e", "cursor": 1, "cursr": 2}}, "did you mean 'cursor'"),
        ({"type": "subscribe", "event_types": [], "filters": {}}, "filters"),
        ({"type": "unsubscribe", "event_types": [], "x": 1}, "known are"),
        ({"type": "refresh", "token": "t", "x" * 5000: 1}, "unknown field"),
        ({"type": "helo"}, "did you mean 'hello'"),
        ({"type": "publish"}, "known are hello"),
        ({"type": "y" * 5000}, "Invalid value"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_misspelt_is_refused_with_what_was_meant(codec: Codec, message: dict[str, Any], words: str) -> None:
    """A `hello` whose `subscriptions` are misspelt asks for nothing, rather than for all; answers stay short."""
    raw = msgspec.json.encode(message) if codec.is_json else msgspec.msgpack.encode(message)
    with pytest.raises(InvalidMessage) as caught:
        codec.decode(raw)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("codec", Codec)
def test_a_client_may_be_older_than_what_the_server_says(codec: Codec) -> None:
    """Fields of the server's messages, and of pings and pongs, that a version does not know are passed over."""
    ping = {"type": "ping", "newer": 1}
    raw = msgspec.json.encode(ping) if codec.is_json else msgspec.msgpack.encode(ping)
    assert codec.decode_server(raw) == codec.decode(raw)
