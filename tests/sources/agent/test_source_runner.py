"""The life of a source: its parts go on beside each other, and it says how they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from solowire.errors import ConfigError
from solowire.sources.agent import source_runner
from solowire.sources.agent.source_runner import run_source
from solowire.sources.agent.source_status import PartStatus
from tests.support.query_logs import until
from tests.support.recorded_outlet import RecordedOutlet

URL = "http://127.0.0.1:9"


class Steady:
    """A part that runs until it is told to stop."""

    name = "steady"

    async def run(self, status: PartStatus, stop: asyncio.Event) -> None:
        status.set_running()
        status.read_count = 7
        await stop.wait()


class Broken:
    """A part that fails `times` times."""

    name = "broken"

    def __init__(self, times: int, error: Exception) -> None:
        self.times = times
        self.error = error
        self.begun_count = 0

    async def run(self, status: PartStatus, stop: asyncio.Event) -> None:
        self.begun_count += 1
        if self.begun_count <= self.times:
            raise self.error
        status.set_running()
        await stop.wait()


async def test_a_part_that_breaks_is_begun_anew_and_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its failure is logged, and is its status until it runs again."""
    monkeypatch.setattr(source_runner, "RESTART_MIN_S", 0.6)
    outlet, stop, broken = RecordedOutlet(), asyncio.Event(), Broken(1, ValueError("odd"))
    with capture_logs() as logs:
        running = asyncio.create_task(run_source("bind9", [Steady(), broken], outlet, stop, url=URL))
        await until(lambda: any(s["part"] == "broken" and s["status"] == "running" for s in statuses(outlet)))
        stop.set()
        await running
    told = [s for s in statuses(outlet) if s["part"] == "broken"]
    assert [s["status"] for s in told if s["status"] != "starting"] == ["failed", "running", "stopped"]
    assert next(s["reason"] for s in told if s["status"] == "failed") == "ValueError: odd"
    assert [s["events_read"] for s in statuses(outlet) if s["part"] == "steady"][-1] == 7
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["source_part_failed"]


async def test_a_part_that_is_set_up_wrong_ends_the_source() -> None:
    """Its operator reads why; the others are ended, too."""
    outlet = RecordedOutlet()
    with pytest.raises(ConfigError, match="no such key"):
        await run_source("bind9", [Steady(), Broken(9, ConfigError("no such key"))], outlet, asyncio.Event(), url=URL)
    assert {task.get_name() for task in asyncio.all_tasks()}.isdisjoint({"steady", "broken", "status", "clock"})


async def test_what_the_gateway_does_not_take_in_time_is_said(
    monkeypatch: pytest.MonkeyPatch, logged: Callable[[], set[str]]
) -> None:
    """A source that is told to stop waits for its last events, and not for ever."""

    class Away(RecordedOutlet):
        async def drain(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(source_runner, "STOP_S", 0.05)
    stop = asyncio.Event()
    stop.set()
    await run_source("bind9", [Steady()], Away(), stop, url=URL)
    assert "events_unsent" in logged()


async def test_it_is_ready_when_each_part_runs_or_waits() -> None:
    """A part that waits for its file doesn't keep a service from being ready."""

    class Waiting(Steady):
        name = "waiting"

        async def run(self, status: PartStatus, stop: asyncio.Event) -> None:
            status.set_waiting("/run/x: no such file")
            await stop.wait()

    outlet, stop, ready = RecordedOutlet(), asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(run_source("bind9", [Steady(), Waiting()], outlet, stop, url=URL, begun=ready.set))
    await asyncio.wait_for(ready.wait(), 10)
    stop.set()
    await running
    assert any(s.get("reason") == "/run/x: no such file" for s in statuses(outlet))


def statuses(outlet: RecordedOutlet) -> list[dict[str, object]]:
    return outlet.of_type("source_status")
