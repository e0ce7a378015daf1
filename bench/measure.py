"""One round: load on a server, and whether what came of it counts.

What keeps the numbers honest stands here, for Solowire and for every peer alike.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

from bench.machine import LOAD_CORES, PINNED, busy_seconds
from bench.publisher import EVENT_BYTES, AboutFunction, Publisher
from bench.receiver import Receiver, make_histogram, percentiles
from bench.report import Measure, Row
from bench.server import Server

ARRIVE_TIMEOUT_S = 60.0
SETTLE_S = 0.25
"""How long a round waits for events that should not come."""
MAX_LATE_MS = 20.0
MAX_BUSY = 0.90
SHORTEST_S = 0.5
_NUMBER = re.compile(r"[\d.,–]+")
_UNITS = {
    "ms": r"(request |answer )?p\d\d|max|alert to .*",
    "%": r"CPU|.* CPU|load core",
    "µs": r"CPU per .*|floor per .*|.* CPU per event|CPU per frame, shard",
    "KB": "[PR]SS per .*",
    "s": "seconds|welcomed|open|50 %|99 %|all",
    "MiB": "file|memory, part .*|part .|slope per minute",
}


def unit_of(measure: str) -> str:
    """'' of one that has none, or has it in its name."""
    return next((unit for unit, names in _UNITS.items() if re.fullmatch(names, measure)), "")


@dataclass
class Round:
    """One round's numbers by name, and why it does not count. latency: of each delivery, where they were timed."""

    values: dict[str, float]
    faults: list[str] = field(default_factory=list)
    latency: HdrHistogram | None = None


def join_slices(slices: Sequence[Round]) -> Round:
    """Slices of a load as one round: the mean of each number, but the percentiles of all their deliveries together."""
    values = {name: statistics.mean(one.values[name] for one in slices) for name in slices[0].values}
    latency = make_histogram([])
    for one in slices:
        latency.add(one.latency)
    return Round(values | percentiles(latency), [fault for one in slices for fault in one.faults], latency)


def make_row(
    name: str, rounds: Sequence[Round], columns: Sequence[str] = (), units: Mapping[str, str] | None = None
) -> Row:
    """The measures of some rounds. columns: those to be shown, if not all. units: other than `unit_of` says."""
    measures = {
        c: Measure.over((r.values[c] for r in rounds), (units or {}).get(c, unit_of(c)))
        for c in columns or rounds[0].values
        if c in rounds[0].values
    }
    return Row(name, measures, merge_faults([fault for r in rounds for fault in r.faults]))


def merge_faults(faults: Sequence[str]) -> list[str]:
    """Faults that differ in numbers only as one, with how often there was one like it."""
    alike: dict[str, list[str]] = {}
    for fault in faults:
        alike.setdefault(_NUMBER.sub("", fault), []).append(fault)
    return [f"{same[0]} ({len(same)} times)" if len(same) > 1 else same[0] for same in alike.values()]


class Busy:
    """How busy the load's cores are from now on, with whatever: the generator must have room."""

    def __init__(self) -> None:
        self._busy, self._start = busy_seconds(LOAD_CORES), time.monotonic()

    def share(self) -> float:
        """0 for a time that is too short for the kernel's ticks of 10 ms."""
        seconds = time.monotonic() - self._start
        if seconds < SHORTEST_S or not PINNED:
            return 0.0
        return min(1.0, (busy_seconds(LOAD_CORES) - self._busy) / seconds / len(LOAD_CORES))

    def faults(self) -> list[str]:
        return check_busy(self.share())


def check_busy(share: float) -> list[str]:
    return [f"the load generator's core was full: {share:.0%}"] if share > MAX_BUSY else []


class Usage:
    """What a stretch of time took of the machine: `start`, then `stop` once.

    After that: seconds, cpu (seconds by role), total, load_core (a share) and receiving (seconds).
    """

    def __init__(self, server: Server, receiver: Receiver | None) -> None:
        self._server = server
        self._receiver = receiver
        self._pids = server.processes()
        self._before = server.cpu()
        self._own = time.process_time()
        self._receiving = receiver.cpu() if receiver else 0.0
        self._busy = Busy()
        self._start = time.monotonic()

    def stop(self) -> None:
        self.seconds = time.monotonic() - self._start
        after = self._server.cpu()
        self.cpu = {role: after[role] - self._before.get(role, 0.0) for role in after}
        self.total = sum(self.cpu.values())
        self.receiving = (self._receiver.cpu() if self._receiver else 0.0) - self._receiving
        ours = (self.receiving + time.process_time() - self._own) / self.seconds
        self.load_core = max(ours, self._busy.share())

    def faults(self) -> list[str]:
        """Of the generator and of the server's processes."""
        found = check_busy(self.load_core)
        if not PINNED:
            found.append("server and load shared a core")
        if self._server.processes() != self._pids:
            found.append("the server's processes were not the same after the round")
        return found

    def shares(self) -> dict[str, float]:
        """Of a core, in percent, by role."""
        found = {f"{role} CPU": seconds / self.seconds * 100 for role, seconds in self.cpu.items() if role != "server"}
        return found | {
            "server CPU": self.total / self.seconds * 100,
            "receiver CPU": self.receiving / self.seconds * 100,
            "load core": self.load_core * 100,
        }


Load = Callable[[], tuple[float, list[str]]]
"""Publishes. Returns by how many ms it was late at the 99th percentile by its own fault, and faults."""


def measure(
    server: Server,
    receiver: Receiver,
    events: int,
    deliveries: int,
    each: int,
    load: Load,
    timeout_s: float = ARRIVE_TIMEOUT_S,
) -> Round:
    """One round: `load` publishes `events`, which are `deliveries` in all and `each` on every connection.

    each: 0 if it is not the same for all; then their order is still checked.
    """
    receiver.reset()
    usage = Usage(server, receiver)
    late_ms, faults = load()
    has_arrived = receiver.until(deliveries, timeout_s)
    usage.stop()
    time.sleep(SETTLE_S)
    counts = receiver.counts()
    faults = faults + counts.faults
    if not has_arrived or counts.events != deliveries or (each and {counts.fewest, counts.most} != {each}):
        faults.append(
            f"{counts.events:,} of {deliveries:,} events arrived, "
            f"{counts.fewest}–{counts.most} of {each or 'as many'} per connection"
        )
    if late_ms > MAX_LATE_MS:
        faults.append(f"the publisher ran late by its own fault: {late_ms:.0f} ms at the 99th percentile")
    latency = make_histogram(counts.latency_us)
    values = {
        "events/s": events / usage.seconds,
        "deliveries/s": deliveries / usage.seconds,
        "deliveries per CPU-second": deliveries / max(usage.total, 1e-9),
        "CPU per event": usage.total / events * 1e6,
        "CPU per frame": usage.total / max(counts.frames, 1) * 1e6,
        "CPU per delivery": usage.total / deliveries * 1e6,
        "frames per event": counts.frames / events,
        "bytes per delivery": counts.bytes / max(counts.events, 1),
        **percentiles(latency),
        **usage.shares(),
    }
    if "shard" in usage.cpu:
        values["CPU per frame, shard"] = usage.cpu["shard"] / max(counts.frames, 1) * 1e6
    return Round(values, faults + usage.faults(), latency)


@contextlib.contextmanager
def publishing(server: Server, wires: int = 4, size: int = EVENT_BYTES) -> Iterator[Publisher]:
    """A publisher on so many connections to the server."""
    with contextlib.closing(Publisher(server.wires(wires), size)) as publisher:
        yield publisher


@dataclass(frozen=True)
class Stream:
    """A load by the clock. to: connections that an event goes to. is_even: whether each gets as many as are sent."""

    per_second: float
    batch: int
    to: int
    is_even: bool = True
    about: AboutFunction | None = None

    def run(self, server: Server, receiver: Receiver, publisher: Publisher, seconds: float, rate: float = 0.0) -> Round:
        """rate: what the server can do, if that is less; the round is then no longer than it would be otherwise."""
        can = min(self.per_second, rate) if rate else self.per_second
        count = max(self.batch, int(can * seconds) // self.batch * self.batch)
        return self.send(server, receiver, publisher, count)

    def send(self, server: Server, receiver: Receiver, publisher: Publisher, count: int) -> Round:
        """A round of so many events."""

        def load() -> tuple[float, list[str]]:
            return publisher.run(count, self.batch, self.per_second, self.about)

        return measure(server, receiver, count, count * self.to, count if self.is_even else 0, load)
