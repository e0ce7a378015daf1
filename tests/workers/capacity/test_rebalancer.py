"""Who is to go to another shard, and when."""

from __future__ import annotations

import pytest

from solowire.model.access import Identity
from solowire.protocol.messages import Codec
from solowire.workers.capacity.rebalancer import GATEWAYS_KNOW_SECONDS, Rebalancer
from solowire.workers.connections.connection import Connection, State


class Place:
    """Some connections that stay, and a ring of version 1. Ten may move a second."""

    def __init__(self, number: int) -> None:
        self.connections = [Connection(str(n), Identity("a", "viewer", ()), Codec.json, None) for n in range(number)]
        self.moves = Rebalancer(10.0)
        self.moves.ring_version = 1

    def turns(self, now: float) -> list[int]:
        """The places of those who go now, and are sent away."""
        places = []
        while (connection := self.moves.next_due(now)) is not None:
            connection.become(State.draining)
            places.append(self.connections.index(connection))
        return places


def test_they_go_one_after_the_other() -> None:
    """Each at its turn, those whose turn has passed at once, and then the ring is settled."""
    place = Place(4)
    place.moves.schedule(place.connections, 5.0)
    assert place.moves.completed_version == -1
    assert place.turns(5.0) == [0]
    assert place.moves.due_at == pytest.approx(5.1)
    assert place.turns(5.05) == []
    assert place.turns(5.25) == [1, 2]
    assert place.turns(9.0) == [3]
    assert place.moves.completed_version == 1
    assert place.moves.due_at is None


def test_nobody_to_go_is_settled_at_once() -> None:
    """A ring that gives nobody away is settled when it comes, and so is one whose users have all been told already."""
    place = Place(2)
    for connection in place.connections:
        connection.become(State.draining)
    place.moves.schedule(place.connections, 0.0)
    assert (place.moves.completed_version, place.moves.due_at) == (1, None)
    place.moves.reset()
    assert (place.moves.completed_version, place.moves.ring_version) == (-1, -1)


def test_those_who_went_by_themselves_cost_no_turn() -> None:
    """Who is gone before its turn is passed over, and the next one goes in its place."""
    place = Place(3)
    place.moves.schedule(place.connections, 0.0)
    place.connections[0].become(State.closed)
    assert place.turns(0.0) == [1]


def test_another_ring_has_others_go_at_the_same_pace() -> None:
    """Only those of the last ring go, and the change itself gives nobody an earlier turn."""
    place = Place(4)
    place.moves.schedule(place.connections[:2], 0.0)
    assert place.turns(0.0) == [0]
    place.moves.ring_version = 2
    place.moves.schedule(place.connections[2:], 0.01)
    assert place.turns(0.05) == []
    assert place.turns(1.0) == [2, 3]
    assert place.moves.completed_version == 2


def test_a_shard_that_leaves_waits_for_the_gateways() -> None:
    """Nobody goes before the gateways know, and all have gone within the time that is given."""
    place = Place(100)
    place.moves.schedule_drain(place.connections, 0.0, within=1.0)
    assert place.turns(GATEWAYS_KNOW_SECONDS / 2) == []
    assert 40 < len(place.turns(GATEWAYS_KNOW_SECONDS + 0.5)) < 60
    place.turns(GATEWAYS_KNOW_SECONDS + 1.0)
    assert {c.state for c in place.connections} == {State.draining}


def test_an_empty_shard_that_leaves_waits_for_nothing() -> None:
    """There is nobody to wait for."""
    place = Place(0)
    place.moves.schedule_drain(place.connections, 0.0, within=1.0)
    assert (place.moves.due_at, place.moves.completed_version) == (None, 1)


def test_without_a_lease_all_go_in_time() -> None:
    """However many there are: within the time that is left. A lease that comes back lets stay who is still here."""
    place = Place(100)
    assert place.moves.start_lease_expiry(place.connections, 0.0, within=2.0) == 100
    assert 40 < len(place.turns(1.0)) < 60
    place.moves.cancel_lease_expiry(place.connections[-2:], 1.0)
    assert place.turns(1.05) == [98]
    assert place.turns(1.1) == []
    assert place.turns(9.0) == [99]
