"""Whether a client comes back, and after how long."""

from __future__ import annotations

from solowire.protocol.close_codes import CloseCode
from solowire.protocol.messages import Reconnect, Welcome
from solowire.sdk.connection_attempt import ConnectionLost, make_failed, make_lost
from solowire.sdk.retry_policy import Fault, FaultKind
from solowire.sdk.return_schedule import ReturnSchedule

LOW_S, HIGH_S = 1.0, 16.0
WELCOME = Welcome("s", "u", "viewer", "e", 0, False, [], [], 25.0, Reconnect(int(LOW_S * 1000), int(HIGH_S * 1000)))


def make_schedule(*, reconnect: bool = True) -> ReturnSchedule:
    """Of a client that begins at 0, whose draws of chance are all the most that can be."""
    schedule = ReturnSchedule(reconnect=reconnect, steady_after=10.0, is_renewable=False, reconnect_ms=(500, 20_000))
    schedule.begin(0.0)
    schedule.note_connected(WELCOME, 0.0)
    schedule.backoff._random = lambda: 1.0
    return schedule


def fail(schedule: ReturnSchedule, now: float) -> float:
    wait = schedule.find_wait(make_failed("gave none"), now)
    assert wait is not None
    return wait


def test_waits_grow_until_a_connection_was_steady() -> None:
    """By the server's own least and most; a connection that ends at once begins nothing anew."""
    schedule = make_schedule()
    waits = [fail(schedule, float(now)) for now in range(1, 8)]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (2 * LOW_S, HIGH_S)
    schedule.note_connected(WELCOME, 100.0)
    assert fail(schedule, 101.0) == HIGH_S
    schedule.note_connected(WELCOME, 200.0)
    assert fail(schedule, 211.0) == 2 * LOW_S


def test_who_is_asked_away_waits_for_what_is_asked_and_grows_when_asked_again() -> None:
    """A drain costs no growth; two shards that send clients to each other do."""
    schedule = make_schedule()
    asked = make_lost(CloseCode.going_away, "drain", after=3.0, asked=True)
    first = schedule.find_wait(asked, 1.0)
    assert first is not None
    assert 3.0 <= first <= 3.0 + LOW_S
    attempts = schedule.backoff.attempts
    assert attempts == 0
    schedule.note_connected(WELCOME, 5.0)
    schedule.find_wait(asked, 6.0)
    assert schedule.backoff.attempts == 1


def test_a_place_that_may_be_its_own_is_waited_for() -> None:
    """Its last connection may not be seen as dead yet: for twice as long as a server takes to see that."""
    taken = ConnectionLost(Fault(FaultKind.taken, "there is another connection"))
    schedule = make_schedule()
    assert fail(schedule, 20.0) > 0
    assert schedule.find_wait(taken, 20.0 + 4 * 25.0) is not None
    assert schedule.find_wait(taken, 20.0 + 6 * 25.0) is None


def test_one_that_does_not_reconnect_does_not() -> None:
    """Whatever has ended it."""
    assert make_schedule(reconnect=False).find_wait(make_failed("gave none"), 1.0) is None
