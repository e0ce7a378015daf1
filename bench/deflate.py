"""What compressing one frame costs and saves, by size and level: `python -m bench.deflate`. Prints a table.

In this process, with the frames that a shard builds: `dns_query_log` events as in `bench.aggregation`, with ids as a
gateway makes them, so many to a frame, JSON and MessagePack. CPU time is the least of some rounds, so that whatever
else the machine does counts least.
"""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Callable
from random import Random

import msgspec

from bench.aggregation import queries
from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.recent_log import RecentLog
from solowire.model.events import decode_event, encode_event
from solowire.protocol.deflate import MARK
from solowire.protocol.messages import Codec

EVENTS = (1, 2, 5, 10, 50, 150)
LEVELS = (1, 3, 6)
ROUNDS = 7
ROUND_S = 0.01


def main() -> None:
    log, chance = RecentLog(catalog=CATALOG), Random(4)
    bodies = (
        encode_event(msgspec.structs.replace(decode_event(body), id=chance.randbytes(16).hex()))
        for body in queries(max(EVENTS))
    )
    entries = [e for offset, body in enumerate(bodies, 1) if (e := log.append(offset, body)) is not None]
    lines = ["| | events | bytes | " + " | ".join(f"level {level}" for level in LEVELS) + " | to inflate |"]
    lines.append("| --- " * (len(LEVELS) + 4) + "|")
    for codec in (Codec.json, Codec.msgpack):
        for events in EVENTS:
            frame = codec.encode_events(
                events, [entry.get_fragment(codec, frozenset()) or b"" for entry in entries[:events]]
            )
            body = frame.encode() if isinstance(frame, str) else frame
            cells = [codec.label, str(events), f"{len(body):,}"]
            for level in LEVELS:
                packed = zlib.compress(body, level, wbits=-15)
                share = (len(MARK) + len(packed)) / len(body)
                cells.append(f"{share:.0%}, {_cpu_us(lambda level=level, body=body: _press(body, level)):.0f} µs")  # type: ignore[misc]
            cells.append(f"{_cpu_us(lambda packed=packed: zlib.decompress(packed, wbits=-15)):.0f} µs")  # type: ignore[misc]
            lines.append(f"| {' | '.join(cells)} |")
    sys.stdout.write("\n".join(lines) + "\n")


def _press(body: bytes, level: int) -> bytes:
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


if __name__ == "__main__":
    main()
