"""The twin of `otlp_tracer` in memory: spans are kept in a list, in the order in which they ended.

Its ids count from 1, and its clock moves by a microsecond with each look.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from solowire.model.trace_context import TraceContext, parse_traceparent
from solowire.observability.tracer import Attributes, TracerSettings


@dataclass
class MemorySpan:
    """A span as it was recorded. parent: the id of the one above it, "" if there is none."""

    name: str
    trace_id: str
    span_id: str
    parent: str
    began_at: int
    tracer: MemoryTracer = field(repr=False)
    ended_at: int = 0
    attributes: Attributes = field(default_factory=dict)
    error: str = ""

    @property
    def traceparent(self) -> str:
        return TraceContext(self.trace_id, self.span_id, True).traceparent

    def end(self, at: int, attributes: Attributes, error: str = "") -> None:
        self.ended_at, self.attributes, self.error = at, attributes, error
        self.tracer.spans.append(self)


class MemoryTracer:
    """Keeps spans. room: how many may be kept; those beyond are dropped."""

    def __init__(self, settings: TracerSettings | None = None, room: int = 1_000_000) -> None:
        self.spans: list[MemorySpan] = []
        self.dropped_count = 0
        self.now = 1_800_000_000_000_000_000
        self._settings = settings or TracerSettings(True, 0.0)
        self.has_ratio = self._settings.ratio > 0.0
        self._room = room
        self._begun = 0

    @property
    def exported_count(self) -> int:
        return len(self.spans)

    def read_clock(self) -> int:
        self.now += 1000
        return self.now

    def decide_sampling(self, parent: TraceContext | None) -> bool:
        if parent is not None and self._settings.is_parent_based:
            return parent.is_sampled
        return self._settings.ratio == 1.0

    def start_span(self, name: str, parent: str, at: int) -> MemorySpan | None:
        if len(self.spans) >= self._room:
            self.dropped_count += 1
            return None
        self._begun += 1
        above = parse_traceparent(parent)
        trace_id = f"{self._begun:032x}" if above is None else above.trace_id
        return MemorySpan(name, trace_id, f"{self._begun:016x}", "" if above is None else above.span_id, at, self)

    def drop_span(self) -> None:
        self.dropped_count += 1

    def close(self) -> None:
        pass
