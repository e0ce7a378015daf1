"""What the scopes of a token mean, and which are refused: none shows more than its values say."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from solowire.auth.scopes import read_scopes
from solowire.domains.dns.dns_domain import DNS
from solowire.domains.dns.event_types import CATALOG
from solowire.errors import InvalidToken
from solowire.model.access import Identity, View, make_view
from solowire.model.subscriptions import NO_EVENT, resolve


def fault_of(**scopes: Any) -> str:
    with pytest.raises(InvalidToken) as refused:
        read_scopes(scopes, DNS)
    assert refused.value.code == "invalid_token"
    assert refused.value.hint
    return refused.value.message


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("", "empty"),
        (" ", "blanks"),
        ("\t\n", "blanks"),
        (" a.org", "blanks"),
        ("a.org ", "blanks"),
        ("a .org", "blanks"),
        ("a.org\0", "control"),
        ("a.org,b.org c.org", "blanks"),
        (".", "root"),
        ("..", "empty label"),
        (".a.org", "empty label"),
        ("a..org", "empty label"),
        ("a.org..", "empty label"),
        ("*", "wildcard"),
        ("*.", "wildcard"),
        ("*.a.org", "wildcard"),
        ("a.*.org", "wildcard"),
        ("x" * 64 + ".org", "label"),
        ("a." * 128 + "org", "too long"),
        (".".join(["x" * 60] * 5), "too long"),
        (".".join(["x" * 62] * 4) + ".ab", "this one 256"),
        (".".join("a" * 128), "this one has 128"),
        ("\u2003", "blanks"),
    ],
)
@pytest.mark.parametrize("name", ["zones", "zone", "query_domain"])
def test_a_value_that_is_no_name_is_refused(name: str, value: str, word: str) -> None:
    """It is told by its scope's name and its own, also beside others that are right."""
    message = fault_of(**{name: ["a.org", value]})
    assert repr(name) in message
    assert repr(value[:80]) in message
    assert word in message


@pytest.mark.parametrize(
    ("value", "word"),
    [("", "empty"), (" ", "empty"), ("\n", "empty"), (" in", "blanks"), ("*", "wildcard"), ("x" * 1025, "1025")],
)
def test_a_value_of_another_attribute_that_says_nothing_is_refused(value: str, word: str) -> None:
    """What can't be any event's value, or is meant to be all of them, is told so."""
    assert word in fault_of(view=[value])


@pytest.mark.parametrize("name", ["Zones", "ZONE", " zone", "zone ", "zones.", "", "zoneS", "*"])
def test_a_scope_of_another_name_is_refused(name: str) -> None:
    """Names are spelt exactly: what is not known can't narrow."""
    assert repr(name) in fault_of(**{name: ["a.org"]})


def test_names_have_one_form() -> None:
    """Capitals, last dots and repetitions are of no meaning; the order stays."""
    assert read_scopes({"zones": ["B.org.", "a.ORG", "b.org", "a.org."]}, DNS) == {"zone": ("b.org", "a.org")}
    assert read_scopes({"view": ["In", "in", "In"]}, DNS) == {"view": ("In", "in")}


@pytest.mark.parametrize(
    "name", ["0/25.2.0.192.in-addr.arpa", "_dmarc.a.org", "müller.de", r"a\.b.org", "x" * 63 + ".org", "org", "8.b.d"]
)
def test_what_dns_allows_is_allowed(name: str) -> None:
    """Slashes, underscores, escapes and other scripts are names, too."""
    assert len(read_scopes({"zone": [name]}, DNS)["zone"]) == 1


def test_no_value_is_none_and_no_scope_is_all() -> None:
    """An empty list stays one, and shows nothing; what was left out narrows nothing."""
    assert read_scopes({}, DNS) == {}
    assert read_scopes({"zones": []}, DNS) == {"zone": ()}
    assert not shown(view(zone=()), "a.org")
    assert shown(view(), "a.org")


def view(**scopes: tuple[str, ...]) -> View:
    return make_view(Identity("ann", "viewer", ("*",), scopes))


def shown(view: View, zone: str) -> bool:
    """Whether an event of that zone is shown."""
    [(_, conditions)] = resolve({"zone_created": ()}, view, CATALOG).selection
    names = {".", zone, *(zone.split(".", n)[-1] for n in range(1, zone.count(".") + 1))}
    return conditions != NO_EVENT and all(values & names for name, values in conditions if name == "zone")


@given(
    st.lists(st.text(st.sampled_from("aA.*\\ 0\t") | st.characters(exclude_categories=["Cs"]), max_size=8), max_size=4)
)
@example([""])
@example(["."])
def test_whatever_a_scope_holds_it_shows_no_stranger(values: list[str]) -> None:
    """A token is refused, or sees no zone but those that it names and what is beneath them."""
    try:
        scopes = read_scopes({"zones": values}, DNS)
    except InvalidToken:
        return
    assert Counter(scopes["zone"]).total() <= len(values)
    assert not shown(view(**scopes), "stranger.example")


@pytest.mark.parametrize("value", ["", "."])
def test_a_view_never_covers_all_by_a_value(value: str) -> None:
    """Wherever an identity comes from, such as a ticket of an older gateway, a name for everything shows nothing."""
    assert not shown(view(zone=(value,)), "stranger.example")
    assert shown(view(zone=(value, "a.org")), "a.org")
    assert not shown(view(zone=(value, "a.org")), "stranger.example")
