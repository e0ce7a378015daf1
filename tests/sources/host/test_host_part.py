"""The measurements of a host: this machine's own, those of a container, and alerts that begin and end."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from solowire.domains.dns.event_types import CATALOG
from solowire.runtime.settings.source_settings import HostSettings
from solowire.sources.agent.source_status import PartStatus
from solowire.sources.host.host_measurement import HostMeter
from solowire.sources.host.host_part import HostPart
from tests.support.query_logs import until
from tests.support.recorded_outlet import RecordedOutlet


class Scripted(HostMeter):
    """Measures what it is told to; the last one again and again."""

    def __init__(self, *measurements: dict[str, Any]) -> None:
        super().__init__()
        self.measurements = list(measurements)

    def measure(self) -> dict[str, Any]:
        return self.measurements.pop(0) if len(self.measurements) > 1 else self.measurements[0]


@asynccontextmanager
async def measuring(meter: HostMeter, **given: Any) -> AsyncIterator[tuple[RecordedOutlet, PartStatus]]:
    """The part at work; what it published is judged at the end as the gateway does."""
    outlet, status, stop = RecordedOutlet(), PartStatus("host"), asyncio.Event()
    settings = HostSettings.model_construct(**{**HostSettings().model_dump(), "interval_s": 0.01, **given})
    running = asyncio.create_task(HostPart(settings, outlet, meter).run(status, stop))
    try:
        yield outlet, status
    finally:
        stop.set()
        await asyncio.wait_for(running, 30)
    for event in outlet.events:
        CATALOG.validate_data(CATALOG[event["type"]], event["data"])


@contextmanager
def program(dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of a name that no other has."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    copy = shutil.copy(sleep, dir / f"sw{os.getpid()}")
    with subprocess.Popen([copy, "600"]) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_this_machine_is_measured(tmp_path: Path) -> None:
    """With real figures, those of a process that runs on it, too."""
    with program(tmp_path) as process:
        async with measuring(HostMeter(names=[f"sw{os.getpid()}"]), interval_s=0.2) as (outlet, status):
            await until(lambda: len(outlet.of_type("system_metrics")) >= 3)
            assert status.status == "running"
    metrics = outlet.of_type("system_metrics")[-1]
    assert metrics["host"] == metrics["server"] == "ns1"
    assert 0 <= metrics["cpu_usage"] <= 100
    assert 0 < metrics["memory_bytes"] <= metrics["memory_total_bytes"]
    assert metrics["cpu_count"] == len(os.sched_getaffinity(0))
    assert {"load_1m", "load_5m", "load_15m", "uptime_s"} <= metrics.keys()
    assert any(disk["path"] == "/" for disk in metrics["disks"])
    [found] = metrics["processes"]
    assert (found["pid"], found["threads"]) == (process.pid, 1)
    assert found["memory_bytes"] > 100_000
    assert {"cpu_usage", "open_files", "uptime_s"} <= found.keys()


async def test_what_has_no_room_counts_as_dropped() -> None:
    """And not as published, which it is not."""
    async with measuring(Scripted({"cpu_usage": 1.0})) as (outlet, status):
        outlet.room = 0
        await until(lambda: status.dropped_count >= 2)
        assert status.published_count == 0


def test_rates_come_with_the_second_measurement() -> None:
    """The first has nothing to compare with, and says no rate."""
    meter = HostMeter(names=[])
    first, second = meter.measure(), meter.measure()
    assert "cpu_usage" not in first
    assert all(each.keys() == {"name"} for each in first.get("network", ()))
    assert all("sent_bytes_per_second" in each for each in second.get("network", ()))
    assert "processes" not in first


@pytest.mark.parametrize(
    ("broken", "absent"),
    [
        ("cpu_times", "cpu_count"),
        ("getloadavg", "load_1m"),
        ("virtual_memory", "memory_usage"),
        ("net_io_counters", "network"),
        ("process_iter", "processes"),
        ("disk_usage", "disks"),
        ("boot_time", "uptime_s"),
    ],
)
@pytest.mark.parametrize("error", [FileNotFoundError("/proc/x"), PermissionError(), psutil.AccessDenied(1)])
def test_what_can_not_be_seen_is_absent(
    broken: str, absent: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file of /proc that is missing keeps nothing else from being measured."""
    name = psutil.Process().name()
    whole = HostMeter(names=[name]).measure()

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(psutil, broken, fail)
    measured = HostMeter(names=[name]).measure()
    assert absent not in measured
    assert len(measured) >= len(whole) - 4


def test_no_swap_no_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container without them has no such fields."""
    swap = psutil.swap_memory()
    monkeypatch.setattr(psutil, "swap_memory", lambda: swap._replace(total=0, used=0))
    measured = HostMeter(names=["no-such-program"]).measure()
    assert measured.keys().isdisjoint({"swap_usage", "swap_bytes", "processes"})


def test_a_containers_own_limit_counts(tmp_path: Path) -> None:
    """Memory is that of its control group, without what the kernel gives back; without a limit it is the host's."""
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("600000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    limited = HostMeter(cgroup=tmp_path).measure()
    assert (limited["memory_usage"], limited["memory_bytes"], limited["memory_total_bytes"]) == (
        50.0,
        500_000,
        1_000_000,
    )
    (tmp_path / "memory.max").write_text("max\n")
    assert HostMeter(cgroup=tmp_path).measure()["memory_total_bytes"] == psutil.virtual_memory().total


def test_one_process_is_compared_with_itself(tmp_path: Path) -> None:
    """The first measurement of a process has no CPU usage, and one that has taken another's place is measured anew."""
    meter = HostMeter(names=[f"sw{os.getpid()}"])
    for _ in range(2):
        with program(tmp_path) as process:
            [first], [second] = meter.measure()["processes"], meter.measure()["processes"]
            assert first["pid"] == second["pid"] == process.pid
            assert ("cpu_usage" in first, "cpu_usage" in second) == (False, True)
        assert "processes" not in meter.measure()


async def test_alerts_begin_and_end_once() -> None:
    """A disk that fills up and a named that ends are alerts, and it is said under the same id that they are over."""
    calm = {"cpu_usage": 5.0, "disks": [{"path": "/var", "usage": 50.0}], "processes": [{"name": "named", "pid": 7}]}
    bad = {"cpu_usage": 5.0, "disks": [{"path": "/var", "usage": 99.0}], "processes": []}
    meter = Scripted(calm, calm, calm, *[bad] * 5, calm)
    async with measuring(meter) as (outlet, status):
        await until(lambda: len(outlet.of_type("health_alert")) == 4)
        await until(lambda: status.published_count == len(outlet.events))
        metrics = len(outlet.of_type("system_metrics"))
        await until(lambda: len(outlet.of_type("system_metrics")) > metrics + 5)
    alerts = outlet.of_type("health_alert")
    assert [(a["type"], a["subject"], a["level"], a["resolved"]) for a in alerts] == [
        ("disk_usage", "/var", "critical", False),
        ("process_missing", "named", "critical", False),
        ("disk_usage", "/var", "info", True),
        ("process_missing", "named", "info", True),
    ]
    assert alerts[0]["message"] == "ns1: /var is full to 99 %; critical from 95 on"
    assert alerts[1]["message"] == "ns1: named is not running"
    assert alerts[0]["id"] == alerts[2]["id"] != alerts[1]["id"] == alerts[3]["id"]
    assert {e["lane"] for e in outlet.events if e["type"] == "health_alert"} == {"changes"}


async def test_a_named_that_never_was_is_not_missed() -> None:
    """A host without a name server has no alert about it."""
    async with measuring(Scripted({"cpu_usage": 5.0})) as (outlet, _):
        await until(lambda: len(outlet.of_type("system_metrics")) > 8)
    assert outlet.of_type("health_alert") == []


async def test_without_the_cpu_it_says_why_and_waits() -> None:
    """An event without its one required figure would be none: the status tells instead."""
    async with measuring(Scripted({"memory_usage": 5.0}, {"memory_usage": 5.0}, {"memory_usage": 5.0})) as (
        outlet,
        status,
    ):
        await until(lambda: status.status == "waiting")
        assert "/proc/stat" in str(status.reason)
    assert outlet.of_type("system_metrics") == []


async def test_a_file_system_that_does_not_answer_is_told(logged: Callable[[], set[str]]) -> None:
    """While one measurement hangs, no other is begun, and it is said; it goes on when that one ends."""
    released, begun = threading.Event(), []

    class Hanging(Scripted):
        def measure(self) -> dict[str, Any]:
            begun.append(1)
            if len(begun) == 2:
                released.wait(30)
            return super().measure()

    async with measuring(Hanging({"cpu_usage": 1.0})) as (outlet, status):
        await until(lambda: status.status == "waiting")
        assert "does not answer" in str(status.reason)
        assert len(begun) == 2
        released.set()
        await until(lambda: status.status == "running")
        await until(lambda: len(outlet.of_type("system_metrics")) > 2)
    assert "host_measurement_slow" in logged()


def test_thresholds_that_contradict_each_other_are_refused() -> None:
    """A warning above its critical threshold would never come."""
    with pytest.raises(ValidationError, match="contradict"):
        HostSettings(disk_warning_percent=96)
    HostSettings(disk_warning_percent=96, disk_critical_percent=0)
