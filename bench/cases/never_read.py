"""What readers that never read cost a shard."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from bench.machine import PAGE_BYTES, BenchError, resident_mib
from bench.measure import Round, Stream, Usage, make_row, publishing
from bench.receiver import NEVER_READS, Receiver
from bench.registry import Length, benchmark
from bench.report import Case
from bench.resume_clients import TIMEOUT_S
from bench.solowire_system import Solowire

PER_SECOND, BATCH, WIRES = 1000, 50, 8
SLICE_S = 4.0
"""After so long the publisher's connections are new ones: the gateway closes those that it did not need."""
READERS, SECONDS = 1000, 60.0
QUICK_READERS, QUICK_SECONDS = 200, 12.0
MAX_GROWTH_MIB = 10.0
SETTINGS = {
    "LISTEN__WRITE_TIMEOUT_S": 600,
    "SESSION__HEARTBEAT_INTERVAL_S": 600,
    "SHARD__RECENT_LOG__MAX_EVENTS": 10_000,
}
"""Nobody is closed for being stalled or silent, and the recent log is full before they come: what grows is theirs."""


class _Sampler:
    """The shard's resident memory and what TCP holds in the kernel, in MiB, once a second."""

    def __init__(self, pid: int) -> None:
        self.samples = [self.look(pid)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(pid,), daemon=True)
        self._thread.start()

    @staticmethod
    def look(pid: int) -> tuple[float, float]:
        """Raises BenchError if the process is gone."""
        [line] = [one for one in Path("/proc/net/sockstat").read_text().splitlines() if one.startswith("TCP:")]
        words = line.split()
        if (resident := resident_mib(pid)) is None:
            raise BenchError("the shard ended")
        return resident, int(words[words.index("mem") + 1]) * PAGE_BYTES / 2**20

    def _run(self, pid: int) -> None:
        while not self._stop.wait(1.0):
            self.samples.append(self.look(pid))

    def stop(self) -> list[tuple[float, float]]:
        self._stop.set()
        self._thread.join()
        return self.samples


@benchmark()
def never_read(case: Case, length: Length) -> None:
    """What readers that never read cost a shard.

    One shard, {PER_SECOND:,} events/s of {EVENT_BYTES} bytes, and one connection that reads, which must get all of
    them. First alone; then with {READERS:,} more that shake hands, say hello and never read again, with a receive
    buffer of 16 KB, for {SECONDS:g} s. They are not closed in that time (`SOLOWIRE_LISTEN__WRITE_TIMEOUT_S` is longer),
    which is the worst case. Sampled once a second: the shard's resident memory and what TCP holds in the kernel.
    """
    readers, seconds = (QUICK_READERS, QUICK_SECONDS) if length.is_quick else (READERS, SECONDS)
    with Solowire(settings=SETTINGS) as system, Receiver(system.style, NEVER_READS) as receiver:
        pid = system.roles()["shard 0"]
        system.connect(receiver, 1)
        alone, faults = _publish(system, receiver, seconds / 3)
        idle = _Sampler.look(pid)
        system.connect(receiver, readers, first=1, slow=lambda _: True)
        connected = _Sampler.look(pid)
        sampler = _Sampler(pid)
        stuck, more = _publish(system, receiver, seconds)
        samples = sampler.stop()
        faults += more
        deadline = time.monotonic() + TIMEOUT_S
        while (count := system.stats()["connections"]) != readers + 1:
            if time.monotonic() > deadline:
                faults.append(f"{count} of {readers + 1} connections were there at the end")
                break
            time.sleep(0.5)
    half = samples[len(samples) // 2]
    growth = max(resident for resident, _ in samples[len(samples) // 2 :]) - half[0]

    def add(name: str, sample: tuple[float, float], share: float | None, faults: list[str]) -> None:
        values = {"shard, MiB": sample[0], "TCP in the kernel, MiB": sample[1]}
        if sample is not idle:
            values |= {f"{what}, KiB a reader": (sample[n] - idle[n]) * 1024 / readers for n, what in enumerate(values)}
        values |= {} if share is None else {"shard CPU": share}
        case.rows.append(make_row(name, [Round(values, faults)]))

    add("without them", idle, alone, [])
    add("they have connected", connected, None, [])
    add("half of the time", half, None, [])
    add("at the end", samples[-1], stuck, faults)
    case.rows[-1].measures |= make_row("", [Round({"second half added, MiB": growth})]).measures
    case.hold(case.rows[-1], "second half added, MiB", at_most=MAX_GROWTH_MIB)
    case.remarks.append(f"The most was {max(resident for resident, _ in samples):.0f} MiB.")


def _publish(system: Solowire, receiver: Receiver, seconds: float) -> tuple[float, list[str]]:
    """The load for some seconds: the shard's CPU in percent of a core, and faults."""
    load = Stream(PER_SECOND, BATCH, 1)
    usage, faults = Usage(system, receiver), []
    for _ in range(int(seconds / SLICE_S)):
        with publishing(system, WIRES) as publisher:
            faults += load.run(system, receiver, publisher, SLICE_S).faults
    usage.stop()
    return usage.cpu["shard"] / usage.seconds * 100, faults
