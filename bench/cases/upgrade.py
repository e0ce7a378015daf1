"""An upgrade under load: every process of a system restarted, one after the other, under clients and publishers."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import httpx
import uvloop

from bench.machine import CORES, HOST, BenchError, end_tree, free_ports
from bench.measure import Round, make_row
from bench.registry import Length, benchmark
from bench.report import Case
from bench.resume_clients import TIMEOUT_S, wait_until
from bench.server import start_program, wait_until_ready
from bench.solowire_system import LIMITS, make_environment, sign
from solowire import Client, Publisher

USERS, QUICK_USERS, PER_SECOND, SHARDS, GATEWAYS, PUBLISHERS = 200, 20, 20, 2, 2, 2
SETTLE_S = 3.0
"""Between two processes: whoever was sent away is back, and the ring is as it was."""
EVENT_TYPE = "custom.upgrade"
METRICS_PORT_OFFSET = SHARDS + GATEWAYS


@benchmark(shares_cores=True)
def upgrade(case: Case, length: Length) -> None:
    """Every process is restarted in turn, and nobody misses anything.

    A router, {SHARDS} shards and {GATEWAYS} gateways, each a process of its own as under systemd or in pods;
    {USERS} clients and {PUBLISHERS} publishers of the SDK, each at one gateway, without a balancer before them, and
    {PER_SECOND} durable events a second that every client wants. Then as an upgrade does it: SIGTERM to one
    process, and when it has ended it is started again; when it is ready, and {SETTLE_S:g} s later, comes the next.
    `all at once`: all of them together, as one unit for a whole machine does it. `gap`: the longest time in which a
    client got nothing, of all clients; publishers that wait for a gateway or the router are in it. `moved`:
    connections that ended. All cores are shared by servers and load, so that a gap is rather longer than it had to
    be.
    """
    rounds: dict[str, list[Round]] = {}
    for _ in range(1 if length.is_quick else length.bounded()):
        for name, found in uvloop.run(_restart_all(QUICK_USERS if length.is_quick else USERS)).items():
            rounds.setdefault(name, []).append(found)
    units = dict.fromkeys(("gap p50", "gap p99", "gap max", "seconds"), "s")
    for name, of_name in rounds.items():
        case.rows.append(make_row(name, of_name, units=units))
        for measure in ("lost", "twice", "not resumed"):
            if measure in of_name[0].values:
                case.hold(case.rows[-1], measure, at_most=0)


class _System:
    """The processes, by name, each started and ended alone."""

    def __init__(self) -> None:
        self.data = Path(tempfile.mkdtemp(prefix="solowire-bench-"))
        self.port = free_ports(METRICS_PORT_OFFSET + 1)
        shared = {**LIMITS, "DATA_DIR": self.data, "HOST": HOST, "ROUTER__STATS_INTERVAL_S": 0}
        self._settings = {**shared, "ROUTER__METRICS_PORT": self.port + METRICS_PORT_OFFSET}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.commands: dict[str, tuple[str, ...]] = {"router": ("router",)}
        self._ports = {"router": self.port + METRICS_PORT_OFFSET}
        for index in range(SHARDS):
            port = self.port + GATEWAYS + index
            self.commands[f"shard {index}"] = ("shard", "--index", str(index), "--port", str(port))
            self._ports[f"shard {index}"] = port
        for index in range(GATEWAYS):
            self.commands[f"gateway {index}"] = ("gateway", "--port", str(self.port + index))
            self._ports[f"gateway {index}"] = self.port + index

    def url(self, number: int) -> str:
        """The gateway of the user, or publisher, of this number."""
        return f"http://{HOST}:{self.port + number % GATEWAYS}"

    def start(self, name: str) -> None:
        """Returns when it is ready. Raises BenchError."""
        log = self.data / f"{name.replace(' ', '-')}.log"
        command = [sys.executable, "-m", "solowire", *self.commands[name]]
        process = start_program(command, self.data, log, make_environment(self._settings), CORES)
        self._processes[name] = process
        wait_until_ready(lambda: _is_ready(self._ports[name]), process, log, name)

    def restart(self, names: Sequence[str]) -> None:
        """SIGTERM to these at once, and when all have ended each once more as `start`. Raises BenchError."""
        for name in names:
            self._processes[name].terminate()
        for name in names:
            if status := self._processes[name].wait(60):
                raise BenchError(f"{name} ended with status {status}")
        for name in names:
            self.start(name)

    def close(self) -> None:
        for process in reversed(self._processes.values()):
            end_tree(process)
        shutil.rmtree(self.data, ignore_errors=True)


def _is_ready(port: int) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://{HOST}:{port}/readyz", trust_env=False, timeout=1).status_code == 200
    return False


@dataclass
class _Reader:
    """What one client got. numbers: of its events; times: when each came. welcomes: how often it was let in."""

    numbers: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    gaps: int = 0
    welcomes: int = 0

    async def run(self, client: Client) -> None:
        async with client:
            async for event in client:
                self.numbers.append(event.data["n"])
                self.times.append(time.perf_counter())
                self.gaps = client.gaps

    def find_gap(self, since: float, until: float) -> float:
        """The longest time without an event within these."""
        inside = [since, *(at for at in self.times if since < at < until), until]
        return max(later - earlier for earlier, later in pairwise(inside))


class _CountedClient(Client):
    """Counts its connections in `reader`."""

    def __init__(self, reader: _Reader, url: str, token: str) -> None:
        super().__init__(url, token, subscriptions=[EVENT_TYPE])
        self._reader = reader

    def _start_connection(self, *arguments: object) -> None:
        self._reader.welcomes += 1
        super()._start_connection(*arguments)  # type: ignore[arg-type]


async def _restart_all(count: int) -> dict[str, Round]:
    """One upgrade: what each kind of process cost, and the whole."""
    system = _System()
    try:
        for name in system.commands:
            await asyncio.to_thread(system.start, name)
        secret = (system.data / "secret").read_text().strip()
        readers = [_Reader() for _ in range(count)]
        clients = [
            asyncio.create_task(reader.run(_CountedClient(reader, system.url(n), sign(secret, f"u{n}"))))
            for n, reader in enumerate(readers)
        ]
        if not await wait_until(lambda: all(reader.welcomes for reader in readers), TIMEOUT_S):
            raise BenchError(f"{sum(not reader.welcomes for reader in readers)} clients did not get in")
        async with _publish(system, secret) as sent:
            parts = {
                kind: await _restart_some(
                    system, [[name] for name in system.commands if name.startswith(kind)], readers
                )
                for kind in ("router", "gateway", "shard")
            }
            parts["all at once"] = await _restart_some(system, [[*system.commands]], readers)
        published = sent()
        await wait_until(lambda: all(len(set(reader.numbers)) >= published for reader in readers), TIMEOUT_S)
        await asyncio.sleep(0.5)  # for what should not come
        parts["all of it"] = _judge(readers, published, parts)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    finally:
        await asyncio.to_thread(system.close)
    return parts


@contextlib.asynccontextmanager
async def _publish(system: _System, secret: str) -> AsyncIterator[Callable[[], int]]:
    """A stream of numbered events until the block ends, and all are acknowledged; how many then."""
    stop, count = asyncio.Event(), 0

    async def run(publisher: Publisher, first: int) -> None:
        nonlocal count
        number, began = first, time.perf_counter()
        while not stop.is_set():
            while number < (time.perf_counter() - began) * PER_SECOND:
                await publisher.publish(EVENT_TYPE, {"n": number})
                number += PUBLISHERS
                count += 1
            await asyncio.sleep(1 / PER_SECOND)
        await publisher.drain()

    async with contextlib.AsyncExitStack() as stack:
        publishers = [
            await stack.enter_async_context(Publisher(system.url(n), sign(secret, f"p{n}", "publisher")))
            for n in range(PUBLISHERS)
        ]
        tasks = [asyncio.create_task(run(publisher, n)) for n, publisher in enumerate(publishers)]
        await asyncio.sleep(SETTLE_S)
        yield lambda: count
        await asyncio.sleep(SETTLE_S)
        stop.set()
        await asyncio.gather(*tasks)


async def _restart_some(system: _System, turns: Sequence[Sequence[str]], readers: Sequence[_Reader]) -> Round:
    """The processes of each turn together, one turn after the other."""
    since, before = time.perf_counter(), sum(reader.welcomes for reader in readers)
    for names in turns:
        await asyncio.to_thread(system.restart, names)
        ready_at = time.perf_counter()
        await asyncio.sleep(SETTLE_S)
        # Whoever found nobody for long comes back late: that is part of its gap.
        await wait_until(lambda: all(reader.times[-1] > ready_at for reader in readers), TIMEOUT_S)  # noqa: B023
    until = time.perf_counter()
    gaps = sorted(reader.find_gap(since, until) for reader in readers)
    moved = sum(reader.welcomes for reader in readers) - before
    return Round(_describe_gaps(gaps) | {"moved": moved, "seconds": until - since})


def _describe_gaps(gaps: Sequence[float]) -> dict[str, float]:
    return {"gap p50": gaps[len(gaps) // 2], "gap p99": gaps[int(len(gaps) * 0.99)], "gap max": gaps[-1]}


def _judge(readers: Sequence[_Reader], published: int, parts: dict[str, Round]) -> Round:
    """What the clients got of all that was acknowledged."""
    lost = sum(published - len(set(reader.numbers)) for reader in readers)
    twice = sum(len(reader.numbers) - len(set(reader.numbers)) for reader in readers)
    worst = {name: max(part.values[name] for part in parts.values()) for name in ("gap p50", "gap p99", "gap max")}
    sums = {name: sum(part.values[name] for part in parts.values()) for name in ("moved", "seconds")}
    deliveries = sum(len(reader.numbers) for reader in readers)
    counts = {"lost": lost, "twice": twice, "not resumed": sum(reader.gaps for reader in readers)}
    return Round(worst | sums | counts | {"events": published, "deliveries": deliveries})
