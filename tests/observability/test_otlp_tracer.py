"""The tracer that sends spans, with a collector on loopback that takes them, refuses them or says nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from structlog.testing import capture_logs

from solowire.model.trace_context import TraceContext
from solowire.observability.memory_tracer import MemoryTracer
from solowire.observability.otlp_tracer import QUEUED_SPANS, OtlpTracer
from solowire.observability.tracer import Tracer, TracerSettings
from tests.support.otlp_receiver import OtlpReceiver

DEADLINE_S = 20.0
TRACE = TraceContext("1" * 32, "2" * 16, True)


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as started:
        yield started


def make_tracer(monkeypatch: pytest.MonkeyPatch, url: str, ratio: float = 0.0, **variables: str) -> OtlpTracer:
    named = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "20", **variables}
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    return OtlpTracer(TracerSettings(is_parent_based=True, ratio=ratio), "shard", "shard-3")


def record(tracer: Tracer, name: str = "flush", parent: str = TRACE.traceparent) -> bool:
    span = tracer.start_span(name, parent, tracer.read_clock())
    if span is not None:
        span.end(tracer.read_clock(), {"solowire.offset": 7})
    return span is not None


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_spans_arrive_with_who_has_sent_them(monkeypatch: pytest.MonkeyPatch, receiver: OtlpReceiver) -> None:
    """Their parent is the remote one, their process is named, and the environment names the service."""
    tracer = make_tracer(monkeypatch, receiver.url, OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test")
    record(tracer)
    until(lambda: bool(receiver.spans))
    [span] = receiver.spans
    assert (span.name, span.trace_id, span.parent) == ("flush", TRACE.trace_id, TRACE.span_id)
    assert span.attributes == {"solowire.offset": 7}
    wanted = {
        "service.name": "solowire",
        "service.instance.id": "shard-3",
        "solowire.role": "shard",
        "deployment.environment.name": "test",
    }
    assert wanted.items() <= span.resource.items()
    until(lambda: tracer.exported_count == 1)
    named = make_tracer(monkeypatch, receiver.url, OTEL_SERVICE_NAME="events")
    record(named, parent="")
    until(lambda: len(receiver.spans) == 2)
    assert receiver.spans[1].resource["service.name"] == "events"
    assert receiver.spans[1].parent == ""
    for one in (tracer, named):
        one.close()


def test_what_waits_is_sent_at_the_end(monkeypatch: pytest.MonkeyPatch, receiver: OtlpReceiver) -> None:
    """A process that ends has its last spans sent, without waiting for the next time."""
    tracer = make_tracer(monkeypatch, receiver.url, OTEL_BSP_SCHEDULE_DELAY="60000")
    record(tracer)
    tracer.close()
    assert len(receiver.spans) == 1


def test_a_collector_that_says_nothing_is_waited_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it hangs the queue fills, and what has no room is counted; the end comes all the same."""
    is_over = threading.Event()
    answered = []

    def hang() -> int:
        is_over.wait(10)
        answered.append(True)
        return 200

    with OtlpReceiver(hang) as slow:
        tracer = make_tracer(monkeypatch, slow.url)
        recorded = sum(record(tracer) for _ in range(QUEUED_SPANS + 100))
        assert recorded == QUEUED_SPANS
        assert tracer.dropped_count == 100
        with capture_logs() as lines:
            tracer.close()
        assert answered == []  # it has not waited for the SDK, which waits for half a minute
        is_over.set()
    assert [line["event"] for line in lines] == ["traces_dropped_at_exit"]


def test_a_collector_that_is_away_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does not take is counted, and the log says why in one line."""
    with capture_logs() as lines:
        tracer = make_tracer(monkeypatch, "http://127.0.0.1:1", OTEL_EXPORTER_OTLP_TIMEOUT="0.2")
        for count in (1, 2):
            record(tracer)
            until(lambda count=count: tracer.dropped_count == count)  # type: ignore[misc]
    [line] = [line for line in lines if line["event"] == "trace_export_failed"]
    assert line["reason"]
    tracer.close()


def test_a_refusal_has_the_collectors_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused for good is not sent again."""
    with OtlpReceiver(lambda: 400) as refusing, capture_logs() as lines:
        tracer = make_tracer(monkeypatch, refusing.url)
        record(tracer)
        until(lambda: tracer.dropped_count == 1)
        tracer.close()
    assert "400" in lines[0]["reason"]
    assert refusing.request_count == 1


@pytest.mark.parametrize("settings", [TracerSettings(True, 0.0), TracerSettings(True, 1.0), TracerSettings(False, 0.0)])
def test_the_twin_decides_as_the_real_one(
    monkeypatch: pytest.MonkeyPatch, receiver: OtlpReceiver, settings: TracerSettings
) -> None:
    """Which requests are recorded, by what they say and what an operator wants."""
    tracer = make_tracer(monkeypatch, receiver.url)
    tracer._settings = settings
    for context in (None, TRACE, TRACE._replace(is_sampled=False)):
        assert tracer.decide_sampling(context) == MemoryTracer(settings).decide_sampling(context)
    tracer.close()


def test_a_share_of_traces_is_the_same_for_everybody(monkeypatch: pytest.MonkeyPatch, receiver: OtlpReceiver) -> None:
    """By the trace's id, as OpenTelemetry's own sampler has it; of those without one, about as many."""
    from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

    tracer = make_tracer(monkeypatch, receiver.url)
    tracer._settings = TracerSettings(is_parent_based=False, ratio=0.25)
    theirs = TraceIdRatioBased(0.25)
    for step in range(64):
        number = (step << 58) + (7 << 64)
        sampled = theirs.should_sample(None, number, "publish").decision is Decision.RECORD_AND_SAMPLE
        assert tracer.decide_sampling(TraceContext(f"{number:032x}", "2" * 16, False)) is sampled
    assert 100 < sum(tracer.decide_sampling(None) for _ in range(1000)) < 400
    tracer.close()
