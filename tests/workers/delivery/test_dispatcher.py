"""When what goes to which socket, and who doesn't read: told by a shard on sockets in memory."""

from __future__ import annotations

import pytest

from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.reader import MAX_PENDING_REPLIES
from solowire.fanout.recent_log import RecentLog
from solowire.model.events import Priority
from solowire.protocol import messages as c
from solowire.protocol.messages import MAX_FRAME_BYTES, Codec, Events
from solowire.runtime.settings import Settings
from solowire.runtime.settings.shard_settings import FlushSettings
from solowire.workers.delivery.dispatcher import BLOCKED_CHECK_SECONDS, REPLY_FLUSH_BYTES
from tests.support.shard_harness import ShardHarness, connect_stuck

# --------------------------------------------------------------------------------------------- events to clients


def test_the_first_event_of_a_quiet_feed_comes_at_once() -> None:
    """After a while of silence an event waits for no company."""
    b = ShardHarness()
    connection = b.connect(subscriptions=["custom.a"])
    b.publish("custom.a", priority=Priority.low)
    assert len(b.read_events(connection)) == 1
    b.wait(5)
    b.publish("custom.a", priority=Priority.normal)
    assert len(b.read_events(connection)) == 1


@pytest.mark.parametrize(("priority", "seconds"), [(Priority.high, 0.02), (Priority.normal, 0.1), (Priority.low, 1.0)])
def test_events_wait_for_company_as_long_as_their_priority_says(priority: Priority, seconds: float) -> None:
    """In a busy feed high waits 20 ms, normal 100 ms and low a second, and then all come in one frame."""
    b = ShardHarness()
    connection = b.connect(subscriptions=["custom.a"])
    b.publish("custom.a")
    b.read_messages(connection)
    b.publish("custom.a", priority=priority)
    b.publish("custom.a", priority=priority)
    b.wait(seconds * 0.9)
    assert b.read_messages(connection) == []
    b.wait(seconds * 0.1 + 1e-6)
    [frame] = b.read_messages(connection)
    assert [e.offset for e in frame.events] == [2, 3]
    assert frame.cursor == 3


def test_a_shard_with_few_connections_lets_nobody_wait() -> None:
    """Events wait for company no longer than a millisecond for each connection that the shard has."""
    b = ShardHarness(shard__flush=FlushSettings())
    connection = b.connect(subscriptions=["custom.a"])
    b.connect("bob", subscriptions=["custom.a"])
    b.publish("custom.a")
    b.publish("custom.a", priority=Priority.low)
    assert len(b.read_events(connection)) == 1
    b.wait(0.0021)
    assert len(b.read_events(connection)) == 1


def test_a_critical_event_comes_at_once_with_all_before_it() -> None:
    """A critical event waits for nothing, and takes along what was waiting, in the order of the log."""
    b = ShardHarness()
    connection = b.connect(subscriptions=["custom.a"])
    b.publish("custom.a")
    b.publish("custom.a", priority=Priority.low)
    b.read_messages(connection)
    b.publish("custom.a", priority=Priority.critical)
    assert [e.offset for e in b.read_events(connection)] == [2, 3]


def test_equal_connections_get_the_same_frame() -> None:
    """Two users who may see and want the same are sent the very same bytes, encoded once."""
    b = ShardHarness()
    one, two = (b.connect(u, subscriptions=["custom.a"]) for u in ("alice", "bob"))
    b.publish("custom.a", {"n": 1})
    assert b.sockets.sent[one][-1] is b.sockets.sent[two][-1]
    assert len(b.shard.feeds) == 1


def test_a_personal_event_behind_a_full_frame_arrives() -> None:
    """A personal event that comes in one batch with more than a frame holds is not lost between the frames."""
    b = ShardHarness()
    alice = b.connect("alice", subscriptions=["custom.*"])
    bob = b.connect("bob", subscriptions=["custom.*"])
    big = {"x": "x" * 30_000}
    batch = [b.make_event("custom.big", big) for _ in range(6)]
    batch.append(b.make_event("custom.mine", user="alice"))
    batch.append(b.make_event("custom.after"))
    b.deliver(*batch)
    b.wait(1)
    assert [e.offset for e in b.read_events(alice)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [e.offset for e in b.read_events(bob)] == [1, 2, 3, 4, 5, 6, 8]


def test_a_personal_event_survives_a_change_of_feed() -> None:
    """A personal event that waits for company is not lost when its user changes subscriptions in that moment."""
    b = ShardHarness()
    alice = b.connect("alice", subscriptions=["custom.a"])
    bob = b.connect("bob", subscriptions=["custom.a", "custom.b"])
    b.deliver(b.make_event("custom.a"))  # both feeds now stand at the same place
    b.deliver(b.make_event("custom.a"), b.make_event("custom.a", user="alice"))
    b.say(alice, c.Subscribe(["custom.b"]))
    b.wait(1)
    assert [e.offset for e in b.read_events(alice)] == [1, 2, 3]
    assert [e.offset for e in b.read_events(bob)] == [1, 2]


def test_a_personal_event_survives_a_reconnect() -> None:
    """A personal event that waits for company is not lost when its user comes back in that moment."""
    b = ShardHarness()
    alice = b.connect("alice", subscriptions=["custom.*"])
    b.connect("bob", subscriptions=["custom.*"])
    b.deliver(b.make_event("custom.a"))
    b.deliver(b.make_event("custom.a"), b.make_event("custom.a", user="alice"))
    again = b.connect("alice", subscriptions=["custom.*"], resume=c.Resume("epoch-1", 1))
    b.wait(1)
    assert [e.offset for e in b.read_events(alice)] == [1]
    assert [e.offset for e in b.read_events(again)] == [2, 3]


def test_a_quiet_connection_is_never_too_slow() -> None:
    """A connection that had nothing to get for longer than the log remembers gets its next event and no gap."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=20))
    alice = b.connect("alice", subscriptions=["custom.quiet"])
    busy = b.connect("bob", subscriptions=["custom.quiet"])
    b.sockets.stuck.add(busy)
    b.say(busy, c.Ping())  # its socket is busy from now on
    for _ in range(100):
        b.publish("custom.loud")
    b.publish("custom.quiet", user="alice")
    b.wait(1)
    b.publish("custom.quiet")
    b.wait(1)
    b.sockets.unstick(busy)
    b.wait(1)
    assert [e.offset for e in b.read_events(alice)] == [101, 102]
    assert [e.offset for e in b.read_events(busy)] == [102]
    assert b.close_code(alice) is None
    assert b.close_code(busy) is None


def test_a_quiet_connection_whose_socket_is_busy_is_not_too_slow() -> None:
    """A connection that is busy for a moment when the first event in a long while comes gets it, and no gap."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=20))
    busy = connect_stuck(b, subscriptions=["custom.quiet"])
    for _ in range(100):
        b.publish("custom.loud")
    b.publish("custom.quiet")
    b.wait(1)
    b.sockets.unstick(busy)
    b.wait(1)
    assert [e.offset for e in b.read_events(busy)] == [101]
    assert b.close_code(busy) is None


@pytest.mark.parametrize("codec", Codec)
def test_frames_are_bounded(codec: Codec) -> None:
    """Many events at once are cut into frames of at most 64 KB; only an event larger than that exceeds it."""
    b = ShardHarness()
    connection = b.connect(codec=codec, subscriptions=["custom.a"])
    slow = b.connect("bob", codec=codec, subscriptions=["custom.a"])
    b.sockets.stuck.add(slow)
    b.say(slow, c.Ping())
    sizes = [100, 9_000, 40_000, 40_000, 70_000, 5, 30_000, 30_000, 64_000]
    b.deliver(*[b.make_event("custom.a", {"x": "ü" * (n // 2)}) for n in sizes])
    b.wait(0.05)
    b.sockets.unstick(slow)
    b.wait(1)
    for reader in (connection, slow):
        frames = [f.encode() if isinstance(f, str) else f for f in b.sockets.sent[reader]]
        assert [e.offset for e in b.read_events(reader)] == list(range(1, 10))
        assert sum(len(f) > MAX_FRAME_BYTES for f in frames) <= (3 if codec.is_json else 1) * 3
        for frame in frames:
            message = codec.decode_server(frame)
            is_single = isinstance(message, Events) and len(message.events) == 1
            assert len(frame) <= MAX_FRAME_BYTES or is_single


def test_an_event_that_messagepack_cant_say_stops_nobody() -> None:
    """An integer of 30 digits, which JSON allows, neither stops the shard nor keeps other events from coming."""
    b = ShardHarness()
    one = b.connect("alice", codec=Codec.msgpack, subscriptions=["custom.a"])
    two = b.connect("bob", codec=Codec.json, subscriptions=["custom.a"])
    b.deliver(b.make_event("custom.a", {"n": 10**30}), b.make_event("custom.a", {"n": 1}))
    b.wait(1)
    assert [e.data["n"] for e in b.read_events(one)] == [1e30, 1]
    assert [e.data["n"] for e in b.read_events(two)] == [10**30, 1]


# ------------------------------------------------------------------------------------------------- slow readers


def test_a_reader_that_is_stuck_is_closed() -> None:
    """A client that reads nothing for 30 seconds is closed to come back; until then it keeps its place."""
    b = ShardHarness()
    connection = connect_stuck(b, subscriptions=["custom.a"])
    b.publish("custom.a")
    b.wait(29.9)
    assert b.close_code(connection) is None
    b.wait(0.3)
    assert [m.code for m in b.read_messages(connection)] == ["gap"]
    assert b.close_code(connection) == 4413
    assert connection not in b.shard.connections


def test_a_reader_that_is_stuck_costs_nothing() -> None:
    """Ten thousand events for a client that reads nothing are neither sent nor kept for it, and others don't wait."""
    b = ShardHarness()
    connection = connect_stuck(b, subscriptions=["custom.a"])
    other = b.connect("bob", subscriptions=["custom.a"])
    before = len(b.sockets.sent[connection])
    for _ in range(100):
        b.deliver(*[b.make_event("custom.a", {"x": "x" * 100}) for _ in range(100)])
        b.wait(0.05)
    b.wait(0.2)
    assert len(b.read_events(other)) == 10_000
    assert len(b.sockets.sent[connection]) == before
    assert not connection.reader.pending_replies
    assert connection.feed is not None
    assert connection.feed._pending == []


def test_a_reader_that_recovers_gets_all_of_it() -> None:
    """A client that was stuck for a while gets everything it has missed, in order, once, and is current again."""
    b = ShardHarness()
    connection = connect_stuck(b, subscriptions=["custom.a"])
    b.connect("bob", subscriptions=["custom.a"])
    for _ in range(50):
        b.publish("custom.a", {"x": "x" * 5_000})
        b.wait(0.11)
    b.sockets.unstick(connection)
    b.wait(1)
    assert [e.offset for e in b.read_events(connection)] == list(range(1, 51))
    assert connection.feed is not None
    assert connection in connection.feed.current


def test_a_reader_that_fell_out_of_the_log_is_told() -> None:
    """A client so slow that the log has forgotten what comes next is told of the gap and closed to resync."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=20))
    connection = connect_stuck(b, subscriptions=["custom.a"])
    for _ in range(50):
        b.publish("custom.a")
    b.wait(0.1)
    b.sockets.unstick(connection)
    b.wait(0.1)
    assert [m.code for m in b.read_messages(connection)] == ["gap"]
    assert b.close_code(connection) == 4413


def test_answers_to_a_stuck_reader_are_bounded() -> None:
    """A client that asks and never reads is closed before its answers pile up."""
    b = ShardHarness()
    connection = connect_stuck(b)
    for n in range(MAX_PENDING_REPLIES):
        b.say(connection, c.Ping(n))
    assert b.close_code(connection) is None
    b.read_messages(connection)
    b.say(connection, c.Ping("one more"))
    assert [m.code for m in b.read_messages(connection)] == ["gap"]
    assert b.close_code(connection) == 4413


def test_who_changes_what_it_wants_too_late_is_told() -> None:
    """For what it wants now nobody has counted what has left the log: it hears so, however busy its socket is."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=20))
    connection = connect_stuck(b, subscriptions=["custom.a"])
    for _ in range(50):
        b.publish("custom.a")
    b.say(connection, c.Subscribe(["custom.b"]))
    assert [m.code for m in b.read_messages(connection)] == ["gap"]
    assert b.close_code(connection) == 4413


def test_answers_come_before_the_events_behind_them() -> None:
    """The answer to a subscription comes before the first of its events, also when the socket was busy between."""
    b = ShardHarness()
    connection = connect_stuck(b, subscriptions=[])
    b.say(connection, c.Subscribe(["custom.a"], "s"))
    b.sockets.unstick(connection)  # it reads again, but nobody has looked yet
    b.publish("custom.a")
    b.wait(1)
    assert [type(m) for m in b.read_messages(connection)] == [c.Subscriptions, c.Events]


@pytest.mark.parametrize("while_stuck", [0, 1])
def test_the_welcome_comes_first(while_stuck: int) -> None:
    """Nothing of the current state and no event comes before the welcome, also when the socket was busy."""
    b = ShardHarness()
    b.publish("system_metrics", {"cpu_usage": 1}, key="ns1")
    connection = b.open_connection()
    b.sockets.stuck.add(connection)
    b.say(connection, c.Ping())
    b.say(connection, c.Hello(subscriptions=["system_metrics", "custom.a"]))
    for _ in range(while_stuck):
        b.publish("custom.a")
    b.sockets.unstick(connection)  # it reads again, but nobody has looked yet
    b.publish("custom.a")
    b.wait(1)
    messages = b.read_messages(connection)
    assert [type(m) for m in messages[:3]] == [c.Pong, c.Welcome, c.Events]
    assert [e.offset for m in messages[2:] for e in m.events] == list(range(1, 3 + while_stuck))


def test_a_long_beginning_goes_out_as_fast_as_the_socket_takes_it() -> None:
    """A socket that has taken a part of a replay gets the next at once; one that takes nothing is not given more."""
    b = ShardHarness()
    connection = b.connect()
    before = len(b.sockets.sent[connection])
    b.sockets.stuck.add(connection)
    b.shard.dispatcher.send_initial(connection, ["x" * 10_000] * 100, b.now)
    part = len(b.sockets.sent[connection])
    assert REPLY_FLUSH_BYTES / 10_000 <= part - before < 50
    b.wait(BLOCKED_CHECK_SECONDS)
    assert len(b.sockets.sent[connection]) == part
    for _ in range(3):
        b.sockets.read_all(connection)
        b.shard.dispatcher.on_writable(connection, b.now)
    assert len(b.sockets.sent[connection]) == before + 100


def test_a_reader_of_a_long_beginning_is_not_taken_for_stuck() -> None:
    """However long it takes, as long as its socket takes some of it now and then."""
    b = ShardHarness()
    connection = b.connect()
    b.read_messages(connection)
    b.sockets.stuck.add(connection)
    b.shard.dispatcher.send_initial(connection, ["x" * 10_000] * 200, b.now)
    for _ in range(4):
        b.wait(Settings().listen.write_timeout_s * 0.6)
        b.sockets.read_all(connection)
        b.shard.dispatcher.on_writable(connection, b.now)
    assert b.close_code(connection) is None
    b.wait(Settings().listen.write_timeout_s * 1.1)
    assert b.close_code(connection) == 4413
