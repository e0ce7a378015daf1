"""What summing up a flood of queries costs a shard: `python -m bench.aggregation [--quick] [--out FILE]`.

In this process, with the real log, feeds and frames, and no sockets: batches of `dns_query_log` as the router sends
them, at 20,000 a second of the clock that the feeds are given. CPU time is measured of three things: decoding and
appending alone (which every event costs, summed up or not), the ordinary path, and the summed-up one. What aggregation
adds is the last less the first. Exit status: 0; 1 if it takes more than 0.3 of a core at 20,000/s.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.aggregation import AggregationLimits
from solowire.fanout.catch_up import ReaderPosition
from solowire.fanout.feed import build_feed_key
from solowire.fanout.feed_index import FeedIndex
from solowire.fanout.recent_log import RecentLog
from solowire.model.access import View
from solowire.model.events import Event, Priority, encode_event
from solowire.model.subscriptions import parse_filter, resolve
from solowire.protocol.messages import Codec

PER_SECOND = 20_000
BATCH = 100
TARGET_CORES = 0.3
DELAY_S = 0.1
ZONES = 100


def queries(count: int) -> list[bytes]:
    """Queries of a resolver: few clients, names by Zipf's law, in `ZONES` zones."""
    chance = random.Random(4)
    names = [f"host{n}.zone{n % ZONES}.example" for n in range(5_000)]
    weights = [1 / (n + 1) for n in range(len(names))]
    found = []
    for n, name in enumerate(chance.choices(names, weights, k=count)):
        data = {
            "client_ip": f"10.0.{chance.randrange(4)}.{chance.randrange(250)}",
            "query_domain": name,
            "query_type": chance.choice(("A", "A", "A", "AAAA", "HTTPS", "MX")),
            "rcode": chance.choice(("NOERROR", "NOERROR", "NXDOMAIN")),
            "server": "ns1",
        }
        event_type = CATALOG["dns_query_log"]
        event = Event(
            id=f"q{n}",
            type="dns_query_log",
            data=json.dumps(data).encode(),
            priority=Priority.normal,
            delivery=event_type.delivery,
            timestamp="2026-01-01T00:00:00.000Z",
            attributes=CATALOG.validate_data(event_type, data),
        )
        found.append(encode_event(event))
    return found


def feeds_of(log: RecentLog, count: int, by_zone: bool, rates: AggregationLimits) -> FeedIndex[int]:
    """`count` feeds with a reader each: of a zone each, or all of everything, told apart by a type that never comes."""
    feeds: FeedIndex[int] = FeedIndex(log, rates=rates)
    view = View(frozenset({"*"}))
    for n in range(count):
        wanted = {f"custom.c{n}": parse_filter(None, CATALOG)}
        zone = {"zone": [f"zone{n}.example"]} if by_zone else None
        wanted["dns_query_log"] = parse_filter(zone, CATALOG)
        key = build_feed_key(resolve(wanted, view, CATALOG).selection, view, Codec.json, CATALOG)
        feeds.get(key).add_connection(n, ReaderPosition(0), 0.0)
    return feeds


def microseconds(bodies: list[bytes], feeds: int | None, by_zone: bool, rates: AggregationLimits) -> tuple[float, int]:
    """CPU time for each event, and how many bytes of frames were built. feeds: None appends to the log only."""
    log = RecentLog(catalog=CATALOG)
    found = feeds_of(log, feeds or 0, by_zone, rates)
    built = 0
    now = 1.0
    begin = time.process_time()
    for first in range(0, len(bodies), BATCH):
        for offset, body in enumerate(bodies[first : first + BATCH], first + 1):
            entry = log.append(offset, body)
            if entry is not None and feeds is not None:
                found.add_telemetry(entry, DELAY_S, now)
        log.trim()
        now += BATCH / PER_SECOND
        for feed in found:
            if feed.flush_at is not None and feed.flush_at <= now:
                built += len(feed.flush(now).payload or "")
    return (time.process_time() - begin) / len(bodies) * 1e6, built


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.aggregation", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of two seconds")
    parser.add_argument("--out", type=Path, help="write the table there, as Markdown")
    chosen = parser.parse_args()
    bodies = queries(PER_SECOND * (2 if chosen.quick else 5))
    rounds = 1 if chosen.quick else 3

    def best(feeds: int | None, by_zone: bool, rate: float) -> tuple[float, int]:
        return min(microseconds(bodies, feeds, by_zone, AggregationLimits(rate)) for _ in range(rounds))

    alone, _ = best(None, False, 0)
    lines = [
        "## Summing up a flood of queries",
        "",
        f"`{' '.join(['python -m bench.aggregation', *sys.argv[1:]])}`: {len(bodies):,} `dns_query_log` events at"
        f" {PER_SECOND:,} a second, one process, no sockets; the best of {rounds}. Decoding and appending alone takes"
        f" {alone:.1f} µs of CPU time an event, and is not in the last column.",
        "",
        "| feeds | one by one, µs an event | summed up, µs an event | bytes built, one by one | summed up"
        f" | cores for it at {PER_SECOND:,}/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    worst = 0.0
    for count, by_zone in ((1, False), (10, False), (100, False), (100, True)):
        single, single_bytes = best(count, by_zone, float("inf"))
        summed, summed_bytes = best(count, by_zone, 0 if by_zone else 500)
        cores = (summed - alone) * PER_SECOND / 1e6
        worst = max(worst, cores)
        what = f"{count}, of a zone each (rate 0)" if by_zone else f"{count}, of everything"
        lines.append(f"| {what} | {single:.1f} | {summed:.1f} | {single_bytes:,} | {summed_bytes:,} | {cores:.2f} |")
    lines += ["", f"Target: {TARGET_CORES} of a core: {'met' if worst <= TARGET_CORES else 'MISSED'}.", ""]
    text = "\n".join(lines)
    sys.stdout.write(text)
    if chosen.out is not None:
        chosen.out.write_text(text)
    return 0 if worst <= TARGET_CORES else 1


if __name__ == "__main__":
    sys.exit(main())
