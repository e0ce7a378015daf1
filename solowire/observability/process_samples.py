"""The metrics that gateway, router and shard have alike, each under its own name."""

from __future__ import annotations

from collections.abc import Iterator

from solowire.observability.audit import AuditWriter
from solowire.observability.loop_monitor import LoopMonitor
from solowire.observability.metrics import Sample
from solowire.observability.tracer import Tracer


def read_process_samples(loop_monitor: LoopMonitor, audit: AuditWriter, tracer: Tracer | None) -> Iterator[Sample]:
    """What a process's event loop, audit log and tracer say of themselves."""
    lag_s = loop_monitor.event_loop_lag_s
    yield "event_loop_lag_seconds", "Largest event loop lag of the last second.", lag_s
    yield "audit_records_dropped_total", "Audit records that were not written.", audit.lost_count
    exported, dropped = (tracer.exported_count, tracer.dropped_count) if tracer is not None else (0, 0)
    yield "trace_spans_exported_total", "Spans that the collector has taken.", exported
    yield "trace_spans_dropped_total", "Spans that were left out or not taken by the collector.", dropped
