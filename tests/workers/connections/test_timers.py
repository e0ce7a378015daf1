"""What is to happen to a connection at a time."""

from __future__ import annotations

from solowire.model.access import Identity
from solowire.protocol.messages import Codec
from solowire.workers.connections.connection import Connection, State
from solowire.workers.connections.timers import TimerKind, Timers


def connection(session: str = "s") -> Connection:
    return Connection(session, Identity("alice", "viewer", ()), Codec.json, None)


def pop_all(timers: Timers, now: float) -> list[tuple[TimerKind, Connection]]:
    found = []
    while (due := timers.pop_due(now)) is not None:
        found.append(due)
    return found


def test_timers_come_at_their_time_in_order() -> None:
    """The earliest comes first, those of one time as they were set, and none before its time, nor twice."""
    timers, who = Timers(()), connection()
    for kind, when in ((TimerKind.leave, 3.0), (TimerKind.token, 1.0), (TimerKind.hello, 1.0)):
        timers.schedule(when, kind, who)
    assert timers.due_at == 1.0
    assert pop_all(timers, 0.9) == []
    assert pop_all(timers, 1.5) == [(TimerKind.token, who), (TimerKind.hello, who)]
    assert pop_all(timers, 4.0) == [(TimerKind.leave, who)]
    assert timers.due_at is None


def test_a_timer_may_set_another() -> None:
    """What becomes due by what is done is found in the same look."""
    timers, who = Timers(()), connection()
    timers.schedule(1.0, TimerKind.hello, who)
    assert timers.pop_due(2.0) == (TimerKind.hello, who)
    timers.schedule(2.0, TimerKind.replay, who)
    assert pop_all(timers, 2.0) == [(TimerKind.replay, who)]


def test_nothing_happens_to_one_that_has_ended() -> None:
    """What was set for a connection that closes meanwhile never comes."""
    timers, who = Timers(()), connection()
    timers.schedule(1.0, TimerKind.hello, who)
    who.become(State.closing)
    assert pop_all(timers, 2.0) == []
    assert len(timers) == 0


def test_what_was_set_for_those_who_ended_is_not_kept() -> None:
    """However many connections come and go, what was set for them does not heap up, and the rest stays."""
    here = [connection("stays")]
    timers = Timers(here)
    timers.schedule(9.0, TimerKind.token, here[0])
    for n in range(1000):
        gone = connection(str(n))
        timers.schedule(5.0, TimerKind.token, gone)
        gone.become(State.closed)
    assert len(timers) <= 69
    assert pop_all(timers, 10.0) == [(TimerKind.token, here[0])]
