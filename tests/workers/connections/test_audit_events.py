"""What the audit log has of a shard's connections, told by a shard on sockets in memory."""

from __future__ import annotations

import pytest

from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.recent_log import RecentLog
from solowire.protocol import messages as c
from solowire.protocol.messages import Codec
from tests.support.shard_harness import ShardHarness, find_user


def test_the_life_of_a_connection_is_four_lines() -> None:
    """Connected, subscribed, subscribed to something else, disconnected: with who, whence and which session."""
    b = ShardHarness()
    ticket = b.shard.admit(b.issue_ticket("ann"), b.now)
    connection = b.shard.open_connection(ticket.identity, Codec.json, None, b.now, address="192.0.2.7", kind="relayed")
    b.say(connection, c.Hello(subscriptions=["custom.*", "user.*"]))
    b.say(connection, c.Subscribe(["security_alert"]))
    b.shard.on_closed(connection)
    who = {"user": "ann", "role": "viewer", "address": "192.0.2.7", "session": connection.session}
    assert all(line.items() >= who.items() for line in b.audit_lines)
    assert [line["event"] for line in b.audit_lines] == ["connected", "subscribed", "subscribed", "disconnected"]
    connected, first, then, ended = b.audit_lines
    assert (connected["codec"], connected["transport"]) == ("json", "relayed")
    assert first["subscriptions"] == ["custom.*", "user.*"]
    assert first["denied"]
    assert then["subscriptions"] == ["custom.*", "user.*", "security_alert"]
    assert (ended["code"], ended["reason"]) == (None, "client disconnected")


def test_who_is_closed_is_told_once_with_the_code() -> None:
    """A replaced connection is one `disconnected`, not a second one when its socket has gone."""
    b = ShardHarness()
    old = b.connect("ann")
    b.connect("ann")
    b.shard.on_closed(old)
    ended = [line for line in b.audit_lines if line["event"] == "disconnected"]
    assert [(line["session"], line["code"]) for line in ended] == [(old.session, 4409)]


def ended(b: ShardHarness) -> list[tuple[int | None, str]]:
    return sorted((line["code"], line["reason"]) for line in b.audit_lines if line["event"] == "disconnected")


def test_a_drain_is_the_reason_that_is_told() -> None:
    """Whether the client goes by itself when it was told, or has to be closed: the log says `draining`."""
    b = ShardHarness()
    obedient = b.connect("ann")
    closed = b.connect("bob")
    b.shard.start_drain(b.now)
    b.wait(0.5)
    b.shard.on_closed(obedient)
    assert ended(b) == [(None, "draining")]
    b.wait(3.0)
    assert [line for line in b.audit_lines if line.get("code") == 1012 and line["reason"] == "draining"]
    b.shard.on_closed(closed)
    assert b.shard.is_drained


def test_a_changed_ring_is_the_reason_that_is_told() -> None:
    """Who moves to another shard is told of with 4421."""
    b = ShardHarness()
    b.connect(find_user((0, 1), 1))
    b.change_ring(0, 1)
    b.wait(3.0)
    assert ended(b) == [(4421, "ring_changed")]


def test_who_gives_way_is_told_of_with_the_limit() -> None:
    """An eviction is 1013 `over_limit`."""
    b = ShardHarness()
    for user in ("ann", "bob", "cid"):
        b.connect(user)
    b.grant_lease(viewer=1)
    b.wait(1.0)
    assert ended(b) == [(1013, "over_limit")] * 2


def test_a_lease_that_has_run_out_is_the_reason_for_all() -> None:
    """Who was told and who was not, because his turn had not come: all are `no_lease`."""
    b = ShardHarness(leased_for=100.0, session__heartbeat_interval_s=600.0)
    for n in range(10):
        b.connect(f"user-{n}")
    b.now += 130.0  # the process was stopped
    b.shard.run(b.now)
    assert ended(b) == [(1012, "no_lease")] * 10
    b = ShardHarness(leased_for=100.0, session__heartbeat_interval_s=600.0)
    for n in range(10):
        b.connect(f"user-{n}")
    b.wait(126.0)
    assert ended(b) == [(1012, "no_lease")] * 10


@pytest.mark.parametrize("lost", [True, False])
def test_a_reader_that_is_too_slow_is_told_of(lost: bool) -> None:
    """What it lacks has left the log, or its socket took nothing for too long: one line with 4413 either way."""
    b = ShardHarness(recent=RecentLog(catalog=CATALOG, max_events=20))
    connection = b.connect("ann", subscriptions=["custom.*"])
    b.sockets.stuck.add(connection)
    for _ in range(100 if lost else 5):
        b.publish("custom.a")
        b.wait(0.2)
    if lost:
        b.sockets.unstick(connection)
    b.wait(1.0 if lost else 31.0)
    assert ended(b) == [(4413, "reading too slowly, reconnect and resume")]


def test_a_thousand_subscriptions_are_no_long_line() -> None:
    """So many are named, and the rest counted."""
    b = ShardHarness()
    connection = b.open_connection("ann")
    b.say(connection, c.Hello(subscriptions=[f"custom.t{n}" for n in range(200)]))
    line = b.audit_lines[-1]
    assert len(line["subscriptions"]) == 50
    assert line["more"] == 150
