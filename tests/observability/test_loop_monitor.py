"""A process's own numbers, on a loop that is really late."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from solowire.observability import loop_monitor as vitals
from solowire.observability.loop_monitor import LoopMonitor, memory_bytes


async def test_a_loop_that_is_held_up_is_late() -> None:
    """What blocks the loop for a third of a second is seen as that, and forgotten when the loop is well again."""
    seconds: list[float] = []
    looked = asyncio.Event()

    def each_second() -> None:
        seconds.append(own.event_loop_lag_s)
        looked.set()

    own = LoopMonitor(each_second)
    try:
        await asyncio.sleep(0.1)
        time.sleep(0.35)  # what a loop must not do  # noqa: ASYNC251
        async with asyncio.timeout(30):
            while len(seconds) < 2 or seconds[-1] > 0.25:
                looked.clear()
                await looked.wait()
    finally:
        own.close()
    assert seconds[0] > 0.25


async def test_a_second_that_fails_is_logged_and_not_the_last() -> None:
    """An exception in what is done each second is an error in the log, and the next second comes all the same."""
    calls = 0
    again = asyncio.Event()

    def each_second() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("this second is no good")
        again.set()

    with capture_logs() as logs:
        own = LoopMonitor(each_second)
        try:
            async with asyncio.timeout(30):
                await again.wait()
        finally:
            own.close()
    assert [(line["event"], line["log_level"]) for line in logs] == [("periodic_task_failed", "error")]


GROWS = """
from solowire.observability.loop_monitor import memory_bytes

before = memory_bytes()
held = bytearray(64 * 2**20)
held[::4096] = b"x" * len(held[::4096])
print(memory_bytes() - before)
"""


def test_memory_is_the_resident_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows with what is held (in a process that does nothing else), and is 0 where the system doesn't say."""
    grown = subprocess.run([sys.executable, "-c", GROWS], capture_output=True, text=True, check=True).stdout
    assert int(grown) > 48 * 2**20
    monkeypatch.setattr(vitals, "_STATM", tmp_path / "missing")
    assert memory_bytes() == 0
