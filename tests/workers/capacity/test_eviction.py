"""Who gives way: as many as have to, and the right ones."""

from __future__ import annotations

from solowire.model.access import Identity
from solowire.protocol.messages import Codec
from solowire.workers.capacity.eviction import EvictionPolicy
from solowire.workers.connections.connection import Connection, State
from solowire.workers.connections.dialect_client import DialectClient
from solowire.workers.connections.users import UserRegistry
from tests.support.shard_harness import DIALECT, OLD_PATH


class Place:
    """Some connections, the first of which was heard of longest ago."""

    def __init__(self, *users: str, group: str = "viewer") -> None:
        self.users = UserRegistry(9)
        self.giving_way = EvictionPolicy(self.users)
        self.connections: list[Connection] = []
        for at, user in enumerate(users):
            connection = Connection(f"s{at}", Identity(user, group, ()), Codec.json, None, group=group)
            connection.last_message_at = float(at)
            self.users.add(connection)
            self.connections.append(connection)

    def chosen(self, **excess: int) -> list[int]:
        """The places of those who have to go."""
        return [self.connections.index(c) for c in self.giving_way.select(excess, self.connections)]

    def make_old(self, at: int) -> None:
        """It is one of the old frontend."""
        found = DIALECT.find_path(OLD_PATH)
        assert found is not None
        self.connections[at].dialect = DialectClient(
            "legacy", found, DIALECT.open_session(found, is_admin=False), "none"
        )

    def send_away(self, at: int) -> None:
        self.giving_way.mark_ending(self.connections[at])
        self.connections[at].become(State.draining)


def test_the_longest_idle_go() -> None:
    """So many as have to, those first of whom nothing was heard for longest."""
    place = Place("a", "b", "c", "d")
    assert place.chosen(viewer=2) == [0, 1]
    assert place.chosen(operator=2) == []
    assert place.chosen() == []


def test_a_legacy_duplicate_goes_first() -> None:
    """A user's second connection of the old frontend can be done without; its only one can't."""
    place = Place("a", "b", "c", "c", "d", "d")
    for at in (1, 3, 4, 5):
        place.make_old(at)
    assert place.chosen(viewer=3) == [3, 4, 0]


def test_those_who_go_already_count_until_they_are_gone() -> None:
    """Nobody is sent away for a slot that another is about to leave, nor twice for the same one."""
    place = Place("a", "b", "c")
    place.send_away(0)
    assert place.chosen(viewer=1) == []
    assert place.chosen(viewer=2) == [1]
    gone = place.connections[0]
    place.giving_way.mark_ending(gone)
    gone.become(State.closing)
    assert place.chosen(viewer=1) == []
    place.giving_way.mark_closed(gone)
    gone.become(State.closed)
    assert place.chosen(viewer=1) == [1]
