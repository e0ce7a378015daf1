"""What of the things that a client says is listened to."""

from __future__ import annotations

from typing import Any

import pytest

from solowire.domains.dns.event_types import CATALOG
from solowire.errors import InvalidMessage
from solowire.fanout.reader import MAX_PENDING_REPLIES
from solowire.model.access import Identity, Role
from solowire.protocol import messages as c
from solowire.protocol.messages import MAX_MESSAGE_BYTES, Codec
from solowire.runtime.settings.session_settings import SessionSettings
from solowire.workers.connections.connection import Connection, State
from solowire.workers.connections.users import UserRegistry
from solowire.workers.session.inbound_limits import (
    PONG_BYTES,
    InboundLimits,
    error_message,
    exceeds_limit,
    initial_subscriptions,
    updated_subscriptions,
)
from tests.support.factories import change


class Place:
    """One user's connections, and time that stands still."""

    def __init__(self, **limits: Any) -> None:
        self.users = UserRegistry(9)
        self.listening = InboundLimits(self.users, change(SessionSettings(), **limits), CATALOG)

    def connection(self, *states: State) -> Connection:
        connection = Connection("s", Identity("alice", "viewer", ()), Codec.json, None)
        for state in states:
            connection.become(state)
        self.users.add(connection)
        return connection

    def take(self, connection: Connection, message: c.ClientMessage) -> c.ClientMessage | None:
        return self.listening.accept(connection, connection.codec.encode(message), 0.0)  # type: ignore[arg-type]


def test_a_user_is_heard_so_often() -> None:
    """However many connections say it, and with the time until the next one is heard; what is too many says its id."""
    place = Place(message_rate=2.0, message_burst=3.0)
    one, other = place.connection(State.live), place.connection(State.live)
    for connection in (one, other, one):
        assert place.take(connection, c.Ping(1)) == c.Ping(1)
    with pytest.raises(InvalidMessage) as caught:
        place.take(other, c.Ping("mine"))
    told = error_message(caught.value)
    assert (told.code, told.id, told.retry_after) == ("rate_limited", "mine", 0.5)
    assert place.listening.accept(one, '{"type":"ping"}', 0.5) == c.Ping()


def test_the_first_hello_is_heard_whatever_was_said_before() -> None:
    """A user who has said too much elsewhere begins with what it wants, and not with the defaults."""
    place = Place(message_burst=1.0)
    place.take(place.connection(State.live), c.Ping())
    beginner = place.connection()
    assert isinstance(place.take(beginner, c.Hello()), c.Hello)
    beginner.become(State.live)
    with pytest.raises(InvalidMessage):
        place.take(beginner, c.Hello())


def test_nothing_but_a_hello_is_heard_beyond_the_rate_before_it() -> None:
    """However often another message comes before a connection begins, it is one too many; the hello is heard still."""
    place = Place(message_burst=1.0)
    place.take(place.connection(State.live), c.Ping())
    beginner = place.connection()
    for message in (c.Pong(), c.Ping(), c.Subscribe(["custom.a"]), c.Pong()):
        with pytest.raises(InvalidMessage) as caught:
            place.take(beginner, message)
        assert caught.value.code == "rate_limited"
        assert beginner.last_message_at == beginner.opened_at
    assert isinstance(place.take(beginner, c.Hello()), c.Hello)


def test_an_answer_to_our_ping_costs_nothing() -> None:
    """As many as we have sent pings; a long one costs what any message does."""
    place = Place(message_burst=1.0)
    connection = place.connection(State.live)
    connection.unanswered_pings = 2
    for _ in range(2):
        assert place.take(connection, c.Pong()) is None
    assert place.take(connection, c.Pong()) == c.Pong()
    connection.unanswered_pings = 1
    with pytest.raises(InvalidMessage):
        place.take(connection, c.Pong("x" * PONG_BYTES))


def test_what_comes_while_resuming_is_kept() -> None:
    """In order, and so many at most; pings are answered meanwhile."""
    place = Place(message_burst=100.0)
    connection = place.connection(State.resuming)
    wishes = [c.Subscribe([f"custom.{n}"]) for n in range(MAX_PENDING_REPLIES)]
    assert [place.take(connection, wish) for wish in wishes] == [None] * MAX_PENDING_REPLIES
    assert place.take(connection, c.Ping()) == c.Ping()
    with pytest.raises(InvalidMessage) as caught:
        place.take(connection, c.Subscribe(["custom.more"], id=7))
    assert (caught.value.code, caught.value.id) == ("handshake_pending", 7)
    assert connection.early_messages == wishes


def test_changes_are_counted_apart() -> None:
    """Changes of subscriptions have a limit of their own, which stops no ping, and not a client that begins."""
    place = Place(subscription_burst=1.0)
    connection = place.connection(State.live)
    place.listening.charge(connection, c.Subscribe(["custom.a"]), 3.0)
    with pytest.raises(InvalidMessage) as caught:
        place.listening.charge(connection, c.Unsubscribe(["custom.a"]), 3.0)
    assert caught.value.code == "rate_limited"
    place.listening.charge(connection, c.Ping(), 3.0)
    place.listening.charge(place.connection(), c.Hello(), 3.0)


def test_an_answer_to_a_ping_is_no_sign_of_life_of_its_user() -> None:
    """What a client says tells when it was heard last; a pong is the SDK's own doing, and doesn't."""
    place = Place()
    connection = place.connection(State.live)
    place.listening.charge(connection, c.Ping(), 3.0)
    place.listening.charge(connection, c.Pong(), 4.0)
    assert connection.last_message_at == 3.0


def test_size_counts_in_bytes() -> None:
    """A text of few characters may be too big; half a surrogate pair is counted, too."""
    assert not exceeds_limit("x" * MAX_MESSAGE_BYTES)
    assert exceeds_limit("x" * (MAX_MESSAGE_BYTES + 1))
    assert exceeds_limit("ä" * (MAX_MESSAGE_BYTES // 2 + 1))
    assert exceeds_limit("\ud800" * (MAX_MESSAGE_BYTES // 2))
    assert exceeds_limit(b"x" * (MAX_MESSAGE_BYTES + 1))


def test_who_says_nothing_of_subscriptions_gets_the_defaults() -> None:
    """Those of its role; none is not nothing; and a role that nobody knows has none."""
    place, roles = Place(), {"viewer": Role((), ("custom.a",))}
    connection = place.connection()
    assert list(initial_subscriptions(connection, c.Hello(), roles, CATALOG)) == ["custom.a"]
    assert list(initial_subscriptions(connection, c.Hello(subscriptions=[]), roles, CATALOG)) == []
    assert list(initial_subscriptions(connection, c.Hello(), {}, CATALOG)) == []


def test_hello_comes_once_and_first() -> None:
    """A second one is refused, and so is a change before it."""
    place = Place()
    with pytest.raises(InvalidMessage) as caught:
        initial_subscriptions(place.connection(State.live), c.Hello(), {}, CATALOG)
    assert caught.value.code == "duplicate_hello"
    with pytest.raises(InvalidMessage) as caught:
        updated_subscriptions(place.connection(), c.Subscribe(["custom.a"]), CATALOG)
    assert caught.value.code == "hello_required"


def test_changes_add_and_take_away() -> None:
    """From what is wanted already; the connection itself is left as it is."""
    connection = Place().connection(State.live)
    connection.wanted = updated_subscriptions(connection, c.Subscribe(["custom.a", "custom.b"]), CATALOG)
    assert list(updated_subscriptions(connection, c.Unsubscribe(["custom.a"]), CATALOG)) == ["custom.b"]
    assert list(connection.wanted) == ["custom.a", "custom.b"]
