"""Floods: when telemetry is summed up, what stands for it, and when it is over."""

from __future__ import annotations

import json
from collections import Counter
from itertools import count
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.domains.dns import payloads
from solowire.domains.dns.event_types import CATALOG
from solowire.domains.dns.query_rollup import TOP_ROWS
from solowire.fanout.aggregation import (
    CALM_INTERVALS,
    MAX_COLLECTED,
    SAMPLE_EVENTS,
    SUMMARY_BYTES,
    AggregationStream,
    build_digest,
    roll_up,
)
from solowire.fanout.feed import Feed, build_feed_key
from solowire.fanout.feed_index import FeedIndex
from solowire.fanout.reader import Reader
from solowire.fanout.recent_log import Entry, RecentLog
from solowire.model.access import View
from solowire.model.events import Delivery, Event, Priority, encode_event
from solowire.model.subscriptions import parse_filter, resolve
from solowire.protocol.messages import Codec
from solowire.runtime.settings.shard_settings import AggregationSettings
from tests.support.examples import examples

ADMIN = View(frozenset({"*"}))
ROLLUP = CATALOG["dns_query_log"].rollup
assert ROLLUP is not None


def query(offset: int, name: str = "a.example.com", **data: Any) -> Entry:
    event_type = CATALOG["dns_query_log"]
    data = {"client_ip": "10.0.0.1", "query_domain": name, "query_type": "A", **data}
    event = Event(
        id=f"q{offset}",
        type="dns_query_log",
        data=json.dumps(data).encode(),
        priority=Priority.normal,
        delivery=Delivery.telemetry,
        timestamp="2026-01-01T00:00:00Z",
        attributes=CATALOG.validate_data(event_type, data),
    )
    return Entry(offset, event, event_type)


class Listener:
    """What a flow needs of a feed."""

    def __init__(self) -> None:
        self.told: list[tuple[int, float]] = []

    def defer_until(self, offset: int, until: float) -> bool:
        self.told.append((offset, until))
        return True


def test_it_begins_above_the_rate_and_ends_when_that_was_quiet_for_a_while() -> None:
    """Up to the rate each event goes its own way; above it they are collected, until some intervals were calm."""
    flow: AggregationStream[Listener] = AggregationStream("dns_query_log", AggregationSettings(events_per_s=10))
    assert [flow.count_event(query(1), 0.01 * n) for n in range(15)] == [False] * 10 + [True] * 5
    for second in range(1, CALM_INTERVALS):
        assert flow.count_event(query(1), second + 0.5)
    assert all(flow.count_event(query(1), CALM_INTERVALS + 0.5 + 0.001 * n) for n in range(20)), (
        "the rate was reached again"
    )
    for second in range(CALM_INTERVALS + 1, 2 * CALM_INTERVALS + 1):
        assert flow.count_event(query(1), second + 0.6)
    assert not flow.count_event(query(1), 2 * CALM_INTERVALS + 2)


def test_a_long_pause_ends_it() -> None:
    """After a pause there is no need to wait for the intervals one by one."""
    flow: AggregationStream[Listener] = AggregationStream("dns_query_log", AggregationSettings(events_per_s=10))
    assert [flow.count_event(query(1), 0) for _ in range(12)][-1]
    assert not flow.count_event(query(1), CALM_INTERVALS + 2)


def test_each_type_has_its_rate() -> None:
    """The setting by type comes before the one for all."""
    rates = AggregationSettings(events_per_s=100, type_events_per_s={"rpz_hit": 5})
    assert (rates.rate_for("rpz_hit"), rates.rate_for("dns_query_log")) == (5, 100)


def test_feeds_are_told_once_and_what_all_have_sent_is_forgotten() -> None:
    """A feed is told of the first event that waits for it; when all have sent everything, nothing is held on to."""
    flow: AggregationStream[Listener] = AggregationStream("dns_query_log", AggregationSettings(events_per_s=1e-9))
    one, two = Listener(), Listener()
    flow.add_feed(one)
    flow.add_feed(two)
    for offset in (1, 2, 3):
        assert flow.count_event(query(1), 0.0)
        flow.collect_event(query(offset), 0.0)
    assert one.told == two.told == [(1, 1.0)]
    flow.mark_sent(one)
    flow.collect_event(query(4), 0.0)
    assert (one.told, two.told) == ([(1, 1.0), (4, 1.0)], [(1, 1.0)])
    assert flow.digest_between(2, 9, 0) == flow.digest_between(2, 4, 0)
    flow.mark_sent(one)
    flow.mark_sent(two)
    assert flow._offsets == []
    assert flow.digest_between(0, 9, 0) is None


def test_a_feed_that_has_gone_has_no_say() -> None:
    """What the last of two feeds has still to send is there, whatever one says that has left the flow."""
    flow: AggregationStream[Listener] = AggregationStream("dns_query_log", AggregationSettings(events_per_s=1e-9))
    one, two, gone = Listener(), Listener(), Listener()
    for feed in (one, two, gone):
        flow.add_feed(feed)
    assert flow.count_event(query(1), 0.0)
    flow.collect_event(query(1), 0.0)
    flow.discard_feed(gone)
    flow.mark_sent(gone)
    flow.mark_sent(one)
    assert flow.digest_between(0, 9, 0) is not None
    flow.mark_sent(two)
    assert flow.digest_between(0, 9, 0) is None


def test_a_flood_that_begins_again_forgets_nothing() -> None:
    """What one feed has still to send is there, also if the flood was over and back before it came to that."""
    flow: AggregationStream[Listener] = AggregationStream("dns_query_log", AggregationSettings(events_per_s=1))
    one, two = Listener(), Listener()
    flow.add_feed(one)
    flow.add_feed(two)
    assert [flow.count_event(query(1), 0.0), flow.count_event(query(1), 0.0)] == [False, True]
    flow.collect_event(query(1), 0.0)
    flow.mark_sent(one)
    assert [flow.count_event(query(1), 50.0), flow.count_event(query(1), 50.0)] == [False, True]
    flow.mark_sent(one)
    assert flow._offsets == [1]
    flow.mark_sent(two)
    assert flow._offsets == []


def test_what_is_collected_is_bounded() -> None:
    """At the bound all feeds are to send at once."""
    flow: AggregationStream[Listener] = AggregationStream("dns_query_log", AggregationSettings(events_per_s=1e-9))
    one = Listener()
    flow.add_feed(one)
    flow.count_event(query(1), 0.0)
    for offset in range(MAX_COLLECTED):
        flow.collect_event(query(1 + offset), 0.5)
    assert one.told == [(1, 1.0), (MAX_COLLECTED, 0.5)]


def test_an_interval_is_sampled_evenly_and_summed_up_once() -> None:
    """However often something goes out in it: all that is sent lies where it was, and the summary counts everything."""
    flow: AggregationStream[Listener] = AggregationStream("dns_query_log", AggregationSettings(events_per_s=1e-9))
    flow.add_feed(Listener())
    sample: list[int] = []
    total = summed = 0
    for offset in range(1, 2_001):
        now = offset / 1_000 - 0.0005
        assert flow.count_event(query(offset), now)
        flow.collect_event(query(offset), now)
        if offset % 10 == 0:
            digest = flow.digest_between(offset - 10, offset, summed)
            assert digest is not None
            total += digest.total
            summed += len(digest.summaries)
            sample += [e.offset for e in digest.sample]
    assert (total, summed) == (2_000, 1)
    assert len([o for o in sample if o <= 1_000]) == SAMPLE_EVENTS
    assert [o for o in sample if o > 1_001] == list(range(1_051, 2_001, 50))
    flow.rotate(2.1)
    end = flow.digest_between(2_000, 2_000, summed)
    assert end is not None
    [last] = end.summaries
    data = msgspec.json.decode(last.event.data)
    assert (data["total_queries"], data["window_s"], data["queries_per_second"]) == (1_000, 1.0, 1_000.0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a.org", "b.org", "ü.org", 'q"uote.org', r"\120" * 200 + ".org"]),
            st.sampled_from(["A", "AAAA", "TYPE65"]),
            st.sampled_from([None, "NOERROR", "SERVFAIL"]),
            st.booleans(),
        ),
        min_size=SAMPLE_EVENTS + 1,
        max_size=200,
    )
)
@settings(deadline=None, max_examples=examples(60))
def test_counts_are_exact(made: list[tuple[str, str, str | None, bool]]) -> None:
    """A digest counts every event, its sample is even and from among them, and its summary fits the catalogue."""
    entries = [
        query(n, name, query_type=kind, rcode=rcode, blocked=blocked)
        for n, (name, kind, rcode, blocked) in enumerate(made, 1)
    ]
    digest = build_digest(entries, 2.0)
    assert digest.total == len(entries)
    gaps = {b.offset - a.offset for a, b in zip(digest.sample, digest.sample[1:], strict=False)}
    assert len(gaps) <= 1
    assert 1 <= len(digest.sample) <= SAMPLE_EVENTS
    [summary] = digest.summaries
    assert summary.offset == entries[-1].offset
    data = msgspec.json.decode(summary.event.data)
    msgspec.convert(data, payloads.DnsQueryStats)
    assert data["total_queries"] == len(entries)
    assert data["queries_per_second"] == round(len(entries) / 2, 1)
    assert data["query_types"] == Counter(kind for _, kind, _, _ in made)
    assert data["rcodes"] == Counter(rcode for _, _, rcode, _ in made if rcode)
    assert data["blocked_queries"] == sum(blocked for *_, blocked in made)
    assert data["top_names"] == Counter(name for name, *_ in made if len(name) < 400)


def test_tables_are_short_whatever_is_asked_for() -> None:
    """Thousands of the longest names and types make no summary larger than the room that is kept for it."""
    entries = [
        query(n, f"{n:04}" + "é" * 120, client_ip=f"2001:db8::{n:x}", query_type=f"T{n}" + "ü" * 100, rcode=f"R{n}")
        for n in range(3_000)
    ]
    assert ROLLUP is not None
    summary = roll_up(ROLLUP, entries, 1.0)
    assert len(msgspec.json.decode(summary.event.data)["top_names"]) == TOP_ROWS
    for codec in Codec:
        assert len(summary.get_fragment(codec, frozenset()) or b"") < SUMMARY_BYTES + 4_096


def test_few_events_are_no_flood() -> None:
    """What would be a sample of itself is sent as it is, without a summary."""
    digest = build_digest([query(n) for n in range(SAMPLE_EVENTS)], 1.0)
    assert (len(digest.sample), digest.summaries) == (SAMPLE_EVENTS, ())


@pytest.mark.parametrize("name", [t.name for t in CATALOG.types if t.delivery is Delivery.telemetry])
def test_every_telemetry_event_shows_something(name: str) -> None:
    """Telemetry is counted without being redacted: so no view may be shown nothing at all of one."""
    event_type = CATALOG[name]
    assert event_type.payload.struct is not None
    required = {f.name for f in msgspec.structs.fields(event_type.payload.struct) if f.required}
    assert required - set(event_type.sensitive)


# ------------------------------------------------------------------------------------------------------ which flows

FILTERS: list[dict[str, list[str]] | None] = [
    None,
    {"zone": ["example.com"]},
    {"zone": ["a.example.com", "org"]},
    {"zone": ["example.com"], "query_type": ["A"]},
    {"client_ip": ["10.0.0.1", "10.0.0.2"]},
]


def feeds_with(wanted: list[int], feeds: FeedIndex[int]) -> list[Feed[int]]:
    made = []
    for n, index in zip(count(), wanted, strict=False):
        patterns = {f"custom.c{n}": (), "dns_query_log": parse_filter(FILTERS[index], CATALOG)}
        made.append(feeds.get(build_feed_key(resolve(patterns, ADMIN, CATALOG).selection, ADMIN, Codec.json, CATALOG)))
    return made


@given(
    st.lists(st.integers(0, len(FILTERS) - 1), max_size=8),
    st.lists(
        st.tuples(
            st.sampled_from(["a.example.com", "example.com", "b.org", "net"]),
            st.sampled_from(["A", "MX"]),
            st.sampled_from(["10.0.0.1", "10.0.0.9"]),
        ),
        min_size=1,
        max_size=5,
    ),
    st.sets(st.integers(0, 7)),
)
@settings(deadline=None, max_examples=examples(80))
def test_flows_find_what_feeds_accept(wanted: list[int], made: list[tuple[str, str, str]], dropped: set[int]) -> None:
    """An event reaches the feeds that accept it through its flows, each once, whoever else has come and gone."""
    feeds: FeedIndex[int] = FeedIndex(RecentLog(catalog=CATALOG), aggregation=AggregationSettings(events_per_s=1e-9))
    all_of_them = feeds_with(wanted, feeds)
    for n in dropped:
        if n < len(all_of_them):
            feeds.drop(all_of_them[n])
    for name, kind, client in made:
        entry = query(1, name, query_type=kind, client_ip=client)
        found = [feed for flow in feeds._streams.matching(entry) for feed in flow.feeds]
        assert len(found) == len(set(found))
        assert set(found) == {feed for feed in feeds if feed.filter.accepts(entry)}


def test_a_dropped_feed_leaves_no_flow_behind() -> None:
    """Feeds that come and go leave nothing in the index of flows, and no flood that nobody sees."""
    feeds: FeedIndex[int] = FeedIndex(RecentLog(catalog=CATALOG), aggregation=AggregationSettings(events_per_s=1e-9))
    made = feeds_with([0, 1, 2, 3, 4], feeds)
    feeds.add_telemetry(query(1), 0.1, 0.0)
    assert feeds.aggregating == {"dns_query_log": 5}
    for feed in made:
        assert feed.flush_at is not None
        feeds.drop(feed)
        assert feed.flush_at is None
        assert not feed.streams
    assert feeds.aggregating == {}
    assert not feeds._streams._index
    assert not len(feeds._streams._index)


def test_a_flood_is_flushed_in_frames_that_are_bounded() -> None:
    """However much is collected, a frame stays small, says where it ends, and leaves nothing waiting."""
    log = RecentLog(catalog=CATALOG)
    feeds: FeedIndex[int] = FeedIndex(log, aggregation=AggregationSettings(events_per_s=1e-9))
    [feed] = feeds_with([0], feeds)
    feed.add_connection(1, Reader(0), 0.0)
    for offset in range(1, 5_001):
        entry = log.append(offset, encode_event(query(offset, "n" * 200, filler="x" * 3_000).event))
        assert entry is not None
        feeds.add_telemetry(entry, 0.1, 0.0)
    frame = feed.flush(1.0)
    assert frame.cursor == 5_000
    assert frame.payload is not None
    assert len(frame.payload) < 40_000
    assert frame.event_count + frame.omitted_count == 5_001  # the summary is an event, too
    assert not feed._has_pending


def test_what_a_flow_holds_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large events are: another summary begins, the oldest of the sample go, and counts are exact."""
    monkeypatch.setattr("solowire.fanout.aggregation.MAX_COLLECTED_BYTES", 100_000)
    monkeypatch.setattr("solowire.fanout.aggregation.SAMPLE_KEPT_BYTES", 20_000)
    flow: AggregationStream[Listener] = AggregationStream("dns_query_log", AggregationSettings(events_per_s=1))
    flow.add_feed(Listener())
    collected = 0
    for n in range(1, 501):
        entry = query(n, message="x" * 900)
        if flow.count_event(entry, n / 1000):
            flow.collect_event(entry, n / 1000)
            collected += 1
        assert sum(e.size for e in flow._unsummed) < 100_000
        assert sum(e.size for e in flow._sample) <= 20_000
    flow.rotate(10.0)
    digest = flow.digest_between(0, 500, 0)
    assert digest is not None
    assert digest.total == collected
    assert flow.summary_count > 5
    assert len(digest.summaries) == flow.summary_count
    totals = [msgspec.json.decode(summary.event.data)["total_queries"] for summary in digest.summaries]
    assert sum(totals) == collected
