"""What it costs to take events in: by the log alone, from a request on the backplane to its answer, and by HTTP.

`ingest` is `POST /v1/events` to a whole system; `journal` the log alone, in this process; `router` a `solowire router`
of its own, and this process as a gateway that keeps a bounded number of requests under way. A row is void unless every
event was accepted once; in the last two, at the offset that follows the one before.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.load import EVENT_BYTES
from bench.machine import BenchError, cpu_seconds, end
from bench.measure import Busy, Length, Round, Spent, publishing, row
from bench.receiver import histogram, percentiles
from bench.report import Case, Measure, Row
from bench.server import START_TIMEOUT_S
from bench.solowire_system import Solowire, alone
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
NO_LIMIT = {"PUBLISH__RATE": "1000000", "PUBLISH__BURST": "1000000"}

UNITS = {"p50": "ms", "p99": "ms", "max": "ms", "CPU per event": "µs", "router CPU": "%", "load CPU": "%"}


def batches(events: int, name: str) -> list[list[PublishedEvent]]:
    """As a gateway sends them. Every tenth is a state's, every twentieth one user's own."""
    body = b"x" * EVENT_BYTES
    return [
        [
            PublishedEvent(
                f"{name}-{n:011d}",
                f"user-{n % 997}" if n % 20 == 7 else None,
                body,
                f"s{n % 50}" if n % 10 == 0 else None,
            )
            for n in range(first, first + BATCH)
        ]
        for first in range(0, events, BATCH)
    ]


def _row(name: str, rounds: list[tuple[dict[str, float], list[str]]]) -> Row:
    measures = {c: Measure.over((values[c] for values, _ in rounds), UNITS.get(c, "")) for c in rounds[0][0]}
    return Row(name, measures, list(dict.fromkeys(fault for _, faults in rounds for fault in faults)))


def _latencies(seconds: list[float]) -> dict[str, float]:
    return percentiles(histogram([(int(s * 1e6), 1) for s in seconds]))


# ---------------------------------------------------------------- by HTTP


def ingest(length: Length) -> Case:
    """Events by HTTP in batches of 1, 10 and 100, and what they cost each process."""
    case = Case(
        "ingest",
        f"`POST /v1/events` over {WIRES} kept connections, each with its next request when the last was answered: "
        "`events/s` is the most that gets through, p50 and p99 are from a request to its answer. Events of "
        f"{EVENT_BYTES} bytes of a durable type (`custom.*`), answered when they are on disk; one shard without users, "
        "which gets them all the same. The system runs with "
        f"{' and '.join(f'`SOLOWIRE_{name}={value}`' for name, value in NO_LIMIT.items())}.",
    )
    columns = ["events/s", "requests/s", "p50", "p99", "CPU per event"]
    columns += [f"{role} CPU per event" for role in ("gateway", "router", "shard")] + ["server CPU", "load core"]
    with Solowire(settings=NO_LIMIT) as system, publishing(system, WIRES) as publisher:

        def once(batch: int, count: int) -> Round:
            spent = Spent(system, None)
            _, faults = publisher.run(count, batch, float("inf"))  # there is no schedule to be late for
            spent.stop()
            values = {"events/s": count / spent.seconds, "requests/s": count / batch / spent.seconds}
            values |= {f"{role} CPU per event": cpu / count * 1e6 for role, cpu in spent.cpu.items()}
            values |= {"CPU per event": spent.total / count * 1e6, **spent.shares(), **_latencies(publisher.took)}
            return Round(values, faults + spent.faults())

        for batch in (1, 10, 100):
            rate = once(batch, 100 * batch).values["events/s"]  # warms up
            count = max(1, int(rate * length.seconds / batch)) * batch
            rounds = [once(batch, count) for _ in range(length.rounds)]
            case.rows.append(row(f"{batch} to a request", rounds, columns))
    return case


# ---------------------------------------------------------------- the journal alone


def journal(length: Length) -> Case:
    """The log alone: append and commit."""
    events = QUICK_EVENTS if length.quick else EVENTS
    case = Case(
        "journal",
        f"The SQLite journal alone: append and commit of {BATCH} events of {EVENT_BYTES} bytes, each commit fsynced, "
        "on the file system of the temporary directory; at its retention it trims as much as comes. Opened again: what "
        "a restart has to wait for (the check of the whole file, and the ids), and reading records from the file.",
    )
    for name, kept in (("growing", 10**9), ("at its retention", events // 5)):
        with tempfile.TemporaryDirectory(prefix="solowire-bench-") as folder:
            log = _open(Path(folder), kept)
            with contextlib.closing(log):
                _fill(log, batches(min(kept, events // 5), "warm"))
                found = [_fill(log, batches(events, f"r{n}")) for n in range(length.rounds)]
            case.rows.append(_row(name, found))
            case.hold(case.rows[-1], "events per CPU-second", at_least=TARGET_EVENTS)
            case.hold(case.rows[-1], "p99", at_most=TARGET_P99_MS)
            case.rows.append(_reopened(Path(folder), kept, name))
    return case


def _open(folder: Path, kept: int) -> SqliteJournal:
    return SqliteJournal(
        folder / "journal.sqlite3",
        new_epoch="bench",
        max_age=1e9,
        max_events=kept,
        max_bytes=2**40,
        window=600.0,
        now=time.time(),
    )


def _fill(log: SqliteJournal, groups: list[list[PublishedEvent]]) -> tuple[dict[str, float], list[str]]:
    took: list[float] = []
    last = log.last_offset
    cpu, start = time.process_time(), time.perf_counter()
    for group in groups:
        now, begin = time.time(), time.perf_counter()
        log.append(group, now)
        log.commit(now)
        took.append(time.perf_counter() - begin)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - start
    events = len(groups) * BATCH
    faults = (
        [] if log.last_offset == last + events else [f"{log.last_offset - last:,} of {events:,} events are in the log"]
    )
    rates = {"events/s": events / wall, "events per CPU-second": events / cpu, "CPU per event": cpu / events * 1e6}
    return rates | _latencies(took), faults


def _reopened(folder: Path, kept: int, name: str) -> Row:
    """What a restart costs, and reads from the file."""
    start = time.perf_counter()
    log = _open(folder, kept)
    opened = time.perf_counter()
    with contextlib.closing(log):
        read, place = 0, log.start_offset
        while place < log.last_offset and read < 200_000:
            records = log.read(place, 200)
            read += len(records)
            place = records[-1].offset
        done = time.perf_counter()
    size = (folder / "journal.sqlite3").stat().st_size
    measures = {"open": (opened - start, "s"), "file": (size / 2**20, "MiB"), "read/s": (read / (done - opened), "")}
    return Row(f"{name}, opened again", {key: Measure.over([value], unit) for key, (value, unit) in measures.items()})


# ---------------------------------------------------------------- the router


@contextlib.contextmanager
def _router() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`solowire router` alone in its own data directory: the process and its backplane address."""
    data = Path(tempfile.mkdtemp(prefix="solowire-bench-"))
    process = alone(data, {"ROUTER__STATS_INTERVAL_S": "0"}, "router")  # its events would stand between ours
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (data / "run" / "router").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(
                    f"the router did not start: {(data / 'router.log').read_text(errors='replace')[-2000:]}"
                )
            time.sleep(0.05)
        yield process, f"ipc://{data / 'run' / 'router'}"
    finally:
        end(process)
        shutil.rmtree(data, ignore_errors=True)


class _Gateway:
    """Sends batches, so many under way at a time, and checks the answers."""

    def __init__(self, address: str) -> None:
        self._link = RouterLink(address, "gateway-bench", lambda: Join(VERSION, "bench"), self._received)
        self._sent: dict[int, float] = {}
        self._waiting: list[list[PublishedEvent]] = []
        self._request = 0
        self._next = 1
        self._took: list[float] = []
        self._faults: list[str] = []
        self._done = asyncio.Event()

    async def run(self, groups: list[list[PublishedEvent]], under_way: int) -> tuple[list[float], list[str]]:
        """Returns each batch's seconds from being sent to its answer, and faults."""
        self._waiting, self._took, self._faults = groups[::-1], [], []
        self._done.clear()
        for _ in range(under_way):
            self._send()
        try:
            await asyncio.wait_for(self._done.wait(), 120.0)
        except TimeoutError:
            self._faults.append(f"{len(self._sent)} requests were not answered")
        return self._took, self._faults

    async def ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._link.is_router_alive:
            if time.monotonic() > deadline:
                raise BenchError("the router does not answer on its backplane")
            await asyncio.sleep(0.02)

    def close(self) -> None:
        self._link.close()

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


def router(length: Length) -> Case:
    """From a publisher's request on the backplane to its answer."""
    events = QUICK_EVENTS if length.quick else EVENTS
    case = Case(
        "router",
        f"From a gateway's request on the backplane to the answer, batches of {BATCH} events of {EVENT_BYTES} bytes, "
        "one gateway, no shards, `SOLOWIRE_ROUTER__STATS_INTERVAL_S=0`; the journal is what it uses by default. CPU "
        "time is that of the router's process, ZeroMQ's threads included; p50 and p99 are from sending a batch to "
        "reading its answer: with one request under way an upper bound of the commit, with many "
        "mostly the wait for the "
        "others.",
    )
    with _router() as (process, address):

        async def drive() -> None:
            gateway = _Gateway(address)
            with contextlib.closing(gateway):
                await gateway.ready()
                await gateway.run(batches(events // 5, "warm"), UNDER_WAY)
                for under_way in (UNDER_WAY, 1):
                    found = [await once(gateway, f"r{under_way}-{n}", under_way) for n in range(length.rounds)]
                    case.rows.append(_row(f"{under_way} under way", found))

        async def once(gateway: _Gateway, name: str, under_way: int) -> tuple[dict[str, float], list[str]]:
            groups = batches(events, name)
            busy = Busy()
            cpu, own, start = cpu_seconds(process.pid), time.process_time(), time.perf_counter()
            took, faults = await gateway.run(groups, under_way)
            faults += busy.faults()
            wall, own = time.perf_counter() - start, time.process_time() - own
            cpu = cpu_seconds(process.pid) - cpu
            values = {
                "events/s": events / wall,
                "events per CPU-second": events / cpu,
                "CPU per event": cpu / events * 1e6,
                **_latencies(took or [600.0]),
                "router CPU": cpu / wall * 100,
                "load CPU": own / wall * 100,
            }
            return values, faults

        asyncio.run(drive())
    case.hold(case.rows[0], "events per CPU-second", at_least=TARGET_EVENTS)
    case.hold(case.rows[1], "p99", at_most=TARGET_P99_MS)
    return case
