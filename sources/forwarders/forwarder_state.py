"""The state of one forwarder, judged by what became of the probes that it was sent.

        ┌──────── a good answer ────────┐
        │                               ▼            limits reached
     unknown                         healthy ◄─────────────────────► degraded
        │                               │     below `ease` of them      │
        │ fail_count bad in a row       │ fail_count bad in a row       │
        └───────────► unhealthy ◄───────┴───────────────────────────────┘
                          └── recover_count good in a row: judged by what came since

What it keeps true:

* A status changes only as the picture shows; a change needs several results, so that one lost datagram changes nothing.
* A result is bad if no answer came, or one that resolves nothing (SERVFAIL, REFUSED and the like).
* The window holds the results of the last `window_s` seconds, MAX_RESULTS at most.
* Time is an argument: seconds of a clock that never goes back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

MAX_RESULTS = 1_000
MIN_RESULTS = 10
"""Of which shares and percentiles are judged; fewer say nothing. Nor does one alone: there must be two bad ones."""


class ProbeOutcome(Enum):
    """What became of one probe."""

    answered = "answered"
    servfail = "servfail"
    refused = "refused"
    """Any other answer that resolves nothing: REFUSED, FORMERR, NOTIMP …"""
    lost = "lost"


class Status(Enum):
    """How a forwarder is."""

    unknown = "unknown"
    healthy = "healthy"
    degraded = "degraded"
    unhealthy = "unhealthy"


@dataclass(frozen=True)
class ForwarderLimits:
    """From where on a forwarder is degraded or unhealthy. Shares in percent, round trips in milliseconds.

    servfail: refusals count with it. fail_count, recover_count: results in a row. ease: a degraded one is healthy again
    below this part of each limit.
    """

    fail_count: int = 3
    recover_count: int = 3
    loss: float = 20.0
    servfail: float = 20.0
    rtt_ms: float = 500.0
    window_s: float = 120.0
    ease: float = 0.7


@dataclass(frozen=True)
class ForwarderFigures:
    """The window's figures. Percentiles are of what was answered; None where there is nothing to say."""

    rtt_ms: float | None
    rtt_p50_ms: float | None
    rtt_p95_ms: float | None
    loss: float | None
    servfail: float | None
    probes_count: int


@dataclass(frozen=True)
class StatusChange:
    """A forwarder went from one status to another. reason: in words."""

    old: Status
    new: Status
    reason: str


class ForwarderState:
    """One forwarder. Each result gives the change that it causes, or None."""

    def __init__(self, limits: ForwarderLimits | None = None) -> None:
        self._limits = limits or ForwarderLimits()
        self.status = Status.unknown
        self.failures_count = 0  # in a row
        self.last_error: str | None = None
        self._good_count = 0  # in a row
        self._results: deque[tuple[float, ProbeOutcome]] = deque(maxlen=MAX_RESULTS)
        self._rtts: deque[tuple[float, float]] = deque(maxlen=MAX_RESULTS)

    @property
    def is_in_doubt(self) -> bool:
        """The next results may change the status: to be asked for soon."""
        if self.status is Status.unhealthy:
            return self._good_count > 0
        return self.status is Status.unknown or self.failures_count > 0

    def note_probe(
        self, outcome: ProbeOutcome, at: float, *, rtt_ms: float | None = None, error: str = ""
    ) -> StatusChange | None:
        """A probe's result. rtt_ms: of an answer, good or bad. error: what a bad one says."""
        self._results.append((at, outcome))
        if rtt_ms is not None:
            self._rtts.append((at, rtt_ms))
        if outcome is ProbeOutcome.answered:
            self._good_count += 1
            self.failures_count = 0
            self.last_error = None
        else:
            self._good_count = 0
            self.failures_count += 1
            self.last_error = error or outcome.value
        return self._judge(at)

    def describe(self, at: float) -> ForwarderFigures:
        """The figures of the window that ends now."""
        self._trim(at)
        rtts = sorted(rtt for _, rtt in self._rtts)
        total = len(self._results)
        return ForwarderFigures(
            rtt_ms=self._rtts[-1][1] if self._rtts else None,
            rtt_p50_ms=_percentile(rtts, 50),
            rtt_p95_ms=_percentile(rtts, 95),
            loss=self._share(ProbeOutcome.lost) if total else None,
            servfail=self._share(ProbeOutcome.servfail) if total else None,
            probes_count=total,
        )

    def _judge(self, at: float) -> StatusChange | None:
        self._trim(at)
        limits = self._limits
        if self.failures_count >= limits.fail_count:
            return self._change(Status.unhealthy, f"{self.failures_count} probes in a row failed: {self.last_error}")
        match self.status:
            case Status.unknown if self._good_count:
                return self._change(Status.healthy, "it answers")
            case Status.unhealthy if self._good_count >= limits.recover_count:
                self._forget_outage()
                return self._change(Status.healthy, f"it has answered {self._good_count} times in a row")
            case Status.healthy if reason := self._find_fault(1.0):
                return self._change(Status.degraded, reason)
            case Status.degraded if len(self._results) >= MIN_RESULTS and not self._find_fault(limits.ease):
                return self._change(Status.healthy, "loss, SERVFAIL and round trips are well below the limits again")
            case _:
                return None

    def _find_fault(self, part: float) -> str:
        """The limit that is reached, in words; "" if there is none. part: of each limit that counts."""
        limits = self._limits
        if (total := len(self._results)) >= MIN_RESULTS:
            least = 200.0 / total  # two of them
            if (loss := self._share(ProbeOutcome.lost)) >= max(limits.loss * part, least):
                return f"{loss:.0f} % of the probes got no answer"
            if (share := self._share(ProbeOutcome.servfail, ProbeOutcome.refused)) >= max(
                limits.servfail * part, least
            ):
                return f"{share:.0f} % of the probes got SERVFAIL or a refusal"
        if len(self._rtts) >= MIN_RESULTS:
            ordered = sorted(rtt for _, rtt in self._rtts)
            slow = min(_percentile(ordered, 95) or 0.0, ordered[-2])
            if slow >= limits.rtt_ms * part:
                return f"one of twenty answers takes {slow:.0f} ms or more"
        return ""

    def _change(self, new: Status, reason: str) -> StatusChange | None:
        old = self.status
        if old is new:
            return None
        self.status = new
        return StatusChange(old, new, reason)

    def _forget_outage(self) -> None:
        for _ in range(len(self._results) - self._good_count):
            self._results.popleft()

    def _share(self, *outcomes: ProbeOutcome) -> float:
        return 100.0 * sum(each in outcomes for _, each in self._results) / len(self._results)

    def _trim(self, at: float) -> None:
        for kept in (self._results, self._rtts):
            while kept and kept[0][0] <= at - self._limits.window_s:
                kept.popleft()


def _percentile(ordered: list[float], percent: int) -> float | None:
    """By nearest rank, of sorted values."""
    if not ordered:
        return None
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(rank, 1) - 1]
