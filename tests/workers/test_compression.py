"""Compression in a shard: once for all connections of a feed, and never for one of them alone."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.recent_log import RecentLog
from solowire.protocol import messages as c
from solowire.protocol.deflate import MARK, deflate_message
from solowire.protocol.messages import Codec
from solowire.workers.connections.connection import Connection
from tests.support.shard_harness import QUERY, ShardHarness, codec_of

COMPRESSED = [codec for codec in Codec if codec.is_deflated]
codecs = pytest.mark.parametrize("codec", COMPRESSED)
READERS = 50


class Presses:
    """How often something was compressed since the last look."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, message: bytes) -> bytes | None:
        self.count += 1
        return deflate_message(message)

    def new(self) -> int:
        count, self.count = self.count, 0
        return count


@pytest.fixture
def presses(monkeypatch: pytest.MonkeyPatch) -> Presses:
    found = Presses()
    monkeypatch.setattr("solowire.protocol.messages.deflate_message", found)
    return found


def several(b: ShardHarness, count: int = 5, **more: Any) -> None:
    b.deliver(*[b.make_event("custom.a", {"n": n, "x": "x" * 200}, **more) for n in range(count)])
    b.wait(1)


def frames(b: ShardHarness, connection: Connection) -> list[str | bytes]:
    """Its frames with events."""
    sent = b.sockets.sent[connection]
    return [f for f in sent if isinstance(codec_of(connection).decode_server(f), c.Events)]


def is_compressed(frame: str | bytes) -> bool:
    return isinstance(frame, bytes) and frame[:1] == MARK


@codecs
def test_a_frame_is_compressed_once_for_all(presses: Presses, codec: Codec) -> None:
    """However many connections a feed has, each flush compresses once, and all are given the very same bytes."""
    b = ShardHarness()
    readers = [b.connect(f"u{n}", codec=codec, subscriptions=["custom.a"]) for n in range(READERS)]
    presses.new()
    for _ in range(3):
        several(b)
        assert presses.new() == 1
    for position in range(3):
        assert len({id(frames(b, reader)[position]) for reader in readers}) == 1
        assert is_compressed(frames(b, readers[0])[position])
    assert [e.offset for e in b.read_events(readers[-1])] == list(range(1, 16))


@codecs
def test_who_asks_for_none_costs_none(presses: Presses, codec: Codec) -> None:
    """A feed without the suffix is never compressed, and has the events of the one with it, at the same offsets."""
    b = ShardHarness()
    plain = b.connect("plain", codec=codec.without_deflate, subscriptions=["custom.a"])
    packed = b.connect("packed", codec=codec, subscriptions=["custom.a"])
    presses.new()
    several(b)
    assert presses.new() == 1
    [one], [other] = frames(b, plain), frames(b, packed)
    assert is_compressed(other)
    assert len(other) < len(one) / 2
    assert codec.without_deflate.decode_server(one) == codec.decode_server(other)


def test_fragments_are_encoded_once_for_both() -> None:
    """An event is encoded once for a codec, with the suffix and without."""
    b = ShardHarness()
    b.connect("plain", codec=Codec.json, subscriptions=["custom.a"])
    b.connect("packed", codec=Codec.json_deflate, subscriptions=["custom.a"])
    several(b, 1)
    [entry] = b.shard.log.entries_after(0)
    assert len(entry._fragments) == 1


@codecs
def test_a_frame_for_one_alone_is_not_compressed(presses: Presses, codec: Codec) -> None:
    """A frame with an event of the user's own goes to nobody else: it is plain, and the others' is compressed once."""
    b = ShardHarness()
    readers = [b.connect(f"u{n}", codec=codec, subscriptions=["custom.a"]) for n in range(5)]
    presses.new()
    own = b.make_event("custom.a", {"n": -1}, user="u0")
    b.deliver(own, *[b.make_event("custom.a", {"n": n, "x": "x" * 200}) for n in range(5)])
    b.wait(1)
    assert presses.new() == 1
    assert [is_compressed(frame) for frame in frames(b, readers[0])] == [False]
    assert [is_compressed(frame) for frame in frames(b, readers[1])] == [True]
    assert [e.data["n"] for e in b.read_events(readers[0])] == [-1, 0, 1, 2, 3, 4]
    assert [e.data["n"] for e in b.read_events(readers[1])] == [0, 1, 2, 3, 4]


@codecs
def test_what_many_have_missed_is_compressed_once(presses: Presses, codec: Codec) -> None:
    """Who comes back to the same place, and is given what the recent log has, shares the frames as others do."""
    b = ShardHarness()
    several(b, 40)
    presses.new()
    readers = [b.open_connection(f"u{n}", codec=codec) for n in range(2)]
    b.sockets.stuck.update(readers)
    for reader in readers:
        b.say(reader, c.Hello(subscriptions=["custom.a"], resume=c.Resume(b.epoch, 10)))
    assert presses.new() == 0
    for reader in readers:
        b.sockets.unstick(reader)
    b.wait(1)
    [one], [other] = frames(b, readers[0]), frames(b, readers[1])
    assert presses.new() == 1
    assert is_compressed(one)
    assert one is other
    assert [e.offset for e in b.read_events(readers[0])] == list(range(11, 41))


@codecs
def test_what_the_router_has_for_one_is_not_compressed(codec: Codec) -> None:
    """A replay is plain as far as it was made for one client out of the router's log, and nothing of it is missing."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=20))
    several(b, 60)
    floor = b.shard.log.start_offset
    reader = b.open_connection(codec=codec)
    b.say(reader, c.Hello(subscriptions=["custom.a"], resume=c.Resume(b.epoch, 3)))
    b.answer_requests()
    b.wait(1)
    first, *rest = frames(b, reader)
    assert not is_compressed(first)
    assert all(map(is_compressed, rest))
    made = codec.decode_server(first)
    assert isinstance(made, c.Events)
    assert made.cursor >= floor > 3
    _, *messages = b.read_messages(reader)
    assert [e.offset for m in messages for e in m.events] == list(range(4, 61))


@codecs
def test_slow_readers_at_one_place_share_a_compressed_frame(presses: Presses, codec: Codec) -> None:
    """A compacted frame is compressed once for all who stand at its place, and says all that it has to."""
    b = ShardHarness()
    readers = [b.connect(f"u{n}", "admin", codec, subscriptions=["custom.a", "dns_query_log"]) for n in range(10)]
    b.sockets.stuck.update(readers)
    several(b)
    for part in range(100):
        b.deliver(*[b.make_event("dns_query_log", {**QUERY, "filler": "x" * 200}) for _ in range(20)])
        if part % 10 == 0:
            several(b, 1)
        b.wait(0.05)
    presses.new()
    for reader in readers:
        b.sockets.unstick(reader)
    b.wait(2)
    taken = {tuple(id(f) for f in frames(b, reader)[1:]) for reader in readers}
    [shared] = taken
    assert presses.new() == len(shared) + 1  # the frame that was found not to be enough for them is nobody's
    assert all(is_compressed(frame) for frame in frames(b, readers[0])[1:])
    messages = [m for m in b.read_messages(readers[0]) if isinstance(m, c.Events)]
    events = [e for m in messages for e in m.events]
    assert [e.offset for e in events if e.type == "custom.a"] == [
        offset for offset, _, body in b.journal if b"custom.a" in body
    ]
    sampled = sum(e.type == "dns_query_log" for e in events)
    left = sum(m.compacted.get("dns_query_log", 0) for m in messages)
    assert (sampled + left, left > 0) == (2000, True)


@codecs
def test_states_are_compressed_once_for_all_who_come(presses: Presses, codec: Codec) -> None:
    """Of the states that a client begins with, all frames but the last are made, and compressed, once."""
    b = ShardHarness()
    chance = Random(3)
    for n in range(300):
        data = {"host": f"host{n}", "cpu_usage": n % 100, "x": chance.randbytes(200).hex()}
        b.deliver(b.make_event("system_metrics", data, key=f"host{n}"))
    b.wait(1)
    readers = [b.connect(f"u{n}", "admin", codec, subscriptions=["system_metrics"]) for n in range(10)]
    for reader in readers:
        *shared, last = frames(b, reader)
        assert shared
        assert all(map(is_compressed, shared))
        assert not is_compressed(last)
        assert {e.data["host"] for e in b.read_events(reader)} == {f"host{n}" for n in range(300)}
    assert presses.new() == len(shared)


@codecs
def test_answers_and_pings_are_plain(codec: Codec) -> None:
    """Whatever is no frame of events is what the codec without the suffix would send."""
    b = ShardHarness()
    connection = b.connect(codec=codec, subscriptions=["custom.a"])
    b.say(connection, c.Stats("x" * 600))
    b.wait(30)
    sent = b.sockets.sent[connection]
    assert len(sent) >= 3
    assert not any(map(is_compressed, sent))


@codecs
def test_what_is_counted_is_what_is_sent(codec: Codec) -> None:
    """The bytes in the statistics are those on the wire, and the largest frame is as large as it was there."""
    b = ShardHarness()
    connection = b.connect(codec=codec, subscriptions=["custom.a"])
    several(b)
    [frame] = frames(b, connection)
    assert b.shard.totals["sent_bytes"] == len(frame)
    [feed] = b.shard.feeds
    assert feed.largest_bytes == len(frame)
