"""A shard's part in traces: what is told of an event that is recorded, whatever becomes of it."""

from __future__ import annotations

from typing import Any

import pytest

from solowire.model.trace_context import TraceContext
from solowire.observability.memory_tracer import MemorySpan, MemoryTracer
from solowire.workers.delivery.delivery_traces import FOLLOW_SECONDS, MAX_FOLLOWED
from tests.support.shard_harness import QUERY, ShardHarness

TRACE = TraceContext("1" * 32, "2" * 16, True).traceparent


class TracedShard(ShardHarness):
    def __init__(self, **settings: Any) -> None:
        self.tracer = MemoryTracer()
        super().__init__(tracer=self.tracer, **settings)

    def publish_traced(self, name: str = "custom.x", data: dict[str, Any] | None = None, **more: Any) -> int:
        made = self.make_event(name, data or {}, traceparent=TRACE, **more)
        self.deliver(made, traces=[(made[0], TRACE)])
        return made[0]

    @property
    def spans(self) -> dict[str, MemorySpan]:
        found = {span.name: span for span in self.tracer.spans}
        assert len(found) == len(self.tracer.spans)
        return found


def test_an_event_has_a_flush_and_its_first_and_last_write() -> None:
    """One each, for all connections and feeds, when the last of the feeds has sent it."""
    b = TracedShard()
    for user in ("ann", "ben"):
        b.connect(user, "admin", subscriptions=["custom.*"])
    b.connect("carl", "admin", subscriptions=["custom.x"])
    offset = b.publish_traced(priority="normal")
    b.wait(1)
    spans = b.spans
    assert list(spans) == ["flush", "first write", "last write"]
    flush, first, last = spans.values()
    assert (flush.trace_id, flush.parent) == ("1" * 32, "2" * 16)
    assert first.parent == last.parent == flush.span_id
    assert flush.attributes == {
        "solowire.offset": offset,
        "solowire.feed_count": 2,
        "solowire.connection_count": 3,
    }
    assert flush.began_at < flush.ended_at == first.began_at < first.ended_at < last.ended_at


def test_an_event_that_waits_has_its_flush_when_it_is_sent() -> None:
    """Until then nothing is told, and the shard follows it."""
    b = TracedShard()
    alice = b.connect("alice", "admin", subscriptions=["custom.*"])
    b.publish("custom.x", {}, priority="low")
    b.publish_traced(priority="low")
    assert b.tracer.spans == []
    assert b.shard.traces is not None
    assert len(b.shard.traces.followed) == 1
    b.wait(1.5)
    assert list(b.spans) == ["flush", "first write", "last write"]
    assert b.shard.traces.followed == []
    assert len(b.sockets.sent[alice]) >= 2


def test_an_event_for_one_user_is_followed_to_that_users_connections() -> None:
    """Others in its feed have nothing to do with it."""
    b = TracedShard()
    b.connect("alice", "admin", subscriptions=["custom.*"])
    b.connect("ben", "admin", subscriptions=["custom.*"])
    b.publish_traced(user="alice")
    b.wait(1)
    assert b.spans["flush"].attributes["solowire.connection_count"] == 1
    assert "first write" in b.spans


def test_who_is_behind_and_given_it_in_the_same_turn_is_counted() -> None:
    """As one who has an event of their own in the same frame; the last write is theirs."""
    b = TracedShard()
    b.connect("alice", "admin", subscriptions=["custom.*"])
    b.connect("ben", "admin", subscriptions=["custom.*"])
    b.publish("custom.x", {})
    b.deliver(b.make_event("custom.x", {}, user="alice"))
    b.publish_traced()
    b.wait(1)
    assert b.spans["flush"].attributes["solowire.connection_count"] == 2
    assert b.spans["last write"].ended_at > b.spans["first write"].ended_at


def test_what_nobody_wants_has_a_flush_alone() -> None:
    """It says that there was no feed, and so no write."""
    b = TracedShard()
    b.connect("alice", "admin", subscriptions=["record_updated"])
    b.publish_traced()
    b.publish_traced(user="nobody")
    assert [(span.name, span.attributes["solowire.feed_count"]) for span in b.tracer.spans] == [("flush", 0)] * 2


def test_a_busy_socket_is_not_waited_for() -> None:
    """Whoever is behind reads it later; the trace ends with those who could be sent it."""
    b = TracedShard()
    slow = b.connect("alice", "admin", subscriptions=["custom.*"])
    b.connect("ben", "admin", subscriptions=["custom.*"])
    b.sockets.stuck.add(slow)
    b.publish("custom.x", {})
    b.wait(1)
    b.publish_traced()
    b.wait(1)
    assert b.spans["flush"].attributes["solowire.connection_count"] == 1


def test_telemetry_is_followed_to_its_frame() -> None:
    """As any other event, while it is not summed up."""
    b = TracedShard()
    b.connect("alice", "admin", subscriptions=["dns_query_log"])
    b.publish_traced("dns_query_log", QUERY)
    b.wait(2)
    assert list(b.spans) == ["flush", "first write", "last write"]


def test_a_state_that_is_held_back_ends_its_trace() -> None:
    """It is not sent with this word of the router's, and perhaps never: the flush has no write beneath it."""
    b = TracedShard(shard__conflation__interval_s=5.0)
    b.connect("alice", "admin", subscriptions=["system_metrics"])
    data = {"cpu_usage": 1}
    b.publish("system_metrics", data, key="k")
    b.wait(1)
    b.publish_traced("system_metrics", data, key="k")
    assert list(b.spans) == ["flush"]
    b.wait(10)
    assert list(b.spans) == ["flush"]


def test_what_is_never_sent_is_given_up() -> None:
    """Its feed may be gone: after a while the flush is told as it is, and nothing is held for it."""
    b = TracedShard()
    alice = b.connect("alice", "admin", subscriptions=["custom.*"])
    b.publish("custom.x", {}, priority="low")
    b.publish_traced(priority="low")
    b.shard.on_closed(alice)
    assert b.shard.traces is not None
    b.shard.traces.forget_old()
    assert b.tracer.spans == []
    b.tracer.now += (FOLLOW_SECONDS + 1) * 10**9
    b.shard.traces.forget_old()
    assert list(b.spans) == ["flush"]
    assert b.shard.traces.followed == []


def test_only_so_many_are_followed_at_a_time() -> None:
    """What is beyond is counted, and delivered like all others."""
    b = TracedShard()
    alice = b.connect("alice", "admin", subscriptions=["custom.*"])
    b.publish("custom.x", {}, priority="low")
    made = [b.make_event("custom.x", {}, priority="low", traceparent=TRACE) for _ in range(MAX_FOLLOWED + 5)]
    b.deliver(*made, traces=[(offset, TRACE) for offset, _ in made])
    assert b.tracer.dropped_count == 5
    b.wait(2)
    assert len(b.tracer.spans) == 3 * MAX_FOLLOWED
    assert len(b.read_events(alice)) == MAX_FOLLOWED + 6


def test_an_event_that_can_not_be_matched_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is passed over, as ever, and the events behind it go on their way."""
    b = TracedShard()
    alice = b.connect("alice", "admin", subscriptions=["custom.*"])

    def fail(entry: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(b.shard.feeds, "matching", fail)
        b.publish_traced()
    b.publish_traced()
    b.wait(1)
    assert len(b.read_events(alice)) == 1
    assert list(b.spans) == ["flush", "first write", "last write"]


def test_what_is_not_told_of_is_not_followed() -> None:
    """An event that carries a trace context, and came by a replay or to a new shard, makes no span."""
    b = TracedShard()
    b.connect("alice", "admin", subscriptions=["custom.*"])
    b.publish("custom.x", {}, traceparent=TRACE)
    b.wait(1)
    assert b.tracer.spans == []


def test_no_client_is_told_of_traces_and_latency_knows_them() -> None:
    """A frame has nothing of it; the histogram has the trace of the event that was measured."""
    b = TracedShard()
    alice = b.connect("alice", "admin", subscriptions=["custom.*"])
    b.publish_traced(taken=b.now + b.shard.clock.wall_offset - 0.25)
    b.wait(1)
    assert not any(TRACE in str(frame) or "1" * 32 in str(frame) for frame in b.sockets.sent[alice])
    [exemplar] = b.shard.dispatcher.latency.exemplars.values()
    assert exemplar.traceparent == TRACE
    assert 0.2 < exemplar.seconds < 1.0
