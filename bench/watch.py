"""Watching the processes of a system: what memory each has, second by second, and holding one back now and then.

Only processes that were started by the caller are signalled, through descriptors, so that a number that was given to
another process since is never hit.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.e2e.system import System

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident(pid: int) -> float | None:
    """A process's resident memory in MiB; None if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 2**20
    except (OSError, IndexError, ValueError):
        return None


def roles(system: System) -> dict[str, int]:
    """Every process by its role; without those that are not there just now."""
    commands: dict[str, tuple[str, ...]] = {"gateway": ("gateway",), "router": ("router",)}
    commands |= {f"shard {n}": ("shard", "--index", str(n)) for n in range(system.shards)}
    found = {}
    for name, command in commands.items():
        try:
            found[name] = system.pid_of(*command)
        except (ValueError, OSError):
            continue
    return found


class Memory:
    """Samples, once a second, of the processes that `find` names: name → pid, looked up each time."""

    def __init__(self, find: Callable[[], dict[str, int]]) -> None:
        self._find = find
        self.samples: dict[str, list[tuple[float, float]]] = {}  # name → (seconds from the start, MiB)

    async def run(self) -> None:
        """Until it is cancelled."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        while True:
            for name, pid in self._find().items():
                found = resident(pid)
                if found is not None:
                    self.samples.setdefault(name, []).append((clock() - begun, found))
            await asyncio.sleep(1.0)

    def windows(self, name: str, seconds: float, count: int) -> list[list[float]]:
        """The samples of each of `count` equal parts of `seconds`; parts without any are left out."""
        parts: list[list[float]] = [[] for _ in range(count)]
        for at, found in self.samples[name]:
            if at < seconds:
                parts[int(at / seconds * count)].append(found)
        return [part for part in parts if part]

    def slope(self, name: str, after: float) -> float:
        """MiB per minute, by least squares over what came later than `after` seconds; 0.0 of fewer than two."""
        points = [(at / 60, found) for at, found in self.samples[name] if at >= after]
        return statistics.linear_regression(*zip(*points, strict=True)).slope if len(points) > 1 else 0.0


@asynccontextmanager
async def during(*coroutines: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Runs them beside the block, and cancels them at its end."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def hold_back(pid: int, stopped_s: float, running_s: float) -> None:
    """Stops a process and lets it go on, in turn, until cancelled or it has gone; it runs when this returns."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        while True:
            for number, seconds in ((signal.SIGSTOP, stopped_s), (signal.SIGCONT, running_s)):
                signal.pidfd_send_signal(descriptor, number)
                await asyncio.sleep(seconds)
    except ProcessLookupError:
        pass
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGCONT)
        os.close(descriptor)
