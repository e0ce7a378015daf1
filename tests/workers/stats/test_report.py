"""What a shard says of itself: rates, latency, who lags and for how long."""

from __future__ import annotations

from typing import Any

import pytest

from solowire.algorithms.histogram import quantile
from solowire.model.access import Identity
from solowire.observability.stats_summary import MOST_VALUES
from solowire.protocol import messages as c
from solowire.protocol.messages import Codec
from solowire.runtime.settings.shard_settings import AggregationSettings
from solowire.workers.connections.connection import Connection
from solowire.workers.departures import CLOSED
from solowire.workers.stats.cursor_age import MOST_ENTRIES
from solowire.workers.stats.diagnosis import MOST, diagnose
from solowire.workers.stats.report import LATENCY_SECONDS, ShardReporter
from tests.support.shard_harness import WALL, ShardHarness


def reporting_of(bench: ShardHarness, **more: Any) -> ShardReporter:
    reporting = ShardReporter(bench.shard, **more)
    reporting.update(bench.now)
    return reporting


def second(bench: ShardHarness, reporting: ShardReporter) -> Any:
    bench.wait(1.0)
    reporting.update(bench.now)
    return reporting.take_report()


def lagging(bench: ShardHarness, user: str = "slow", **hello: Any) -> Connection:
    """A connection that has taken a frame and is busy with it."""
    connection = bench.connect(user, subscriptions=["custom.*"], **hello)
    bench.sockets.stuck.add(connection)
    bench.publish("custom.a", taken=bench.now + WALL)
    bench.wait(0.2)
    bench.publish("custom.a", taken=bench.now + WALL)
    bench.wait(0.2)
    return connection


def test_it_reports_once_a_second_however_often_it_is_asked() -> None:
    """Heartbeats come twice a second, and every second one has a report."""
    b = ShardHarness()
    reporting = ShardReporter(b.shard)
    reports = []
    for beat in range(10):
        if beat % 2 == 0:
            reporting.update(b.now)
        reports.append(reporting.take_report())
        b.wait(0.5)
    assert [r is not None for r in reports] == [True, False] * 5


def test_who_asks_often_has_nothing_counted_again() -> None:
    """Whoever scrapes gets what the last second counted, and the totals of now."""
    b = ShardHarness()
    b.connect("ann")
    reporting = reporting_of(b)
    b.connect("bob")
    looks: list[int] = []
    lagging = b.shard.dispatcher.find_lagging
    b.shard.dispatcher.find_lagging = lambda: looks.append(1) or lagging()  # type: ignore[method-assign,func-returns-value]
    reports = [reporting.build_report(b.now) for _ in range(100)]
    assert (reports[-1].groups, reports[-1].connections, looks) == ({"viewer": 1}, 2, [])
    assert (second(b, reporting).groups, looks) == ({"viewer": 2}, [1])


def test_without_connections_their_number_is_zero() -> None:
    """A sum over all labels is 0 then, and not missing."""
    assert reporting_of(ShardHarness()).count_connections() == {("", "", ""): 0}


def test_closed_connections_are_counted_by_their_code() -> None:
    """Each connection is counted once: by the code that the shard closed it with, or as one whose client went."""
    b = ShardHarness()
    old = b.connect("ann")
    newer = b.connect("ann")
    for connection in (old, newer):
        b.shard.on_closed(connection)
    totals = b.shard.totals
    closed = {name: count for name, count in totals.items() if name.startswith(CLOSED)}
    assert closed == {f"{CLOSED}4409": 1, f"{CLOSED}client_disconnected": 1}
    assert sum(closed.values()) == totals["connections_opened"]


def test_of_many_groups_the_largest_are_counted_and_the_others_together() -> None:
    """Ten thousand tenants are no ten thousand series."""
    b = ShardHarness(limits__group_by="tenant")
    for n in range(MOST_VALUES + 10):
        for user in (f"user-{n}", f"other-{n}")[: 1 + (n < 5)]:
            b.open_as(Identity(user, "viewer", (), tenant=f"tenant-{n}"))
    counts = reporting_of(b).count_connections()
    assert len(counts) == MOST_VALUES
    assert sum(counts.values()) == MOST_VALUES + 15
    assert counts["tenant-0", "json", "direct"] == 2
    assert counts["other", "json", "direct"] == 11


def test_connections_are_counted_by_group_codec_and_kind() -> None:
    """Each tally has every connection once, and follows a role that has changed."""
    b = ShardHarness()
    b.connect("ann", "viewer")
    b.connect("bob", "admin", Codec.msgpack)
    b.connect("dan", "viewer", Codec.json_deflate)
    identity = b.shard.admit(b.issue_ticket("cid"), b.now).identity
    b.shard.open_connection(identity, Codec.json, None, b.now, kind="relayed")
    reporting = reporting_of(b)
    stats = second(b, reporting)
    assert stats.groups == {"viewer": 3, "admin": 1}
    assert stats.codecs == {"json": 2, "msgpack": 1, "json+deflate": 1}
    assert stats.transports == {"direct": 3, "relayed": 1}
    assert reporting.count_connections() == {
        ("viewer", "json", "direct"): 1,
        ("admin", "msgpack", "direct"): 1,
        ("viewer", "json+deflate", "direct"): 1,
        ("viewer", "json", "relayed"): 1,
    }
    bob = next(x for x in b.shard.connections if x.identity.user == "bob")
    b.say(bob, c.Refresh(b.sign_token("bob", "operator")))
    assert second(b, reporting).groups == {"viewer": 3, "operator": 1}
    b.shard.on_closed(bob)
    assert second(b, reporting).groups == {"viewer": 3}
    b.shard.on_closed(b.connect("eve", "operator"))
    b.connect("fay", "admin")
    assert second(b, reporting).groups == {"viewer": 3, "admin": 1}


def test_groups_may_be_tenants() -> None:
    """With that setting the tenant of the token counts."""
    b = ShardHarness(limits__group_by="tenant")
    b.connect("ann", "viewer")
    assert reporting_of(b).build_report(b.now).groups == {"": 1}


def test_rates_are_those_of_the_last_second() -> None:
    """Ten events a second to two connections are twenty deliveries; a second later they are none."""
    b = ShardHarness()
    for user in ("ann", "bob"):
        b.connect(user, subscriptions=["custom.*"])
    reporting = reporting_of(b)
    for _ in range(10):
        b.publish("custom.a")
        b.wait(0.1)
    reporting.update(b.now)
    stats = reporting.build_report(b.now)
    assert stats.events_per_s == pytest.approx(10, abs=1)
    assert stats.deliveries_per_s == pytest.approx(20, abs=2)
    assert stats.frames_per_s == pytest.approx(20, abs=2)
    assert stats.sent_bytes_per_s > 100 * stats.frames_per_s
    second(b, reporting)  # what waited for company went out in this one
    assert second(b, reporting).deliveries_per_s == 0


def test_latency_is_measured_from_the_gateway_to_the_sockets() -> None:
    """The oldest event of a frame counts, once for each connection that the frame was sent to."""
    b = ShardHarness()
    for user in ("ann", "bob", "cid"):
        b.connect(user, subscriptions=["custom.*"])
    reporting = reporting_of(b)
    b.publish("custom.b")  # of a publisher that has not said when
    b.wait(0.2)
    assert sum(reporting.build_report(b.now).latency) == 0
    b.deliver(b.make_event("custom.a", taken=b.now + WALL - 0.25), b.make_event("custom.a", taken=b.now + WALL))
    stats = second(b, reporting)
    assert sum(stats.latency) == 3
    p50 = quantile(stats.latency, 0.5)
    assert p50 is not None
    assert 0.18 < p50 < 0.27  # 250 ms, within its bucket
    for _ in range(LATENCY_SECONDS + 1):
        stats = second(b, reporting)
    assert sum(stats.latency) == 0
    assert sum(b.shard.dispatcher.latency.counts) == 3


def test_a_clock_that_was_set_back_makes_no_negative_latency() -> None:
    """An event from the future counts as sent at once."""
    b = ShardHarness()
    b.connect("ann", subscriptions=["custom.*"])
    b.publish("custom.a", taken=b.now + WALL + 60)
    b.wait(0.2)
    assert b.shard.dispatcher.latency.counts[0] == 1


def test_a_connection_that_reads_nothing_lags_and_grows_old() -> None:
    """It is counted, with the age of the event that it gets next; one that reads on is forgotten."""
    b = ShardHarness()
    connection = lagging(b)
    reporting = reporting_of(b)
    first = second(b, reporting)
    assert first.lagging == 1
    assert 1.0 < first.max_connection_lag_s < 1.5
    assert second(b, reporting).max_connection_lag_s == pytest.approx(first.max_connection_lag_s + 1.0, abs=0.01)
    b.sockets.unstick(connection)
    after = second(b, reporting)
    assert (after.lagging, after.max_connection_lag_s) == (0, 0.0)


def test_readers_that_have_to_wait_for_their_turn_lag() -> None:
    """Their sockets are free and they are behind all the same: they are counted, named, and grow old."""
    b = ShardHarness()
    readers = [b.connect(f"u{n}", subscriptions=["custom.a", f"custom.own{n}"]) for n in range(30)]
    reporting = reporting_of(b)
    for reader in readers:
        b.sockets.stuck.add(reader)
    for _ in range(300):
        b.deliver(*[b.make_event("custom.a", {"text": "x" * 300}, taken=b.now + WALL) for _ in range(10)])
        b.wait(0.01)
    for reader in readers:
        b.sockets.unstick(reader)
    b.wait(0.1)
    assert not b.shard.dispatcher.blocked
    reporting.update(b.now)
    stats = reporting.build_report(b.now)
    assert 0 < stats.lagging <= 30
    assert stats.max_connection_lag_s > 1.0
    slowest = reporting.list_slowest(b.now, 30)
    assert len(slowest) == stats.lagging
    assert min(about["lag_offsets"] for about in slowest) > 0
    b.wait(10.0)
    after = second(b, reporting)
    assert (after.lagging, after.max_connection_lag_s, reporting.list_slowest(b.now)) == (0, 0.0, [])


def test_what_others_get_makes_nobody_old() -> None:
    """A stuck socket of a quiet feed has the age of the event that it will get, and none if there is none for it."""
    b = ShardHarness()
    connection = b.connect("ann", subscriptions=["custom.quiet"])
    b.sockets.stuck.add(connection)
    for _ in range(2):
        b.say(connection, c.Ping())  # the second answer has to wait
    reporting = reporting_of(b)
    b.publish("custom.busy", taken=b.now + WALL)
    b.publish("custom.quiet", user="bob", taken=b.now + WALL)
    b.wait(20.0)
    assert b.shard.dispatcher.blocked
    [slowest] = reporting.list_slowest(b.now)
    assert (reporting.build_report(b.now).max_connection_lag_s, slowest["lag_s"]) == (0.0, 0.0)
    b.publish("custom.quiet", user="ann", taken=b.now + WALL)
    b.wait(3.0)
    reporting.update(b.now)
    [slowest] = reporting.list_slowest(b.now)
    assert (reporting.build_report(b.now).max_connection_lag_s, slowest["lag_s"]) == (3.0, 3.0)


def test_the_oldest_of_several_feeds_is_found() -> None:
    """Each feed counts from its own cursor, and the oldest event that one of them lacks counts for the shard."""
    b = ShardHarness()
    connections = [b.connect(user, subscriptions=[f"custom.{user}"]) for user in ("ann", "bob", "cid")]
    for connection in connections:
        b.sockets.stuck.add(connection)
        b.publish(f"custom.{connection.identity.user}", taken=b.now + WALL)
    b.wait(0.2)
    for user in ("bob", "ann", "cid"):
        b.publish(f"custom.{user}", taken=b.now + WALL)
        b.wait(1.0)
    reporting = reporting_of(b)
    assert reporting.build_report(b.now).max_connection_lag_s == 3.0
    assert {about["user"]: about["lag_s"] for about in reporting.list_slowest(b.now)} == {
        "bob": 3,
        "ann": 2,
        "cid": 1,
    }


def test_an_event_that_is_far_away_in_the_log_has_no_age() -> None:
    """One look has a bound, however much of others' lies between."""
    b = ShardHarness()
    connection = b.connect("ann", subscriptions=["custom.quiet"])
    b.sockets.stuck.add(connection)
    for _ in range(2):
        b.say(connection, c.Ping())
    b.deliver(*[b.make_event("custom.busy") for _ in range(MOST_ENTRIES)])
    b.publish("custom.quiet", taken=b.now + WALL)
    b.wait(1.0)
    report = reporting_of(b).build_report(b.now)
    assert (report.lagging, report.max_connection_lag_s) == (1, 0.0)


def test_an_event_for_one_user_alone_makes_nobody_lag() -> None:
    """A connection that waits for the flush like the others of its feed is not behind them."""
    b = ShardHarness()
    b.connect("ann", subscriptions=["custom.*"])
    b.publish("custom.b")
    b.publish("custom.a", user="ann")
    assert [len(feed.behind) for feed in b.shard.feeds] == [1]
    assert reporting_of(b).build_report(b.now).lagging == 0


def test_the_slowest_come_first_and_are_told_apart() -> None:
    """Who is furthest behind comes first, and no more are told than were asked for."""
    b = ShardHarness()
    lagging(b, "older")
    lagging(b, "newer", codec=Codec.msgpack)
    b.connect("quick", subscriptions=["custom.*"])
    b.wait(1.0)
    older, newer = reporting_of(b).list_slowest(b.now)
    assert (older["user"], newer["user"]) == ("older", "newer")
    assert older["lag_offsets"] > newer["lag_offsets"] > 0
    assert older["lag_s"] > newer["lag_s"] > 1.0
    assert older["blocked_s"] > newer["blocked_s"] > 1.0
    assert (newer["codec"], newer["group"], newer["transport"], newer["role"]) == (
        "msgpack",
        "viewer",
        "direct",
        "viewer",
    )
    assert [x["user"] for x in reporting_of(b).list_slowest(b.now, 1)] == ["older"]


def test_a_user_is_found_with_its_subscriptions() -> None:
    """One user's connection, whether it lags or not; nobody's for one who isn't here."""
    b = ShardHarness()
    connection = b.connect("ann", subscriptions=["custom.*"])
    b.publish("custom.a")
    b.wait(2.0)
    [found] = reporting_of(b).list_user("ann", b.now)
    assert (found["session"], found["subscriptions"]) == (connection.session, ["custom.*"])
    assert (found["lag_offsets"], found["blocked_s"], found["connected_s"]) == (0, 0.0, 2.0)
    assert reporting_of(b).list_user("nobody", b.now) == []


def test_what_the_process_knows_is_asked_for() -> None:
    """Memory and loop lag come from whoever knows them, slots from the lease."""
    b = ShardHarness()
    b.connect("ann")
    stats = ShardReporter(b.shard, memory=lambda: 7, loop_lag=lambda: 0.25).build_report(b.now)
    assert (stats.memory_bytes, stats.event_loop_lag_s) == (7, 0.25)
    assert stats.lease_used == 1 < stats.lease_granted


def test_the_size_of_the_recent_log_is_reported() -> None:
    """Its newest offset, and how many events and bytes it holds."""
    b = ShardHarness()
    before = reporting_of(b).build_report(b.now)
    assert (before.log_events, before.log_bytes) == (0, 0)
    b.deliver(*[b.make_event("custom.a", {"text": "x" * 100}) for _ in range(3)])
    stats = reporting_of(b).build_report(b.now)
    assert (stats.log_events, stats.log_end_offset - before.log_end_offset, stats.events - before.events) == (3, 3, 3)
    assert 300 < stats.log_bytes == b.shard.log.held_bytes


def test_what_is_summed_up_is_reported() -> None:
    """While a flood of a telemetry type is summed up, the report says so; when it is over, it does not."""
    b = ShardHarness(shard__aggregation=AggregationSettings(events_per_s=5.0))
    b.connect("ann", "admin")
    query = {"client_ip": "192.0.2.1", "query_domain": "www.example.com", "query_type": "A"}
    for _ in range(100):
        b.publish("dns_query_log", query)
        b.wait(0.02)
    assert reporting_of(b).build_report(b.now).aggregating == {"dns_query_log": 1}
    b.wait(60.0)
    b.publish("dns_query_log", query)
    assert reporting_of(b).build_report(b.now).aggregating == {}


# ------------------------------------------------------------------------------------------------- diagnosis


def test_a_diagnosis_names_who_makes_it_slow() -> None:
    """The feed and the connection that lag, the largest frame, and who publishes the most of what."""
    b = ShardHarness()
    lagging(b)
    b.connect("quick", subscriptions=["security_alert", "dns.*"], filter={"zone": ["example.com"]})
    for _ in range(3):
        b.publish("custom.big", {"text": "x" * 5000}, publisher="loud", taken=b.now + WALL)
    b.publish("custom.a", publisher="quiet", taken=b.now + WALL)
    b.wait(1.0)
    found = diagnose(b.shard, reporting_of(b), b.now)
    assert found["top_publishers"] == {"loud": 3, "unknown": 2, "quiet": 1}
    assert found["top_types"] == {"custom.big": 3, "custom.a": 3}
    assert (found["connections"], found["lagging"], found["of_events"]) == (2, 1, 6)
    [feed] = found["slowest_feeds"]
    assert (feed["types"], feed["lagging"], feed["lag_offsets"]) == (["custom.*"], 1, 5)
    assert feed["lag_s"] > 1.0
    [slow] = found["slowest_connections"]
    assert slow["user"] == "slow"


def test_a_diagnosis_names_the_largest_frames() -> None:
    """The feed that was sent the largest frame comes first, with what it selects."""
    b = ShardHarness()
    b.connect("ann", subscriptions=["custom.a"])
    b.connect("bob", subscriptions=["custom.b"])
    b.publish("custom.a", {"text": "x" * 100})
    b.publish("custom.b", {"text": "x" * 9000})
    b.wait(0.2)
    frames = diagnose(b.shard, reporting_of(b), b.now)["largest_frames"]
    assert [frame["types"] for frame in frames] == [["custom.b"], ["custom.a"]]
    assert frames[0]["bytes"] > 9000 > 1000 > frames[1]["bytes"] > 100


def test_a_diagnosis_is_short_however_many_are_slow() -> None:
    """Of each kind it names the worst few, the worst first, and counts all."""
    b = ShardHarness()
    for n in range(MOST + 2):
        b.sockets.stuck.add(b.connect(f"u{n}", subscriptions=[f"custom.a{n}"]))
        for _ in range(2):
            b.publish(f"custom.a{n}", {"text": "x" * 1000 * n}, publisher=f"p{n}", taken=b.now + WALL)
            b.wait(0.2)
    found = diagnose(b.shard, reporting_of(b), b.now)
    assert found["feeds"] == found["connections"] == found["lagging"] == MOST + 2
    worst = [[f"custom.a{n}"] for n in range(MOST + 2)]
    assert [feed["types"] for feed in found["slowest_feeds"]] == worst[:MOST]
    assert [frame["types"] for frame in found["largest_frames"]] == worst[:1:-1]
    assert [about["user"] for about in found["slowest_connections"]] == [f"u{n}" for n in range(MOST)]
    assert len(found["top_publishers"]) == len(found["top_types"]) == MOST


def test_a_diagnosis_of_an_idle_shard_says_so() -> None:
    """Nothing to name is no fault."""
    b = ShardHarness()
    found = diagnose(b.shard, reporting_of(b), b.now)
    assert (found["slowest_feeds"], found["largest_frames"], found["top_publishers"]) == ([], [], {})
