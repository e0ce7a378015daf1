"""One connection: its states, its patience with bad messages, and how fast it may speak."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solowire.access import Identity, view_of
from solowire.client_protocol import Codec
from workers.connection import MAX_STRIKES, STRIKE_SECONDS, TRANSITIONS, Connection, State

ALICE = Identity("alice", "viewer", ("dns.read",))


def connection() -> Connection:
    return Connection("session", ALICE, Codec.json, None)


def in_state(state: State) -> Connection:
    made = connection()
    if state is not State.waiting:
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
    assert all(State.gone in TRANSITIONS[state] for state in State if state is not State.gone)
    assert TRANSITIONS[State.gone] == set()


def test_a_refreshed_identity_changes_the_view() -> None:
    """From the moment a token is refreshed the new one alone says what may be seen."""
    made = connection()
    narrower = Identity("alice", "viewer", (), {"zone": ("a.org",)})
    made.identify(narrower)
    assert (made.identity, made.view) == (narrower, view_of(narrower))


def test_a_burst_and_then_the_rate() -> None:
    """A client may send a burst at once and then as many messages as the rate allows, and is told how long to wait."""
    made = connection()
    assert [made.may_speak(0.0, 2.0, 3.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert made.may_speak(0.5, 2.0, 3.0) == 0.0
    assert made.may_speak(0.75, 2.0, 3.0) == pytest.approx(0.25)
    assert [made.may_speak(100.0, 2.0, 3.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


@given(st.lists(st.floats(0, 2), max_size=200), st.floats(0.5, 50), st.floats(1, 60))
@settings(deadline=None, max_examples=60)
def test_nobody_speaks_faster_than_the_rate(pauses: list[float], rate: float, burst: float) -> None:
    """However a client spreads its messages, no more of them get through than a burst and the rate allow."""
    made = connection()
    now = 0.0
    passed = 0
    for pause in pauses:
        now += pause
        wait = made.may_speak(now, rate, burst)
        assert wait >= 0.0
        passed += wait == 0.0
    assert passed <= burst + now * rate + 1e-6


def test_ten_bad_messages_in_a_minute_are_enough() -> None:
    """Nine bad messages in a minute are forgiven, the tenth is not."""
    made = connection()
    assert [made.strike(n) for n in range(MAX_STRIKES)] == [False] * (MAX_STRIKES - 1) + [True]


def test_bad_messages_are_forgotten_after_a_minute() -> None:
    """A client that now and then sends a bad message may go on for ever."""
    made = connection()
    step = STRIKE_SECONDS / (MAX_STRIKES - 1)
    assert not any(made.strike(n * step) for n in range(100))
