"""What memory the processes of a system have, second by second, and one of them held back now and then.

Only processes that were started by the caller are signalled, through descriptors, so that a number that was given to
another process since is never hit.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
from collections.abc import Callable, Mapping
from contextlib import suppress

from bench.machine import resident_mib


class MemoryMonitor:
    """Samples, once a second, of the processes that `find` names: name → pid, looked up each time.

    samples: name → (seconds from the start, MiB).
    """

    def __init__(self, find: Callable[[], Mapping[str, int]]) -> None:
        self._find = find
        self.samples: dict[str, list[tuple[float, float]]] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        while True:
            for name, pid in self._find().items():
                found = resident_mib(pid)
                if found is not None:
                    self.samples.setdefault(name, []).append((clock() - begun, found))
            await asyncio.sleep(1.0)

    def windows(self, name: str, seconds: float, count: int = 5) -> list[list[float]]:
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
