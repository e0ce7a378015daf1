"""Refusals are counted one by one and logged together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from solowire.errors import InvalidToken, RequestRejected
from solowire.observability.rejection_log import SUMMARY_SECONDS, RejectionLog


class Clock:
    """What is to be done later, and the lines that are logged then."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int, str]] = []
        self.due: list[Callable[[], None]] = []
        self.refusals = RejectionLog(self, self._later)

    def _later(self, seconds: float, do: Callable[[], None]) -> None:
        assert seconds == SUMMARY_SECONDS
        self.due.append(do)

    def info(self, event: str, *, code: str, count: int, reason: str, **_: Any) -> None:
        assert event == "connection_rejected"
        self.lines.append((code, count, reason))

    def second(self) -> list[tuple[str, int, str]]:
        """What is logged when a second is over."""
        [do] = self.due
        self.due, self.lines = [], []
        do()
        return self.lines


def test_refusals_are_summed_up_by_code() -> None:
    """A thousand refusals are one line for each code, with their number and the newest one's reason."""
    clock = Clock()
    for n in range(1000):
        clock.refusals.record(RequestRejected(503, "over_limit", f"number {n}"))
    clock.refusals.record(InvalidToken("garbage"))
    assert clock.second() == [("over_limit", 1000, "number 999"), ("invalid_token", 1, "garbage")]
    assert clock.refusals.totals == {"over_limit": 1000, "invalid_token": 1}


def test_what_was_told_is_not_told_again() -> None:
    """The next refusal begins a second of its own, the totals go on, and without any nothing is logged."""
    clock = Clock()
    clock.refusals.record(RequestRejected(503, "over_limit", "a"))
    clock.second()
    assert clock.due == []
    clock.refusals.record(RequestRejected(503, "over_limit", "b"))
    assert clock.second() == [("over_limit", 1, "b")]
    assert clock.refusals.totals["over_limit"] == 2
