"""What the router says about the system, without a router: numbers in, events and diagnoses out."""

from __future__ import annotations

from itertools import count
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from solowire.algorithms.histogram import Histogram
from solowire.backplane.messages import ShardAddress, ShardReport, ShardStats
from solowire.domains.dns.event_types import CATALOG
from solowire.model.events import Event, decode_event
from solowire.observability.stats_summary import MOST_VALUES
from solowire.router.monitoring.monitor import ALERT_MESSAGES, MARKS, Monitor, MonitorResult, make_thresholds
from solowire.runtime.settings.router_settings import AlertSettings

WALL = 1_800_000_000.0


class World:
    """A watch that is asked twice a second about two shards and a gateway."""

    def __init__(self, stats_interval_s: float = 0.0, **alerts: Any) -> None:
        self.now = 100.0
        ids = count()
        self.own = ShardStats()
        self.watch = Monitor(
            catalog=CATALOG,
            new_id=lambda: f"id-{next(ids)}",
            alerts=AlertSettings(**{"raise_after_s": 1.0, "clear_after_s": 2.0, **alerts}),
            stats_interval_s=stats_interval_s,
            own=lambda: self.own,
        )
        self.stats = [ShardStats(), ShardStats()]
        self.behind = [0, 0]
        self.gateway = ShardStats()
        self.others: list[tuple[bytes, ShardStats]] = []  # gateways that came sooner, and are well
        self.last = 1000
        self.present = [0, 1]

    def look(self) -> MonitorResult:
        shards = [
            (b"name-%d" % i, ShardReport(ShardAddress(i, "h", 1, "b"), self.stats[i], 0, self.behind[i]))
            for i in self.present
        ]
        gateways = [*self.others, (b"gateway-0123456789abcdef", self.gateway)]
        said = self.watch.check_processes(shards, gateways, self.last, self.now, WALL + self.now)
        self.now += 0.5
        return said

    def run(self, seconds: float) -> MonitorResult:
        whole = MonitorResult([], [])
        for _ in range(int(2 * seconds)):
            said = self.look()
            whole.events.extend(said.events)
            whole.diagnoses.extend(said.diagnoses)
        return whole


def read(said: MonitorResult) -> list[tuple[Event, dict[str, Any]]]:
    events = [decode_event(e.body) for e in said.events]
    return [(e, msgspec.json.decode(e.data)) for e in events]


def test_nothing_is_said_when_all_is_well() -> None:
    """Zeros are no alert, and without an interval there are no statistics."""
    assert World().run(60) == MonitorResult([], [])


@pytest.mark.parametrize(
    ("metric", "stats", "part"),
    [
        (
            "connection_lag_seconds",
            ShardStats(max_connection_lag_s=12.0, lagging=3),
            "12.0 s behind; 3 connections lag",
        ),
        ("event_loop_lag_seconds", ShardStats(event_loop_lag_s=0.75), "0.75 s late"),
        ("memory_bytes", ShardStats(memory_bytes=5 * 2**30), "5,368,709,120 bytes"),
        ("lease_use_percent", ShardStats(lease_used=99, lease_granted=100), "lease is 99 % used; 99 of 100 slots"),
        ("aggregating_feeds", ShardStats(aggregating={"dns_query_log": 7}), "dns_query_log is aggregated for 7 feeds"),
    ],
)
def test_each_number_of_a_shard_has_its_alert(metric: str, stats: ShardStats, part: str) -> None:
    """It begins with the numbers in words, and ends with how long it was; only performance asks for a diagnosis."""
    world = World()
    world.stats[1] = stats
    began = world.run(5)
    [(event, data)] = read(began)
    assert event.type == "system_alert"
    assert event.publisher == "router"
    assert (data["component"], data["metric"], data["severity"]) == ("shard 1", metric, "warning")
    assert data["message"].startswith("shard 1: ")
    assert part in data["message"]
    assert data["value"] >= data["threshold"]
    performance = metric in ("connection_lag_seconds", "event_loop_lag_seconds", "memory_bytes")
    assert began.diagnoses == ([(b"name-1", metric)] if performance else [])
    world.stats[1] = ShardStats()
    ended = world.run(5)
    [(_, data)] = read(ended)
    assert (data["severity"], data["details"]["state"]) == ("info", "resolved")
    assert "resolved after" in data["message"]
    assert ended.diagnoses == []


def test_the_log_has_the_numbers_of_each_alert() -> None:
    """One line when it begins and one when it is over, each with its numbers, as the event has them."""
    world = World()
    with capture_logs() as lines:
        world.stats[1] = ShardStats(aggregating={"dns_query_log": 7})
        world.run(5)
        world.stats[1] = ShardStats(aggregating={"dns_query_log": 0})
        world.run(5)
    about = {"component": "shard 1", "metric": "aggregating_feeds", "threshold": 1.0, "about": "dns_query_log"}
    assert lines == [
        {"event": "alert_fired", "log_level": "warning", "value": 7, **about},
        {"event": "alert_resolved", "log_level": "info", "value": 0, "fired_for_s": 6.0, "highest": 7, **about},
    ]


def test_the_event_has_the_numbers_of_each_alert() -> None:
    """What was measured, its threshold, and when it is over for how long and how bad it was, in words and in fields."""
    world = World()
    world.stats[1] = ShardStats(aggregating={"dns_query_log": 7})
    [(_, began)] = read(world.run(5))
    world.stats[1] = ShardStats(aggregating={"dns_query_log": 0})
    [(_, over)] = read(world.run(5))
    same = {"component": "shard 1", "metric": "aggregating_feeds", "threshold": 1.0}
    assert began == {
        **same,
        "severity": "warning",
        "value": 7,
        "message": "shard 1: dns_query_log is aggregated for 7 feeds (threshold 1 feeds)",
        "details": {"state": "firing", "about": "dns_query_log"},
    }
    assert world.watch.fired_count == 1  # as /metrics has it
    assert over == {
        **same,
        "severity": "info",
        "value": 0,
        "message": "shard 1: resolved after 6 s: dns_query_log is aggregated for 0 feeds"
        " (7 at most, threshold 1 feeds)",
        "details": {"state": "resolved", "about": "dns_query_log"},
    }


def test_every_threshold_has_words() -> None:
    """No alert can begin that nobody has written a message for."""
    assert set(ALERT_MESSAGES) == set(make_thresholds(AlertSettings()))


def test_a_shard_that_does_not_acknowledge_lags() -> None:
    """The age of the oldest event that it has not acknowledged counts, however few there are."""
    world = World()
    world.run(5)
    world.last, world.behind = 1001, [0, 1]
    began = world.run(5)
    [(_, data)] = read(began)
    assert (data["component"], data["metric"]) == ("shard 1", "shard_lag_seconds")
    assert "1 offsets behind" in data["message"]
    assert 2.0 <= data["value"] <= 4.0
    assert began.diagnoses == [(b"name-1", "shard_lag_seconds")]


def test_what_is_remembered_of_the_log_has_a_bound() -> None:
    """Of a shard that has been behind for longer no more is told than that."""
    world = World(lag_s=MARKS / 2 + 1)
    for _ in range(MARKS + 100):
        world.last += 1
        world.behind = [world.last, world.last]
        assert world.look().events == []


def test_a_shard_that_keeps_up_with_a_busy_log_does_not_lag() -> None:
    """Many offsets that are only just in the log are no lag."""
    world = World()
    for _ in range(60):
        world.last += 50_000
        world.behind = [40_000, 40_000]
        assert world.look().events == []


def test_refusals_of_all_processes_are_one_number() -> None:
    """Gateways and shards together are above the threshold, each alone is not."""
    world = World()
    world.gateway = ShardStats(connections_rejected_per_s=12.0)
    assert world.run(5).events == []
    world.stats[0] = ShardStats(connections_rejected_per_s=12.0)
    [(_, data)] = read(world.run(5))
    assert (data["metric"], data["value"], data["component"]) == ("connections_rejected_per_second", 24.0, "solowire")


def test_gateway_and_router_have_loops_and_memory_too() -> None:
    """A stuck gateway and a router that has grown are alerts, with no shard to ask for a diagnosis."""
    world = World()
    world.gateway = ShardStats(event_loop_lag_s=2.0)
    world.own = ShardStats(memory_bytes=2**40)
    said = world.run(5)
    assert {(d["component"], d["metric"]) for _, d in read(said)} == {
        ("gateway 0123456789abcdef", "event_loop_lag_seconds"),
        ("router", "memory_bytes"),
    }
    assert said.diagnoses == []


def test_gateways_that_come_and_go_leave_the_alerts_of_others_alone() -> None:
    """A gateway keeps its name whatever stands before it in the list: its alert begins once and ends once."""
    world = World()
    world.gateway = ShardStats(event_loop_lag_s=2.0)
    said = world.run(5)
    for others in ([(b"gateway-fedcba9876543210", ShardStats())], []) * 2:
        world.others = others
        said.events.extend(world.run(5).events)
    world.gateway = ShardStats()
    said.events.extend(world.run(5).events)
    assert [(data["component"], data["severity"]) for _, data in read(said)] == [
        ("gateway 0123456789abcdef", "warning"),
        ("gateway 0123456789abcdef", "info"),
    ]


def test_a_shard_that_has_gone_ends_its_alerts() -> None:
    """Nobody has to wonder about an alert of a shard that is no more."""
    world = World()
    world.stats[1] = ShardStats(event_loop_lag_s=2.0)
    world.run(5)
    world.present = [0]
    [(_, data)] = read(world.run(5))
    assert (data["component"], data["severity"]) == ("shard 1", "info")


def test_statistics_are_events_of_their_own() -> None:
    """Each interval brings one state for each shard and one for all; the payloads are what the catalogue says."""
    world = World(stats_interval_s=1.0)
    latency = Histogram()
    latency.add(0.02, 5)
    world.stats[0] = ShardStats(
        connections=3, groups={"viewer": 3}, deliveries_per_s=12.5, latency=latency.counts, memory_bytes=7
    )
    world.stats[1] = ShardStats(connections=1, groups={"admin": 1})
    world.behind = [0, 5]
    said = world.run(2.5)
    assert len(said.events) == 6
    found = read(said)[:3]
    for envelope, (event, data) in zip(said.events, found, strict=False):
        assert event.type == "gateway_stats"
        assert envelope.state == f"gateway_stats\0{event.key}\0"
        assert event.key == data["node"] == event.attributes["node"]
        assert CATALOG.validate_data(CATALOG["gateway_stats"], data) == event.attributes
        assert set(data) <= set(CATALOG["gateway_stats"].payload.field_names)
    nodes = {event.key: data for event, data in found}
    assert list(nodes) == ["shard 0", "shard 1", "all"]
    assert nodes["shard 1"]["lag"] == nodes["all"]["lag"] == 5
    assert (nodes["all"]["connections"], nodes["all"]["shards"], nodes["all"]["gateways"]) == (4, 2, 1)
    assert nodes["all"]["groups"] == {"viewer": 3, "admin": 1}
    assert 10 < nodes["all"]["latency_p99_ms"] < 30
    assert len({e.id for e in said.events}) == 6


def test_statistics_of_many_tenants_are_no_large_events() -> None:
    """Of a shard and of all together as many groups are told as on /metrics: the largest, and the rest as one."""
    world = World(stats_interval_s=1.0)
    world.stats = [ShardStats(groups={f"tenant-{shard}-{n}": n for n in range(5000)}) for shard in (0, 1)]
    nodes = {event.key: data["groups"] for event, data in read(world.run(1.5))}
    assert [len(groups) for groups in nodes.values()] == [MOST_VALUES] * 3
    assert sum(nodes["all"].values()) == 2 * sum(nodes["shard 0"].values()) == 5000 * 4999
    assert nodes["all"]["tenant-0-4999"] == 4999


def test_statistics_as_events_hold_every_number() -> None:
    """A subscriber of `gateway_stats` gets each number that `/v1/stats` has, in the payload's words."""
    world = World(stats_interval_s=1.0)
    latency = Histogram()
    for milliseconds in (*[1] * 50, *[10] * 45, *[100] * 5):
        latency.add(milliseconds / 1000)
    world.stats[0] = ShardStats(
        connections=1, feeds=2, lagging=3, log_bytes=4, groups={"viewer": 5}, codecs={"json": 6},
        transports={"direct": 7}, events_per_s=8.0, deliveries_per_s=9.0, frames_per_s=10.0, sent_bytes_per_s=11.0,
        connections_rejected_per_s=12.0, latency=latency.counts, max_connection_lag_s=0.5, memory_bytes=14,
        event_loop_lag_s=0.25, lease_used=16, lease_granted=17,
        aggregating={"dns_query_log": 0}, users=20, legacy={"path /ws/{type}": 21},
    )  # fmt: skip
    world.behind = [19, 0]
    nodes = {data["node"]: data for _, data in read(world.run(1.5))}
    expected = {
        "connections": 1, "feeds": 2, "lagging": 3, "log_bytes": 4, "groups": {"viewer": 5}, "codecs": {"json": 6},
        "transports": {"direct": 7}, "events_per_second": 8.0, "deliveries_per_second": 9.0, "frames_per_second": 10.0,
        "sent_bytes_per_second": 11.0, "connections_rejected_per_second": 12.0, "max_connection_lag_s": 0.5,
        "memory_bytes": 14, "event_loop_lag_ms": 250.0, "lease_used": 16, "lease_granted": 17,
        "aggregating": {"dns_query_log": 0}, "lag": 19,
        "users": 20, "legacy": {"path /ws/{type}": 21},
    }  # fmt: skip
    for node, more in (("shard 0", set()), ("all", {"shards", "gateways"})):
        data = nodes[node]
        p50, p95, p99 = (data.pop(f"latency_{p}_ms") for p in ("p50", "p95", "p99"))
        assert p50 < 2 < p95 < 20 < p99 < 200
        assert data.items() >= expected.items()
        assert data.keys() == expected.keys() | more | {"node"}
