"""What is to happen to a connection at a time."""

from __future__ import annotations

from functools import partial

from solowire.model.access import Identity
from solowire.protocol.messages import Codec
from solowire.workers.connections.connection import Connection, State
from solowire.workers.connections.timers import Timers


def connection(session: str = "s") -> Connection:
    return Connection(session, Identity("alice", "viewer", ()), Codec.json, None)


def test_acts_come_at_their_time_in_order() -> None:
    """The earliest comes first, those of one time as they were set, and none before its time, nor twice."""
    timers, done, who = Timers(()), list[tuple[str, float]](), connection()
    for name, when in (("late", 3.0), ("first", 1.0), ("second", 1.0)):
        timers.schedule(when, partial(lambda name, _, now: done.append((name, now)), name), who)
    assert timers.due_at == 1.0
    timers.run(0.9)
    assert done == []
    timers.run(1.5)
    assert done == [("first", 1.5), ("second", 1.5)]
    timers.run(4.0)
    assert done[2:] == [("late", 4.0)]
    assert timers.due_at is None


def test_an_act_may_set_another() -> None:
    """What becomes due by what is done is done in the same look."""
    timers, done, who = Timers(()), list[float](), connection()
    timers.schedule(1.0, lambda c, now: timers.schedule(now, lambda _, at: done.append(at), c), who)
    timers.run(2.0)
    assert done == [2.0]


def test_nothing_happens_to_one_that_has_ended() -> None:
    """What was set for a connection that closes meanwhile never comes."""
    timers, done, who = Timers(()), list[float](), connection()
    timers.schedule(1.0, lambda _, now: done.append(now), who)
    who.become(State.closing)
    timers.run(2.0)
    assert done == []
    assert len(timers) == 0


def test_what_was_set_for_those_who_ended_is_not_kept() -> None:
    """However many connections come and go, what was set for them does not heap up, and the rest stays."""
    here = [connection("stays")]
    timers, done = Timers(here), list[Connection]()
    timers.schedule(9.0, lambda c, _: done.append(c), here[0])
    for n in range(1000):
        gone = connection(str(n))
        timers.schedule(5.0, lambda c, _: done.append(c), gone)
        gone.become(State.closed)
    assert len(timers) <= 69
    timers.run(10.0)
    assert done == here
