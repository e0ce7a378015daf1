"""What memory does under three times the load."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial

import msgspec
import uvloop

from bench.connect_load import percentile
from bench.machine import CORES, BenchError
from bench.measure import Round, make_row
from bench.overload_clients import Client, Journal, Visit
from bench.overload_publishers import LoadProcess, Tally
from bench.process_monitor import MemoryMonitor, hold_back
from bench.publisher import EVENT_BYTES, PLAIN_TYPE
from bench.registry import Length, benchmark
from bench.report import Case, Measure, Row
from bench.resume_clients import wait_until
from bench.solowire_system import NO_PUBLISH_LIMIT, Settings, Solowire
from bench.verdicts import sum_faults
from bench.ws_client import FrameReader, run_beside

SHARDS, PUBLISHERS, READERS, BATCH, TIMES = 2, 64, 10, 100, 3
FIRST = "custom.first"
WINDOWS, FLAT_PERCENT = 5, 10
CALIBRATE_S, QUICK_CALIBRATE_S = 20.0, 8.0
SECONDS, QUICK_SECONDS = 300.0, 30.0
WARM_UP_S = 5.0
STOPPED_S, RUNNING_S = 0.9, 0.1
ARRIVE_S, SETTLE_S = 60.0, 0.25
# What is known for ten minutes by default would grow for as long, up to a bound of its own (2 million ids).
SETTINGS: Settings = {"JOURNAL__DUPLICATE_WINDOW_S": 5, **NO_PUBLISH_LIMIT}


def make_batch(phase: str, name: str, number: int) -> bytes:
    """The body of a publisher's nth request: its first event is what readers wait for."""
    pad = "x" * (EVENT_BYTES - 80)

    def event(n: int) -> dict[str, object]:
        data = {"n": number * BATCH + n, "pad": pad}
        return {"type": PLAIN_TYPE if n else FIRST, "id": f"{phase}-{name}-{number}-{n}", "data": data}

    return msgspec.json.encode([event(n) for n in range(BATCH)])


async def publish(system: Solowire, phase: str, seconds: float, rate: float | None) -> Tally:
    """All publishers for so long, in a process of their own. rate: of all; None: each waits for acknowledgements."""
    tokens = [system.sign(f"publisher-{n}", "publisher") for n in range(PUBLISHERS)]
    load = LoadProcess(system.port, tokens, partial(make_batch, phase), BATCH, seconds, rate)
    try:
        return await load.result()
    finally:
        load.close()


class Readers:
    """Clients of the first event of each request. Each is to have one connection, for all of the time."""

    def __init__(self, system: Solowire) -> None:
        self._journal = Journal(time.monotonic, FrameReader(frozenset({FIRST})))
        tokens = [system.sign(f"reader-{n}") for n in range(READERS)]
        self.clients = [Client(system.port, token, "readers", [FIRST], self._journal) for token in tokens]

    @property
    def visits(self) -> list[Visit]:
        return [visit for client in self.clients for visit in client.visits]

    def are_present(self) -> bool:
        return all(client.is_present for client in self.clients)

    def have(self, offset: int) -> bool:
        """Whether all have come so far."""
        return all(visit.durable and visit.durable[-1] >= offset for visit in self.visits)

    def counts_after(self, offset: int) -> list[int]:
        """How many events behind it each has."""
        return [len(visit.durable) - bisect_right(visit.durable, offset) for visit in self.visits]

    def faults(self) -> list[str]:
        faults = list(self._journal.faults)
        if len(self.visits) != READERS or not self.are_present():
            faults.append(f"readers' connections ended: there were {len(self.visits)}, of {READERS} readers")
        _, again, disorder = sum_faults(self.visits, [])
        if again or disorder:
            faults.append(f"{again} events came again, {disorder} out of order")
        if any(visit.compacted for visit in self.visits):
            faults.append("a reader's frames were compacted")
        return faults + [f"a reader was told {code}" for visit in self.visits for code in visit.told]


@benchmark(shares_cores=True)
def backpressure(case: Case, length: Length) -> None:
    """What memory does under three times the load, while one shard can't follow.

    `solowire up` with {SHARDS} shards, {READERS} clients that read one event of each request, {PUBLISHERS} publishers
    of {BATCH} events of {EVENT_BYTES} bytes a request. *Sustainable* is what they get acknowledged if each waits for
    its acknowledgement before it sends the next. Then they offer {TIMES} × that by the clock; half of them obey
    Retry-After, the others try again after 20 ms, and each keeps {HELD_BATCHES} requests at most. Meanwhile one shard
    is stopped for {STOPPED_S:g} s of every second. Settings other than the defaults: event ids are known for 5 s
    instead of ten minutes, so that what they take has reached its height when the measuring begins; no rate for a
    single publisher. Memory is each process's resident set, once a second: median [lowest–highest] of each fifth of the
    time. **Flat**: the last fifth's median is within {FLAT_PERCENT}% of the second's. Rates are events per second, but
    for refusals, which are requests. It is void if something acknowledged is not in the log, if a client missed an
    event, or if a process was restarted. The machine's cores are shared by all of that.
    """
    seconds, calibrate_s = (QUICK_SECONDS, QUICK_CALIBRATE_S) if length.is_quick else (SECONDS, CALIBRATE_S)
    with Solowire(SHARDS, settings=SETTINGS, limits={}, cores=CORES) as system:
        uvloop.run(_overload(case, system, seconds, calibrate_s))


async def _overload(case: Case, system: Solowire, seconds: float, calibrate_s: float) -> None:
    readers, memory, processes = Readers(system), MemoryMonitor(system.roles), system.roles()
    async with run_beside(*(client.run() for client in readers.clients)):
        if not await wait_until(readers.are_present, ARRIVE_S):
            raise BenchError(f"the readers were not all welcomed within {ARRIVE_S:g} s")
        await publish(system, "w", WARM_UP_S, None)
        calm = await publish(system, "c", calibrate_s, None)
        before = system.stats()["last_offset"]
        if not await wait_until(lambda: readers.have(calm.last - BATCH + 1), ARRIVE_S):
            raise BenchError("the readers were behind before the overload began")
        async with run_beside(memory.run(), hold_back(processes[f"shard {SHARDS - 1}"], STOPPED_S, RUNNING_S)):
            flood = await publish(system, "f", seconds, calm.acked / calibrate_s * TIMES)
        logged = system.stats()["last_offset"] - before
        await wait_until(lambda: min(readers.counts_after(before)) >= logged // BATCH, ARRIVE_S)
        await asyncio.sleep(SETTLE_S)
        faults = calm.faults + flood.faults + readers.faults()
        faults += _missing(flood, logged, readers.counts_after(before))
    if system.roles() != processes:
        faults.append("a process was restarted")
    case.rows += [_rates_row("sustainable", calm, calibrate_s, []), _rates_row("overload", flood, seconds, faults)]
    for name in memory.samples:
        _hold_flat(case, name, memory, seconds, faults)
    refused = ", ".join(f"{code} {count:,}" for code, count in sorted(flood.refused.items()))
    case.remarks.append(
        f"Offered {flood.offered:,}, acknowledged {flood.stored:,}, in the log {logged:,}; never made, since their "
        f"publisher's buffer was full, {flood.unmade:,}. Refused requests: {refused or 'none'}; without an answer: "
        f"{flood.lost:,}."
    )


def _missing(flood: Tally, logged: int, arrived: Sequence[int]) -> list[str]:
    """logged: events in the log. arrived: how many each reader has."""
    faults, due = [], logged // BATCH
    if flood.stored > logged:
        faults.append(f"{flood.stored:,} events were acknowledged, {logged:,} are in the log")
    if set(arrived) != {due}:
        faults.append(f"{min(arrived):,}–{max(arrived):,} of {due:,} events arrived at each reader in {ARRIVE_S:g} s")
    return faults


def _rates_row(name: str, tally: Tally, seconds: float, faults: list[str]) -> Row:
    took = sorted(tally.took) or [float("inf")]
    values = {
        "offered/s": tally.offered / seconds,
        "acknowledged/s": tally.stored / seconds,
        "refused/s": sum(tally.refused.values()) / seconds,
        "answer p50": percentile(took, 0.5) * 1e3,
        "answer p99": percentile(took, 0.99) * 1e3,
    }
    return make_row(name, [Round(values, faults)])


def _hold_flat(case: Case, name: str, memory: MemoryMonitor, seconds: float, faults: list[str]) -> None:
    parts = memory.windows(name, seconds, WINDOWS)
    measures = {f"part {n}": Measure.over(part, "MiB") for n, part in enumerate(parts, 1)}
    measures["slope per minute"] = Measure.over([memory.slope(name, seconds / WINDOWS)], "MiB")
    row = Row(name, measures, faults)
    case.rows.append(row)
    if len(parts) == WINDOWS:
        measures["last to second"] = Measure.over([measures[f"part {WINDOWS}"].median / measures["part 2"].median])
        case.hold(row, "last to second", at_most=1 + FLAT_PERCENT / 100, called=f"{name}, last fifth to second")
