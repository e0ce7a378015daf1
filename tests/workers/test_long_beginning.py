"""States that are large: who begins with them costs what its socket takes, and nothing when it has gone."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from unittest import mock

import msgspec
import pytest

from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.recent_log import RecentLog
from solowire.fanout.snapshot import KEPT_BYTES
from solowire.protocol import messages as c
from solowire.protocol.messages import Codec, Events
from solowire.workers.connections.connection import Connection
from solowire.workers.delivery.dispatcher import REPLY_FLUSH_BYTES
from tests.support.shard_harness import ShardHarness

STATES = 2_000
STATE_BYTES = 10_000
CODECS = [Codec.json, Codec.msgpack_deflate]


def full_of_states() -> ShardHarness:
    """A shard with 20 MB of states, more than it takes, and more than half of it behind what a feed keeps in frames."""
    with mock.patch("solowire.fanout.recent_log.STATES_BYTES", 2 * STATES * STATE_BYTES):
        b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_bytes=2 * STATES * STATE_BYTES))
    data = {"cpu_usage": 1, "message": "x" * STATE_BYTES}
    b.deliver(*(b.make_event("system_metrics", data, key=f"host {number}") for number in range(STATES)))
    assert STATES * STATE_BYTES > 2 * KEPT_BYTES
    return b


def begin(b: ShardHarness, user: str, codec: Codec, *, takes: bool = False) -> Connection:
    """Says hello, with a socket that takes what it is given at first and no more, unless it `takes`."""
    connection = b.open_connection(user, codec=codec)
    if not takes:
        b.sockets.stuck.add(connection)
    b.say(connection, c.Hello(subscriptions=["system.*"]))
    return connection


def end(b: ShardHarness, connection: Connection) -> None:
    b.shard.on_closed(connection)
    del b.sockets.sent[connection]


@pytest.fixture
def allocated() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.parametrize("codec", CODECS)
def test_what_a_connection_begins_with_is_written_when_its_socket_takes_it(codec: Codec, allocated: None) -> None:
    """Whoever says hello and does not read would else have a shard hold all of it, for each connection anew."""
    b = full_of_states()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    connections = []
    for number in range(10):
        b.publish("system_metrics", {"cpu_usage": 2}, key="another")  # so that no two begin with the same
        connections.append(begin(b, f"user-{number}", codec))
    _, peak = tracemalloc.get_traced_memory()
    assert peak - before < 20 * REPLY_FLUSH_BYTES + KEPT_BYTES < STATES * STATE_BYTES
    assert all(len(b.sockets.sent[connection]) <= 1 + 8 for connection in connections)


@pytest.mark.parametrize("codec", CODECS)
def test_who_has_gone_leaves_nothing_behind(codec: Codec, allocated: None) -> None:
    """Neither the connection, which a timer may know for an hour, nor a feed that others hold on to for a moment."""
    b = full_of_states()
    gone = []
    before, _ = tracemalloc.get_traced_memory()
    for number in range(20):
        connection = begin(b, f"user-{number}", codec, takes=number % 2 == 0)
        end(b, connection)
        gone.append((connection, connection.feed))
        assert not connection.reader.pending_replies
        assert connection.reader.initial_count == 0
    left, _ = tracemalloc.get_traced_memory()
    assert left - before < KEPT_BYTES / 2


@pytest.mark.parametrize("codec", CODECS)
def test_all_states_come_once_and_before_what_is_new(codec: Codec) -> None:
    """However slowly the socket takes them, and with what has come meanwhile behind them."""
    b = full_of_states()
    connection = begin(b, "alice", codec)
    last = b.offset
    new = b.publish("system_status", {"host": "a"}, key="a")
    for _ in range(STATES):
        b.wait(0.05)
        b.sockets.read_all(connection)
        b.shard.dispatcher.on_writable(connection, b.now)
    b.sockets.unstick(connection)
    b.wait(2)
    welcome, *frames = b.read_messages(connection)
    assert isinstance(welcome, c.Welcome)
    assert [e.offset for frame in frames for e in frame.events] == [*range(1, last + 1), new]
    cursors = [frame.cursor for frame in frames]
    assert cursors == sorted(cursors)
    assert all(frame.events[-1].offset <= frame.cursor for frame in frames)
    assert cursors[-2:] == [last, new]


def test_two_who_begin_with_the_same_get_the_same() -> None:
    """What is kept of it, and what each has made for itself, taken in turns."""
    b = full_of_states()
    connections = [begin(b, user, Codec.json) for user in ("alice", "bob")]
    for _ in range(2 * STATES):
        for connection in connections:
            b.sockets.read_all(connection)
            b.shard.dispatcher.on_writable(connection, b.now)
    alice, bob = (b.sockets.sent[connection][1:] for connection in connections)
    assert alice == bob
    frames = [Codec.json.decode_server(frame) for frame in alice]
    assert [e.offset for frame in frames if isinstance(frame, Events) for e in frame.events] == list(
        range(1, STATES + 1)
    )


def test_what_a_connection_begins_with_is_bounded_and_says_what_is_missing() -> None:
    """One publisher's states were 120 MB for each who said hello. Only those who want such states are told."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG))
    honest = b.publish("system_metrics", {"cpu_usage": 1}, key="honest", publisher="honest")
    data = {"cpu_usage": 1, "message": "x" * 30_000}
    for number in range(1000):
        b.publish("system_metrics", data, key=f"host {number}", publisher="eve")
    connection = begin(b, "ann", Codec.json, takes=True)
    frames = b.read_messages(connection)
    notices = [frame for frame in frames if isinstance(frame, c.Notice)]
    assert [notice.code for notice in notices] == [c.STATES_FORGOTTEN]
    assert "system_metrics" in notices[0].message
    events = [event for frame in frames if isinstance(frame, Events) for event in frame.events]
    assert events[0].offset == honest
    assert len(msgspec.json.encode(events)) <= KEPT_BYTES * 1.05
    other = b.open_connection("bob")
    b.say(other, c.Hello(subscriptions=["dns.*"]))
    assert not any(isinstance(frame, c.Notice) for frame in b.read_messages(other))
