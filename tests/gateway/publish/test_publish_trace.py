"""Which events of a publish request are of which trace."""

from __future__ import annotations

from solowire.backplane.messages import EventTrace, PublishAck
from solowire.gateway.publish.publish_trace import MAX_INDEXES, MAX_TRACES, PublishTrace
from solowire.model.events import Event
from solowire.model.trace_context import TraceContext
from solowire.observability.memory_tracer import MemoryTracer
from solowire.observability.tracer import TracerSettings
from tests.support.factories import event


def context(number: int, *, is_sampled: bool = True) -> str:
    return TraceContext(f"{number:032x}", f"{number:016x}", is_sampled).traceparent


def events(*traceparents: str | None) -> list[Event]:
    return [event("custom.x", {}, traceparent=traceparent) for traceparent in traceparents]


def mark(trace: PublishTrace, published: list[Event]) -> list[EventTrace]:
    """What is told of the events, which are in their place as they go on."""
    published[:] = map(trace.mark_event, published)
    return trace.list_traces()


def acked(count: int) -> PublishAck:
    return PublishAck(1, "epoch", list(range(5, 5 + count)), [])


def test_events_of_a_request_are_of_its_trace() -> None:
    """They carry the gateway's span, which is beneath the publisher's and says what came of the request."""
    tracer, published = MemoryTracer(), events(None, None)
    trace = PublishTrace(tracer, context(7))
    [told] = mark(trace, published)
    trace.end(acked(2))
    [span] = tracer.spans
    assert (span.name, span.trace_id, span.parent) == ("publish", f"{7:032x}", f"{7:016x}")
    assert [one.traceparent for one in published] == [span.traceparent] * 2
    assert told == EventTrace(span.traceparent, 2, [0, 1])
    assert (span.attributes["solowire.event_count"], span.attributes["solowire.first_offset"]) == (2, 5)
    assert span.began_at < span.ended_at


def test_an_event_of_its_own_trace_is_not_of_the_requests() -> None:
    """Nor is one whose own says that it is not recorded; what is no context counts for nothing."""
    tracer = MemoryTracer()
    published = events(context(1), None, context(2, is_sampled=False), "what is none", context(1))
    trace = PublishTrace(tracer, context(7))
    told = mark(trace, published)
    trace.end(acked(5))
    own, requests = sorted(tracer.spans, key=lambda span: span.trace_id)
    assert [(one.traceparent, one.count, one.indexes) for one in told] == [
        (own.traceparent, 2, [0, 4]),
        (requests.traceparent, 2, [1, 3]),
    ]
    assert published[2].traceparent is None


def test_what_is_not_recorded_carries_nothing() -> None:
    """Without a context, with one that is none, or that is not sampled: the events are as they were, and no span is."""
    for header in ("", "what is none", context(7, is_sampled=False)):
        tracer = MemoryTracer()
        published = events(None, context(2, is_sampled=False), "what is none")
        trace = PublishTrace(tracer, header)
        assert mark(trace, published) == []
        trace.end(acked(3))
        assert [one.traceparent for one in published] == [None] * 3
        assert tracer.spans == []


def test_an_operator_decides_who_is_recorded() -> None:
    """A share of those that say nothing, as traces of their own; or nobody, whatever a publisher says."""
    tracer = MemoryTracer(TracerSettings(is_parent_based=True, ratio=1.0))
    published = events(None)
    mark(PublishTrace(tracer, ""), published)
    mark(PublishTrace(tracer, context(7, is_sampled=False)), events(None))
    assert published[0].traceparent is not None
    never = MemoryTracer(TracerSettings(is_parent_based=False, ratio=0.0))
    assert mark(PublishTrace(never, context(7)), events(context(1))) == []


def test_a_request_that_is_refused_has_a_span_with_the_reason() -> None:
    """Whether it was refused before its events were read, or after."""
    for marked in (False, True):
        tracer = MemoryTracer()
        trace = PublishTrace(tracer, context(7))
        if marked:
            mark(trace, events(None))
        trace.fail("overloaded")
        [span] = tracer.spans
        assert (span.error, span.parent) == ("overloaded", f"{7:016x}")
    tracer = MemoryTracer()
    PublishTrace(tracer, "").fail("overloaded")
    assert tracer.spans == []


def test_a_request_has_only_so_many_traces() -> None:
    """More than a hundred are counted and not recorded; of the events of one trace the first hundred are named."""
    tracer = MemoryTracer()
    published = events(*(context(number) for number in range(1, MAX_TRACES + 51)))
    told = mark(PublishTrace(tracer, ""), published)
    assert len(told) == MAX_TRACES
    assert sum(one.traceparent is not None for one in published) == MAX_TRACES
    assert tracer.dropped_count == 50
    [told] = [mark(PublishTrace(tracer, context(1)), events(*[None] * 5000))]
    assert [(one.count, len(one.indexes)) for one in told] == [(5000, MAX_INDEXES)]


def test_without_room_for_a_span_the_trace_goes_on() -> None:
    """Events then carry what the publisher said: what follows is beneath its own span."""
    tracer, published = MemoryTracer(room=0), events(None)
    [told] = mark(PublishTrace(tracer, context(7)), published)
    assert told.traceparent == published[0].traceparent == context(7)
    assert tracer.dropped_count == 1
