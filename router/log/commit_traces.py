"""The router's part in traces: the commit of events that are recorded, and their dispatch to the shards.

What it keeps true: each trace of a request has one span for the commit, and one for each shard that had a cursor when
it was committed and gets an event of it: the first one, with which the shard is told to go on. What is read from the
log again, for a shard that begins or for a client that comes back, is no dispatch and has no span. MAX_LIVE traces are
followed, for LIVE_SECONDS; at that bound the oldest is followed no longer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from solowire.backplane.messages import EventTrace, LogBatch
from solowire.observability.tracer import Tracer
from solowire.router.log.known_ids import AppendResult

MAX_LIVE = 1000
LIVE_SECONDS = 30


class TracedEvents:
    """Events of one request and one trace. offsets: of the first of them, growing. count: of all.

    waiting: the shards, by their peers' names, to which they are to be dispatched. at: when they came, and from their
    commit on when that was. traceparent: of the span that is above the next one.
    """

    __slots__ = ("at", "count", "offsets", "traceparent", "waiting")

    def __init__(self, offsets: list[int], count: int, traceparent: str, at: int) -> None:
        self.offsets = offsets
        self.count = count
        self.traceparent = traceparent
        self.at = at
        self.waiting: set[bytes] = set()


class CommitTraces:
    """Of one router. live: what is committed and has not been dispatched to all shards, oldest first."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._group: list[TracedEvents] = []  # of the journal's open group
        self.live: deque[TracedEvents] = deque(maxlen=MAX_LIVE)

    def note_request(self, traces: Iterable[EventTrace], appended: AppendResult) -> None:
        """A request stands in the open group. Of its duplicates nothing is told: they are where they were."""
        at, duplicates = self._tracer.read_clock(), set(appended.duplicates)
        for trace in traces:
            known = (index for index in trace.indexes if index < len(appended.offsets) and index not in duplicates)
            offsets = [appended.offsets[index] for index in known]
            if offsets:
                self._group.append(TracedEvents(offsets, trace.count, trace.traceparent, at))

    def finish_group(self, shards: Iterable[bytes], error: str = "") -> None:
        """The open group is on disk, and goes to these shards; or it is not, for an `error`."""
        if not self._group:
            return
        group, self._group = self._group, []
        at, waiting = self._tracer.read_clock(), set(shards)
        for traced in group:
            span = self._tracer.start_span("journal commit", traced.traceparent, traced.at)
            if span is not None:
                span.end(at, {"solowire.event_count": traced.count, "solowire.first_offset": traced.offsets[0]}, error)
                traced.traceparent = span.traceparent
            if not error and waiting:
                traced.at, traced.waiting = at, set(waiting)
                self.live.append(traced)

    def mark_batch(self, peer: bytes, shard: int, message: LogBatch) -> None:
        """A part of the log is about to go to a shard: it tells of the first event of each trace that is in it."""
        at, sent = self._tracer.read_clock(), {offset for offset, _ in message.events}
        for traced in self.live:
            if traced.offsets[0] > message.end_offset:
                break
            if peer not in traced.waiting or traced.offsets[-1] <= message.prev_offset:
                continue
            offset = next((offset for offset in traced.offsets if offset in sent), None)
            if offset is None:
                continue
            traceparent = traced.traceparent
            span = self._tracer.start_span("dispatch", traceparent, traced.at)
            if span is not None:
                span.end(at, {"solowire.shard": shard, "solowire.offset": offset})
                traceparent = span.traceparent
            message.traces = [*message.traces, (offset, traceparent)]

    def note_sent(self, peer: bytes, message: LogBatch) -> None:
        """It is on its way."""
        told = {offset for offset, _ in message.traces}
        for traced in self.live:
            if traced.offsets[0] > message.end_offset:
                break
            if traced.offsets[-1] <= message.end_offset or not told.isdisjoint(traced.offsets):
                traced.waiting.discard(peer)
        while self.live and not self.live[0].waiting:
            self.live.popleft()

    def forget_old(self) -> None:
        """Follows no longer what some shard has not been sent for so long."""
        oldest = self._tracer.read_clock() - LIVE_SECONDS * 1_000_000_000
        while self.live and self.live[0].at < oldest:
            self.live.popleft()
