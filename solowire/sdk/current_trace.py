"""The trace that the user's code is in, if OpenTelemetry is used there: what is published is part of it.

What it keeps true: OpenTelemetry is not imported here; who has not done so is in no trace. A trace that is not recorded
is not passed on: it would be sent with each event for nothing.
"""

from __future__ import annotations

import sys

from solowire.model.trace_context import TraceContext, parse_traceparent


def read_current_traceparent() -> str | None:
    """The `traceparent` of the current span, if it is recorded."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    try:
        context = api.get_current_span().get_span_context()
        if not (context.is_valid and context.trace_flags.sampled):
            return None
        return TraceContext(f"{context.trace_id:032x}", f"{context.span_id:016x}", True).traceparent
    except Exception:  # of a module that is half imported, or a tracer that is none: no event is lost for it
        return None


def check_traceparent(path: str, value: str) -> None:
    """Raises ValueError for what the gateway would ignore."""
    if parse_traceparent(value) is None:
        raise ValueError(
            f"{path} is no trace context: 00-, 32 digits, -, 16 digits, - and 2, such as 01 (W3C Trace Context); "
            f"not {value[:80]!r}"
        )
