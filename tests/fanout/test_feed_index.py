"""All feeds of a shard: those that an event matches are found, and those that were dropped leave nothing behind."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.feed import build_feed_key
from solowire.fanout.feed_index import FeedIndex
from solowire.fanout.frame_builder import FeedKey
from solowire.fanout.recent_log import Entry, RecentLog
from solowire.model.access import View
from solowire.model.events import encode_event
from solowire.model.subscriptions import parse_wanted, resolve
from solowire.protocol.messages import Codec
from tests.support.examples import examples
from tests.support.factories import event

EVERYTHING = View(frozenset({"*"}))
NAMES = ["a", "b.a", "c.b.a", "x.c.b.a", "."]
ACTORS = ["ann", "bob"]
PATTERNS = ["*", "dns.*", "custom.*", "custom.x", "zone_created", "record_created", "dns_query_log"]

filters = st.dictionaries(st.sampled_from(["zone", "query_domain"]), st.lists(st.sampled_from(NAMES), min_size=1)) | (
    st.fixed_dictionaries(
        {"zone": st.lists(st.sampled_from(NAMES), min_size=1), "actor": st.lists(st.sampled_from(ACTORS), min_size=1)}
    )
)
wanted = st.tuples(st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3, unique=True), filters)


def key(asked: tuple[list[str], dict[str, list[str]]]) -> FeedKey:
    patterns, filter = asked
    resolved = resolve(parse_wanted(patterns, filter, None, CATALOG), EVERYTHING, CATALOG)
    return build_feed_key(resolved.selection, EVERYTHING, Codec.json, CATALOG)


def entries(log: RecentLog) -> list[Entry]:
    made = []
    for name in NAMES:
        for actor in ACTORS:
            made.append(event("zone_created", {"zone": name, "actor": actor}))
            made.append(event("custom.x", {"zone": name}))
            made.append(event("custom.y", {"zone": name, "topic": actor}))
        made.append(event("dns_query_log", {"client_ip": "::1", "query_type": "A", "query_domain": name}))
        made.append(event("dns_query_log", {"client_ip": "::1", "query_type": "A", "query_domain": name, "zone": "a"}))
    found = [log.decode_entry(n, encode_event(one)) for n, one in enumerate(made, 1)]
    return [entry for entry in found if entry is not None]


@given(st.lists(wanted, max_size=6), st.data())
@settings(deadline=None, max_examples=examples(60))
def test_the_feeds_of_an_event_are_those_that_accept_it(
    asked: list[tuple[list[str], dict[str, list[str]]]], data: st.DataObject
) -> None:
    """Of whatever feeds there are, before and after some are dropped; and when all are, nothing is left of them."""
    log = RecentLog(catalog=CATALOG)
    feeds: FeedIndex[str] = FeedIndex(log)
    made = {feeds.get(key(one)) for one in asked}
    sound = entries(log)
    for _ in range(2):
        for entry in sound:
            assert feeds.matching(entry) == {feed for feed in made if feed.filter.accepts(entry)}
            wants = {feed for flow in feeds._streams.matching(entry) for feed in flow.feeds}
            if entry.event.type == "dns_query_log":
                assert wants == {feed for feed in made if feed.filter.accepts(entry)}
        for feed in data.draw(st.sets(st.sampled_from(sorted(made, key=id))) if made else st.just(set())):
            feeds.drop(feed)
            made.discard(feed)
    for feed in made:
        feeds.drop(feed)
    assert not feeds._index
    assert not feeds._streams._index
