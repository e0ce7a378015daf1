"""What fan-out costs: `python -m bench.fanout [--quick] [--case NAME…] [--out FILE] [--json FILE]`.

Each case starts its own system, drives it through the outside contract (design, section 7) and returns a
`Case` for `bench.report`. What keeps the numbers honest stands in one place, `_measure`: a round is void
unless every event arrived exactly once on every connection, the publisher kept its schedule and its core had
room.
Exit status: 0; 1 if a row is void or a target missed; 2 if a case could not run at all.

It is longer than 500 lines because it is read from top to bottom as one experiment: the system, the load, the
four cases.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import selectors
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jwt
import msgspec

from bench.receivers import Plan, Receiver, percentile
from bench.report import Case, Measure, Row, environment, write

HOST = "127.0.0.1"
START_TIMEOUT_S = 40.0
STOP_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 10.0
ARRIVE_TIMEOUT_S = 15.0
SETTLE_S = 0.25
"""How long a round waits for events that should not come."""
MAX_LATE_MS = 20.0
MAX_BUSY = 0.97
EVENT_BYTES = 200
SAMPLE_EVERY = 50
SLICES = 10
PLAIN_TYPE = "custom.bench"
CORES = sorted(os.sched_getaffinity(0))
SHARD_CORE, LOAD_CORE = (CORES[0], CORES[1]) if len(CORES) > 1 else (None, None)

Item = dict[str, object]
MakeItem = Callable[[int], Item]


class BenchError(Exception):
    """A case can't run: the system does not start, or does not keep the contract."""


@dataclass(frozen=True)
class Length:
    rounds: int
    seconds: float
    events: int
    """How many in a round of the cases that send one event at a time."""


FULL, QUICK = Length(5, 5.0, 200), Length(2, 1.0, 25)


# ---------------------------------------------------------------- the system under test


class Http:
    """One keep-alive connection to the gateway: a request in one write, an answer with a Content-Length."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection((HOST, port), ANSWER_TIMEOUT_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    def send(self, method: str, path: str, token: str = "", body: bytes = b"") -> None:
        head = f"{method} {path} HTTP/1.1\r\nHost: {self.sock.getpeername()[0]}:{self.sock.getpeername()[1]}\r\n"
        if token:
            head += f"Authorization: Bearer {token}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.sock.sendall(head.encode() + body)

    def receive(self) -> tuple[int, bytes] | None:
        """Reads once; the status and body when the answer is whole."""
        piece = self.sock.recv(65536)
        if not piece:
            raise BenchError("the gateway closed a connection that was in use")
        self._received += piece
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return None
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if len(body) < length:
            return None
        self._received = b""
        return int(head.split(b" ", 2)[1]), body

    def ask(self, method: str, path: str, token: str = "", body: bytes = b"") -> tuple[int, bytes]:
        self.send(method, path, token, body)
        while (answer := self.receive()) is None:
            pass
        return answer

    def close(self) -> None:
        self.sock.close()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all threads.

    What utime+stime in /proc/PID/stat say, from the same account of the scheduler, but in ns instead of ticks
    of 10 ms (clock_getcpuclockid(3)).
    """
    return time.clock_gettime((~pid << 3) | 2)


def descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from descendants(child)


def pin(pid: int, core: int | None) -> None:
    """All threads of a process; those they start later inherit it."""
    if core is None:
        return
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), {core})


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody holds, below those that the kernel gives to clients."""
    for _ in range(100):
        first = random.randrange(18_000, 32_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind((HOST, port))
            return first
    raise BenchError("no free ports")


@dataclass
class System:
    """`solowire up` with one shard in its own data directory, and its processes by role. settings: environment."""

    data: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="solowire-bench-")))
    port: int = field(default_factory=lambda: free_ports(4))
    pids: dict[str, int] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> System:
        settings = {k: v for k, v in os.environ.items() if not k.startswith("SOLOWIRE_")} | self.settings
        command = f"-m solowire up --host {HOST} --port {self.port} --shards 1 --data-dir {self.data}"
        with (self.data / "bench.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command.split()],
                cwd=self.data,
                env=settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._await_ready()
            self._secret = (self.data / "secret").read_text().strip()
            self.token = self.sign("bench")
            for role, pid in self.pids.items():
                pin(pid, SHARD_CORE if role == "shard" else LOAD_CORE)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            self.pids = self.find()
            with contextlib.suppress(OSError, BenchError):
                http = Http(self.port)
                with contextlib.closing(http):
                    if len(self.pids) == 3 and http.ask("GET", "/readyz")[0] in (200, 204):
                        return
            time.sleep(0.1)
        log = (self.data / "bench.log").read_text(errors="replace")[-2000:]
        raise BenchError(f"the system did not get ready; processes {self.pids}; its output ends with:\n{log}")

    def find(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for pid in descendants(self._process.pid):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                for role in ("shard", "router", "gateway"):
                    if f"solowire {role}" in words:
                        found.setdefault(role, pid)
        return found

    def __exit__(self, *_: object) -> None:
        left: set[int] = set(self.pids.values())
        if self._process.poll() is None:
            left.update(descendants(self._process.pid))
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                sys.stderr.write(f"solowire up did not stop within {STOP_TIMEOUT_S:.0f} s and is killed\n")
                self._process.kill()
                self._process.wait()
        for pid in left:  # what a supervisor that died left behind
            with contextlib.suppress(OSError):
                if b"solowire" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.data, ignore_errors=True)

    def sign(self, user: str) -> str:
        now = int(time.time())
        claims = {"sub": user, "role": "admin", "iat": now, "exp": now + 3600}
        return jwt.encode(claims, self._secret, "HS256")

    def cpu(self) -> dict[str, float]:
        return {role: cpu_seconds(pid) for role, pid in self.pids.items()}

    def connect(self, receiver: Receiver, count: int, zones: Callable[[int], tuple[str, ...]], gapless: bool) -> None:
        """`count` users, each with its connection; in parts, since a ticket lives 30 s."""
        with contextlib.closing(Http(self.port)) as http:
            for first in range(0, count, 100):
                plans = []
                for index in range(first, min(first + 100, count)):
                    hello: dict[str, object] = {"type": "hello", "subscriptions": ["custom.*"]}
                    if zones(index):
                        hello["filter"] = {"zone": zones(index)}
                    status, body = http.ask("POST", "/v1/connect", self.sign(f"u{index}"))
                    if status >= 300:
                        raise BenchError(f"/v1/connect answered {status}: {body[:300]!r}")
                    plans.append(
                        Plan(
                            url=msgspec.json.decode(body)["url"],
                            hello=msgspec.json.encode(hello),
                            sampled=index % SAMPLE_EVERY == 0,
                            gapless=gapless,
                            zones=zones(index),
                        )
                    )
                try:
                    receiver.open(plans)
                except ConnectionError as error:
                    raise BenchError(f"connecting: {error}") from error


# ---------------------------------------------------------------- load


def plain_item(number: int, priority: str | None = None) -> Item:
    return _padded({"type": PLAIN_TYPE, "data": {"sent_ns": time.time_ns(), "n": number}}, priority)


def zone_item(number: int, zone: str) -> Item:
    return _padded({"type": PLAIN_TYPE, "data": {"sent_ns": time.time_ns(), "zone": zone, "n": number}})


def _padded(item: Item, priority: str | None = None) -> Item:
    """Brings an event, as published, to EVENT_BYTES."""
    if priority:
        item["priority"] = priority
    data = item["data"]
    assert isinstance(data, dict)
    data["pad"] = "x" * max(0, EVENT_BYTES - len(msgspec.json.encode(item)) - len(',"pad":""'))
    return item


class Publisher:
    """An open loop: batches leave by the clock, on several connections, answered or not."""

    def __init__(self, system: System, connections: int = 8) -> None:
        self._token = system.token
        self._free = [Http(system.port) for _ in range(connections)]
        self._selector = selectors.DefaultSelector()
        self._busy = 0

    def run(self, count: int, batch: int, per_second: float, make: MakeItem) -> tuple[float, list[str]]:
        """Publishes `count` events. Returns the 99th percentile of the batches' lateness in ms, faults."""
        late: list[int] = []
        faults: list[str] = []
        start = time.monotonic()
        for number in range(0, count, batch):
            due = start + number / per_second
            while (left := due - time.monotonic()) > 0 or not self._free:
                self._collect(max(left, 0.0) if self._free else ANSWER_TIMEOUT_S, batch, faults)
            late.append(int((time.monotonic() - due) * 1e6))
            items = [make(n) for n in range(number, number + batch)]
            http = self._free.pop()
            http.send("POST", "/v1/events", self._token, msgspec.json.encode(items))
            self._selector.register(http.sock, selectors.EVENT_READ, http)
            self._busy += 1
        while self._busy:
            self._collect(ANSWER_TIMEOUT_S, batch, faults)
        return percentile(sorted(late), 0.99) / 1e3, faults[:5]

    def _collect(self, timeout_s: float, batch: int, faults: list[str]) -> None:
        if not self._busy:
            time.sleep(timeout_s)
            return
        ready = self._selector.select(timeout_s)
        if not ready and timeout_s >= ANSWER_TIMEOUT_S:
            raise BenchError(f"/v1/events did not answer within {ANSWER_TIMEOUT_S:.0f} s")
        for key, _ in ready:
            http: Http = key.data
            if (answer := http.receive()) is None:
                continue
            self._selector.unregister(http.sock)
            self._busy -= 1
            self._free.append(http)
            status, body = answer
            if status >= 300 or msgspec.json.decode(body).get("accepted") != batch:
                faults.append(f"/v1/events answered {status}: {body[:200]!r}")

    def close(self) -> None:
        for http in self._free:
            http.close()
        self._selector.close()


@dataclass
class Round:
    """One round's numbers by name, and why it does not count."""

    values: dict[str, float]
    faults: list[str]


@contextlib.contextmanager
def _receiving() -> Iterator[Receiver]:
    receiver = Receiver(LOAD_CORE)
    try:
        yield receiver
    finally:
        receiver.close()


def _measure(
    system: System,
    receiver: Receiver,
    events: int,
    deliveries: int,
    each: int,
    load: Callable[[], tuple[float, list[str]]],
) -> Round:
    """One round: `load` publishes `events`, which are `deliveries` in all and `each` on every connection."""
    receiver.reset()
    before, own, start = system.cpu(), time.process_time(), time.monotonic()
    late_ms, faults = load()
    arrived = receiver.until(deliveries, ARRIVE_TIMEOUT_S)
    after, own, took = system.cpu(), time.process_time() - own, time.monotonic() - start
    cpu = {role: after[role] - before[role] for role in after}
    time.sleep(SETTLE_S)
    report = receiver.report()
    faults = faults + report.faults
    if not arrived or report.events != deliveries or {report.fewest, report.most} != {each}:
        faults.append(
            f"{report.events:,} of {deliveries:,} events arrived, "
            f"{report.fewest}–{report.most} of {each} per connection"
        )
    if late_ms > MAX_LATE_MS:
        faults.append(f"the publisher ran late: {late_ms:.0f} ms at the 99th percentile")
    load_share = (report.cpu_s + own + cpu["router"] + cpu["gateway"]) / took
    if load_share > MAX_BUSY:
        faults.append(f"the load generator's core was full: {load_share:.0%}")
    if system.find() != system.pids:
        faults.append("a process of the system was restarted")
    values = {
        "events/s": events / took,
        "deliveries per CPU-second": deliveries / cpu["shard"],
        "CPU per event": cpu["shard"] / events * 1e6,
        "CPU per frame": cpu["shard"] / max(report.frames, 1) * 1e6,
        "frames per event": report.frames / events,
        "bytes per delivery": report.bytes / max(report.events, 1),
        "p50": report.latency_p50,
        "p99": report.latency_p99,
        "shard CPU": cpu["shard"] / took * 100,
        "router CPU": cpu["router"] / took * 100,
        "gateway CPU": cpu["gateway"] / took * 100,
        "receiver CPU": report.cpu_s / took * 100,
        "load core": load_share * 100,
    }
    return Round(values, faults)


UNITS = {"CPU per event": "µs", "CPU per frame": "µs", "floor per frame": "µs", "p50": "ms", "p99": "ms"}
UNITS |= dict.fromkeys(("shard CPU", "router CPU", "gateway CPU", "receiver CPU", "load core"), "%")


def _row(name: str, rounds: list[Round], columns: list[str]) -> Row:
    measures = {c: Measure.over((r.values[c] for r in rounds), UNITS.get(c, "")) for c in columns}
    return Row(name, measures, list(dict.fromkeys(fault for r in rounds for fault in r.faults)))


# ---------------------------------------------------------------- the cases


def stream(length: Length) -> Case:
    connections, per_second, batch = 1000, 1000, 10
    case = Case(
        "stream",
        f"{connections:,} connections of one feed, {per_second:,} events per second of {EVENT_BYTES} bytes "
        f"as published, {batch} per request, at their type's default priority.",
    )
    with System() as system, _receiving() as receiver:
        system.connect(receiver, connections, lambda _: (), gapless=True)
        with contextlib.closing(Publisher(system)) as publisher:

            def once(seconds: float) -> Round:
                count = int(per_second * seconds) // batch * batch
                return _measure(
                    system,
                    receiver,
                    count,
                    count * connections,
                    count,
                    lambda: publisher.run(count, batch, per_second, plain_item),
                )

            once(min(2.0, length.seconds))
            rounds = [once(length.seconds) for _ in range(length.rounds)]
    columns = [
        "events/s",
        "deliveries per CPU-second",
        "p50",
        "p99",
        "frames per event",
        "bytes per delivery",
    ]
    columns += ["shard CPU", "router CPU", "gateway CPU", "receiver CPU", "load core"]
    row = _row("1 feed × 1,000", rounds, columns)
    case.rows.append(row)
    case.hold(row, "deliveries per CPU-second", at_least=1.5e6)
    case.hold(row, "p99", at_most=150.0)
    return case


class _Floor:
    """floor.c, compiled beside the system's data, pinned to the shard's core."""

    def __init__(self, connections: int, receiver: Receiver, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if not compiler:
            raise BenchError("the floor is written in C and there is no compiler (cc)")
        binary = folder / "floor"
        subprocess.run([compiler, "-O2", "-o", binary, Path(__file__).with_name("floor.c")], check=True)
        self._process = subprocess.Popen([binary, str(connections)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        receiver.open_raw(int(self._process.stdout.readline()), connections)
        pin(self._process.pid, SHARD_CORE)

    def order(self, words: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(words)
        self._process.stdin.flush()

    def load(self, frame: bytes) -> None:
        self.order(b"f" + struct.pack("=I", len(frame)) + frame)

    def cpu(self) -> float:
        return cpu_seconds(self._process.pid)

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def single(length: Length) -> Case:
    connections, events = 200, max(length.events // SLICES, 5)
    case = Case(
        "single",
        f"{connections} connections of one feed, one critical event at a time: the next is published when "
        "all have got it. The floor is a bare `write()` loop in C (`bench/floor.c`) that sends the same frame "
        "bytes to as many sockets of the same receiver at the same pace. A round is "
        f"{SLICES} slices of {events} events of each in turn, so that whatever else the machine does meets both.",
    )
    rounds = []
    with System() as system, _receiving() as receiver:
        system.connect(receiver, connections, lambda _: (), gapless=True)
        with contextlib.closing(Http(system.port)) as http:

            def one_by_one() -> tuple[float, list[str]]:
                for number in range(events):
                    body = msgspec.json.encode(plain_item(number, "critical"))
                    status, answer = http.ask("POST", "/v1/events", system.token, body)
                    if status >= 300:
                        return 0.0, [f"/v1/events answered {status}: {answer[:200]!r}"]
                    if not receiver.until((number + 1) * connections, 5.0):
                        return 0.0, [f"event {number} did not reach everyone within 5 s"]
                return 0.0, []

            def once() -> Round:
                return _measure(system, receiver, events, events * connections, events, one_by_one)

            def slice_of_both() -> Round:
                found = once()
                floor.load(receiver.last_frame())
                pause = 1 / found.values["events/s"]
                receiver.reset()
                before, due = floor.cpu(), time.monotonic()
                for sent in range(events):
                    floor.order(b"g")
                    if not receiver.until((sent + 1) * connections, 5.0):
                        found.faults.append("the floor's frames did not all arrive")
                        break
                    due += pause
                    time.sleep(max(0.0, due - time.monotonic()))
                found.values["floor per frame"] = (floor.cpu() - before) / events / connections * 1e6
                return found

            once()
            with contextlib.closing(_Floor(connections, receiver, system.data)) as floor:
                slice_of_both()  # warms the floor up
                for _ in range(length.rounds):
                    slices = [slice_of_both() for _ in range(SLICES)]
                    values = {name: statistics.mean(s.values[name] for s in slices) for name in slices[0].values}
                    values["ratio"] = values["CPU per frame"] / values["floor per frame"]
                    rounds.append(Round(values, [fault for s in slices for fault in s.faults]))
    columns = ["CPU per frame", "floor per frame", "ratio", "events/s", "p50", "p99", "bytes per delivery"]
    row = _row("1 feed × 200", rounds, [*columns, "load core"])
    case.rows.append(row)
    case.hold(row, "ratio", at_most=1.8)
    return case


def idle_latency(length: Length) -> Case:
    events, pause_s = length.events // 2, 0.05
    case = Case(
        "idle_latency",
        f"One client, an idle system, one event every {pause_s * 1000:.0f} ms over one keep-alive "
        "connection. The target holds for an event that names no priority; the rows below it show that with "
        "few connections none waits for company, whatever its priority.",
    )
    with System() as system, _receiving() as receiver, contextlib.closing(Http(system.port)) as http:
        system.connect(receiver, 1, lambda _: (), gapless=True)

        def paced(priority: str | None) -> tuple[float, list[str]]:
            due = time.monotonic()
            for number in range(events):
                body = msgspec.json.encode(plain_item(number, priority))
                status, answer = http.ask("POST", "/v1/events", system.token, body)
                if status >= 300:
                    return 0.0, [f"/v1/events answered {status}: {answer[:200]!r}"]
                due += pause_s
                time.sleep(max(0.0, due - time.monotonic()))
            return 0.0, []

        def once(priority: str | None) -> Round:
            return _measure(system, receiver, events, events, events, lambda: paced(priority))

        for priority in (None, "critical", "high", "normal", "low"):
            once(priority)
            rounds = [once(priority) for _ in range(length.rounds)]
            case.rows.append(_row(priority or "no priority named", rounds, ["p50", "p99", "CPU per event"]))
    case.hold(case.rows[0], "p50", at_most=10.0)
    return case


ZONES = 1000
SHARED_ZONE = "shared.example"


def feeds(length: Length) -> Case:
    per_second, batch = 200, 10
    case = Case(
        "feeds",
        f"What an event costs the shard, at {per_second} events per second, by how many feeds and connections "
        "there are. A frame carries what its feed gathered since its last flush, so frames per event are shown "
        "beside the cost.",
    )

    def zone(number: int) -> str:
        return f"z{number % ZONES}.example"

    def shared(_: int) -> str:
        return SHARED_ZONE

    def everything(_: int) -> tuple[str, ...]:
        return ()

    setups = [
        _Setup("1 feed × 10, all match", 10, everything, shared, True),
        _Setup("1 feed × 1,000, all match", 1000, everything, shared, True),
        _Setup("1,000 feeds × 1, one matches", ZONES, lambda n: (zone(n),), zone, False),
        _Setup("1,000 feeds × 1, all match", ZONES, lambda n: (SHARED_ZONE, zone(n)), shared, True),
    ]
    case.rows = [_feeds_row(setup, length, per_second, batch) for setup in setups]
    case.remarks.append(_costs(case.rows))
    return case


@dataclass(frozen=True)
class _Setup:
    """zones: what connection n's filter lists, () for none. about: the zone of event n."""

    name: str
    connections: int
    zones: Callable[[int], tuple[str, ...]]
    about: Callable[[int], str]
    all_match: bool


def _feeds_row(setup: _Setup, length: Length, per_second: int, batch: int) -> Row:
    count = max(int(per_second * length.seconds) // batch * batch, batch)
    each = count
    if not setup.all_match:  # every zone gets as many events as every other
        each = max(1, count // ZONES)
        count = each * ZONES
    with System() as system, _receiving() as receiver:
        system.connect(receiver, setup.connections, setup.zones, gapless=setup.all_match)
        with contextlib.closing(Publisher(system)) as publisher:

            def load() -> tuple[float, list[str]]:
                return publisher.run(count, batch, per_second, lambda n: zone_item(n, setup.about(n)))

            def once() -> Round:
                return _measure(system, receiver, count, each * setup.connections, each, load)

            once()
            rounds = [once() for _ in range(length.rounds)]
    columns = ["events/s", "CPU per event", "frames per event", "CPU per frame", "deliveries per CPU-second"]
    return _row(setup.name, rounds, [*columns, "shard CPU", "p50", "p99", "load core"])


def _costs(rows: list[Row]) -> str:
    """The three costs told apart, from medians.

    Of a frame (rows 1 and 2), of feeds that do not match (1 and 3), of a feed that matches (2 and 4).
    """

    def median(row: int, name: str) -> float:
        return rows[row].measures[name].median

    def apart(a: int, b: int) -> float:
        return median(b, "CPU per event") - median(a, "CPU per event")

    more_frames = median(1, "frames per event") - median(0, "frames per event")
    frame = apart(0, 1) / more_frames if more_frames > 0 else float("nan")
    frames_apart = median(3, "frames per event") - median(1, "frames per event")
    other = apart(0, 2) - (median(2, "frames per event") - median(0, "frames per event")) * frame
    return (
        f"From the differences: a frame costs {frame:.1f} µs; a thousand feeds that an event does not match "
        f"cost it {other:.0f} µs beside its frames; each further feed that it does match costs "
        f"{(apart(1, 3) - frames_apart * frame) / 999:.2f} µs beside its frames."
    )


CASES: dict[str, Callable[[Length], Case]] = {case.__name__: case for case in (stream, single, idle_latency, feeds)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fanout", description="What fan-out costs.")
    parser.add_argument("--quick", action="store_true", help="a couple of seconds a case; not to be quoted")
    parser.add_argument("--case", action="append", choices=CASES, metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--out", type=Path, default=Path("docs/performance.md"), metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    chosen = parser.parse_args()
    facts = environment(["python -m bench.fanout", *sys.argv[1:]], chosen.quick)
    if LOAD_CORE is not None:
        os.sched_setaffinity(0, {LOAD_CORE})
    else:
        facts["cores"] += ": nothing could be pinned, expect void rows"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that systems are stopped
    cases, failed = [], False
    for name in chosen.case or CASES:
        sys.stderr.write(f"{name} …\n")
        try:
            cases.append(CASES[name](QUICK if chosen.quick else FULL))
        except (BenchError, OSError) as error:
            failed = True
            sys.stderr.write(f"{name} could not run: {error}\n")
            cases.append(Case(name, f"Could not run: {str(error).splitlines()[0]}"))
    write(cases, facts, chosen.out, chosen.json)
    missed = any(case.void or not all(target.met for target in case.targets) for case in cases)
    return 2 if failed else 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
