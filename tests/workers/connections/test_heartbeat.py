"""Which connections are pinged when, and which are dead."""

from __future__ import annotations

from solowire.model.access import Identity
from solowire.protocol.messages import Codec
from solowire.workers.connections.connection import Connection
from solowire.workers.connections.dialect_client import DialectClient
from solowire.workers.connections.heartbeat import FREE_PONGS, Heartbeats
from tests.support.memory_sockets import MemorySockets
from tests.support.shard_harness import DIALECT


class Place:
    """Some connections that are pinged every 25 s, from the time 0, whose sockets keep what they are sent."""

    def __init__(self, *codecs: Codec) -> None:
        self.connections = [
            Connection(str(n), Identity("a", "viewer", ()), codec, None) for n, codec in enumerate(codecs)
        ]
        self.sockets = MemorySockets()
        self.heartbeats = Heartbeats(25.0)
        self.heartbeats.due_connections(0.0)
        for connection in self.connections:
            self.heartbeats.add(connection)

    def round(self, now: float) -> list[Connection]:
        """Pings whose turn it is; returns who is dead."""
        alive, dead = self.heartbeats.due_connections(now)
        self.heartbeats.ping(alive, self.sockets, 1000.0 + now)
        return dead

    def pings(self, connection: Connection) -> int:
        return len(self.sockets.sent.get(connection, []))


def test_two_pings_without_a_word_are_the_end() -> None:
    """A connection that answers lives on, and one that says nothing after two pings in a row is dead."""
    place = Place(Codec.json, Codec.json)
    answers, silent = place.connections
    for now in (25.0, 50.0):
        assert place.round(now) == []
        answers.seen_since_ping = True
    assert place.round(75.0) == [silent]
    assert (place.pings(answers), place.pings(silent)) == (3, 2)


def test_a_ping_is_in_the_connection_s_own_codec() -> None:
    """Each can read what it gets."""
    place = Place(Codec.json, Codec.msgpack)
    place.round(25.0)
    text, binary = ([type(frame) for frame in place.sockets.sent[c]] for c in place.connections)
    assert (text, binary) == ([str], [bytes])


def test_a_busy_socket_is_no_silence() -> None:
    """Who is busy with an older frame, or has answers that wait, can't be pinged, and isn't dead for that."""
    place = Place(Codec.json, Codec.json)
    busy, waiting = place.connections
    place.sockets.stuck.add(busy)
    place.sockets.queue("an older frame", busy)
    waiting.reader.queue_replies(["an answer"])
    for n in range(1, 6):
        assert place.round(25.0 * n) == []
    assert (place.pings(busy), place.pings(waiting)) == (1, 0)
    assert (busy.unanswered_pings, waiting.unanswered_pings) == (0, 0)


def test_silence_saves_up_no_free_answers() -> None:
    """Pings that are not answered let nobody say more later than FREE_PONGS answers."""
    place = Place(Codec.json)
    [connection] = place.connections
    for n in range(1, 6):
        place.round(25.0 * n)
        connection.seen_since_ping = True
    assert connection.unanswered_pings == FREE_PONGS


def test_an_old_page_is_kept_open_and_never_dead() -> None:
    """It is sent no ping that it would see, and need not answer what it doesn't."""
    place = Place(Codec.json, Codec.json)
    page, other = place.connections
    found = DIALECT.find_path("/api/websocket/ws/admin")
    assert found is not None
    page.dialect = DialectClient("legacy", found, DIALECT.open_session(found, is_admin=False), "none")
    for now in (25.0, 50.0, 75.0, 100.0):
        assert page not in place.round(now)
        other.seen_since_ping = True
    assert (place.pings(page), place.pings(other)) == (0, 4)
    assert place.sockets.kept_open == [page] * 4
