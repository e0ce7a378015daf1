"""When a token expires: the warning, the end, and what a refresh and a set clock change."""

from __future__ import annotations

from solowire.access import Identity
from solowire.client_protocol import Codec
from workers.connection import Connection
from workers.expiry import Expiry
from workers.timers import Timers

WALL = 1_000_000.0
"""Unix seconds at the monotonic time 0."""


class Place:
    """One connection, at the monotonic time 0. `told`: what was said of it, and when."""

    def __init__(self, expires: float | None) -> None:
        self.told: list[tuple[str, float]] = []
        self.now = 0.0
        self.connection = Connection("s", identity(expires), Codec.json, None)
        self.timers = Timers((self.connection,))
        self.expiry = Expiry(
            60.0,
            self.timers,
            expiring=lambda _, now: self.told.append(("expiring", now)),
            expired=lambda _: self.told.append(("expired", self.now)),
        )
        self.expiry.watch(self.connection, WALL, 0.0)

    def refresh(self, expires: float | None, wall: float = WALL) -> None:
        self.connection.identify(identity(expires))
        self.expiry.watch(self.connection, wall, self.now)

    def until(self, when: float) -> None:
        while self.timers.due is not None and self.timers.due <= when:
            self.now = self.timers.due
            self.timers.run(self.now)
        self.now = when


def identity(expires: float | None) -> Identity:
    """expires: seconds after the monotonic time 0, by the wall clock of the beginning."""
    return Identity("alice", "viewer", (), {}, WALL + expires if expires is not None else None)


def test_a_token_is_warned_of_and_then_expires() -> None:
    """The warning comes `notice` seconds before the end, each once."""
    place = Place(100)
    place.until(1000)
    assert place.told == [("expiring", 40), ("expired", 100)]


def test_a_short_token_is_warned_of_at_once() -> None:
    """One that has less than the notice to live is warned of when it comes."""
    place = Place(10)
    place.until(1000)
    assert place.told == [("expiring", 0), ("expired", 10)]


def test_a_token_without_an_end_is_never_spoken_of() -> None:
    """Neither when it comes, nor when it takes the place of one that would have ended."""
    place = Place(None)
    assert place.timers.due is None
    place.refresh(100)
    place.refresh(None)
    place.until(1000)
    assert place.told == []


def test_a_refreshed_token_is_warned_of_at_its_own_time() -> None:
    """A later end moves warning and end, an earlier one too, and all refreshes together keep one timer."""
    place = Place(100)
    for n in range(50):
        place.refresh(200 + n)
    assert len(place.timers) == 1
    place.until(150)
    assert place.told == []
    place.refresh(220)
    place.until(1000)
    assert place.told == [("expiring", 160), ("expired", 220)]


def test_a_token_that_is_warned_of_may_be_refreshed() -> None:
    """The end that it was warned of doesn't come, the next one does."""
    place = Place(100)
    place.until(50)
    place.refresh(300)
    place.until(1000)
    assert place.told == [("expiring", 40), ("expiring", 240), ("expired", 300)]


def test_a_clock_that_is_set_moves_the_end() -> None:
    """The wall clock counts: when it is set on by fifty seconds the token ends fifty seconds sooner."""
    place = Place(100)
    place.refresh(100, WALL + 50)
    place.until(1000)
    assert place.told == [("expiring", 0), ("expired", 50)]
