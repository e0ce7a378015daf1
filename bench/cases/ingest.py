"""What it costs to take events in: by the log alone, from a request on the backplane to its answer, and by HTTP.

A row is void unless every event was accepted once; but for HTTP, at the offset that follows the one before.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.machine import BenchError, cpu_seconds, end_tree
from bench.measure import Busy, Round, Usage, make_row, publishing
from bench.publisher import EVENT_BYTES
from bench.receiver import percentiles_of
from bench.registry import Length, benchmark
from bench.report import Case
from bench.server import START_TIMEOUT_S, wait_until_ready
from bench.solowire_system import NO_PUBLISH_LIMIT, Solowire, start_role
from solowire.backplane.messages import (
    VERSION,
    Join,
    PublishAck,
    PublishedEvent,
    PublishNack,
    PublishRequest,
    RouterMessage,
)
from solowire.backplane.router_link import RouterLink
from solowire.router.log.sqlite_journal import SqliteJournal

BATCH = 100
UNDER_WAY = 16
EVENTS, QUICK_EVENTS = 300_000, 30_000
TARGET_EVENTS, TARGET_P99_MS = 50_000, 20.0
WIRES = 16
ANSWER_TIMEOUT_S = 120.0


@benchmark()
def ingest(case: Case, length: Length) -> None:
    """Events by HTTP in batches of 1, 10 and 100, and what they cost each process.

    `POST /v1/events` over {WIRES} kept connections, each with its next request when the last was answered: `events/s`
    is the most that gets through, p50 and p99 are from a request to its answer. Events of {EVENT_BYTES} bytes of a
    durable type (`custom.*`), answered when they are on disk; one shard without users, which gets them all the same.
    The system runs with {NO_PUBLISH_LIMIT}.
    """
    columns = ["events/s", "requests/s", "p50", "p99", "CPU per event"]
    columns += [f"{role} CPU per event" for role in ("gateway", "router", "shard")] + ["server CPU", "load core"]
    with Solowire(settings=NO_PUBLISH_LIMIT) as system, publishing(system, WIRES) as publisher:

        def once(batch: int, count: int) -> Round:
            usage = Usage(system, None)
            _, faults = publisher.run(count, batch, float("inf"))  # there is no schedule to be late for
            usage.stop()
            values = {"events/s": count / usage.seconds, "requests/s": count / batch / usage.seconds}
            values |= {f"{role} CPU per event": cpu / count * 1e6 for role, cpu in usage.cpu.items()}
            values |= {"CPU per event": usage.total / count * 1e6, **usage.shares(), **percentiles_of(publisher.took)}
            return Round(values, faults + usage.faults())

        for batch in (1, 10, 100):
            rate = once(batch, 100 * batch).values["events/s"]  # warms up
            count = max(1, int(rate * length.seconds / batch)) * batch
            rounds = [once(batch, count) for _ in range(length.rounds)]
            case.rows.append(make_row(f"{batch} to a request", rounds, columns))


def make_batches(events: int, name: str) -> list[list[PublishedEvent]]:
    """As a gateway sends them. Every tenth is a state's, every twentieth one user's own."""

    def event(n: int) -> PublishedEvent:
        user, state = f"user-{n % 997}" if n % 20 == 7 else None, f"s{n % 50}" if n % 10 == 0 else None
        return PublishedEvent(f"{name}-{n:011d}", user, body, state)

    body = b"x" * EVENT_BYTES
    return [[event(n) for n in range(first, first + BATCH)] for first in range(0, events, BATCH)]


# ---------------------------------------------------------------- the journal alone


@benchmark(in_process=True)
def journal(case: Case, length: Length) -> None:
    """The log alone: append and commit.

    The SQLite journal alone: append and commit of {BATCH} events of {EVENT_BYTES} bytes, each commit fsynced, on the
    file system of the temporary directory; at its retention it trims as much as comes. Opened again: what a restart has
    to wait for (the check of the whole file, and the ids), and reading records from the file.
    """
    events = QUICK_EVENTS if length.is_quick else EVENTS
    for name, kept in (("growing", 10**9), ("at its retention", events // 5)):
        with tempfile.TemporaryDirectory(prefix="solowire-bench-") as folder:
            with contextlib.closing(_open_journal(Path(folder), kept)) as log:
                _fill(log, make_batches(min(kept, events // 5), "warm"))
                found = [_fill(log, make_batches(events, f"r{n}")) for n in range(length.rounds)]
            case.rows.append(make_row(name, found))
            case.hold(case.rows[-1], "events per CPU-second", at_least=TARGET_EVENTS)
            case.hold(case.rows[-1], "p99", at_most=TARGET_P99_MS)
            case.rows.append(make_row(f"{name}, opened again", [_open_again(Path(folder), kept)]))


def _open_journal(folder: Path, kept: int) -> SqliteJournal:
    return SqliteJournal(
        folder / "journal.sqlite3",
        new_epoch="bench",
        max_age=1e9,
        max_events=kept,
        max_bytes=2**40,
        window=600.0,
        now=time.time(),
    )


def _fill(log: SqliteJournal, batches: list[list[PublishedEvent]]) -> Round:
    took: list[float] = []
    last, events = log.last_offset, len(batches) * BATCH
    cpu, start = time.process_time(), time.perf_counter()
    for batch in batches:
        now, begin = time.time(), time.perf_counter()
        log.append(batch, now)
        log.commit(now)
        took.append(time.perf_counter() - begin)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - start
    logged = log.last_offset - last
    faults = [] if logged == events else [f"{logged:,} of {events:,} events are in the log"]
    return Round(_rates(events, wall, cpu) | percentiles_of(took), faults)


def _rates(events: int, wall: float, cpu: float) -> dict[str, float]:
    return {"events/s": events / wall, "events per CPU-second": events / cpu, "CPU per event": cpu / events * 1e6}


def _open_again(folder: Path, kept: int) -> Round:
    """What a restart costs, and reads from the file."""
    start = time.perf_counter()
    with contextlib.closing(_open_journal(folder, kept)) as log:
        opened = time.perf_counter()
        read, place = 0, log.start_offset
        while place < log.last_offset and read < 200_000:
            records = log.read(place, 200)
            read += len(records)
            place = records[-1].offset
        done = time.perf_counter()
    size = (folder / "journal.sqlite3").stat().st_size
    return Round({"open": opened - start, "file": size / 2**20, "read/s": read / (done - opened)})


# ---------------------------------------------------------------- the router


@benchmark()
def router(case: Case, length: Length) -> None:
    """From a publisher's request on the backplane to its answer.

    From a gateway's request on the backplane to the answer, batches of {BATCH} events of {EVENT_BYTES} bytes, one
    gateway, no shards, `SOLOWIRE_ROUTER__STATS_INTERVAL_S=0`; the journal is what it uses by default. CPU time is that
    of the router's process, ZeroMQ's threads included; p50 and p99 are from sending a batch to reading its answer: with
    one request under way an upper bound of the commit, with many mostly the wait for the others.
    """
    with _router() as (pid, address):
        asyncio.run(_drive_router(case, length, pid, address))
    case.hold(case.rows[0], "events per CPU-second", at_least=TARGET_EVENTS)
    case.hold(case.rows[1], "p99", at_most=TARGET_P99_MS)


@contextlib.contextmanager
def _router() -> Iterator[tuple[int, str]]:
    """`solowire router` alone in its own data directory: the process and its backplane address."""
    data = Path(tempfile.mkdtemp(prefix="solowire-bench-"))
    process = start_role(data, {"ROUTER__STATS_INTERVAL_S": 0}, "router")  # its events would stand between ours
    try:
        socket = data / "run" / "router"
        wait_until_ready(socket.exists, process, data / "router.log", "the router")
        yield process.pid, f"ipc://{socket}"
    finally:
        end_tree(process)
        shutil.rmtree(data, ignore_errors=True)


async def _drive_router(case: Case, length: Length, pid: int, address: str) -> None:
    events = QUICK_EVENTS if length.is_quick else EVENTS

    async def once(name: str, under_way: int) -> Round:
        batches = make_batches(events, name)
        busy = Busy()
        cpu, own, start = cpu_seconds(pid), time.process_time(), time.perf_counter()
        took, faults = await gateway.run(batches, under_way)
        faults += busy.faults()
        wall, own, cpu = time.perf_counter() - start, time.process_time() - own, cpu_seconds(pid) - cpu
        shares = {"router CPU": cpu / wall * 100, "load CPU": own / wall * 100}
        return Round(_rates(events, wall, cpu) | percentiles_of(took or [600.0]) | shares, faults)

    with contextlib.closing(_Gateway(address)) as gateway:
        await gateway.wait_until_ready()
        await gateway.run(make_batches(events // 5, "warm"), UNDER_WAY)
        for under_way in (UNDER_WAY, 1):
            found = [await once(f"r{under_way}-{n}", under_way) for n in range(length.rounds)]
            case.rows.append(make_row(f"{under_way} under way", found))


class _Gateway:
    """Sends batches, so many under way at a time, and checks the answers."""

    def __init__(self, address: str) -> None:
        self._link = RouterLink(address, "gateway-bench", lambda: Join(VERSION, "bench"), self._received)
        self.close = self._link.close
        self._sent: dict[int, float] = {}
        self._waiting: list[list[PublishedEvent]] = []
        self._request = 0
        self._next = 1
        self._took: list[float] = []
        self._faults: list[str] = []
        self._done = asyncio.Event()

    async def run(self, batches: list[list[PublishedEvent]], under_way: int) -> tuple[list[float], list[str]]:
        """Returns each batch's seconds from being sent to its answer, and faults."""
        self._waiting, self._took, self._faults = batches[::-1], [], []
        self._done.clear()
        for _ in range(under_way):
            self._send()
        try:
            await asyncio.wait_for(self._done.wait(), ANSWER_TIMEOUT_S)
        except TimeoutError:
            self._faults.append(f"{len(self._sent)} requests were not answered")
        return self._took, self._faults

    async def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._link.is_router_alive:
            if time.monotonic() > deadline:
                raise BenchError("the router does not answer on its backplane")
            await asyncio.sleep(0.02)

    def _send(self) -> None:
        if self._waiting:
            self._request += 1
            self._sent[self._request] = time.perf_counter()
            if not self._link.send(PublishRequest(self._request, self._waiting.pop())):
                self._faults.append("ZeroMQ did not take a request")
                self._done.set()
        elif not self._sent:
            self._done.set()

    def _received(self, message: RouterMessage) -> None:
        match message:
            case PublishAck():
                self._took.append(time.perf_counter() - self._sent.pop(message.request))
                expected = list(range(self._next, self._next + BATCH))
                if message.offsets != expected or message.duplicates:
                    self._faults.append(f"a batch got other offsets than {self._next} and those that follow")
                self._next = message.offsets[-1] + 1
                self._send()
            case PublishNack():
                self._faults.append(f"a batch was refused: {message.message}")
                self._sent.pop(message.request)
                self._send()
