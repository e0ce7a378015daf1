"""What summing up a flood of queries costs a shard."""

from __future__ import annotations

import json
import random
import time

from bench.measure import Round, make_row
from bench.registry import Length, benchmark
from bench.report import Case
from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.feed import build_feed_key
from solowire.fanout.feed_index import FeedIndex
from solowire.fanout.reader import Reader
from solowire.fanout.recent_log import RecentLog
from solowire.model.access import View
from solowire.model.events import Event, Priority, encode_event
from solowire.model.subscriptions import parse_filter, resolve
from solowire.protocol.messages import Codec
from solowire.runtime.settings.shard_settings import AggregationSettings

PER_SECOND = 20_000
BATCH = 100
TARGET_CORES = 0.3
DELAY_S = 0.1
ZONES = 100
SECONDS, QUICK_SECONDS = 5, 2


def make_queries(count: int) -> list[bytes]:
    """Queries of a resolver: few clients, names by Zipf's law, in `ZONES` zones."""
    chance, event_type = random.Random(4), CATALOG["dns_query_log"]
    names = [f"host{n}.zone{n % ZONES}.example" for n in range(5_000)]
    found = []
    for n, name in enumerate(chance.choices(names, [1 / (n + 1) for n in range(len(names))], k=count)):
        data = {
            "client_ip": f"10.0.{chance.randrange(4)}.{chance.randrange(250)}",
            "query_domain": name,
            "query_type": chance.choice(("A", "A", "A", "AAAA", "HTTPS", "MX")),
            "rcode": chance.choice(("NOERROR", "NOERROR", "NXDOMAIN")),
            "server": "ns1",
        }
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


@benchmark(in_process=True)
def aggregation(case: Case, length: Length) -> None:
    """What summing up a flood of queries costs a shard.

    In this process, with the real log, feeds and frames, and no sockets: batches of `dns_query_log` as the router sends
    them, at {PER_SECOND:,} a second of the clock that the feeds are given, {SECONDS} s of them, the best of three
    (quick: {QUICK_SECONDS} s, one). CPU time is measured of three things: decoding and appending alone (which every
    event costs, summed up or not), the ordinary path, and the summed-up one. What aggregation adds is the last less the
    first.
    """
    bodies = make_queries(PER_SECOND * (QUICK_SECONDS if length.is_quick else SECONDS))

    def best(feeds: int | None, by_zone: bool, rate: float) -> tuple[float, int]:
        limits = AggregationSettings.model_construct(events_per_s=rate)
        return min(_measure(bodies, feeds, by_zone, limits) for _ in range(1 if length.is_quick else 3))

    alone, _ = best(None, False, 0)
    case.rows.append(make_row("decoding and appending alone", [Round({"µs an event": alone})]))
    for count, by_zone in ((1, False), (10, False), (100, False), (100, True)):
        single, single_bytes = best(count, by_zone, float("inf"))
        summed, summed_bytes = best(count, by_zone, 0 if by_zone else 500)
        values = {
            "one by one, µs an event": single,
            "summed up, µs an event": summed,
            "bytes built, one by one": single_bytes,
            "bytes built, summed up": summed_bytes,
            "cores for it": (summed - alone) * PER_SECOND / 1e6,
        }
        what = f"{count} feeds, of a zone each (rate 0)" if by_zone else f"{count} feeds, of everything"
        case.rows.append(make_row(what, [Round(values)]))
        case.hold(case.rows[-1], "cores for it", at_most=TARGET_CORES)


def _measure(bodies: list[bytes], feeds: int | None, by_zone: bool, limits: AggregationSettings) -> tuple[float, int]:
    """µs of CPU time for each event, and how many bytes of frames were built. feeds: None appends to the log only."""
    log = RecentLog(catalog=CATALOG)
    found = _make_feeds(log, feeds or 0, by_zone, limits)
    built, now, begin = 0, 1.0, time.process_time()
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


def _make_feeds(log: RecentLog, count: int, by_zone: bool, limits: AggregationSettings) -> FeedIndex[int]:
    """`count` feeds with a reader each: of a zone each, or all of everything, told apart by a type that never comes."""
    feeds: FeedIndex[int] = FeedIndex(log, aggregation=limits)
    view = View(frozenset({"*"}))
    for n in range(count):
        wanted = {f"custom.c{n}": parse_filter(None, CATALOG)}
        wanted["dns_query_log"] = parse_filter({"zone": [f"zone{n}.example"]} if by_zone else None, CATALOG)
        key = build_feed_key(resolve(wanted, view, CATALOG).selection, view, Codec.json, CATALOG)
        feeds.get(key).add_connection(n, Reader(0), 0.0)
    return feeds
