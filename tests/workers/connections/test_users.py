"""The users of a shard: which of their connections stay, and how much they may say."""

from __future__ import annotations

from solowire.algorithms.token_bucket import Rate
from solowire.model.access import Identity
from solowire.protocol.messages import Codec
from solowire.workers.connections.connection import Connection, State
from solowire.workers.connections.users import MAX_REMEMBERED, UserRegistry


def another(users: UserRegistry, name: str = "alice") -> Connection:
    """One more connection of the user; those that it replaces are gone at once."""
    connection = Connection("session", Identity(name, "viewer", ()), Codec.json, None)
    for older in users.add(connection):
        older.become(State.closing)
        users.remove(older)
    return connection


def test_the_newest_stay() -> None:
    """Of more connections than a user may have the oldest end, one for each that comes."""
    users = UserRegistry(2)
    first, second, third = another(users), another(users), another(users)
    assert first.state is State.closing
    user = users.get("alice")
    assert user is not None
    assert user.connections == [second, third]


def test_one_that_was_told_to_leave_replaces_nobody_and_is_not_replaced() -> None:
    """A connection on its way to another shard takes nobody's place here, and nobody takes its."""
    users = UserRegistry(1)
    going = another(users)
    going.become(State.draining)
    assert not users.is_at_limit("alice")
    assert another(users).state is State.awaiting_hello
    assert going.state is State.draining


def test_newer_ones_elsewhere_leave_room_for_the_rest() -> None:
    """With three allowed and two elsewhere the newest one stays; with more elsewhere than allowed none does."""
    users = UserRegistry(3)
    first, second, third = another(users), another(users), another(users)
    assert users.excess_over("alice", 2) == [first, second]
    assert users.excess_over("alice", 9) == [first, second, third]
    assert users.excess_over("bob", 1) == []


def test_a_handshake_under_way_counts() -> None:
    """Two handshakes of a user at the same time don't pass a limit of one, and one that is given up leaves nothing."""
    users = UserRegistry(1)
    users.begin_handshake("alice")
    assert users.is_at_limit("alice")
    users.cancel_handshake("alice")
    assert not users.is_at_limit("alice")
    assert users.get("alice") is None


def test_what_a_user_has_said_is_remembered_for_so_many() -> None:
    """Of users who have gone what they said last is kept, for the newest ones; who said nothing takes no place."""
    users, rate = UserRegistry(1), Rate(1.0, 1.0)
    for n in range(MAX_REMEMBERED + 2):
        connection = another(users, f"user-{n}")
        user = users.get(f"user-{n}")
        assert user is not None
        user.messages_full_at, _ = rate.try_take(user.messages_full_at, 0.0)
        users.remove(connection)
        silent = another(users, f"silent-{n}")
        users.remove(silent)
        assert users.get(f"user-{n}") is None
    for name, wait in (("user-1", 0.0), ("user-2", 1.0), (f"user-{MAX_REMEMBERED + 1}", 1.0)):
        users.begin_handshake(name)
        user = users.get(name)
        assert user is not None
        assert rate.wait_seconds(user.messages_full_at, 0.0) == wait
