"""How a shard follows the router's log: told by a shard on sockets in memory."""

from __future__ import annotations

import pytest

from solowire.backplane.messages import LogBatch, StateSnapshot
from tests.support.shard_harness import ShardHarness, connect_stuck, find_user, resume_client


def test_a_batch_that_comes_twice_is_sent_once() -> None:
    """What the router sends again after a reconnect reaches no client again."""
    b = ShardHarness()
    connection = b.connect(subscriptions=["custom.a"])
    batch = [b.make_event("custom.a"), b.make_event("custom.a")]
    b.deliver(*batch)
    b.deliver(*batch)
    b.deliver(*batch, b.make_event("custom.a"))
    b.wait(1)
    assert [e.offset for e in b.read_events(connection)] == [1, 2, 3]


def test_a_shard_that_starts_late_begins_where_the_router_says() -> None:
    """The log begins behind what the router has kept for it, and the states of before are there for new clients."""
    b = ShardHarness(())
    b.offset = 0
    state = b.make_event("system_metrics", {"cpu_usage": 1, "host": "ns1"}, key="ns1")
    b.offset = 100
    b.shard.on_snapshot(StateSnapshot(b.epoch, 100, [state]), b.now)
    b.change_ring(0)
    assert b.shard.is_ready
    b.publish("custom.a")
    connection = b.connect("alice", "admin", subscriptions=["system_metrics", "custom.a"])
    assert [e.offset for e in b.read_events(connection)] == [1]


def test_a_part_of_the_log_that_is_missing_is_asked_for() -> None:
    """A message that was lost on its way is no gap: the shard says hello, and takes nothing until that is answered."""
    b = ShardHarness()
    connection = b.connect(subscriptions=["custom.a"])
    b.publish("custom.a")
    lost, late = b.make_event("custom.a"), b.make_event("custom.a")
    assert not b.shard.on_batch(LogBatch(b.epoch, 2, 3, [late]), b.now)
    assert b.shard.on_batch(LogBatch(b.epoch, 3, 3, []), b.now)
    b.change_ring(0)
    assert b.shard.on_batch(LogBatch(b.epoch, 1, 3, [lost, late]), b.now)
    b.wait(1)
    assert [e.offset for e in b.read_events(connection)] == [1, 2, 3]


def test_a_shard_that_joins_doesnt_void_cursors() -> None:
    """When a shard is added, those who stay can still resume."""
    b = ShardHarness((0,))
    user = find_user((0, 1), 0)
    b.publish("custom.a")
    b.publish("custom.a")
    b.change_ring(0, 1)
    welcome, offsets = resume_client(b, 1, user=user)
    assert (welcome.resumed, offsets) == (True, [2])


@pytest.mark.parametrize("by", ["ring", "deliver"])
def test_a_lost_log_is_a_gap(by: str) -> None:
    """When the log itself was lost, every client is told so and closed to start anew, the stuck ones too."""
    b = ShardHarness()
    connection = b.connect("alice", subscriptions=["custom.a"])
    waiting = b.open_connection("bob")
    blocked = connect_stuck(b, user="carol")
    b.publish("custom.a")
    b.read_messages(connection)
    b.epoch, b.offset = "epoch-2", 0
    if by == "ring":
        b.change_ring(0)
    else:
        b.deliver(b.make_event("custom.a"))
        b.change_ring(0)
    for each in (connection, waiting, blocked):
        assert [m.code for m in b.read_messages(each)] == ["gap"]
        assert b.close_code(each) == 4413
    assert b.shard.connections == set()
    assert len(b.shard.feeds) == 0
    again = b.connect("alice", subscriptions=["custom.a"])
    b.publish("custom.a")
    assert len(b.read_events(again)) == 1


@pytest.mark.parametrize("before", [0, 3])
def test_a_hole_in_the_log_is_a_gap(before: int) -> None:
    """When the router can't give what comes next any more, every client is told and closed to start anew."""
    b = ShardHarness()
    for _ in range(before):
        b.publish("custom.a")
    connection = b.connect(subscriptions=["custom.a"])
    b.offset += 10
    b.journal_floor = b.offset
    b.version -= 1
    b.change_ring(0)  # the answer to a hello: what the router says now is all that it has
    b.publish("custom.a")
    assert [m.code for m in b.read_messages(connection)] == ["gap"]
    assert b.close_code(connection) == 4413
    welcome, offsets = resume_client(b, before)
    assert (welcome.resumed, welcome.reason, offsets) == (False, "retention", [])
