"""The tracer that sends spans to a collector, by OTLP over HTTP: the only module that imports OpenTelemetry.

What it keeps true: the loop never waits. A span that has ended goes into a queue of QUEUED_SPANS, those included that
are being sent; while it is full none is begun, and each is counted. A thread of the SDK's sends them, up to SENT_SPANS
at a time, and sleeps while there are none. What a collector doesn't take is counted and logged, and nothing else
happens. At the end of the process it has CLOSE_SECONDS.

Whether a request is recorded is decided here, by the words of OpenTelemetry's samplers, and not by theirs: theirs want
a span's context first, which would cost each request that is not recorded several times as much.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from solowire import __version__
from solowire.algorithms.warning_pace import WarningPace
from solowire.errors import ConfigError
from solowire.model.trace_context import TraceContext, parse_traceparent
from solowire.observability.tracer import Attributes, TracerSettings

logger = structlog.get_logger("solowire.traces")

QUEUED_SPANS, SENT_SPANS = 2048, 128
"""A batch is encoded at one go: of more spans the loop would wait longer for the interpreter."""
CLOSE_SECONDS = 0.3
"""Three processes of `up` end one after the other, and all of it is to take no second more."""
_ID_RANGE = 2.0**64

_KINDS = {
    "publish": trace.SpanKind.SERVER,
    "dispatch": trace.SpanKind.PRODUCER,
    "flush": trace.SpanKind.CONSUMER,
}


class _ErrorText(logging.Handler):
    """Keeps what the SDK says of an export that fails, in place of its lines in our log: one for each attempt."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""
        sdk = logging.getLogger("opentelemetry")
        sdk.addHandler(self)
        sdk.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.text = self.text or record.getMessage()


class _CountedExporter(SpanExporter):
    """Counts what became of spans. All of it in the SDK's thread, but for reading the counts."""

    def __init__(self, exporter: SpanExporter) -> None:
        self.exported_count = self.failed_count = 0
        self._exporter = exporter
        self._error = _ErrorText()
        self._pace = WarningPace()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._error.text = ""
        result, reason = SpanExportResult.FAILURE, ""
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # such as a file of certificates that is not there
            reason = str(error)
        if result is SpanExportResult.SUCCESS:
            self.exported_count += len(spans)
            self._pace.reset()
            return result
        self.failed_count += len(spans)
        reason = reason or self._error.text
        if self._pace.is_due("failed", time.monotonic()):  # whatever the reason: it may have addresses in it
            hint = "does the collector run, and is OTEL_EXPORTER_OTLP_ENDPOINT its address? Nothing else is affected"
            logger.warning("trace_export_failed", reason=reason, spans=len(spans), dropped=self.failed_count, hint=hint)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _OtlpSpan:
    """A span of the SDK's."""

    __slots__ = ("_span", "_tracer", "traceparent")

    def __init__(self, span: trace.Span, tracer: OtlpTracer) -> None:
        self._span = span
        self._tracer = tracer
        context = span.get_span_context()
        trace_id, span_id = trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
        self.traceparent = TraceContext(trace_id, span_id, True).traceparent

    def end(self, at: int, attributes: Attributes, error: str = "") -> None:
        self._span.set_attributes(dict(attributes))
        if error:
            self._span.set_status(trace.StatusCode.ERROR, error)
            self._span.set_attribute("error.type", error)
        self._tracer.ended_count += 1
        self._span.end(at)


class OtlpTracer:
    """Sends a process's spans where the environment says. role, instance: as `tracer.open_tracer` has them.

    Raises ConfigError for what the environment says wrongly.
    """

    def __init__(self, settings: TracerSettings, role: str, instance: str) -> None:
        self.ended_count = 0
        self.has_ratio = settings.ratio > 0.0
        self._settings = settings
        self._left_out_count = 0
        try:
            self._exporter = _CountedExporter(OTLPSpanExporter())
            self._processor = BatchSpanProcessor(
                self._exporter, max_queue_size=QUEUED_SPANS, max_export_batch_size=SENT_SPANS
            )
        except ValueError as error:
            raise ConfigError(f"a variable OTEL_EXPORTER_OTLP_… or OTEL_BSP_… can't be read: {error}") from None
        provider = TracerProvider(sampler=ALWAYS_ON, resource=_make_resource(role, instance), shutdown_on_exit=False)
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("solowire", __version__)

    @property
    def exported_count(self) -> int:
        """Spans that the collector has taken."""
        return self._exporter.exported_count

    @property
    def dropped_count(self) -> int:
        """Spans that were left out, or that the collector has not taken."""
        return self._left_out_count + self._exporter.failed_count

    @property
    def _queued_count(self) -> int:
        return self.ended_count - self._exporter.exported_count - self._exporter.failed_count

    def read_clock(self) -> int:
        return time.time_ns()

    def decide_sampling(self, parent: TraceContext | None) -> bool:
        settings = self._settings
        if parent is None:
            return settings.ratio > 0.0 and random.random() < settings.ratio  # noqa: S311 - no secret
        if settings.is_parent_based:
            return parent.is_sampled
        # As all of OpenTelemetry's SDKs do it, so that they agree about a trace.
        return int(parent.trace_id[16:], 16) < settings.ratio * _ID_RANGE

    def start_span(self, name: str, parent: str, at: int) -> _OtlpSpan | None:
        if self._queued_count >= QUEUED_SPANS:
            self._left_out_count += 1
            return None
        kind = _KINDS.get(name, trace.SpanKind.INTERNAL)
        return _OtlpSpan(self._tracer.start_span(name, _make_context(parent), kind, start_time=at), self)

    def drop_span(self) -> None:
        self._left_out_count += 1

    def close(self) -> None:
        if not self._queued_count:
            return
        failed = self._exporter.failed_count
        # The SDK waits for as long as a collector keeps it waiting: its thread is left behind then, and ends with us.
        closer = threading.Thread(target=self._shut_down, name="traces-close", daemon=True)
        closer.start()
        closer.join(CLOSE_SECONDS)
        if lost := self._queued_count + self._exporter.failed_count - failed:
            logger.warning("traces_dropped_at_exit", spans=lost, hint="the collector has not taken them in time")

    def _shut_down(self) -> None:
        with suppress(Exception):
            self._processor.shutdown()  # type: ignore[no-untyped-call]


def _make_resource(role: str, instance: str) -> Resource:
    """Who says it: by the environment's OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, and the process's own."""
    own: Attributes = {"service.version": __version__, "service.instance.id": instance, "solowire.role": role}
    resource = Resource.create(own)
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "solowire"}))
    return resource


def _make_context(traceparent: str) -> Context:
    """The SDK's context of a `traceparent`; an empty one for "", so that a trace of its own begins."""
    above = parse_traceparent(traceparent)
    if above is None:
        return Context()
    remote = trace.SpanContext(
        int(above.trace_id, 16), int(above.span_id, 16), is_remote=True, trace_flags=trace.TraceFlags(1)
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(remote), Context())
