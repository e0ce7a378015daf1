"""The oracle and Solowire agree on who gets what; they share no code, so a difference is a fault of one of them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from solowire.domains.dns.event_types import CATALOG
from solowire.fanout.feed import Feed, build_feed_key
from solowire.fanout.recent_log import Entry, RecentLog
from solowire.model.access import ROLES, Identity, make_view
from solowire.model.events import Event
from solowire.model.subscriptions import parse_filter, resolve
from solowire.protocol.messages import Codec
from tests.chaos.clients import population
from tests.chaos.load import Maker
from tests.chaos.oracle import Made, Who, due

CLIENTS = population(11)
MAKER = Maker(7, "p", [who.user for who in CLIENTS])
EVENTS = [MAKER.next() for _ in range(500)] + MAKER.closing()


def as_solowire_says(who: Who, events: list[Made]) -> dict[str, dict[str, Any]]:
    """id → data of the events that a feed of Solowire gives to this client."""
    role = ROLES[who.role]
    view = make_view(Identity(who.user, who.role, role.permissions, {"zone": who.zones} if who.zones else {}))
    filter = parse_filter({name: list(values) for name, values in who.filter.items()}, CATALOG)
    patterns = role.defaults if who.subscriptions is None else who.subscriptions
    resolved = resolve(dict.fromkeys(patterns, filter), view, CATALOG)
    feed: Feed[str] = Feed(build_feed_key(resolved.selection, view, Codec.json, CATALOG), RecentLog(catalog=CATALOG))
    found = {}
    for offset, made in enumerate(events, start=1):
        kind = CATALOG[made.type]
        attributes = CATALOG.validate_data(kind, made.data)
        data = msgspec.json.encode(made.data)
        event = Event(made.id, made.type, data, kind.priority, kind.delivery, "", None, made.user, attributes)
        entry = Entry(offset, event, kind)
        if (
            made.user in (None, who.user)
            and feed.filter.accepts(entry)
            and (fragment := feed.filter.encode_for(entry)) is not None
        ):
            found[made.id] = msgspec.json.decode(fragment)["data"]
    return found


@pytest.mark.parametrize("who", CLIENTS, ids=lambda who: who.user)
def test_they_agree(who: Who) -> None:
    """For every client of a run, and every kind of event."""
    assert {m.id: data for m in EVENTS if (data := due(who, m)) is not None} == as_solowire_says(who, EVENTS)


def test_everybody_has_something_to_lose() -> None:
    """A client that gets nothing, or all there is, would prove little."""
    for who in CLIENTS:
        got = sum(due(who, made) is not None for made in EVENTS)
        assert 0 < got < len(EVENTS), who


def test_everybody_gets_a_closing_event() -> None:
    """By it a run knows that a client has caught up; those without one have only their last event to go by."""
    closing = Maker(1, "p", ["x"]).closing()
    custom = [w for w in CLIENTS if any(due(w, made) is not None for made in closing)]
    assert len(custom) >= len(CLIENTS) // 2


def test_the_load_can_be_made_again() -> None:
    """The same seed makes the same events."""
    one, other = (Maker(3, "p", ["x", "y"]) for _ in range(2))
    assert [one.next() for _ in range(100)] == [other.next() for _ in range(100)]
