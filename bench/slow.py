"""What readers that never read cost a shard: `python -m bench.slow [--quick] [--readers N] [--out FILE]`.

A whole system with one shard. First 1,000 events/s alone, with one reader that reads; then the same with 1,000 more
that shake hands, say hello and never read again, with small buffers of their own, for a minute. They are not closed in
that time (`SOLOWIRE_LISTEN__WRITE_TIMEOUT_S` is longer), which is the worst case. Sampled once a second: the shard's
resident memory and what TCP holds in the kernel; and CPU time over all of it.
Exit status: 0; 1 if memory still grew in the second half of the minute, or the reader missed events; 2 if it can't run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import threading
import time
from pathlib import Path

import httpx
import msgspec

from bench.load import EVENT_BYTES, PLAIN_TYPE, Http, Publisher
from bench.machine import HOST, LOAD_CORES, BenchError
from bench.solowire_system import Solowire
from bench.watch import PAGE, resident

PER_SECOND = 1_000.0
BATCH, WIRES = 50, 8
SLICE_S = 4.0
"""After so long the publisher's connections are new ones: the gateway closes those that it did not need."""

RECEIVE_BUFFER_BYTES = 8 * 1024
MAX_GROWTH_MIB = 10.0
"""What memory may grow by in the second half."""

SETTINGS = {
    "LISTEN__WRITE_TIMEOUT_S": "600",
    "SESSION__HEARTBEAT_INTERVAL_S": "600",
    "SHARD__RECENT_LOG__MAX_EVENTS": "10000",
}
"""Nobody is closed for being stalled or silent, and the recent log is full before they come: what grows is theirs."""

SHARD = "shard --index 0"


def open_reader(system: Solowire, user: str) -> socket.socket:
    """A connection that has said hello, and read nothing behind the handshake."""
    with contextlib.closing(Http(system.port)) as http:
        plan = system.plan_of(system.tickets([user], [http])[0])
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    sock.settimeout(10)
    sock.connect((HOST, plan.port))
    sock.sendall(plan.request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = sock.recv(1)
        if not piece:
            break
        answer += piece
    if b" 101 " not in answer.split(b"\r\n")[0]:
        raise BenchError(f"a handshake was answered with {answer[:200]!r}")
    sock.sendall(plan.greeting)
    return sock


class Reading(threading.Thread):
    """The one that reads: counts events by a mark that each has once, also where two reads cut it."""

    MARK = f'"{PLAIN_TYPE}"'.encode()

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self._sock = sock
        self.events = 0
        self.welcomed = threading.Event()

    def run(self) -> None:
        rest = b""
        with contextlib.suppress(OSError):
            self._sock.settimeout(None)
            while piece := self._sock.recv(1 << 18):
                found = rest + piece
                if b'"welcome"' in found:
                    self.welcomed.set()
                self.events += found.count(self.MARK)
                rest = found[-len(self.MARK) + 1 :]


def resident_mib(pid: int) -> float:
    """Raises BenchError if the process is gone."""
    found = resident(pid)
    if found is None:
        raise BenchError(f"process {pid} ended")
    return found


def kernel_mib() -> float:
    """What all TCP sockets of this network namespace hold."""
    [line] = [one for one in Path("/proc/net/sockstat").read_text().splitlines() if one.startswith("TCP:")]
    words = line.split()
    return int(words[words.index("mem") + 1]) * PAGE / 2**20


class Phase:
    """The load for some seconds, and what it took."""

    def __init__(self, system: Solowire, seconds: float) -> None:
        shard = system.pid(SHARD)
        self.resident: list[float] = []
        self.kernel: list[float] = []
        stop = threading.Event()

        def sample() -> None:
            while not stop.wait(1.0):
                self.resident.append(resident_mib(shard))
                self.kernel.append(kernel_mib())

        sampler = threading.Thread(target=sample, daemon=True)
        sampler.start()
        faults: list[str] = []
        before, began = system.cpu()["shard"], time.monotonic()
        try:
            for _ in range(int(seconds / SLICE_S)):
                with contextlib.closing(Publisher(system.wires(WIRES))) as publisher:
                    faults += publisher.run(int(PER_SECOND * SLICE_S), BATCH, PER_SECOND)[1]
            self.share = (system.cpu()["shard"] - before) / (time.monotonic() - began)
        finally:
            stop.set()
            sampler.join()
        if faults:
            raise BenchError(f"publishing: {faults}")


def measure(readers: int, seconds: float, command: str) -> tuple[str, bool]:
    with Solowire(settings=SETTINGS) as system, contextlib.ExitStack() as stack:
        shard = system.pid(SHARD)
        reading = Reading(stack.enter_context(open_reader(system, "reads")))
        reading.start()
        if not reading.welcomed.wait(10):
            raise BenchError("the reader got no welcome")
        alone = Phase(system, seconds / 3)
        idle_resident, idle_kernel = resident_mib(shard), kernel_mib()
        for n in range(readers):
            stack.enter_context(open_reader(system, f"never-{n}"))
        open_resident, open_kernel = resident_mib(shard), kernel_mib()
        stuck = Phase(system, seconds)
        deadline = time.monotonic() + 10
        published = int(PER_SECOND * seconds) + int(PER_SECOND * seconds / 3)
        while reading.events < published and time.monotonic() < deadline:
            time.sleep(0.1)
        connections = int(msgspec.json.decode(_stats(system))["connections"])
    half = len(stuck.resident) // 2
    growth = max(stuck.resident[half:]) - stuck.resident[half]
    good = growth <= MAX_GROWTH_MIB and reading.events == published and connections == readers + 1

    def each(after: float, before: float) -> str:
        return f"{(after - before) * 1024 / readers:.0f}"

    last, kernel = stuck.resident[-1], stuck.kernel[-1]
    lines = [
        "## Readers that never read",
        "",
        f"`{command}`: {readers:,} connections that take nothing after their handshake, {PER_SECOND:,.0f} events/s of"
        f" {EVENT_BYTES} bytes for {seconds:.0f} s, and one that reads: it got {reading.events:,} of {published:,}.",
        "",
        "| | shard, MiB | KiB a reader | TCP in the kernel, MiB | KiB a reader | shard's CPU, cores |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| without them | {idle_resident:.0f} | | {idle_kernel:.0f} | | {alone.share:.2f} |",
        f"| they have connected | {open_resident:.0f} | {each(open_resident, idle_resident)} | {open_kernel:.0f}"
        f" | {each(open_kernel, idle_kernel)} | |",
        f"| half of the time | {stuck.resident[half]:.0f} | {each(stuck.resident[half], idle_resident)}"
        f" | {stuck.kernel[half]:.0f} | {each(stuck.kernel[half], idle_kernel)} | |",
        f"| at the end | {last:.0f} | {each(last, idle_resident)} | {kernel:.0f} | {each(kernel, idle_kernel)}"
        f" | {stuck.share:.2f} |",
        "",
        f"The most was {max(stuck.resident):.0f} MiB; the second half added {growth:.1f} MiB at most."
        f" Connections at the end: {connections:,}.",
        "",
    ]
    return "\n".join(lines), good


def _stats(system: Solowire) -> bytes:
    transport = httpx.HTTPTransport(uds=str(system.data / "run" / "s0"))
    with httpx.Client(transport=transport) as http:
        return http.get("http://localhost/stats", headers={"authorization": f"Bearer {system.token}"}).content


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.slow", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="200 readers for twelve seconds")
    parser.add_argument("--readers", type=int, help="how many that never read")
    parser.add_argument("--out", type=Path, help="write the table there, as Markdown")
    chosen = parser.parse_args()
    readers = chosen.readers or (200 if chosen.quick else 1_000)
    command = " ".join(["python -m bench.slow", *sys.argv[1:]])
    os.sched_setaffinity(0, LOAD_CORES)
    try:
        text, good = measure(readers, 12.0 if chosen.quick else 60.0, command)
    except (BenchError, OSError) as error:
        sys.stderr.write(f"bench.slow: {error}\n")
        return 2
    sys.stdout.write(text)
    if chosen.out is not None:
        chosen.out.write_text(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
