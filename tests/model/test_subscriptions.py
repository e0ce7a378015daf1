"""From what a client asks for to what it gets, and that it never gets more than it may."""

from __future__ import annotations

import sys
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from solowire.domains.dns.event_types import CATALOG
from solowire.errors import InvalidMessage
from solowire.fanout.feed import Feed, build_feed_key
from solowire.fanout.feed_index import FeedIndex
from solowire.fanout.recent_log import Entry, RecentLog
from solowire.model.access import ROLES, View
from solowire.model.events import Event, Priority
from solowire.model.subscriptions import (
    CUSTOM,
    MAX_FILTER_VALUES,
    MAX_NAME_CHARACTERS,
    MAX_PATTERNS,
    MAX_VALUE_CHARACTERS,
    MAX_VALUES,
    Filter,
    ResolvedSubscriptions,
    Selection,
    Wanted,
    check_patterns,
    check_values,
    expand_pattern,
    find_idle,
    list_unknown_types,
    parse_filter,
    parse_wanted,
    resolve,
    subscribe,
    unsubscribe,
)
from solowire.protocol.messages import Codec
from tests.support.examples import examples

ADMIN = View(frozenset({"*"}))
VIEWER = View(frozenset(ROLES["viewer"].permissions))


def asked(view: View, /, *patterns: str, **filters: list[str]) -> ResolvedSubscriptions:
    return resolve(dict.fromkeys(patterns, parse_filter(filters, CATALOG)), view, CATALOG)


def accepts(selection: Selection, name: str, /, **attributes: str) -> bool:
    """Whether a feed takes such an event; its index must find it exactly then."""
    event_type = CATALOG[name]
    event = Event("id", name, b"{}", Priority.normal, event_type.delivery, "now", attributes=attributes)
    feeds: FeedIndex[Any] = FeedIndex(RecentLog(catalog=CATALOG))
    feed: Feed[Any] = feeds.get(build_feed_key(selection, ADMIN, Codec.json, CATALOG))
    entry = Entry(1, event, event_type)
    accepted = feed.filter.accepts(entry)
    assert feeds.matching(entry) == ({feed} if accepted else set())
    feeds.drop(feed)
    assert feeds.matching(entry) == set()
    return accepted


def test_a_category_names_all_its_types() -> None:
    """`dns.*` is every DNS event type and no other."""
    assert asked(ADMIN, "dns.*").names == sorted(t.name for t in CATALOG.types if t.category == "dns")
    assert asked(ADMIN, "dns.*").denied == []


def test_a_star_names_everything() -> None:
    """`*` is every event type, custom ones included."""
    assert asked(ADMIN, "*").names == sorted(t.name for t in CATALOG.types)


def test_a_star_grants_what_it_may() -> None:
    """A viewer who asks for `*` gets what a viewer may see, and is not told of what there is beside it."""
    resolved = asked(VIEWER, "*")
    assert resolved.names == sorted(t.name for t in CATALOG.types if VIEWER.has_permission(t.permission))
    assert resolved.denied == []


@pytest.mark.parametrize("pattern", ["nosuch", "nosuch.*", "", "*.*", "dns", ".*", "custom.", "custom.A B", "dns.*.*"])
def test_an_unknown_type_is_denied_by_name(pattern: str) -> None:
    """A misspelt event type is answered with its name and the reason, and the rest is granted."""
    resolved = asked(ADMIN, pattern, "zone_created")
    assert resolved.names == ["zone_created"]
    assert [(d.type, d.reason) for d in resolved.denied] == [(pattern, "unknown_type")]
    assert resolved.denied[0].hint


@pytest.mark.parametrize("pattern", ["gateway_stats", "user_login", "audit.*", "user.*"])
def test_a_forbidden_type_is_denied_by_name(pattern: str) -> None:
    """A type, or a whole category, that a user may not see is denied with the permission that it needs."""
    resolved = asked(VIEWER, pattern, "zone_created")
    assert resolved.names == ["zone_created"]
    assert [(d.type, d.reason) for d in resolved.denied] == [(pattern, "forbidden")]
    assert "permission" in resolved.denied[0].hint


def test_a_filter_narrows_the_types_that_know_it() -> None:
    """A filter by zone narrows zone events and leaves those that have no zone alone."""
    selection = asked(ADMIN, "dns.*", "system_metrics", zone=["Example.COM."]).selection
    assert accepts(selection, "zone_created", zone="example.com")
    assert accepts(selection, "zone_created", zone="sub.example.com")
    assert not accepts(selection, "zone_created", zone="notexample.com")
    assert not accepts(selection, "zone_created", zone="com")
    assert not accepts(selection, "zone_created")
    assert accepts(selection, "system_metrics", host="ns1")


def test_values_are_or_and_attributes_are_and() -> None:
    """Several values of one attribute mean any of them; several attributes mean all of them."""
    selection = asked(ADMIN, "record_created", zone=["a.org", "b.org"], record_type=["MX"]).selection
    assert accepts(selection, "record_created", zone="b.org", record_type="MX")
    assert not accepts(selection, "record_created", zone="b.org", record_type="A")
    assert not accepts(selection, "record_created", zone="c.org", record_type="MX")


@pytest.mark.parametrize("pattern", ["dns_query_log", "security_alert", "rpz_hit"])
def test_a_filter_by_what_is_hidden_is_denied(pattern: str) -> None:
    """A user who may not see client addresses can't find them out by filtering for them."""
    resolved = asked(VIEWER, pattern, client_ip=["10.0.0.1"])
    assert resolved.names == []
    assert [(d.type, d.reason) for d in resolved.denied] == [(pattern, "filter")]
    assert asked(ADMIN, pattern, client_ip=["10.0.0.1"]).names == [pattern]


def test_a_wildcard_with_a_hidden_filter_grants_the_rest() -> None:
    """Under a filter that some types of a category must refuse, the others are still granted."""
    names = asked(VIEWER, "dns.*", client_ip=["10.0.0.1"]).names
    assert "dns_query_log" not in names
    assert "zone_created" in names


ZONES = ["example.com", "a.example.com", "b.a.example.com", "example.org", "com", ".", "xample.com"]
patterns = st.lists(
    st.sampled_from(["*", "dns.*", "custom.*", "custom.x", "record_created", "bulk.*", "dns_query_log"]),
    min_size=1,
    max_size=3,
)
filters = st.dictionaries(
    st.sampled_from(["zone", "name", "query_domain", "host", "topic"]),
    st.lists(st.sampled_from(ZONES), min_size=1, max_size=4),
    max_size=3,
)
ZONED = [t.name for t in CATALOG.types if t.find_attribute("zone") and t.name != CUSTOM] + ["custom.x"]


@given(
    patterns,
    filters,
    st.lists(st.sampled_from(ZONES), max_size=2),
    st.sampled_from(ZONED),
    st.none() | st.sampled_from(ZONES),
)
@settings(deadline=None, max_examples=examples(300))
def test_no_filter_widens_a_scope(
    wanted: list[str], filter: dict[str, list[str]], scope: list[str], name: str, zone: str | None
) -> None:
    """A user who may see some zones never gets an event of another, whatever they ask for."""
    view = View(frozenset({"*"}), (("zone", tuple(scope)),))
    selection = asked(view, *wanted, **filter).selection
    attributes = {"zone": zone, "name": zone, "query_domain": zone, "host": zone, "topic": zone} if zone else {}
    inside = zone is not None and any(s in (".", zone) or zone.endswith("." + s) for s in scope)
    if accepts(selection, name, **attributes):
        assert inside


def test_a_scope_is_written_as_people_write_zones() -> None:
    """A scope in capitals with a last dot means the same zone as without."""
    selection = asked(View(frozenset({"*"}), (("zone", ("Example.COM.",)),)), "zone_created").selection
    assert accepts(selection, "zone_created", zone="www.example.com")


def test_an_empty_scope_shows_nothing() -> None:
    """A token whose list of zones is empty sees no zone at all, rather than all of them."""
    selection = asked(View(frozenset({"*"}), (("zone", ()),)), "zone_created").selection
    assert not accepts(selection, "zone_created", zone="example.com")


def test_the_later_pattern_wins() -> None:
    """Subscribing again to a type with another filter replaces its filter."""
    wanted = subscribe({}, ["dns.*"], parse_filter({"zone": ["a.org"]}, CATALOG))
    wanted = subscribe(wanted, ["zone_created"], parse_filter({"zone": ["b.org"]}, CATALOG))
    selection = resolve(wanted, ADMIN, CATALOG).selection
    assert accepts(selection, "zone_created", zone="b.org")
    assert not accepts(selection, "zone_created", zone="a.org")
    assert accepts(selection, "zone_deleted", zone="a.org")


def test_a_wildcard_that_comes_again_wins_over_what_came_between() -> None:
    """Subscribing again to a wildcard replaces the filters of all its types, those named on their own included."""
    wanted: Wanted = {}
    for pattern, zone in (("dns.*", "a.org"), ("zone_created", "b.org"), ("dns.*", "c.org")):
        wanted = subscribe(wanted, [pattern], parse_filter({"zone": [zone]}, CATALOG))
    selection = resolve(wanted, ADMIN, CATALOG).selection
    for name in ("zone_created", "zone_deleted"):
        assert [z for z in ("a.org", "b.org", "c.org") if accepts(selection, name, zone=z)] == ["c.org"]


def test_one_custom_type_beside_all_of_them() -> None:
    """`custom.*` under a filter and then one custom type without: all events of that one, the others filtered."""
    wanted = subscribe({}, ["custom.*"], parse_filter({"zone": ["a.com"]}, CATALOG))
    wanted = subscribe(wanted, ["custom.deploy"], ())
    resolved = resolve(wanted, ADMIN, CATALOG)
    assert resolved.names == ["custom.*", "custom.deploy"]
    assert accepts(resolved.selection, "custom.deploy")
    assert accepts(resolved.selection, "custom.deploy", zone="b.com")
    assert accepts(resolved.selection, "custom.other", zone="a.com")
    assert not accepts(resolved.selection, "custom.other", zone="b.com")


def test_one_custom_type_filtered_beside_all_of_them() -> None:
    """One custom type may be narrower than `custom.*` beside it, whichever of the two has a filter."""
    wanted = subscribe(subscribe({}, ["custom.*"], ()), ["custom.deploy"], parse_filter({"zone": ["a.com"]}, CATALOG))
    selection = resolve(wanted, ADMIN, CATALOG).selection
    assert accepts(selection, "custom.deploy", zone="a.com")
    assert not accepts(selection, "custom.deploy", zone="b.com")
    assert not accepts(selection, "custom.deploy")
    assert accepts(selection, "custom.other")
    again = resolve(subscribe(wanted, ["custom.*"], ()), ADMIN, CATALOG)
    assert again.names == ["custom.*"]
    assert accepts(again.selection, "custom.deploy", zone="b.com")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["*", "custom.*", "custom.a", "custom.b"]),
            st.dictionaries(st.sampled_from(["zone", "topic"]), st.lists(st.sampled_from(["x", "y.x"]), min_size=1)),
        ),
        max_size=5,
    ),
    st.sampled_from(["custom.a", "custom.b", "custom.c"]),
    st.dictionaries(st.sampled_from(["zone", "topic"]), st.sampled_from(["x", "y.x", "z"])),
)
@settings(deadline=None, max_examples=examples(300))
def test_the_last_that_names_a_custom_type_decides(
    asked_for: list[tuple[str, dict[str, list[str]]]], name: str, attributes: dict[str, str]
) -> None:
    """However custom types and wildcards are mixed, an event is judged by the filter that was said last for it."""
    wanted: Wanted = {}
    last: dict[str, list[str]] | None = None
    for pattern, filter in asked_for:
        wanted = subscribe(wanted, [pattern], parse_filter(filter, CATALOG))
        if pattern in ("*", "custom.*", name):
            last = filter
    alone = () if last is None else resolve({name: parse_filter(last, CATALOG)}, ADMIN, CATALOG).selection
    assert accepts(resolve(wanted, ADMIN, CATALOG).selection, name, **attributes) == accepts(alone, name, **attributes)


def test_unsubscribe_takes_a_wildcard_apart() -> None:
    """Leaving one type of a category keeps the others, under the filter that they had."""
    wanted = subscribe({}, ["dns.*"], parse_filter({"zone": ["a.org"]}, CATALOG))
    left = resolve(unsubscribe(wanted, ["dns_query_log"], CATALOG), ADMIN, CATALOG)
    assert left.names == [n for n in asked(ADMIN, "dns.*").names if n != "dns_query_log"]
    assert not accepts(left.selection, "zone_created", zone="b.org")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["*", "dns.*", "zone_created", "record_created", "bulk.*", "custom.a", "system_metrics"]),
            st.sampled_from(["a", "b", "c", "d"]),
        ),
        max_size=6,
    ),
    st.sampled_from(["zone_created", "record_created", "bulk_failed", "dns.*", "system_metrics"]),
)
@example([("record_created", "a"), ("dns.*", "b"), ("*", "c")], "system_metrics")
@settings(deadline=None, max_examples=examples(300))
def test_unsubscribe_changes_nothing_else(asked_for: list[tuple[str, str]], leaving: str) -> None:
    """Whatever was subscribed to, in whatever order, leaving a type leaves all others exactly as they were."""
    wanted: Wanted = {}
    for pattern, zone in asked_for:
        wanted = subscribe(wanted, [pattern], parse_filter({"zone": [zone]}, CATALOG))
    gone = expand_pattern(leaving, CATALOG)
    before = [item for item in resolve(wanted, ADMIN, CATALOG).selection if item[0] not in gone]
    assert list(resolve(unsubscribe(wanted, [leaving], CATALOG), ADMIN, CATALOG).selection) == before


def test_unsubscribe_takes_a_star_apart() -> None:
    """Leaving a category out of `*` keeps everything else."""
    left = resolve(unsubscribe({"*": ()}, ["dns.*", "custom.*"], CATALOG), ADMIN, CATALOG)
    assert left.names == sorted(t.name for t in CATALOG.types if t.category not in ("dns", "custom"))


def test_unsubscribe_from_everything() -> None:
    """Unsubscribing `*` leaves nothing, however it was subscribed to."""
    wanted: dict[str, Filter] = dict.fromkeys(["*", "dns.*", "custom.*", "custom.a", "zone_created"], ())
    assert resolve(unsubscribe(wanted, ["*"], CATALOG), ADMIN, CATALOG).names == []


def test_unsubscribing_what_was_never_wanted_changes_nothing() -> None:
    """Unsubscribing from a type that was not subscribed to is no error."""
    wanted = subscribe({}, ["dns.*"], ())
    assert unsubscribe(wanted, ["system_metrics", "nosuch"], CATALOG) == wanted


def test_what_names_no_type_is_told() -> None:
    """Of what a client names those that are no event types are told, shortened, each once."""
    names = ["dns.*", "dns_qurey_log", "custom.*", "custom.a", "*", "nosuch.*", "custom.", "dns_qurey_log", "x" * 500]
    told = list_unknown_types(names, CATALOG)
    assert [d.type for d in told] == ["dns_qurey_log", "nosuch.*", "custom.", "x" * MAX_NAME_CHARACTERS]
    assert {d.reason for d in told} == {"unknown_type"}
    assert all(d.hint for d in told)


def test_one_custom_type_cant_leave_all_of_them() -> None:
    """One custom type can't be taken out of `custom.*`, and the client is told what to do instead."""
    for wide in ("custom.*", "*"):
        with pytest.raises(InvalidMessage, match=r"custom\.\*"):
            unsubscribe({wide: ()}, ["custom.a"], CATALOG)
    assert unsubscribe({"custom.a": (), "custom.b": ()}, ["custom.a"], CATALOG) == {"custom.b": ()}


def test_custom_types_are_known_by_their_form() -> None:
    """Any well-formed custom name can be subscribed to before anything of it was published."""
    resolved = asked(VIEWER, "custom.deploy.done", zone=["a.org"])
    assert resolved.names == ["custom.deploy.done"]
    assert accepts(resolved.selection, "custom.deploy.done", zone="a.org")
    assert not accepts(resolved.selection, "custom.deploy.done", zone="b.org")
    assert not accepts(resolved.selection, "custom.other", zone="a.org")


def test_all_custom_types_at_once() -> None:
    """`custom.*` is every custom type, and beside it a single one is not listed twice."""
    resolved = asked(VIEWER, "custom.a", "custom.*")
    assert resolved.names == ["custom.*"]
    assert accepts(resolved.selection, "custom.whatever")
    assert expand_pattern("custom.*", CATALOG) == (CUSTOM,)


@pytest.mark.parametrize(
    "raw",
    [
        {"nosuch": ["x"]},
        {"zone": []},
        {"zone": ["x"] * (MAX_FILTER_VALUES + 1)},
        {"x" * 60_000: ["x"]},
        {"actor": ["x", "y" * (MAX_VALUE_CHARACTERS + 1)]},
        {"zone": ["a", ".".join("a" * 128)]},
        {"query_domain": ["x" * 254]},
        {"zone": ["example.com", ""]},
        {"name": [" "]},
        {"zone": ["*"]},
        {"query_domain": ["*.example.com"]},
        {"zone": ["example.com\n"]},
        {"severity": ["high", "hihg"]},
        {"blocked": ["True"]},
        {"success": ["y" * 1000]},
        {"zone": ["a.com,b.com"]},
        {"query_domain": ["example.com", "a.com, b.com."]},
        {"actor": ["ann", ""]},
        {"server": [" ns1"]},
        {"view": ["*"]},
        {"client_ip": ["192.0.2.1", "10.0.0.0/8"]},
    ],
    ids=[
        *("unknown", "empty", "many", "long", "long value", "labels", "octets"),
        *("no name", "blank", "all", "wildcard", "newline", "severity", "yes", "no value"),
        *(
            "names with a comma",
            "names with a comma and a blank",
            "empty value",
            "blank before a value",
            "any value",
            "network",
        ),
    ],
)
def test_a_wrong_filter_is_refused(raw: dict[str, list[str]]) -> None:
    """A filter that can't mean anything is an error that says so shortly, rather than one that matches nothing."""
    with pytest.raises(InvalidMessage) as caught:
        parse_filter(raw, CATALOG)
    assert caught.value.code == "invalid_filter"
    assert len(str(caught.value)) < 1000


def test_a_comma_within_a_name_is_a_part_of_it() -> None:
    """Names of services have commas; two names in one text are what is refused."""
    for name in ("printer, floor 2._ipp._tcp.local", "a,b.example.com", "a\\,b.example.com"):
        parse_filter({"query_domain": [name]}, CATALOG)


def test_each_pattern_of_a_hello_may_have_its_own_filter() -> None:
    """`filters` goes before `filter`, pattern by pattern; an empty one there means all; the order is the patterns'."""
    a, b = {"zone": ["a.org"]}, {"zone": ["b.org"]}
    wanted = parse_wanted(["dns.*", "rpz_hit", "zone_created"], a, {"zone_created": b, "rpz_hit": {}}, CATALOG)
    assert list(wanted.items()) == [
        ("dns.*", parse_filter(a, CATALOG)),
        ("rpz_hit", ()),
        ("zone_created", parse_filter(b, CATALOG)),
    ]
    nothing: tuple[dict[str, Any] | None, ...] = (None, {})
    for absent in nothing:
        assert parse_wanted(["dns.*"], a, absent, CATALOG) == {"dns.*": parse_filter(a, CATALOG)}
    assert parse_wanted([], a, None, CATALOG) == {}


@pytest.mark.parametrize(
    ("filter", "filters", "word"),
    [
        ({"nosuch": ["x"]}, {}, "nosuch"),
        (None, {"dns.*": {"nosuch": ["x"]}}, "nosuch"),
        (None, {"dns.*": {"zone": []}}, "zone"),
        (None, {"dns.*": {"zone": ["x"] * (MAX_FILTER_VALUES + 1)}}, str(MAX_FILTER_VALUES)),
        (None, {"DNS.*": {}}, "'DNS.*'"),
        (None, {"y" * 60_000: {}}, "yyy"),
    ],
    ids=["common", "unknown", "empty", "many", "unasked", "long"],
)
def test_wrong_filters_of_a_hello_are_refused(
    filter: dict[str, list[str]] | None, filters: dict[str, dict[str, list[str]]], word: str
) -> None:
    """A wrong filter among several, or one for a pattern that was not asked for, is an error as it is alone."""
    with pytest.raises(InvalidMessage) as caught:
        parse_wanted(["dns.*"], filter, filters, CATALOG)
    assert caught.value.code == "invalid_filter"
    assert word in caught.value.message
    assert len(str(caught.value)) < 1000
    with pytest.raises(InvalidMessage, match=str(MAX_PATTERNS)):
        parse_wanted([f"custom.a{n}" for n in range(MAX_PATTERNS + 1)], None, None, CATALOG)


def test_no_filter_is_no_condition() -> None:
    """Without a filter, or with an empty one, all events of a type come."""
    assert parse_filter(None, CATALOG) == parse_filter({}, CATALOG) == ()


def test_one_message_names_a_bounded_number_of_types() -> None:
    """A message that names more types than anyone needs is refused."""
    check_patterns(["x"] * MAX_PATTERNS)
    with pytest.raises(InvalidMessage, match=str(MAX_PATTERNS)):
        check_patterns(["x"] * (MAX_PATTERNS + 1))


def test_one_connection_wants_a_bounded_number_of_types() -> None:
    """A client can't make its shard remember ever more subscriptions by naming new ones in each message."""
    wanted = subscribe({}, [f"custom.a{n}" for n in range(MAX_PATTERNS)], ())
    assert subscribe(wanted, ["custom.a0"], ()) == wanted
    with pytest.raises(InvalidMessage, match=str(MAX_PATTERNS)):
        subscribe(wanted, ["custom.one-more"], ())


def test_one_connection_lists_a_bounded_number_of_values() -> None:
    """In all its filters together, in one message or one after the other; equal filters count once."""
    names = [f"custom.a{n}" for n in range(MAX_VALUES // MAX_FILTER_VALUES)]
    filters = {name: {"zone": [f"{name}-{n}" for n in range(MAX_FILTER_VALUES)]} for name in names}
    wanted = parse_wanted([*names, "custom.b"], {"zone": filters[names[0]]["zone"][::-1]}, filters, CATALOG)
    for more in ({"zone": ["one-more"]}, {"topic": ["one-more"]}):
        with pytest.raises(InvalidMessage, match=f"{MAX_VALUES} values") as caught:
            check_values(subscribe(wanted, ["custom.c"], parse_filter(more, CATALOG)))
        assert (caught.value.code, bool(caught.value.hint)) == ("too_many", True)
    check_values(wanted)
    check_values(subscribe(wanted, [names[1]], parse_filter({"topic": ["one-more"]}, CATALOG)))


scoped = st.dictionaries(st.sampled_from(["zone", "host"]), st.lists(st.sampled_from(ZONES), max_size=3), max_size=2)


@given(patterns, filters, scoped, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=examples(200))
def test_what_means_the_same_is_the_same(
    wanted: list[str], filter: dict[str, list[str]], scopes: dict[str, list[str]], random: Random
) -> None:
    """Another order and spelling, names repeated or beneath others: equal, and the same sets of values."""
    other = {}
    for name, values in reversed(filter.items()):
        again = list(values) * 2
        if CATALOG.attributes[name].hierarchical:
            again += ["WWW." + value + "." for value in values if value != "."]
        random.shuffle(again)
        other[name] = again
    view = View(frozenset({"*"}), tuple((name, tuple(values)) for name, values in scopes.items()))
    again_view = View(frozenset({"*"}), tuple((name, tuple(values[::-1] * 2)) for name, values in scopes.items()))
    one, two = asked(view, *wanted, **filter).selection, asked(again_view, *wanted, **other).selection
    assert one == two
    for (_, conditions), (_, same) in zip(one, two, strict=True):
        assert all(a[1] is b[1] for a, b in zip(conditions, same, strict=True))
        assert [name for name, _ in conditions] == sorted({name for name, _ in conditions})


def test_a_scope_and_a_filter_are_one_condition() -> None:
    """What both leave is what is matched by, and nothing is as good as anything else that nothing meets."""
    view = View(frozenset({"*"}), (("zone", ("a.org", "b.org", "x.c.org")),))
    [(_, conditions)] = asked(view, "zone_created", zone=["www.a.org", "org", "d.net"]).selection
    assert conditions == (("zone", frozenset({"a.org", "b.org", "x.c.org"})),)
    nothing = [asked(view, "zone_created", zone=["d.net"]), asked(view, "zone_created", zone=["net"], view=["x"])]
    nothing.append(asked(View(frozenset({"*"}), (("view", ()),)), "zone_created"))
    assert len({resolved.selection for resolved in nothing}) == 1
    assert not accepts(nothing[0].selection, "zone_created", zone="a.org")


def test_unsubscribing_from_many_takes_no_longer_for_each() -> None:
    """What is left is put together in one pass, however much it is."""
    names: dict[str, Filter] = {f"custom.a{n}": () for n in range(MAX_PATTERNS)}
    steps = 0

    def count(*_: object) -> Any:
        nonlocal steps
        steps += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        unsubscribe(names, ["custom.a0"], CATALOG)
    finally:
        sys.settrace(before)
    assert steps < 60 * MAX_PATTERNS


@pytest.mark.parametrize(
    ("patterns", "idle"),
    [
        (["custom.*"], ["host"]),
        (["custom.backup"], ["host"]),
        (["custom.*", "custom.backup"], ["host"]),
        (["custom.*", "system_status"], []),
        (["custom.*", "of_another_catalogue"], []),
    ],
)
def test_a_filter_of_custom_types_that_narrows_nothing(patterns: list[str], idle: list[str]) -> None:
    """A custom type has what the family declares, and so it is told; only a type that nobody knows may have more."""
    assert find_idle((("host", frozenset(["ns1"])), ("zone", frozenset(["a"]))), patterns, CATALOG) == idle
