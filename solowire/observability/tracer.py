"""The tracer of a process: where its spans go, if an operator has set an endpoint for them.

What it keeps true: a process without an endpoint has no tracer (`process_tracer`): its parts ask for `None` and do
nothing else. Whether a trace is recorded is decided once, at the gateway; the others are only told of those that are.

`otlp_tracer` has the real one, and `memory_tracer` its twin in memory. Times are unix nanoseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from solowire.model.trace_context import TraceContext

Attributes = Mapping[str, str | int | float | bool]
"""What a span says. Names are those of OpenTelemetry's conventions, or begin with `solowire.`."""


class Span(Protocol):
    """A span that has begun. One that is never ended is told nobody."""

    @property
    def traceparent(self) -> str:
        """Of what happens within it, or because of it."""

    def end(self, at: int, attributes: Attributes, error: str = "") -> None:
        """Ends it. error: the code of what went wrong."""


class Tracer(Protocol):
    """Where the spans of a process go.

    has_ratio: some of the requests that don't say so themselves are recorded, too. dropped_count: spans that were left
    out, or that nobody took.
    """

    has_ratio: bool

    @property
    def exported_count(self) -> int: ...

    @property
    def dropped_count(self) -> int: ...

    def read_clock(self) -> int:
        """The time."""

    def decide_sampling(self, parent: TraceContext | None) -> bool:
        """Whether a request is to be recorded. parent: as it says itself; None if it says nothing."""

    def start_span(self, name: str, parent: str, at: int) -> Span | None:
        """Begins one beneath a `traceparent`, "" for a trace of its own; None, counted, if there is no room for it."""

    def drop_span(self) -> None:
        """Counts one that is not begun, because too many are under way where it would be."""

    def close(self) -> None:
        """Ends it: what waits is sent within a moment, or lost. Blocks for as long."""


class TracerSettings(NamedTuple):
    """What the environment says, by OpenTelemetry's names.

    ratio: of the requests that say nothing themselves, or of all where is_parent_based is false.
    """

    is_parent_based: bool
    ratio: float
