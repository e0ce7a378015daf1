"""What the backplane costs over TCP with CURVE, against Unix sockets: both its ends, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.machine import BenchError, free_ports
from bench.measure import Round, make_row
from bench.publisher import EVENT_BYTES
from bench.registry import Length, benchmark
from bench.report import Case
from solowire.backplane import messages
from solowire.backplane.curve_keys import derive_member_keys, derive_router_keys
from solowire.backplane.messages import LogBatch
from solowire.backplane.zmq_transport import PeerSocket, RouterSocket

BATCH = 100
PAUSE_S = 0.002
TARGET_RATIO = 2.0
_SEED = ["a seed of the benchmark, of no system"]
_SHARD = b"shard-0"
_TIMEOUT_S = 60.0


@benchmark(in_process=True)
def backplane(case: Case, length: Length) -> None:
    """CPU of an event on its way from the router to a shard, over Unix sockets and over TCP with CURVE.

    Parts of the log are encoded, sent, received and decoded as router and shard do, and each is acknowledged by a small
    message: CPU time of this process, both ends and ZeroMQ's threads included, over loopback. `stream`: {BATCH} events
    of {EVENT_BYTES} bytes in each, 16 under way; `lone`: one event, one at a time, {PAUSE_S} s apart. `ratio`: to Unix
    sockets, of rounds that follow each other.
    """
    parts = 300 if length.is_quick else 3000
    for name, events, count, under_way, pause in (
        ("stream", BATCH, parts, 16, 0.0),
        ("lone", 1, min(parts, 1000), 1, PAUSE_S),
    ):
        unix: list[Round] = []
        tcp: list[Round] = []
        for _ in range(length.rounds):
            for is_tcp, rounds in ((False, unix), (True, tcp)):
                with _addresses(is_tcp=is_tcp) as address:
                    rounds.append(asyncio.run(_measure(address, events, count, under_way, pause)))
            tcp[-1].values["ratio"] = tcp[-1].values["CPU per event"] / unix[-1].values["CPU per event"]
        case.rows += [make_row(f"{name}, Unix sockets", unix), make_row(f"{name}, TCP with CURVE", tcp)]
        case.hold(case.rows[-1], "ratio", at_most=TARGET_RATIO)


@contextlib.contextmanager
def _addresses(*, is_tcp: bool) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="solowire-bench-") as folder:
        yield f"tcp://127.0.0.1:{free_ports(1)}" if is_tcp else f"ipc://{Path(folder) / 'router'}"


async def _measure(address: str, events: int, count: int, under_way: int, pause: float) -> Round:
    """Sends `count` parts of the log; `under_way` of them at a time wait for their acknowledgement."""
    done, ready = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    bodies = [(n, b"x" * EVENT_BYTES) for n in range(events)]
    sent = received = 0

    def send_next() -> None:
        nonlocal sent
        if sent < count:
            sent += 1
            router.send(_SHARD, messages.encode(LogBatch("epoch", 0, events, bodies)))

    def on_acknowledged(_: bytes, raw: bytes) -> None:
        if raw == b"hello":
            ready.set()
        elif received == count:
            done.set()
        elif pause:
            loop.call_later(pause, send_next)
        else:
            send_next()

    def on_part(raw: bytes) -> None:
        nonlocal received
        messages.decode_from_router(raw)
        received += 1
        peer.send(b"ack")

    is_tcp = address.startswith("tcp")
    router = RouterSocket(address, on_acknowledged, derive_router_keys(_SEED) if is_tcp else None)
    peer = PeerSocket(address, _SHARD, on_part, derive_member_keys(_SEED) if is_tcp else None)
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            while not peer.send(b"hello"):
                await asyncio.sleep(0.01)
            await ready.wait()
            cpu, start = time.process_time(), time.perf_counter()
            for _ in range(under_way):
                send_next()
            await done.wait()
    except TimeoutError:
        raise BenchError(f"{received} of {count} parts have come over {address}") from None
    finally:
        peer.close()
        router.close()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - start
    return Round({"CPU per event": cpu / count / events * 1e6, "events/s": count * events / wall})
