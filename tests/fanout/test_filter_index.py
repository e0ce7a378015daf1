"""The index of filters: exact, and blind for what doesn't match."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.feed import Feed, build_feed_key
from solowire.fanout.feed_index import FeedIndex
from solowire.fanout.filter_index import FilterIndex
from solowire.fanout.recent_log import Entry, RecentLog
from solowire.model.access import View
from solowire.model.subscriptions import Filter, parse_filter, parse_wanted, resolve
from solowire.protocol.messages import Codec
from tests.support.factories import event

ADMIN = View(frozenset({"*"}))
SHARED = "example.com"
RECORD = {"zone": SHARED, "name": "www.example.com", "type": "A", "view": "v", "actor": "me"}
QUERY = {"zone": SHARED, "query_domain": "www.example.com", "query_type": "A", "client_ip": "10.0.0.1", "view": "v"}


class _Terms(dict[str, list[str]]):
    """As an entry gives them, but all made beforehand."""

    def get(self, attribute: str, deepest: int) -> list[str]:  # type: ignore[override]
        return super().get(attribute, [])


def feed_for(
    feeds: FeedIndex[Any], *patterns: str, scopes: tuple[tuple[str, tuple[str, ...]], ...] = (), **filter: list[str]
) -> Feed[Any]:
    view = View(ADMIN.permissions, scopes)
    selection = resolve(dict.fromkeys(patterns, parse_filter(filter, CATALOG)), view, CATALOG).selection
    return feeds.get(build_feed_key(selection, view, Codec.json, CATALOG))


def entry_of(name: str, data: dict[str, Any]) -> Entry:
    return Entry(1, event(name, data), CATALOG[name])


def lines_of(act: Callable[[], object]) -> int:
    """How many lines of Python run for it: what a machine's speed doesn't change."""
    lines = 0

    def trace(frame: FrameType, what: str, _: object) -> Any:
        nonlocal lines
        lines += what == "line"
        return trace

    act()
    gc.collect()
    gc.disable()  # what it does in between is not ours
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
        gc.enable()
    return lines


# ------------------------------------------------------------------------------- it finds what matches, and only that

VALUES = ["a", "b", "c", "d"]
FILTERS: st.SearchStrategy[Filter] = st.dictionaries(
    st.sampled_from(["x", "y", "z"]), st.frozensets(st.sampled_from(VALUES), max_size=3), max_size=3
).map(lambda conditions: tuple(sorted(conditions.items())))
STEPS = st.lists(st.tuples(st.booleans(), st.sampled_from(["t", "u"]), FILTERS), max_size=60)
TERMS = st.dictionaries(st.sampled_from(["x", "y", "z", "w"]), st.lists(st.sampled_from(VALUES), max_size=3))


@given(STEPS, st.lists(TERMS, min_size=1, max_size=4), st.integers(0, 12))
def test_it_finds_exactly_what_matches(steps: list[Any], events: list[dict[str, list[str]]], crowd: int) -> None:
    """Whatever has come and gone, and whether a value is listed by few filters or by many."""
    index: FilterIndex[tuple[str, Filter]] = FilterIndex()
    held: set[tuple[str, Filter]] = set()
    for n in range(crowd):
        key = ("t", (("x", frozenset({"a", f"own-{n}"})), ("y", frozenset({"b"}))))
        held.add(index.get(*key, lambda key=key: key))  # type: ignore[misc]
    for adds, name, conditions in steps:
        key = (name, conditions)
        if adds:
            assert index.get(name, conditions, lambda key=key: key) == key  # type: ignore[misc]
            held.add(key)
        elif key in held:
            index.discard(*key)
            held.remove(key)
        assert index.find(*key) == (key if key in held else None)
    assert set(index) == held
    for terms in events:
        for name in ("t", "u", "v"):
            found = index.matching(name, _Terms(terms))
            assert Counter(found) == Counter(
                (n, f) for n, f in held if n == name and all(not v.isdisjoint(terms.get(a, ())) for a, v in f)
            )
    for left in held:
        index.discard(*left)
    assert not index
    assert not index._slots
    assert not len(index)


# --------------------------------------------------------------------------------------- what an event costs, and whom

CROWDS: dict[str, Callable[[int], dict[str, Any]]] = {
    "a zone shared, another attribute their own": lambda n: {"zone": [SHARED], "view": [f"v{n}", f"w{n}"]},
    "all but one attribute shared": lambda n: {"zone": [SHARED], "name": ["com"], "view": ["v"], "actor": [f"a{n}"]},
    "a shared value and their own in each condition": lambda n: {
        "zone": [SHARED, f"z{n}.org"],
        "view": ["v", f"v{n}"],
        "actor": ["somebody", f"a{n}"],
    },
    "no value their own": lambda n: {
        "zone": ["com", f"z{n % 7}.org"],
        "view": ["v", f"v{n % 11}"],
        "actor": [f"a{n % 13}"],
    },
    "a scope shared": lambda n: {"scopes": (("zone", (SHARED, f"{n}.org")),), "view": [f"v{n}"]},
    "a scope their own": lambda n: {"scopes": (("view", (f"v{n}", f"w{n}")),), "zone": [SHARED]},
}


@pytest.mark.parametrize("crowd", CROWDS.values(), ids=CROWDS.keys())
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("record_created", RECORD),
        ("dns_query_log", QUERY),
    ],
)
def test_feeds_that_dont_match_cost_an_event_nothing(
    crowd: Callable[[int], dict[str, Any]], name: str, data: dict[str, Any]
) -> None:
    """Not one step more with 200 of them than with 20, whatever they have in common with it; telemetry likewise."""
    entry = entry_of(name, data)
    called = {"name": "query_domain", "actor": "client_ip"} if name == "dns_query_log" else {}
    steps = []
    for size in (20, 200):
        feeds: FeedIndex[Any] = FeedIndex(RecentLog(catalog=CATALOG))
        for n in range(size):
            feed_for(feeds, name, **{called.get(what, what): values for what, values in crowd(n).items()})
        assert feeds.matching(entry) == {feed for feed in feeds if feed.filter.accepts(entry)} == set()
        steps.append(lines_of(lambda feeds=feeds: feeds.matching(entry)))  # type: ignore[misc]
        steps.append(lines_of(lambda feeds=feeds: feeds.add_telemetry(entry, 0.0, 0.0)))  # type: ignore[misc]
    assert steps[:2] == steps[2:]


def test_custom_feeds_that_dont_match_cost_an_event_nothing() -> None:
    """Nor do feeds of `custom.*` and of custom types, which name an event twice."""
    entry = entry_of("custom.deploy", {"zone": SHARED, "topic": "t"})
    steps = []
    for size in (20, 200):
        feeds: FeedIndex[Any] = FeedIndex(RecentLog(catalog=CATALOG))
        for n in range(size):
            feed_for(feeds, "custom.*", "custom.other", zone=[SHARED], topic=[f"t{n}", f"u{n}"])
            feed_for(feeds, "custom.deploy", zone=[SHARED], topic=[f"t{n}", f"u{n}"])
        assert feeds.matching(entry) == set()
        steps.append(lines_of(lambda feeds=feeds: feeds.matching(entry)))  # type: ignore[misc]
    assert steps[0] == steps[1]


def test_a_feed_that_matches_is_found_among_many_that_dont() -> None:
    """One of 500 that have all but one value in common; and the cost is that of one."""
    feeds: FeedIndex[Any] = FeedIndex(RecentLog(catalog=CATALOG))
    made = [feed_for(feeds, "record_created", zone=[SHARED], actor=[f"a{n}"]) for n in range(500)]
    for n in (0, 8, 250, 499):
        assert feeds.matching(entry_of("record_created", {**RECORD, "actor": f"a{n}"})) == {made[n]}
    entry = entry_of("record_created", {**RECORD, "actor": "a499"})
    assert lines_of(lambda: feeds.matching(entry)) < 100


# ------------------------------------------------------------------------------------------------- what a filter takes


def hello(**more: Any) -> dict[str, Any]:
    return {"subscriptions": ["*"], "filter": None, "filters": None, **more}


def memory_of(feeds: FeedIndex[Any], raw: dict[str, Any]) -> tuple[int, object]:
    """What it takes to keep what a hello asks for, in bytes, with the feed."""
    gc.collect()
    tracemalloc.start()
    wanted = parse_wanted(raw["subscriptions"], raw["filter"], raw["filters"], CATALOG)
    feed = feeds.get(build_feed_key(resolve(wanted, ADMIN, CATALOG).selection, ADMIN, Codec.json, CATALOG))
    gc.collect()
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return size, (wanted, feed, raw)


def test_a_filter_takes_memory_once_for_all_its_types() -> None:
    """A filter of many values on everything costs in proportion to the values, not to values × event types."""
    zones = [f"zone-number-{n:03}.example.org" for n in range(200)]
    text = sum(map(len, zones))
    feeds: FeedIndex[Any] = FeedIndex(RecentLog(catalog=CATALOG))
    size, kept = memory_of(feeds, hello(filter={"zone": zones}))
    assert size < 25 * text
    assert kept


def test_equal_filters_take_memory_once_for_all_connections() -> None:
    """Another connection that says the same in other words adds its own words, and no sets of values."""
    zones = [f"zone-number-{n:03}.example.org" for n in range(200)]
    other = [zone.upper() + "." for zone in reversed(zones[1:])] + ["www." + zones[0], zones[0]]
    feeds: FeedIndex[Any] = FeedIndex(RecentLog(catalog=CATALOG))
    own = {f"custom.t{n}": {"zone": other[n + 2 :], "topic": ["x"]} for n in range(3)}
    first, kept = memory_of(feeds, hello(filter={"zone": zones[:-1]}))
    second, kept_too = memory_of(feeds, hello(filter={"zone": other[1:]}))
    assert second < 3_000
    assert first > 5 * second
    third, kept_three = memory_of(feeds, hello(subscriptions=list(own), filters=own))
    fourth, kept_four = memory_of(feeds, hello(subscriptions=list(own), filters=own))
    assert fourth < third / 5
    assert len(feeds) == 2
    assert all((kept, kept_too, kept_three, kept_four))  # all that time
