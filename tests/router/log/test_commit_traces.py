"""The router's part in traces: who is told of what, and how often."""

from __future__ import annotations

import pytest

from solowire.backplane.messages import VERSION as WIRE
from solowire.backplane.messages import EventTrace, Join, LogAck, LogBatch, PublishedEvent, PublishRequest, ShardAddress
from solowire.model.trace_context import TraceContext
from solowire.observability.memory_tracer import MemoryTracer
from solowire.router.log.commit_traces import LIVE_SECONDS, MAX_LIVE, CommitTraces
from solowire.router.log.journal import JournalUnavailable, MemoryJournal
from solowire.router.log.known_ids import AppendResult
from solowire.router.router import Router
from tests.router.test_router import Bus

TRACE = TraceContext("1" * 32, "2" * 16, True).traceparent
OTHER = TraceContext("3" * 32, "4" * 16, True).traceparent


class TracedRouter:
    """A router with two shards, and what it sends them."""

    def __init__(self) -> None:
        self.bus, self.tracer, self.now = Bus(), MemoryTracer(), 100.0
        self.journal = MemoryJournal("epoch-1", max_events=1000, max_bytes=10**9, window=60.0)
        self.router = Router(self.journal, self.bus.send, tracer=self.tracer)
        self.shards = [self.join(0), self.join(1)]
        self._ids = iter(range(10**6))

    def join(self, index: int, boot: str = "b") -> bytes:
        name, address = f"shard-{index}-{boot}".encode(), ShardAddress(index, "127.0.0.1", 9000 + index, boot)
        self.router.receive(name, Join(WIRE, boot, address, credit=1000), self.now)
        return name

    def publish(self, count: int, *traces: EventTrace, ids: list[str] | None = None) -> None:
        names = ids or [f"id-{next(self._ids)}" for _ in range(count)]
        events = [PublishedEvent(name, None, b"body") for name in names]
        self.router.receive(b"gateway", PublishRequest(1, events, "ann", list(traces)), self.now)
        while (again := self.router.dispatch(self.now)) is not None:
            self.now = again

    def names(self) -> list[str]:
        return [span.name for span in self.tracer.spans]

    def take_traces(self, shard: bytes) -> list[tuple[int, str]]:
        return [trace for batch in self.bus.take(shard, LogBatch) for trace in batch.traces]


def test_a_commit_and_a_dispatch_to_each_shard() -> None:
    """Each beneath the one before; a shard is told of the first event, and of the dispatch that it came by."""
    world = TracedRouter()
    world.publish(2)
    world.publish(3, EventTrace(TRACE, 2, [1, 2]))
    commit, *dispatches = world.tracer.spans
    assert (commit.name, commit.trace_id, commit.parent) == ("journal commit", "1" * 32, "2" * 16)
    assert commit.attributes == {"solowire.event_count": 2, "solowire.first_offset": 4}
    assert [(span.name, span.parent) for span in dispatches] == [("dispatch", commit.span_id)] * 2
    assert [span.attributes["solowire.shard"] for span in dispatches] == [0, 1]
    for shard, dispatch in zip(world.shards, dispatches, strict=True):
        assert world.take_traces(shard) == [(4, dispatch.traceparent)]
        assert commit.ended_at <= dispatch.began_at < dispatch.ended_at


def test_what_is_sent_again_is_no_dispatch() -> None:
    """A duplicate, a shard that begins, and one that asks again for the log, are told of no trace."""
    world = TracedRouter()
    world.publish(1, EventTrace(TRACE, 1, [0]), ids=["one"])
    spans = len(world.tracer.spans)
    for shard in world.shards:
        world.bus.take(shard, LogBatch)
    world.publish(1, EventTrace(TRACE, 1, [0]), ids=["one"])
    newer, again = world.join(2), world.join(1, boot="c")
    assert [world.take_traces(shard) for shard in (*world.shards, newer, again)] == [[], [], [], []]
    assert len(world.tracer.spans) == spans


def test_what_the_bus_does_not_take_is_told_with_what_it_takes() -> None:
    """A shard that is deaf for a moment is told of the trace when the events reach it."""
    world = TracedRouter()
    world.bus.deaf.add(world.shards[0])
    world.publish(1, EventTrace(TRACE, 1, [0]))
    assert world.take_traces(world.shards[0]) == []
    world.bus.deaf.clear()
    world.router.receive(world.shards[0], LogAck("epoch-1", 0, 1000), world.now)
    [(offset, traceparent)] = world.take_traces(world.shards[0])
    assert (offset, traceparent) == (1, world.tracer.spans[-1].traceparent)
    assert world.router._traces is not None
    assert not world.router._traces.live


def test_two_traces_of_one_batch_are_told_apart() -> None:
    """Events of two requests go in one message, each trace with its own first event."""
    world = TracedRouter()
    world.publish(4, EventTrace(TRACE, 2, [0, 2]), EventTrace(OTHER, 2, [1, 3]))
    told = world.take_traces(world.shards[0])
    assert [offset for offset, _ in told] == [1, 2]
    assert [traceparent.split("-")[1] for _, traceparent in told] == ["1" * 32, "3" * 32]


def test_a_commit_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its span has the error, and nobody is told of the events."""
    world = TracedRouter()

    def fail(now: float) -> None:
        raise JournalUnavailable("the disk is full")

    monkeypatch.setattr(world.journal, "commit", fail)
    world.publish(1, EventTrace(TRACE, 1, [0]))
    assert [(span.name, span.error) for span in world.tracer.spans] == [("journal commit", "journal_unavailable")]
    assert world.take_traces(world.shards[0]) == []


def test_a_router_without_a_tracer_tells_of_nothing() -> None:
    """What the gateway says of traces is passed over."""
    bus = Bus()
    router = Router(MemoryJournal("e", max_events=9, max_bytes=10**6, window=60.0), bus.send)
    router.receive(b"s", Join(WIRE, "b", ShardAddress(0, "127.0.0.1", 1, "b"), credit=9), 1.0)
    events = [PublishedEvent("id", None, b"")]
    router.receive(b"g", PublishRequest(1, events, "ann", [EventTrace(TRACE, 1, [0])]), 1.0)
    router.dispatch(1.0)
    assert [batch.traces for batch in bus.take(b"s", LogBatch)] == [[]]


def test_what_no_shard_is_sent_is_given_up() -> None:
    """After a while, and at the bound: a shard that hangs keeps nothing."""
    tracer = MemoryTracer()
    traces = CommitTraces(tracer)
    for offset in range(1, MAX_LIVE + 11):
        traces.note_request([EventTrace(TRACE, 1, [0])], AppendResult([offset], []))
        traces.finish_group([b"shard"])
    assert len(traces.live) == MAX_LIVE
    assert traces.live[0].offsets == [11]
    traces.forget_old()
    assert len(traces.live) == MAX_LIVE
    tracer.now += (LIVE_SECONDS + 1) * 10**9
    traces.forget_old()
    assert not traces.live


def test_indexes_that_are_none_of_the_requests_are_passed_over() -> None:
    """A gateway of another version may say anything."""
    traces = CommitTraces(MemoryTracer())
    traces.note_request([EventTrace("no context", 3, [7, 99])], AppendResult([1], []))
    traces.note_request([EventTrace("no context", 1, [0])], AppendResult([1], []))
    traces.finish_group([b"shard"])
    assert [traced.offsets for traced in traces.live] == [[1]]
