"""Makes a plan's disturbances happen, and remembers when each was going on."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import msgspec

from tests.chaos.plan import Disturbance
from tests.chaos.processes import ChaosSystem

DRAIN_SECONDS = 20.0
AFTERMATH_SECONDS = 3.0
"""For so long after its end a disturbance is named beside a violation: a kill takes no time, but has consequences."""

log = logging.getLogger("tests.chaos.disturb")


class Happened(msgspec.Struct):
    """A disturbance as it was made. began, ended: seconds of the run. outcome: "" if it was as planned."""

    disturbance: Disturbance
    began: float
    ended: float | None = None
    outcome: str = ""

    def __str__(self) -> str:
        until = "…" if self.ended is None else f"{self.ended:.2f}"
        return f"{self.began:.2f}-{until} s {self.disturbance}{f' [{self.outcome}]' if self.outcome else ''}"


class Disturber:
    """clock: seconds of the run. token: an administrator's, for drains."""

    def __init__(self, system: ChaosSystem, token: str, clock: Callable[[], float]) -> None:
        self._system = system
        self._token = token
        self._clock = clock
        self._scaling: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # one change of a shard after another
        self.happened: list[Happened] = []

    async def run(self, plan: Sequence[Disturbance]) -> None:
        """Returns when the last of them is over. Cancelled, it heals what it can."""
        async with asyncio.TaskGroup() as group:
            for disturbance in plan:
                await asyncio.sleep(disturbance.at - self._clock())
                group.create_task(self._make(disturbance))

    def around(self, at: float) -> list[Happened]:
        """What was going on then, or had just ended."""
        return [h for h in self.happened if h.began <= at and (h.ended is None or at <= h.ended + AFTERMATH_SECONDS)]

    def counts(self) -> dict[str, int]:
        """How many of each kind came about."""
        return dict(Counter(h.disturbance.kind for h in self.happened if not h.outcome))

    async def _make(self, disturbance: Disturbance) -> None:
        happened = Happened(disturbance, self._clock())
        self.happened.append(happened)
        log.info("%s", disturbance)
        try:
            happened.outcome = await self._perform(disturbance)
        except AssertionError as fault:
            happened.outcome = str(fault)
        finally:
            happened.ended = self._clock()
        log.info("over: %s", happened)

    async def _perform(self, d: Disturbance) -> str:
        system = self._system
        match d.kind:
            case "kill":
                return "" if system.signal(d.target, signal.SIGKILL) else "not running"
            case "stop":
                if not system.stop_for_now(d.target):
                    return "not running"
                try:
                    await asyncio.sleep(d.seconds)
                finally:
                    system.go_on(d.target)
            case "cut":
                return "" if system.links[d.target].cut(d.share) else "no connections"
            case "stall":
                await system.links[d.target].stall(d.seconds, d.direction, d.share)
            case "start":
                async with self._scaling[d.target]:
                    system.add(d.target)
            case "end":
                async with self._scaling[d.target]:
                    await system.take_away(d.target)
            case "drain":
                async with self._scaling[d.target]:
                    return await system.drain(d.target, self._token, "gateway 0", DRAIN_SECONDS)
            case _:
                raise ValueError(d.kind)
        return ""
