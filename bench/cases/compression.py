"""What compressing one frame costs and saves, by size and level."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from functools import partial
from random import Random

import msgspec

from bench.cases.aggregation import make_queries
from bench.measure import Round, make_row
from bench.registry import Length, benchmark
from bench.report import Case
from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.recent_log import RecentLog
from solowire.model.events import decode_event, encode_event
from solowire.protocol.deflate import MARK
from solowire.protocol.messages import Codec

EVENTS = (1, 2, 5, 10, 50, 150)
LEVELS = (1, 3, 6)
ROUNDS, ROUND_S = 7, 0.01


@benchmark(in_process=True)
def compression(case: Case, length: Length) -> None:
    """What compressing one frame costs and saves, by size and level.

    In this process, with the frames that a shard builds: `dns_query_log` events as in `aggregation`, with ids as a
    gateway makes them, so many to a frame, JSON and MessagePack. CPU time is the least of {ROUNDS} rounds, so that
    whatever else the machine does counts least.
    """
    log, chance = RecentLog(catalog=CATALOG), Random(4)
    events = (decode_event(body) for body in make_queries(max(EVENTS)))
    bodies = (encode_event(msgspec.structs.replace(event, id=chance.randbytes(16).hex())) for event in events)
    entries = [e for offset, body in enumerate(bodies, 1) if (e := log.append(offset, body)) is not None]
    for codec in (Codec.json, Codec.msgpack):
        for count in EVENTS:
            fragments = [entry.get_fragment(codec, frozenset()) or b"" for entry in entries[:count]]
            frame = codec.encode_events(count, fragments)
            body = frame.encode() if isinstance(frame, str) else frame
            values: dict[str, float] = {"bytes": len(body)}
            for level in LEVELS:
                packed = _compress(body, level)
                values[f"level {level}, % left"] = len(packed) / len(body) * 100
                values[f"level {level}, µs"] = _cpu_us(partial(_compress, body, level))
            values["to inflate, µs"] = _cpu_us(partial(zlib.decompress, packed[len(MARK) :], wbits=-15))
            case.rows.append(make_row(f"{codec.label}, {count} events", [Round(values)]))


def _compress(body: bytes, level: int) -> bytes:
    """As `solowire.protocol.deflate.deflated` does it."""
    return MARK + zlib.compress(body, level, wbits=-15)


def _cpu_us(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        times, start = 0, time.process_time()
        while (spent := time.process_time() - start) < ROUND_S:
            work()
            times += 1
        best = min(best, spent / times)
    return best * 1e6
