"""Feeds: they find what matches, and their frames are bounded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.catch_up import MAX_EVENTS_BYTES
from solowire.fanout.feed import Feed, build_feed_key
from solowire.fanout.feed_index import FeedIndex
from solowire.fanout.reader import Reader
from solowire.fanout.recent_log import Entry, RecentLog
from solowire.model.access import View
from solowire.model.events import Event, Priority, encode_event
from solowire.model.subscriptions import Selection, parse_filter, resolve
from solowire.protocol import messages as c
from solowire.protocol.messages import MAX_FRAME_BYTES, Codec
from solowire.runtime.settings.shard_settings import FlushSettings
from tests.support.examples import examples
from tests.support.factories import event

ADMIN = View(frozenset({"*"}))
ENCODE: dict[Codec, Any] = {c: msgspec.json.encode if c.is_json else msgspec.msgpack.encode for c in Codec}


def selected(view: View, wanted: list[tuple[str, dict[str, list[str]]]]) -> Selection:
    return resolve({p: parse_filter(f, CATALOG) for p, f in wanted}, view, CATALOG).selection


def feed_of(log: RecentLog, *patterns: str, codec: Codec = Codec.json) -> Feed[str]:
    return Feed(build_feed_key(selected(ADMIN, [(p, {}) for p in patterns]), ADMIN, codec, CATALOG), log)


def offsets(payload: str | bytes | None, codec: Codec = Codec.json) -> list[int]:
    if payload is None:
        return []
    message = codec.decode_server(payload)
    assert isinstance(message, c.Events)
    return [e.offset for e in message.events]


# ------------------------------------------------------------------------------------------------------ the index

ZONES = ["example.com", "a.example.com", "example.org", "com", "."]
attribute_filters = st.dictionaries(
    st.sampled_from(["zone", "name", "record_type", "host", "topic", "client_ip", "query_domain"]),
    st.lists(st.sampled_from([*ZONES, "A", "MX", "ns1", "10.0.0.1"]), min_size=1, max_size=3),
    max_size=3,
)
wanted_patterns = st.lists(
    st.tuples(
        st.sampled_from(["*", "dns.*", "custom.*", "custom.a", "custom.b", "record_created", "system_metrics"]),
        attribute_filters,
    ),
    max_size=3,
)
views = st.builds(
    View,
    st.sampled_from([frozenset({"*"}), frozenset({"dns.read", "custom.read"}), frozenset({"dns.read", "sensitive.*"})]),
    st.sampled_from([(), (("zone", ("example.com",)),), (("zone", ()),), (("host", ("ns1",)), ("zone", ("com",)))]),
)
keys = st.builds(
    lambda view, wanted, codec: build_feed_key(selected(view, wanted), view, codec, CATALOG),
    views,
    wanted_patterns,
    st.sampled_from(Codec),
)


@st.composite
def published(draw: st.DrawFn) -> Event:
    zone = draw(st.sampled_from(ZONES))
    kind = draw(st.sampled_from(["record_created", "dns_query_log", "system_metrics", "custom.a", "custom.c"]))
    known: dict[str, dict[str, Any]] = {
        "record_created": {
            "zone": zone,
            "name": draw(st.sampled_from(ZONES)),
            "type": draw(st.sampled_from(["A", "MX"])),
        },
        "dns_query_log": {"client_ip": "10.0.0.1", "query_domain": zone, "query_type": "A"},
        "system_metrics": {"cpu_usage": 1, "host": draw(st.sampled_from(["ns1", "ns2"]))},
    }
    data = known.get(kind, draw(st.sampled_from([{}, {"zone": zone}, {"topic": "A", "zone": zone}])))
    return event(kind, data)


@given(st.lists(keys, max_size=12), st.lists(published(), min_size=1, max_size=8), st.sets(st.integers(0, 11)))
@settings(deadline=None, max_examples=examples(150))
def test_the_index_finds_what_matches(keys: list[Any], events: list[Event], dropped: set[int]) -> None:
    """An event reaches exactly the feeds that want it, whether or not others of them were there and have gone."""
    feeds: FeedIndex[str] = FeedIndex(RecentLog(catalog=CATALOG))
    made = [feeds.get(key) for key in keys]
    for n in dropped:
        if n < len(made):
            feeds.drop(made[n])
    for published_event in events:
        entry = Entry(1, published_event, CATALOG[published_event.type])
        assert feeds.matching(entry) == {feed for feed in feeds if feed.filter.accepts(entry)}


def test_a_dropped_feed_leaves_nothing_behind() -> None:
    """Feeds that come and go with their users leave no trace in the index."""
    feeds: FeedIndex[str] = FeedIndex(RecentLog(catalog=CATALOG))
    for zone in range(50):
        selection = selected(ADMIN, [("*", {"zone": [f"z{zone}.org", "x.org"]})])
        feed = feeds.get(build_feed_key(selection, ADMIN, Codec.json, CATALOG))
        feeds.drop(feed)
        feeds.drop(feed)
    assert len(feeds) == 0
    for index in (feeds._index, feeds._streams._index):
        assert not index
        assert not index._filters
        assert not index._slots


def test_equal_views_share_a_feed() -> None:
    """Connections that may see and want the same are one feed; another codec or another redaction makes two."""
    feeds: FeedIndex[str] = FeedIndex(RecentLog(catalog=CATALOG))
    selection = selected(ADMIN, [("dns_query_log", {})])
    less = View(frozenset({"dns.read"}))
    other_but_equal = View(frozenset({"dns.*", "sensitive.*"}))
    one = feeds.get(build_feed_key(selection, ADMIN, Codec.json, CATALOG))
    assert feeds.get(build_feed_key(selection, other_but_equal, Codec.json, CATALOG)) is one
    assert feeds.get(build_feed_key(selection, ADMIN, Codec.msgpack, CATALOG)) is not one
    assert feeds.get(build_feed_key(selection, less, Codec.json, CATALOG)) is not one


# ------------------------------------------------------------------------------------------------------ one feed


def filled(sizes: list[int], users: dict[int, str] | None = None) -> RecentLog:
    log = RecentLog(catalog=CATALOG)
    for offset, size in enumerate(sizes, 1):
        user = (users or {}).get(offset)
        log.append(offset, encode_event(event("custom.a", {"x": "x" * size}, user=user)))
    return log


@pytest.mark.parametrize(
    ("priority", "connections", "seconds"),
    [
        (Priority.critical, 10_000, 0.0),
        (Priority.high, 10_000, 0.02),
        (Priority.normal, 10_000, 0.1),
        (Priority.low, 10_000, 1.0),
        (Priority.normal, 1, 0.001),
        (Priority.low, 50, 0.05),
        (Priority.high, 0, 0.0),
    ],
)
def test_how_long_an_event_waits(priority: Priority, connections: int, seconds: float) -> None:
    """An event waits as long as its priority allows, and less where there are few connections to save frames for."""
    assert FlushSettings().delay_for(priority, connections) == pytest.approx(seconds)


def test_a_flush_moves_all_who_are_current() -> None:
    """One frame is built for all connections that stand at the same place, and they stand behind it then."""
    log = RecentLog(catalog=CATALOG)
    feed = feed_of(log, "custom.a")
    for name in ("alice", "bob"):
        assert feed.add_connection(name, Reader(0), 0.0) is False
    entry = log.append(3, encode_event(event("custom.a", {})))
    assert entry is not None
    assert feed.add(entry, 0.1, 5.0) is True
    assert feed.flush_at == 5.0
    log.position = 7
    frame = feed.flush(5.0)
    assert (frame.cursor, frame.event_count, offsets(frame.payload)) == (7, 1, [3])
    assert feed.cursor_of("alice") == feed.cursor_of("bob") == 7
    assert feed.flush(6.0).payload is None


def test_who_could_not_be_given_a_frame_stays_where_it_was() -> None:
    """A connection that was busy keeps its cursor, reads the log from there, and is current again when it has all."""
    log = RecentLog(catalog=CATALOG)
    feed = feed_of(log, "custom.a")
    feed.add_connection("alice", Reader(0), 0.0)
    feed.add_connection("bob", Reader(0), 0.0)
    for offset in (1, 2):
        entry = log.append(offset, encode_event(event("custom.a", {})))
        assert entry is not None
        feed.add(entry, 0.0, 1.0)
    before = feed.head
    feed.flush(1.0)
    feed.park("bob", before)
    feed.unpark("bob")
    assert (feed.cursor_of("alice"), feed.cursor_of("bob")) == (2, 0)
    frame = feed.read_frame(feed.behind["bob"])
    assert (frame.cursor, offsets(frame.payload)) == (2, [1, 2])
    assert feed.mark_delivered("bob", frame)
    assert set(feed.current) == {"alice", "bob"}


def test_nothing_is_written_for_nobody() -> None:
    """While all connections of a feed are behind, an event costs no fragment, and who catches up gets each once."""
    log = RecentLog(catalog=CATALOG)
    feed = feed_of(log, "custom.a")
    feed.add_connection("alice", Reader(0), 0.0)
    feed.park("alice")
    entries = []
    for offset in (1, 2):
        entry = log.append(offset, encode_event(event("custom.a", {})))
        assert entry is not None
        feed.add(entry, 0.5, 1.0)
        entries.append(entry)
    assert [e._fragments for e in entries] == [{}, {}]
    assert feed.flush_at is not None
    assert feed.cursor_of("alice") == 0
    feed.unpark("alice")
    feed.mark_delivered("alice", feed.read_frame(feed.behind["alice"]))
    assert not feed.current, "it stands where the feed does, but what comes next is not pending"
    assert feed.flush(1.5).payload is None
    frame = feed.read_frame(feed.behind["alice"])
    assert offsets(frame.payload) == [1, 2]
    assert feed.mark_delivered("alice", frame)


def test_a_personal_event_is_read_by_its_user_only() -> None:
    """The frame for one user holds what is theirs alone; the frame that others share does not."""
    log = filled([1, 1, 1], {2: "alice"})
    feed = feed_of(log, "custom.a")
    assert offsets(feed.read_frame(Reader(0), "alice").payload) == [1, 2, 3]
    assert (
        offsets(feed.read_frame(Reader(0), "bob").payload)
        == offsets(feed.read_frame(Reader(0), None).payload)
        == [1, 3]
    )


def test_who_is_ahead_of_a_feed_gets_nothing_twice() -> None:
    """A connection that comes to a feed from further on waits until the feed has come there, and stays where it is."""
    log = filled([1, 1, 1])
    feed = feed_of(log, "custom.a")
    feed.position = 1
    assert feed.read_frame(Reader(2), None) == feed.read_frame(Reader(2), "alice")
    assert (feed.read_frame(Reader(2), None).cursor, feed.read_frame(Reader(2), None).payload) == (
        2,
        None,
    )


sizes_of_events = st.lists(st.integers(0, 200) | st.integers(0, 40_000) | st.integers(60_000, 70_000), max_size=20)


@given(sizes_of_events, st.sampled_from(Codec))
@settings(deadline=None, max_examples=examples(60))
def test_frames_are_bounded_however_they_are_made(sizes: list[int], codec: Codec) -> None:
    """Flushed, read or listed, a frame has at most 64 KB unless one event alone is larger, and none is left out."""
    log = filled(sizes)
    feed = feed_of(log, "custom.*", codec=codec)
    entries = list(log.entries_after(0))
    pieces = [(e.offset, f) for e in entries if (f := feed.filter.encode_for(e)) is not None]
    listed = list(feed.build_frames(pieces, log.position))

    def read() -> Iterator[str | bytes | None]:
        cursor = 0
        while cursor < log.position:
            frame = feed.read_frame(Reader(cursor), None)
            assert frame.cursor > cursor
            cursor = frame.cursor
            yield frame.payload

    def flushed() -> Iterator[str | bytes | None]:
        feed.position = 0
        feed.current["alice"] = Reader()
        for entry in entries:
            feed.add(entry, 0.0, 1.0)
        while feed.flush_at is not None:
            before = feed.position
            frame = feed.flush(feed.flush_at)
            assert frame.cursor == feed.position
            assert feed.position > before or frame.payload is None
            yield frame.payload

    for payloads in (listed, list(read()), list(flushed())):
        found = []
        for payload in payloads:
            new = offsets(payload, codec)
            found += new
            size = len(payload.encode() if isinstance(payload, str) else payload or b"")
            assert size <= MAX_FRAME_BYTES or len(new) == 1
        assert found == list(range(1, len(sizes) + 1))


def test_a_frame_is_as_full_as_it_may_be() -> None:
    """Someone who has missed thousands of events gets them in full frames, not in crumbs."""
    log = filled([100] * 2000)
    feed = feed_of(log, "custom.a")
    frame = feed.read_frame(Reader(0), None)
    assert frame.payload is not None
    assert MAX_EVENTS_BYTES * 0.98 < len(frame.payload) <= MAX_FRAME_BYTES
