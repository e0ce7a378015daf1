"""The spans of a publish request: one for each trace that its events are of.

What it keeps true: what is no trace context, or one that is not recorded, leaves the request as it is, and an event of
it carries nothing beyond the gateway. An event's own `traceparent` counts before that of the request. An event that is
recorded carries the `traceparent` of the gateway's span. A request has MAX_TRACES spans at most; events of any more
traces are not recorded, and counted.
"""

from __future__ import annotations

import msgspec

from solowire.backplane.messages import EventTrace, PublishAck
from solowire.model.events import Event
from solowire.model.trace_context import TraceContext, parse_traceparent
from solowire.observability.tracer import Attributes, Span, Tracer

MAX_TRACES = 100
MAX_INDEXES = 100
"""Of so many events of a trace the router looks for the first that a shard gets."""

_FLAGS_AT, _NOT_SAMPLED = 53, "00"
"""What stands where in a `traceparent` of version 00."""

_REQUEST: Attributes = {"http.request.method": "POST", "http.route": "/v1/events"}


class PublishTrace:
    """Of one request. header: its `traceparent`, as it was sent; "" if there is none."""

    __slots__ = ("_began_at", "_event_count", "_parent", "_spans", "_tracer", "_traces")

    def __init__(self, tracer: Tracer, header: str) -> None:
        self._tracer = tracer
        self._began_at = tracer.read_clock()
        # Most requests say nothing, or that they are not sampled: where publishers alone decide, that is not even read.
        is_plainly_not = not tracer.has_ratio and (not header or header[_FLAGS_AT:] == _NOT_SAMPLED)
        self._parent = None if is_plainly_not else self._choose_parent(parse_traceparent(header))
        self._spans: dict[str, Span | None] = {}  # by what they are beneath; None: there was no room for it
        self._traces: dict[str, EventTrace] = {}  # by what their events carry
        self._event_count = 0

    def _choose_parent(self, context: TraceContext | None) -> str | None:
        """What a span is to be beneath, "" for a trace of its own; None if it is not recorded."""
        if not self._tracer.decide_sampling(context):
            return None
        return "" if context is None else context._replace(is_sampled=True).traceparent

    def mark_event(self, event: Event) -> Event:
        """The next event of the request, as it is to go on: with the span that it is of, or with none."""
        index = self._event_count
        self._event_count += 1
        if self._parent is None and event.traceparent is None:
            return event
        traceparent = self._find_traceparent(event)
        if traceparent is not None:
            trace = self._traces.setdefault(traceparent, EventTrace(traceparent, 0, []))
            trace.count += 1
            if len(trace.indexes) < MAX_INDEXES:
                trace.indexes.append(index)
        return event if event.traceparent == traceparent else msgspec.structs.replace(event, traceparent=traceparent)

    def list_traces(self) -> list[EventTrace]:
        """Which of the events that were marked are of which trace."""
        return list(self._traces.values())

    def _find_traceparent(self, event: Event) -> str | None:
        """What the event is to carry."""
        own = parse_traceparent(event.traceparent)
        parent = self._parent if own is None else self._choose_parent(own)
        if parent is None:
            return None
        if parent not in self._spans:
            if len(self._spans) >= MAX_TRACES:
                self._tracer.drop_span()
                return None
            self._spans[parent] = self._tracer.start_span("publish", parent, self._began_at)
        span = self._spans[parent]
        return (parent or None) if span is None else span.traceparent

    def end(self, done: PublishAck) -> None:
        """The log has the events."""
        self._end(
            {
                "http.response.status_code": 200,
                "solowire.event_count": len(done.offsets),
                "solowire.duplicate_count": len(done.duplicates),
                "solowire.first_offset": min(done.offsets),
            }
        )

    def fail(self, code: str) -> None:
        """The request was refused. code: the error's."""
        if not self._spans and self._parent is not None:
            self._spans[self._parent] = self._tracer.start_span("publish", self._parent, self._began_at)
        self._end({}, code)

    def _end(self, attributes: Attributes, error: str = "") -> None:
        if self._spans:
            at = self._tracer.read_clock()
            for span in self._spans.values():
                if span is not None:
                    span.end(at, {**_REQUEST, **attributes}, error)
