"""What a publisher says of the trace that it is in."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

from solowire.sdk.event_encoding import encode_event, encode_whole_event

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def sent_within(sampler: Sampler, traceparent: str | None = None) -> tuple[str, object, object]:
    """The current span's `traceparent`, and what two ways of publishing send of it."""
    with TracerProvider(sampler=sampler).get_tracer("test").start_as_current_span("work") as span:
        context = span.get_span_context()
        one = msgspec.json.decode(encode_event("custom.x", {}, traceparent=traceparent)[1])
        given: dict[str, object] = {"type": "custom.x", "data": {}, "traceparent": traceparent}
        other = msgspec.json.decode(encode_whole_event(given, "$"))
    text = f"00-{trace.format_trace_id(context.trace_id)}-{trace.format_span_id(context.span_id)}-01"
    return text, one.get("traceparent"), other.get("traceparent")


def test_the_current_span_is_passed_on() -> None:
    """Without a word of the user's."""
    text, *sent = sent_within(ALWAYS_ON)
    assert sent == [text, text]


def test_what_is_given_counts_before_it() -> None:
    """As the user says, whatever span is the current one."""
    _, *sent = sent_within(ALWAYS_ON, GIVEN)
    assert sent == [GIVEN, GIVEN]


def test_what_is_not_recorded_is_not_sent() -> None:
    """In a span that is not sampled, and in none."""
    _, *sent = sent_within(ALWAYS_OFF)
    assert sent == [None, None]
    assert b"traceparent" not in encode_event("custom.x", {})[1]


@pytest.mark.parametrize("value", ["", "x", GIVEN[:-1], GIVEN.upper()])
def test_what_is_no_trace_context_is_refused_here(value: str) -> None:
    """The gateway would ignore it, and nobody would know why there is no trace."""
    with pytest.raises(ValueError, match="traceparent"):
        encode_event("custom.x", {}, traceparent=value)


def test_the_sdk_comes_without_opentelemetry() -> None:
    """It is neither needed nor imported."""
    code = """
import sys
sys.modules["opentelemetry"] = None
from solowire import Publisher
from solowire.sdk.event_encoding import encode_event
assert b"traceparent" not in encode_event("custom.x", {})[1]
assert not any(name.startswith("opentelemetry.") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
