"""One connection: its states, and its patience with bad messages."""

from __future__ import annotations

from itertools import product

import pytest

from solowire.model.access import Identity, make_view
from solowire.protocol.messages import Codec
from solowire.workers.connections.connection import MAX_STRIKES, STRIKE_SECONDS, TRANSITIONS, Connection, State

ALICE = Identity("alice", "viewer", ("dns.read",))


def connection() -> Connection:
    return Connection("session", ALICE, Codec.json, None)


def in_state(state: State) -> Connection:
    made = connection()
    if state is not State.awaiting_hello:
        made.become(state)
    return made


@pytest.mark.parametrize(("old", "new"), list(product(State, State)))
def test_only_legal_transitions_happen(old: State, new: State) -> None:
    """A connection changes its state as the table says, and in no other way."""
    made = in_state(old)
    if new in TRANSITIONS[old]:
        made.become(new)
        assert made.state is new
    else:
        with pytest.raises(ValueError, match=f"{old.value} can't become {new.value}"):
            made.become(new)
        assert made.state is old


def test_every_state_ends() -> None:
    """Whatever state a connection is in, its socket may be gone the next moment, and then it is over."""
    assert set(TRANSITIONS) == set(State)
    assert all(State.closed in TRANSITIONS[state] for state in State if state is not State.closed)
    assert TRANSITIONS[State.closed] == set()


def test_a_refreshed_identity_changes_the_view() -> None:
    """From the moment a token is refreshed the new one alone says what may be seen."""
    made = connection()
    narrower = Identity("alice", "viewer", (), {"zone": ("a.org",)})
    made.replace_identity(narrower)
    assert (made.identity, made.view) == (narrower, make_view(narrower))


def test_ten_bad_messages_in_a_minute_are_enough() -> None:
    """Nine bad messages in a minute are forgiven, the tenth is not."""
    made = connection()
    assert [made.record_strike(n) for n in range(MAX_STRIKES)] == [False] * (MAX_STRIKES - 1) + [True]


def test_bad_messages_are_forgotten_after_a_minute() -> None:
    """A client that now and then sends a bad message may go on for ever."""
    made = connection()
    step = STRIKE_SECONDS / (MAX_STRIKES - 1)
    assert not any(made.record_strike(n * step) for n in range(100))
