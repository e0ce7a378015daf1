"""When a token expires: the warning, the end, and what a refresh and a set clock change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solowire.model.access import Identity
from solowire.protocol.close_codes import CloseCode
from solowire.protocol.messages import Codec, Notice
from solowire.workers.clock import Clock
from solowire.workers.connections.connection import Connection
from solowire.workers.connections.expiry import TokenExpiry
from solowire.workers.connections.timers import Timers

WALL = 1_000_000.0
"""Unix seconds at the monotonic time 0."""


class Place:
    """One connection, at the monotonic time 0. `told`: what was said of it, and when."""

    def __init__(self, expires: float | None) -> None:
        self.told: list[tuple[str, float]] = []
        self.now = 0.0
        self.connection = Connection("s", identity(expires), Codec.json, None)
        self.timers = Timers((self.connection,))
        self.clock = Clock(WALL)
        self.expiry = TokenExpiry(60.0, self.timers, self.clock)
        self.expiry.watch_token(self.connection, 0.0)

    def refresh(self, expires: float | None, wall: float = WALL) -> None:
        self.connection.replace_identity(identity(expires))
        self.clock.wall_offset = wall
        self.expiry.watch_token(self.connection, self.now)

    def until(self, when: float) -> None:
        while self.timers.due_at is not None and self.timers.due_at <= when:
            self.now = self.timers.due_at
            while self.timers.pop_due(self.now) is not None:
                match self.expiry.check_token(self.connection, self.now):
                    case Notice():
                        self.told.append(("expiring", self.now))
                    case CloseCode():
                        self.told.append(("expired", self.now))
        self.now = when


def identity(expires: float | None) -> Identity:
    """expires: seconds after the monotonic time 0, by the wall clock of the beginning."""
    return Identity("alice", "viewer", (), {}, WALL + expires if expires is not None else None)


def test_a_token_is_warned_of_and_then_expires() -> None:
    """The warning comes `notice` seconds before the end, each once."""
    place = Place(1000)
    place.until(5000)
    assert place.told == [("expiring", 940), ("expired", 1000)]


def test_a_short_token_is_warned_of_a_fifth_of_its_life_before() -> None:
    """One that has less than five notices to live is not warned of when it comes."""
    place = Place(10)
    place.until(1000)
    assert place.told == [("expiring", 8), ("expired", 10)]


def test_a_token_that_has_ended_is_not_warned_of() -> None:
    """One that expired on its way here is expired, and nothing else."""
    place = Place(-5)
    place.until(10)
    assert place.told == [("expired", 0)]


def test_a_token_without_an_end_is_never_spoken_of() -> None:
    """Neither when it comes, nor when it takes the place of one that would have ended."""
    place = Place(None)
    assert place.timers.due_at is None
    place.refresh(100)
    place.refresh(None)
    place.until(1000)
    assert place.told == []


def test_a_refreshed_token_is_warned_of_at_its_own_time() -> None:
    """A later end moves warning and end, an earlier one too, and all refreshes together keep one timer."""
    place = Place(1000)
    for n in range(50):
        place.refresh(2000 + n)
    assert len(place.timers) == 1
    place.until(1500)
    assert place.told == []
    place.refresh(2200)
    place.until(5000)
    assert place.told == [("expiring", 2140), ("expired", 2200)]


def test_a_token_that_is_warned_of_may_be_refreshed() -> None:
    """The end that it was warned of doesn't come, the next one does."""
    place = Place(100)
    place.until(85)
    place.refresh(285)
    place.until(1000)
    assert place.told == [("expiring", 80), ("expiring", 245), ("expired", 285)]


@pytest.mark.parametrize("ends", [100, 100.5, 95, 90])
def test_a_refresh_that_brings_no_longer_life_is_not_answered(ends: float) -> None:
    """However often the same token, or one that ends no later, is shown after the warning, there is no other."""
    place = Place(100)
    place.until(80)
    for n in range(100):
        place.until(80 + n / 100)
        place.refresh(ends)
    place.until(1000)
    assert place.told == [("expiring", 80), ("expired", ends)]


def test_the_same_token_again_does_not_move_the_warning() -> None:
    """Its life is reckoned from when it was first shown, and it is warned of once all the same."""
    place = Place(100)
    for when in (10, 50, 79):
        place.until(when)
        place.refresh(100)
    place.until(1000)
    assert place.told == [("expiring", 80), ("expired", 100)]


@pytest.mark.parametrize("life", [0.0, 0.5, 1.0, 1.01, 2.0, 5.0, 30.0, 59.0])
def test_who_refreshes_as_told_does_so_once_a_second_at_most(life: float) -> None:
    """Whatever its tokens live, a client that answers each warning with another token has a bounded number of them."""
    place = Place(20)
    for _ in range(500):
        warnings = len(place.told)
        if place.timers.due_at is None or place.timers.due_at > 100:
            break
        place.until(place.timers.due_at)
        if len(place.told) > warnings and place.told[-1][0] == "expiring":
            place.refresh(max(20 + len(place.told) / 1000, place.now + life))
    assert len([what for what, _ in place.told if what == "expiring"]) <= 100


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(-10, 4000)), max_size=20), st.floats(0.1, 4000))
def test_there_is_one_warning_for_each_end(refreshes: list[tuple[float, float]], first: float) -> None:
    """Whatever is shown when: no more warnings than tokens, none after the end, and none two of the same end."""
    place = Place(first)
    shown = [first]
    for pause, life in refreshes:
        place.until(place.now + pause)
        if any(what == "expired" for what, _ in place.told):
            break
        place.refresh(place.now + life)
        shown.append(place.now + life)
    place.until(10_000)
    whats = [what for what, _ in place.told]
    assert whats.count("expiring") <= len(shown)
    assert whats.count("expired") == 1
    assert place.told[-1][0] == "expired"


def test_a_clock_that_is_set_moves_the_end() -> None:
    """The wall clock counts: when it is set on by fifty seconds warning and end come fifty seconds sooner."""
    place = Place(100)
    place.refresh(100, WALL + 50)
    place.until(1000)
    assert place.told == [("expiring", 30), ("expired", 50)]
