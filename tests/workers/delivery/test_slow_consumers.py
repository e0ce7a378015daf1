"""Slow readers, floods and paced states, told by a shard on sockets in memory."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.aggregation import CALM_INTERVALS, MAX_COLLECTED, SAMPLE_EVENTS
from solowire.fanout.catch_up import OLDER_ENTRIES
from solowire.fanout.feed import Feed
from solowire.fanout.frame_builder import FeedFilter
from solowire.fanout.reader import RECOVERY_SECONDS
from solowire.fanout.recent_log import OLDER, Entry, RecentLog
from solowire.model.events import Priority
from solowire.protocol import messages as c
from solowire.protocol.messages import MAX_FRAME_BYTES, Codec
from solowire.runtime.settings.shard_settings import AggregationSettings, ConflationSettings
from solowire.workers.connections.connection import Connection
from solowire.workers.delivery.slow_consumers import (
    MADE_UP_READS,
    MAX_READS,
    READS_PER_SECOND,
    TURN_SECONDS,
    SlowConsumers,
)
from tests.support.shard_harness import QUERY, WALL, ShardHarness

ALL = ["custom.*", "dns_query_log", "rpz_hit", "system_metrics", "record_created"]


def stuck(b: ShardHarness, user: str = "alice", **hello: Any) -> Connection:
    """A live connection whose socket takes nothing any more."""
    connection = b.connect(user, "admin", **{"subscriptions": ALL, **hello})
    stick(b, connection)
    return connection


def stick(b: ShardHarness, connection: Connection) -> None:
    b.sockets.stuck.add(connection)
    b.say(connection, c.Ping())
    b.read_messages(connection)


def queries(b: ShardHarness, count: int, **data: Any) -> None:
    b.deliver(
        *[b.make_event("dns_query_log", {**QUERY, "query_domain": f"n{n % 7}.org", **data}) for n in range(count)]
    )


def metrics(b: ShardHarness, host: str, value: float, **more: Any) -> int:
    return b.publish("system_metrics", {"host": host, "cpu_usage": value}, key=host, **more)


def frames(b: ShardHarness, connection: Connection) -> list[c.Events]:
    return [m for m in b.read_messages(connection) if isinstance(m, c.Events)]


def counted(messages: list[c.Events], name: str) -> int:
    return sum(m.compacted.get(name, 0) for m in messages)


# ------------------------------------------------------------------------------------------------ slow readers


@pytest.mark.parametrize("codec", Codec)
def test_a_slow_reader_gets_compacted_frames(codec: Codec) -> None:
    """All durable events, critical first, the newest of each state, and telemetry sampled, summed up and counted."""
    b = ShardHarness()
    slow = stuck(b, codec=codec)
    quick = b.connect("bob", "admin", subscriptions=ALL)
    for n in range(300):
        queries(b, 5, filler="x" * 200)
        metrics(b, f"ns{n % 3}", n % 100)
        if n % 10 == 0:
            b.publish("custom.a", {"n": n}, priority=Priority.critical if n == 200 else Priority.normal)
        b.wait(0.05)
    b.sockets.unstick(slow)
    b.wait(0.5)
    begin, *rest = b.read_messages(slow)
    assert (begin.code, begin.active, begin.behind) == ("slow_consumer", True, 1830)
    events = [e for m in rest for e in m.events]
    durable = [e for e in events if e.type == "custom.a"]
    assert sorted(e.data["n"] for e in durable) == list(range(0, 300, 10))
    assert events[0].data == {"n": 200}
    states = [e.offset for e in events if e.type == "system_metrics"]
    assert len(states) == 3
    assert counted(rest, "system_metrics") == 297
    sent = [e for e in events if e.type == "dns_query_log"]
    assert len(sent) + counted(rest, "dns_query_log") == 1500
    assert 1 <= len(sent) <= SAMPLE_EVENTS * len(rest)
    [stats] = [e.data for e in events if e.source == "solowire"]
    assert (stats["total_queries"], stats["query_types"]) == (1500, {"A": 1500})
    assert stats["top_clients"] == {"10.0.0.1": 1500}
    assert len(stats["top_names"]) == 5
    assert rest[-1].cursor == b.offset
    assert len(b.read_events(quick)) == 1830


def test_the_rate_of_a_source_that_sends_batches_is_not_that_within_a_batch() -> None:
    """A slow reader's rate counts from the event before the first that it lacks, a flood's from the summary before."""
    b = ShardHarness()
    b.publish("custom.a", {}, taken=WALL)
    slow = stuck(b)
    for n in range(2):  # once a second, within 10 ms
        for part in (0.99, 1.0):
            data = {**QUERY, "filler": "x" * 200}
            b.deliver(*[b.make_event("dns_query_log", data, taken=WALL + n + part) for _ in range(500)])
    b.wait(0.1)
    b.sockets.unstick(slow)
    b.wait(1)
    [stats] = [e.data for m in frames(b, slow) for e in m.events if e.source == "solowire"]
    assert (stats["total_queries"], stats["window_s"], stats["queries_per_second"]) == (2_000, 2.0, 1_000.0)
    b = flooded()
    reader = b.connect("alice", "admin", subscriptions=["dns_query_log"])
    for n in range(4):
        for part in (0.99, 1.0):
            b.deliver(*[b.make_event("dns_query_log", QUERY, taken=WALL + n + part) for _ in range(500)])
            b.wait(0.01)
        b.wait(0.98)
    rates = [e.data["queries_per_second"] for m in frames(b, reader) for e in m.events if e.source == "solowire"]
    assert rates[1:] == [pytest.approx(1_000.0, rel=0.05)] * len(rates[1:])
    assert len(rates) >= 2


def test_a_slow_reader_gets_all_critical_states() -> None:
    """A critical value is never left out for a newer one, and no older one comes behind it."""
    b = ShardHarness()
    slow = stuck(b)
    for n in range(10):
        metrics(b, "ns1", n, priority=Priority.critical if n in (2, 5) else Priority.normal)
    metrics(b, "ns2", 1)
    metrics(b, "ns2", 2, priority=Priority.critical)
    for _ in range(40):
        b.publish("custom.a", {"x": "x" * 2_000})
    b.wait(0.1)
    b.sockets.unstick(slow)
    b.wait(0.5)
    begin, *rest = b.read_messages(slow)
    assert begin.code == "slow_consumer"
    events = [e for m in rest for e in m.events if e.type == "system_metrics"]
    assert [e.data["cpu_usage"] for e in events if e.data["host"] == "ns1"] == [2, 5, 9]
    assert [e.data["cpu_usage"] for e in events if e.data["host"] == "ns2"] == [2]
    assert counted(rest, "system_metrics") == 8


def test_a_slow_reader_is_told_once_when_it_begins_and_once_when_it_is_over() -> None:
    """One that falls behind again and again before it has been current for a while is in the same episode."""
    b = ShardHarness()
    slow = stuck(b)
    notices = []
    for _ in range(6):
        for _ in range(20):
            b.publish("custom.a", {"x": "x" * 9_000})
            b.wait(0.02)
        b.sockets.unstick(slow)
        b.wait(0.2)
        notices += [(m.code, m.active) for m in b.read_messages(slow) if isinstance(m, c.Notice)]
        stick(b, slow)
    assert notices == [("slow_consumer", True)]
    b.sockets.unstick(slow)
    b.wait(RECOVERY_SECONDS + 1)
    notices += [(m.code, m.active) for m in b.read_messages(slow) if isinstance(m, c.Notice)]
    assert notices == [("slow_consumer", True), ("slow_consumer", False)]
    b.publish("dns_query_log", QUERY)
    assert [m.compacted for m in frames(b, slow)] == [{}]


def test_events_of_its_own_make_nobody_slow() -> None:
    """One that takes everything at once is slow no longer, although each event for it alone puts it behind its feed."""
    b = ShardHarness()
    slow = stuck(b)
    for _ in range(20):
        b.publish("custom.a", {"x": "x" * 9_000})
        b.wait(0.02)
    b.sockets.unstick(slow)
    for _ in range(60):
        b.publish("custom.a", user="alice")
        b.wait(0.05)
    assert [m.active for m in b.read_messages(slow) if isinstance(m, c.Notice)] == [True, False]


def test_a_reader_that_one_frame_helps_is_not_slow() -> None:
    """Who was busy for a moment gets what it lacks as it is, and no notice."""
    b = ShardHarness()
    slow = stuck(b)
    queries(b, 50)
    metrics(b, "ns1", 1)
    metrics(b, "ns1", 2)
    b.wait(0.1)
    b.sockets.unstick(slow)
    b.wait(0.1)
    [frame] = b.read_messages(slow)
    assert (len(frame.events), frame.compacted) == (52, {})


def test_telemetry_that_the_log_has_dropped_is_counted() -> None:
    """Who is so slow that the log forgets telemetry and states goes on: every one counted, and no newest state lost."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=50))
    slow = stuck(b)
    metrics(b, "quiet", 1)
    for n in range(40):
        queries(b, 10)
        metrics(b, "busy", n)
        b.wait(0.05)
    b.sockets.unstick(slow)
    b.wait(1)
    got = b.read_messages(slow)
    messages = [m for m in got if isinstance(m, c.Events)]
    events = [e for m in messages for e in m.events]
    assert [m.code for m in got if isinstance(m, c.Notice)] in ([], ["slow_consumer"])
    assert b.close_code(slow) is None
    assert sum(e.type == "dns_query_log" for e in events) + counted(messages, "dns_query_log") == 400
    assert [e.data["host"] for e in events if e.type == "system_metrics"].count("quiet") == 1
    assert [e.data["cpu_usage"] for e in events if e.data.get("host") == "busy"][-1] == 39
    assert sum(e.type == "system_metrics" for e in events) + counted(messages, "system_metrics") == 41


def test_what_the_log_drops_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many feeds have a reader that lacks it, none looks through it for itself, and each has its count."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=1_000))
    readers = [stuck(b, f"u{n}", subscriptions=["dns_query_log", f"custom.t{n}"]) for n in range(50)]
    looked = 0
    accepts = FeedFilter.accepts

    def counting(wants: FeedFilter, entry: Entry) -> bool:
        nonlocal looked
        looked += 1
        return accepts(wants, entry)

    monkeypatch.setattr(FeedFilter, "accepts", counting)
    for _ in range(20):
        queries(b, 100)
        b.wait(0.01)
    assert looked < 2_000
    for reader in readers:
        b.sockets.unstick(reader)
    b.wait(1)
    for reader in readers:
        messages = frames(b, reader)
        events = [e for m in messages for e in m.events if e.source != "solowire"]
        assert len(events) + counted(messages, "dns_query_log") == 2_000


ONE_OR_ALL = pytest.mark.parametrize("user", [None, "alice"], ids=["for all", "for its reader alone"])


@ONE_OR_ALL
def test_no_flood_takes_a_durable_event_from_a_slow_reader(user: str | None) -> None:
    """What a flood has pushed out of the log is counted, but for the newest states and durable events: they come."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=50))
    slow = stuck(b)
    first = b.publish("custom.a", user=user)
    metrics(b, "ns1", 1)
    last = b.publish("custom.b", user=user, priority=Priority.critical)
    metrics(b, "ns1", 2)
    for _ in range(40):
        queries(b, 10)
    between = b.publish("custom.a")
    b.sockets.unstick(slow)
    b.wait(0.1)
    messages = frames(b, slow)
    events = [e for m in messages for e in m.events]
    assert [e.offset for e in events if e.type.startswith("custom.")] == [last, first, between]
    assert [e.data["cpu_usage"] for e in events if e.type == "system_metrics"] == [2]
    assert counted(messages, "system_metrics") == 1
    queried = [e for e in events if e.type == "dns_query_log"]
    assert len(queried) + counted(messages, "dns_query_log") == 400
    assert counted(messages, "custom.a") == counted(messages, "custom.b") == 0
    assert b.close_code(slow) is None


def test_durable_events_that_have_left_the_log_come_frame_by_frame() -> None:
    """More of them than one frame looks through, among others that the reader doesn't want, come whole and in order."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=20 * OLDER_ENTRIES))
    slow = stuck(b, subscriptions=["custom.a", "dns_query_log"])
    wanted = []
    for _ in range(OLDER_ENTRIES // 5):
        wanted.append(b.publish("custom.a"))
        b.deliver(*[b.make_event("custom.b") for _ in range(19)])
    for _ in range(200):
        queries(b, OLDER_ENTRIES // 10)
    assert b.shard.log.start_offset >= wanted[-1]
    b.sockets.unstick(slow)
    b.wait(3)
    messages = frames(b, slow)
    assert [e.offset for m in messages for e in m.events if e.type == "custom.a"] == wanted
    assert b.close_code(slow) is None


@ONE_OR_ALL
def test_a_durable_event_that_is_gone_is_a_gap(user: str | None) -> None:
    """A durable event is never left out: its reader is told, closed, and comes back with its cursor."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=50), limits__max_connections_per_user=2)
    slow = stuck(b)
    other = stuck(b, "bob", subscriptions=["dns_query_log", "custom.b"])
    has_it = b.connect("alice", "admin", subscriptions=ALL)
    b.publish("custom.a", user=user)
    b.wait(0.2)
    stick(b, has_it)
    kept = 50 // OLDER
    for _ in range(kept):
        b.publish("custom.b")
    for _ in range(40):
        queries(b, 10)
    b.sockets.unstick(slow)
    b.sockets.unstick(other)
    b.sockets.unstick(has_it)
    b.wait(0.1)
    assert [m.code for m in b.read_messages(slow)] == ["gap"]
    assert b.close_code(slow) == 4413
    assert b.close_code(has_it) is None
    assert [e.type for m in frames(b, other) for e in m.events].count("custom.b") == kept
    assert b.close_code(other) is None


def test_who_comes_back_gets_everything_however_slowly() -> None:
    """What was missed is sent in full, also to one that reads slowly: it is compacted only behind that."""
    b = ShardHarness()
    for _ in range(100):
        queries(b, 10, filler="x" * 200)
    b.wait(1)
    back = b.open_connection("alice", "admin")
    b.sockets.stuck.add(back)
    b.say(back, c.Hello(subscriptions=ALL, resume=c.Resume(b.epoch, 0)))
    queries(b, 500)
    for _ in range(100):
        b.sockets.unstick(back)
        b.sockets.stuck.add(back)
        b.wait(0.05)
    messages = frames(b, back)
    whole = [e.offset for m in messages if not m.compacted for e in m.events]
    assert whole[:1000] == list(range(1, 1001))
    assert sum(len(m.events) for m in messages if not m.compacted) + counted(messages, "dns_query_log") <= 1500 + 40


def test_who_comes_back_in_a_flood_gets_sums_before_it_falls_out_of_the_log() -> None:
    """Where all that was missed is more than half of the log, and its reader is slow, telemetry of it is summed up."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=2_000))
    last = b.publish("record_created", {"zone": "example.com", "name": "a", "type": "A", "data": "192.0.2.1"})
    for _ in range(150):
        queries(b, 10, filler="x" * 200)
    b.wait(1)
    back = b.open_connection("alice", "admin")
    b.sockets.stuck.add(back)
    b.say(back, c.Hello(subscriptions=ALL, resume=c.Resume(b.epoch, 0)))
    for _ in range(40):
        queries(b, 40)  # nearly as many as the log holds, while it reads a frame at a time
        b.sockets.unstick(back)
        b.sockets.stuck.add(back)
        b.wait(0.05)
    assert b.close_code(back) is None
    messages = frames(b, back)
    assert last in [e.offset for m in messages for e in m.events]
    assert counted(messages, "dns_query_log") > 1_000


def test_who_takes_nothing_is_not_asked_at_every_flush() -> None:
    """A thousand stuck connections are looked at when it is time, not whenever somebody else gets something."""
    b = ShardHarness(listen__write_timeout_s=1e9)
    quick = b.connect("quick", "admin", subscriptions=["custom.*"])
    slow = [stuck(b, f"u{n}", subscriptions=["custom.*"]) for n in range(100)]
    b.publish("custom.a")
    b.wait(0.2)
    asked = 0
    busy = b.sockets.is_busy

    def counting(connection: Connection) -> bool:
        nonlocal asked
        asked += 1
        return busy(connection)

    b.shard._sockets.is_busy = counting  # type: ignore[method-assign]
    feed = quick.feed
    assert feed is not None
    assert (len(feed.behind), len(feed.unparked)) == (100, 0)
    for _ in range(10):
        b.publish("custom.a", priority=Priority.critical)
    assert asked == 0
    assert len(b.read_events(quick)) == 11
    for connection in slow:
        b.sockets.unstick(connection)
    b.wait(1)
    assert all(len(b.read_events(connection)) == 11 for connection in slow)
    assert feed.behind == feed.unparked == {}


def test_many_slow_readers_take_their_turns() -> None:
    """A hundred at a hundred places don't hold up a turn: some are read for, the others next, and all in the end."""
    b = ShardHarness()
    slow = [stuck(b, f"u{n}") for n in range(100)]
    for connection in slow:  # each stands somewhere else
        b.publish("custom.a", {"x": "x" * 30_000}, user=connection.identity.user)
        for _ in range(3):
            b.publish("custom.a", {"x": "x" * 2_000})
        b.wait(0.05)
        queries(b, 100)
    for connection in slow:
        b.sockets.unstick(connection)
    b.wait(0.025)
    assert 0 < sum(bool(frames(b, connection)) for connection in slow) < 100
    b.wait(10)
    for connection in slow:
        assert connection.feed is not None
        assert connection in connection.feed.current


# ------------------------------------------------------------------------------------------------------ floods


def flooded(**limits: Any) -> ShardHarness:
    return ShardHarness(
        shard__aggregation=AggregationSettings(events_per_s=50, type_events_per_s={"rpz_hit": 10}), **limits
    )


@pytest.mark.parametrize("others", ["none", "for all", "for one"])
def test_a_flood_is_summed_up_and_is_over(others: str) -> None:
    """Above the rate a sample and one summary per interval take the place of the events, whatever else the feed sends,
    of which nothing is left out; later each comes again.
    """
    b = flooded()
    reader = b.connect("alice", "admin", subscriptions=["dns_query_log", "custom.a"])
    messages: list[c.Events] = []
    for _ in range(500):
        queries(b, 20)
        if others != "none":
            b.publish("custom.a", priority=Priority.critical, user="alice" if others == "for one" else None)
        b.wait(0.01)
        messages += frames(b, reader)
    assert b.shard.feeds.aggregating == {"dns_query_log": 1}
    assert all(m.cursor <= n.cursor for m, n in pairwise(messages))
    summaries = [e for m in messages for e in m.events if e.source == "solowire"]
    assert 4 <= len(summaries) <= 6
    assert all(e.type == "dns_query_stats" and e.key == "aggregate" for e in summaries)
    assert 1980 <= summaries[2].data["total_queries"] <= 2020
    assert summaries[2].data["window_s"] == 1.0
    sent = [e for m in messages for e in m.events if e.type == "dns_query_log"]
    assert 50 + 4 * SAMPLE_EVENTS <= len(sent) <= 60 + 6 * SAMPLE_EVENTS
    assert len(messages) <= 10 if others == "none" else len(messages) >= 500
    queries(b, 1)
    b.wait(CALM_INTERVALS + 1)
    assert b.shard.feeds.aggregating == {}
    messages += frames(b, reader)
    queries(b, 1)
    b.wait(0.2)
    last = frames(b, reader)
    assert [(len(m.events), m.compacted) for m in last] == [(1, {})]
    events = [e for m in messages for e in m.events]
    assert sum(e.type == "custom.a" for e in events) == (0 if others == "none" else 500)
    assert sum(e.type == "dns_query_log" for e in events) + counted(messages, "dns_query_log") == 10_001
    summed = sum(e.data["total_queries"] for e in events if e.source == "solowire")
    assert 10_001 - 60 <= summed <= 10_001
    assert b.shard.totals["aggregated_events"] > 9_900


def test_what_else_goes_out_says_how_many_there_were() -> None:
    """Between the ends of two intervals a frame has the counts up to its cursor: who is cut off has missed nothing
    that it was not told of.
    """
    b = flooded()
    reader = b.connect("alice", "admin", subscriptions=["dns_query_log", "custom.a"])
    queries(b, 300)
    b.wait(1.5)
    frames(b, reader)
    queries(b, 3)
    assert frames(b, reader) == []
    first = b.publish("custom.a", priority=Priority.critical)
    queries(b, 100)
    second = b.publish("custom.a", priority=Priority.critical)
    messages = frames(b, reader)
    assert [m.cursor for m in messages] == [first, second]
    for frame, queries_before in zip(messages, (3, 100), strict=True):
        assert (
            sum(e.type == "dns_query_log" for e in frame.events) + counted([frame], "dns_query_log") == queries_before
        )
        assert counted([frame], "dns_query_log") > 0
        assert all(e.source != "solowire" for e in frame.events)
        assert [e.offset for e in frame.events] == sorted(e.offset for e in frame.events)
    b.wait(1.0)
    [last] = frames(b, reader)
    assert [(e.source, e.data["total_queries"]) for e in last.events] == [("solowire", 103)]
    assert (last.cursor, last.compacted) == (second, {"dns_query_log": 0})


def test_a_critical_query_does_not_wait_in_a_flood() -> None:
    """Critical telemetry goes out at once and in full, to those who are level and to those who are behind."""
    b = flooded()
    readers = [b.connect(u, "admin", subscriptions=["dns_query_log", "custom.a"]) for u in ("alice", "bob")]
    queries(b, 300)
    b.wait(1.5)
    for reader in readers:
        frames(b, reader)
    queries(b, 100)
    stick(b, readers[1])
    critical = b.publish("dns_query_log", QUERY, priority=Priority.critical)
    messages = frames(b, readers[0])
    assert [m.cursor for m in messages] == [critical]
    assert messages[0].events[-1].offset == critical
    b.sockets.unstick(readers[1])
    b.wait(0.1)
    assert critical in [e.offset for m in frames(b, readers[1]) for e in m.events]
    b.wait(1.5)
    assert critical not in [e.offset for m in frames(b, readers[0]) for e in m.events if e.source != "solowire"]


def test_one_query_every_second_does_not_end_at_the_rate() -> None:
    """A flow that keeps the rate stays summed up, and one that pauses for a moment as well."""
    b = flooded()
    b.connect("alice", "admin", subscriptions=["dns_query_log"])
    for pause in (0.1, 0.1, 1.2, 0.1):
        for _ in range(20):
            queries(b, 6)
            b.wait(0.1)
        assert b.shard.feeds.aggregating
        b.wait(pause)


def test_a_flood_shows_clients_only_to_those_who_may_see_them() -> None:
    """The counts of clients are sensitive as the clients themselves."""
    b = flooded()
    readers = [b.connect(role, role, subscriptions=["dns_query_log"]) for role in ("viewer", "operator")]
    queries(b, 300)
    b.wait(2)
    seen = [[e.data for m in frames(b, r) for e in m.events if e.type == "dns_query_stats"] for r in readers]
    assert [["top_clients" in data for data in found] for found in seen] == [[False], [True]]
    assert all("top_names" in data for found in seen for data in found)


def test_types_without_a_summary_are_sampled_and_counted() -> None:
    """A flood of policy hits comes as an even sample with the count of the rest."""
    b = flooded()
    reader = b.connect("alice", "admin", subscriptions=["rpz_hit"])
    for _ in range(10):
        b.deliver(*[b.make_event("rpz_hit", {"query_domain": "a.org", "action": "DROP"}) for _ in range(50)])
        b.wait(0.1)
    b.wait(1)
    messages = frames(b, reader)
    assert sum(len(m.events) for m in messages) + counted(messages, "rpz_hit") == 500
    assert counted(messages, "rpz_hit") > 400


def test_one_who_joins_in_a_flood_gets_a_summary_of_its_own() -> None:
    """A connection that stands somewhere else in the interval gets the summary of what lies behind its own cursor."""
    b = flooded()
    b.connect("alice", "admin", subscriptions=["dns_query_log"])
    queries(b, 300)
    b.wait(1.5)
    queries(b, 100)
    late = b.connect("bob", "admin", subscriptions=["dns_query_log"])
    queries(b, 60)
    assert frames(b, late) == []
    b.wait(1.1)
    messages = frames(b, late)
    assert sum(e.type == "dns_query_log" for m in messages for e in m.events) + counted(messages, "dns_query_log") == 60


def test_feeds_that_end_in_a_flood_take_nothing_from_the_others() -> None:
    """While others come and go in the middle of an interval, who stays gets each event or its count."""
    b = flooded()
    stays = b.connect("bob", "admin", subscriptions=["dns_query_log", "custom.a"])
    goes: Connection | None = None
    for n in range(100):
        if n % 10 == 0:
            goes = b.connect(f"u{n}", "admin", subscriptions=["dns_query_log", f"custom.z{n}"])
        queries(b, 20)
        if n % 10 == 3 and goes is not None:
            b.shard.on_closed(goes)
        b.wait(0.05)
    b.wait(3)
    messages = frames(b, stays)
    sent = [e for m in messages for e in m.events if e.source != "solowire"]
    assert len(sent) + counted(messages, "dns_query_log") == 2000
    there = set(b.shard.feeds)
    assert {feed for due, _, feed in b.shard.dispatcher._due_feeds if feed.flush_at == due} <= there


def test_what_is_collected_is_bounded() -> None:
    """A flood of more than MAX_COLLECTED events is flushed before its interval ends."""
    b = flooded(recent=RecentLog(catalog=CATALOG, max_events=200_000))
    reader = b.connect("alice", "admin", subscriptions=["dns_query_log"])
    queries(b, 60)
    batch = [b.make_event("dns_query_log", QUERY) for _ in range(MAX_COLLECTED)]
    b.deliver(*batch)
    messages = frames(b, reader)
    assert counted(messages, "dns_query_log") > MAX_COLLECTED - 100
    assert all(len(f) < MAX_FRAME_BYTES for f in b.sockets.sent[reader])


def test_a_small_log_does_not_lose_what_is_collected() -> None:
    """What the log drops in the middle of an interval has been sent before."""
    b = flooded(recent=RecentLog(catalog=CATALOG, max_events=100))
    reader = b.connect("alice", "admin", subscriptions=["dns_query_log"])
    for _ in range(30):
        queries(b, 20)
        b.wait(0.01)
    b.wait(2)
    messages = frames(b, reader)
    assert b.close_code(reader) is None
    sent = [e for m in messages for e in m.events if e.source != "solowire"]
    assert len(sent) + counted(messages, "dns_query_log") == 600


# ------------------------------------------------------------------------------------------------ paced states


def paced(interval: float = 30.0, **limits: Any) -> ShardHarness:
    return ShardHarness(
        shard__conflation=ConflationSettings(interval_s=interval, type_interval_s={"bulk_progress": 0}), **limits
    )


def values(messages: list[c.Events]) -> list[float]:
    return [e.data["cpu_usage"] for m in messages for e in m.events if e.type == "system_metrics"]


def test_statistics_come_as_often_as_they_are_made() -> None:
    """A shard with the default settings holds back no `gateway_stats`, unless an interval is set for them."""
    often = ConflationSettings()
    seldom = ConflationSettings(type_interval_s={"gateway_stats": 30})
    for settings, expected in ((often, [1, 2, 3]), (seldom, [1])):
        b = ShardHarness(shard__conflation=settings)
        reader = b.connect("alice", "admin", subscriptions=["gateway_stats", "system_metrics"])
        for value in (1, 2, 3):
            b.publish("gateway_stats", {"connections": value, "node": "all"}, key="all")
            metrics(b, "ns1", value)
            b.wait(2)
        messages = frames(b, reader)
        assert [e.data["connections"] for m in messages for e in m.events if e.type == "gateway_stats"] == expected
        assert values(messages) == [1]


def test_a_state_is_sent_once_per_interval() -> None:
    """The first value at once, and the newest when the interval ends, with the offset that it has had all along."""
    b = paced()
    reader = b.connect("alice", "admin", subscriptions=["*"])
    first = metrics(b, "ns1", 1)
    for value in (2, 3, 4):
        metrics(b, "ns1", value)
    metrics(b, "ns2", 50)
    for n in range(3):
        b.publish("bulk_progress", {"operation_id": "o", "processed": n}, key="o")
    later = b.publish("custom.a")
    b.wait(1)
    assert values(messages := frames(b, reader)) == [1, 50]
    assert sum(e.type == "bulk_progress" for m in messages for e in m.events) == 3
    b.wait(28)
    assert frames(b, reader) == []
    b.wait(1.2)
    [frame] = frames(b, reader)
    assert [(e.offset, e.data["cpu_usage"]) for e in frame.events] == [(first + 3, 4)]
    assert frame.cursor == later
    b.publish("custom.a")
    b.wait(60)
    assert values(frames(b, reader)) == []


def test_what_was_overtaken_is_counted() -> None:
    """The values that are never sent are counted in the next frame; nothing left out is said by a zero."""
    b = paced()
    reader = b.connect("alice", "admin", subscriptions=["*"])
    for value in (1, 2, 3, 4):
        metrics(b, "ns1", value)
    b.wait(31)
    assert [m.compacted for m in frames(b, reader)] == [{}, {"system_metrics": 2}]
    metrics(b, "ns1", 5)
    b.wait(31)
    assert [m.compacted for m in frames(b, reader)] == [{"system_metrics": 0}]


def test_what_is_overtaken_costs_the_feeds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many values wait one after the other, the feeds are looked for once, when the newest is released."""
    b = paced()
    readers = [b.connect(f"u{n}", "admin", subscriptions=["system_metrics", f"custom.t{n}"]) for n in range(5)]
    metrics(b, "ns1", 1)
    b.wait(1)
    looked = 0
    matching = b.shard.feeds.matching

    def counting(entry: Entry) -> set[Feed[Connection]]:
        nonlocal looked
        looked += 1
        return matching(entry)

    monkeypatch.setattr(b.shard.feeds, "matching", counting)
    for value in range(100):
        metrics(b, "ns1", value)
    assert looked == 0
    b.wait(31)
    assert looked == 2
    assert all(counted(frames(b, reader), "system_metrics") == 99 for reader in readers)
    assert b.shard.totals["conflated_states"] == 99


def test_a_critical_state_does_not_wait() -> None:
    """It goes at once, and the interval begins anew."""
    b = paced()
    reader = b.connect("alice", "admin", subscriptions=["*"])
    metrics(b, "ns1", 1)
    metrics(b, "ns1", 2)
    b.wait(10)
    metrics(b, "ns1", 99, priority=Priority.critical)
    assert values(frames(b, reader)) == [1, 99]
    metrics(b, "ns1", 3)
    b.wait(25)
    assert frames(b, reader) == []
    b.wait(6)
    assert values(frames(b, reader)) == [3]


def test_who_is_busy_at_the_release_gets_it_later() -> None:
    """A connection that was stuck when a state was released gets it when it reads on, and only the newest."""
    b = paced()
    reader = b.connect("alice", "admin", subscriptions=["*"])
    metrics(b, "ns1", 1)
    metrics(b, "ns1", 2)
    b.wait(20)
    frames(b, reader)
    stick(b, reader)
    b.wait(11)
    b.publish("custom.a")
    b.wait(1)
    b.sockets.unstick(reader)
    b.wait(1)
    messages = frames(b, reader)
    assert values(messages) == [2]
    assert [e.type for m in messages for e in m.events if not m.compacted] == []
    assert messages[-1].cursor == b.offset


def test_a_personal_state_is_paced_and_released_to_its_user() -> None:
    """A state for one user alone is held back and released like any other, and nobody else gets it."""
    b = paced()
    alice, bob = (b.connect(u, "admin", subscriptions=["*"]) for u in ("alice", "bob"))
    for value in (1, 2, 3):
        metrics(b, "ns1", value, user="alice")
    b.wait(31)
    assert values(frames(b, alice)) == [1, 3]
    assert frames(b, bob) == []


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_state_that_was_held_back_survives_a_reconnect(elsewhere: bool) -> None:
    """Who comes back with a cursor beyond a held state gets its newest value, here or on a shard that knows nothing."""
    b = paced()
    reader = b.connect("alice", "admin", subscriptions=["*"])
    metrics(b, "ns1", 1)
    metrics(b, "ns1", 2)
    b.publish("custom.a")
    b.wait(1)
    assert values(frames(b, reader)) == [1]
    b.shard.on_closed(reader)
    other = paced() if elsewhere else b
    if elsewhere:
        other.deliver(
            *[(other.make_event("system_metrics", {"host": "ns1", "cpu_usage": n}, key="ns1")) for n in (1, 2)]
        )
        other.publish("custom.a")
        other.wait(60)  # it has released the value long ago
    back = other.open_connection("alice", "admin")
    other.say(back, c.Hello(subscriptions=["*"], resume=c.Resume(b.epoch, 3)))
    other.wait(31)
    welcome, *messages = other.read_messages(back)
    assert welcome.resumed
    assert values(messages) == [2]
    assert all("system_metrics" in m.compacted and m.cursor == 3 for m in messages)


def test_a_state_of_long_ago_is_not_sent_again() -> None:
    """What was released well before the client's cursor has arrived: it is no reason to send it once more."""
    b = paced()
    metrics(b, "ns1", 1)
    for _ in range(10):
        b.wait(10)
        b.publish("custom.a")
    back = b.open_connection("alice", "admin")
    b.say(back, c.Hello(subscriptions=["*"], resume=c.Resume(b.epoch, b.offset - 1)))
    b.wait(1)
    _, *messages = b.read_messages(back)
    assert values(messages) == []


def test_a_new_client_gets_the_newest_state_held_back_or_not() -> None:
    """The present states at the welcome are the newest there are."""
    b = paced()
    metrics(b, "ns1", 1)
    metrics(b, "ns1", 2)
    reader = b.open_connection("alice", "admin")
    b.say(reader, c.Hello(subscriptions=["*"]))
    _, *messages = b.read_messages(reader)
    assert values(messages) == [2]


def test_keys_that_are_paced_are_bounded() -> None:
    """With more keys than the log remembers the quietest is released before its time, and none is lost."""
    b = paced(recent=RecentLog(catalog=CATALOG, max_keys=10))
    reader = b.connect("alice", "admin", subscriptions=["*"])
    for value in (1, 2):
        for n in range(10):
            metrics(b, f"ns{n}", value)
    for n in range(10, 20):
        metrics(b, f"ns{n}", 1)
    b.wait(31)
    assert sorted(values(frames(b, reader))) == [1] * 20 + [2] * 10
    assert len(b.shard._conflator._keys) == 10


def reads_at(slow: SlowConsumers, now: float) -> int:
    """How many entries those who wait may read in one turn; afterwards some still wait."""
    entries = 0
    while slow.has_budget(now):
        slow.spend(1000)
        entries += 1000
    return entries


def test_who_waits_while_the_process_stands_still_makes_up_for_it() -> None:
    """A turn has its bound; but what the pause of a whole process took from its readers they get, up to another one."""
    slow = SlowConsumers()
    reads_at(slow, 100.0)
    turns = [reads_at(slow, 100.0 + n * TURN_SECONDS) for n in range(1, 50)]
    assert max(turns) <= MAX_READS
    assert sum(turns) == pytest.approx(READS_PER_SECOND, rel=0.1)
    assert reads_at(slow, 101.3) == pytest.approx(0.3 * READS_PER_SECOND, rel=0.1)
    assert reads_at(slow, 200.0) == pytest.approx(MADE_UP_READS, rel=0.1)
