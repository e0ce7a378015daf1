"""The clocks of sources, measured against a real gateway's."""

from __future__ import annotations

import asyncio
import time

import pytest
from structlog.testing import capture_logs

from solowire.sources.agent import clock_skew
from solowire.sources.agent.source_status import StatusReporter
from tests.support.query_logs import until
from tests.support.recorded_outlet import RecordedOutlet
from tests.support.system import System


class ShiftedTime:
    """This machine's clock, so many seconds ahead."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def time(self) -> float:
        return time.time() + self.seconds


@pytest.mark.parametrize("ahead_s", [5, -90, 0])
async def test_a_clock_s_skew_is_told_and_warned_of(
    system: System, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    """How far the source's clock is ahead is in its status; beyond a second it is a warning, once."""
    monkeypatch.setattr(clock_skew, "time", ShiftedTime(ahead_s))
    reporter, stop = StatusReporter("bind9", RecordedOutlet()), asyncio.Event()
    with capture_logs() as logs:
        watching = asyncio.create_task(clock_skew.watch_clock(system.url, reporter, stop))
        await until(lambda: reporter.clock_skew_ms is not None)
        stop.set()
        await watching
    assert reporter.clock_skew_ms is not None
    assert abs(reporter.clock_skew_ms / 1000 - ahead_s) < 0.9  # wrong by half of a round trip at most
    assert [entry["event"] for entry in logs] == (["clock_skewed"] if ahead_s else [])


async def test_a_gateway_that_is_away_is_no_skew(system: System) -> None:
    """Nothing is told that was not measured, and nothing fails."""
    reporter, stop = StatusReporter("bind9", RecordedOutlet()), asyncio.Event()
    watching = asyncio.create_task(clock_skew.watch_clock("http://127.0.0.1:9", reporter, stop))
    await asyncio.wait({watching}, timeout=0.5)  # it waits for its next time
    assert not watching.done()
    stop.set()
    await watching
    assert reporter.clock_skew_ms is None
