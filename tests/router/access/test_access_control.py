"""Throwing users out, at the router: who is told, who is answered, and what a restart remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from solowire.auth.revocations import MAX_REVOCATIONS
from solowire.backplane import messages as b
from solowire.router.access.user_disconnects import PATIENCE_SECONDS
from solowire.router.log.journal import Journal, MemoryJournal
from solowire.router.log.sqlite_journal import SqliteJournal
from solowire.router.router import Router

WALL = 1_800_000_000.0


def revocation(id: str, user: str | None = "ann", **fields: Any) -> b.Revocation:
    made = b.Revocation(id, user, None, None, WALL, WALL + 1000, "admin")
    return msgspec.structs.replace(made, **fields)


class World:
    """A router with two shards and a gateway."""

    def _send(self, peer: bytes, message: Any) -> bool:
        self.sent.append((peer, message))
        return True

    def __init__(self, journal: Journal, greet: bool = True) -> None:
        self.sent: list[tuple[bytes, Any]] = []
        self.audited: list[tuple[str, dict[str, Any]]] = []
        self.now = 100.0
        self.router = Router(
            journal,
            self._send,
            now=self.now,
            wall_offset=WALL,
            audit=lambda event, **fields: self.audited.append((event, fields)),
        )
        if greet:
            for index in (0, 1):
                self.say(b"shard-%d" % index, shard(index))
            self.say(b"gateway", b.Join(b.VERSION, "g"))
            self.sent.clear()

    def say(self, peer: bytes, message: Any) -> None:
        self.router.receive(peer, message, self.now)

    def told(self, kind: type, *peers: bytes) -> list[Any]:
        return [message for peer, message in self.sent if isinstance(message, kind) and (not peers or peer in peers)]


def shard(index: int, revocations: int = -1) -> b.Join:
    address = b.ShardAddress(index, "h", 1, f"s{index}")
    return b.Join(b.VERSION, f"s{index}", address, "", 0, 100, revocations_version=revocations)


def memory() -> MemoryJournal:
    return MemoryJournal("epoch", max_events=100, max_bytes=10**6, window=0.0)


def on_disk(path: Path) -> SqliteJournal:
    return SqliteJournal(
        path / "j.sqlite3", new_epoch="e", max_age=1e9, max_events=100, max_bytes=10**9, window=0.0, now=WALL
    )


def test_a_revocation_is_told_to_all_before_its_answer() -> None:
    """Who asked can rely on it: everybody has been told, and it is in the audit log."""
    world = World(memory())
    world.say(b"gateway", b.RevokeRequest(7, revocation("r1")))
    kinds = [(peer, type(message)) for peer, message in world.sent]
    assert kinds == [
        (b"shard-0", b.RevocationUpdate),
        (b"shard-1", b.RevocationUpdate),
        (b"gateway", b.RevocationUpdate),
        (b"gateway", b.RevokeResponse),
    ]
    [answer] = world.told(b.RevokeResponse)
    assert (answer.request, answer.revocation, answer.is_kept) == (7, revocation("r1"), True)
    assert world.audited == [
        ("revoked", {"user": "admin", "revocation": "r1", "about": {"user": "ann"}, "is_kept": True})
    ]


def test_each_change_follows_on_the_one_before() -> None:
    """So that who has missed one notices; who says hello with another version is told all, before the ring."""
    world = World(memory())
    world.say(b"gateway", b.RevokeRequest(1, revocation("r1")))
    world.say(b"gateway", b.RevokeRequest(2, revocation("r2", "ben")))
    world.say(b"gateway", b.UnrevokeRequest(3, "r1"))
    first, second, third = world.told(b.RevocationUpdate, b"shard-0")
    assert first.prev_version == -1
    assert (second.prev_version, third.prev_version) == (first.version, second.version)
    assert first.version < second.version < third.version
    assert third.removed == ["r1"]
    world.sent.clear()
    world.say(b"shard-1", shard(1, third.version))
    assert world.told(b.RevocationUpdate) == []
    world.say(b"shard-1", shard(1, second.version))
    kinds = [type(message) for _, message in world.sent]
    assert kinds.index(b.RevocationUpdate) < len(kinds) - 1 - kinds[::-1].index(b.RingState)
    [whole] = world.told(b.RevocationUpdate)
    assert (whole.prev_version, [r.id for r in whole.added], whole.version) == (None, ["r2"], third.version)


def test_a_beat_says_which_version_is_in_force() -> None:
    """A message that was lost is missed for one beat at most."""
    world = World(memory())
    world.say(b"gateway", b.Heartbeat("g"))
    assert world.told(b.HeartbeatResponse)[0].revocations_version == -1
    world.say(b"gateway", b.RevokeRequest(1, revocation("r1")))
    world.sent.clear()
    world.say(b"gateway", b.Heartbeat("g"))
    [beat] = world.told(b.HeartbeatResponse)
    assert beat.revocations_version == world.router.access.revocations_version > -1


def test_a_restart_remembers(tmp_path: Path) -> None:
    """What was revoked is so after it, what was taken back is not, and what has expired is forgotten."""
    before = on_disk(tmp_path)
    world = World(before)
    for id, until in (("r1", WALL + 1000), ("r2", WALL + 1000), ("r3", WALL + 50)):
        world.say(b"gateway", b.RevokeRequest(1, revocation(id, id, until=until)))
    world.say(b"gateway", b.UnrevokeRequest(2, "r2"))
    version = world.router.access.revocations_version
    before.close()
    after = on_disk(tmp_path)
    again = World(after, greet=False)
    assert again.router.access.revocations_version == version
    again.say(b"shard-0", shard(0))
    [whole] = again.told(b.RevocationUpdate)
    assert [r.id for r in whole.added] == ["r1"]  # 100 s have gone by
    assert set(after.get_metadata("revocation.")) == {"revocation.r1"}
    after.close()


def test_the_same_again_is_the_same() -> None:
    """Revoking a user twice is one revocation, which lasts as long as the longer of the two."""
    world = World(memory())
    world.say(b"gateway", b.RevokeRequest(1, revocation("r1", until=WALL + 5000)))
    world.say(b"gateway", b.RevokeRequest(2, revocation("r2", until=WALL + 300, reason="x")))
    answer = world.told(b.RevokeResponse)[1].revocation
    assert (answer.id, answer.until, answer.reason) == ("r1", WALL + 5000, "x")
    assert world.router.access.revocation_count == 1


def test_the_table_has_a_bound() -> None:
    """One more is refused; none that is in force is forgotten for it."""
    world = World(memory())
    table = world.router.access._revocations.table
    table.add(revocation(f"r{n}", f"user{n}") for n in range(MAX_REVOCATIONS))
    world.say(b"gateway", b.RevokeRequest(1, revocation("more", "one more")))
    assert world.told(b.RevokeResponse) == [b.RevokeResponse(1, None)]
    world.say(b"gateway", b.RevokeRequest(2, revocation("again", "user7")))
    assert world.told(b.RevokeResponse)[1].revocation.id == "r7"


def test_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    """It is in force all the same, whoever asked is told that it isn't kept, and it is kept when there is room."""
    journal = on_disk(tmp_path)
    world = World(journal)
    journal._db.execute("PRAGMA query_only = ON")
    world.say(b"gateway", b.RevokeRequest(1, revocation("r1")))
    assert len(world.told(b.RevocationUpdate)) == 3
    [answer] = world.told(b.RevokeResponse)
    assert not answer.is_kept
    journal._db.execute("PRAGMA query_only = OFF")
    journal.commit(WALL)
    journal.close()
    again = on_disk(tmp_path)
    assert set(again.get_metadata("revocation.")) == {"revocation.r1"}
    again.close()


def test_a_revocation_that_there_is_not() -> None:
    """Taking it back changes nothing, and says so."""
    world = World(memory())
    world.say(b"gateway", b.UnrevokeRequest(9, "nosuch"))
    assert world.sent == [(b"gateway", b.RevokeResponse(9, None))]


def test_what_peers_know_of_a_lost_journal_is_learnt() -> None:
    """All of it that is not over comes into force again, and is told to all; hearing it twice changes nothing."""
    world = World(memory())
    known = b.KnownRevocations([revocation("r1"), revocation("old", "ben", until=WALL + 1)])
    world.say(b"shard-0", known)
    assert [[r.id for r in m.added] for m in world.told(b.RevocationUpdate)] == [["r1"]] * 3
    world.sent.clear()
    world.say(b"shard-1", known)
    assert world.sent == []


def test_a_user_is_disconnected_on_all_shards() -> None:
    """Each is told, their answers are summed up, and whoever asked is answered when the last has come."""
    world = World(memory())
    world.say(b"gateway", b.DisconnectRequest(5, "ann", "admin"))
    asked = world.told(b.DisconnectCommand, b"shard-0", b"shard-1")
    assert [m.user for m in asked] == ["ann", "ann"]
    number = asked[0].request
    world.say(b"shard-0", b.DisconnectReport(number, 2))
    world.say(b"shard-0", b.DisconnectReport(number, 2))  # says it twice
    world.say(b"stranger", b.DisconnectReport(number, 2))
    assert world.told(b.DisconnectResponse) == []
    world.say(b"shard-1", b.DisconnectReport(number, 1))
    world.say(b"shard-1", b.DisconnectReport(number, 1))
    assert world.told(b.DisconnectResponse) == [b.DisconnectResponse(5, 3, 0)]
    assert world.audited == [("disconnecting", {"user": "admin", "about": "ann", "shards": 2})]


def test_a_shard_that_does_not_answer_is_not_waited_for() -> None:
    """After a second whoever asked hears how many are silent; without shards it hears at once."""
    world = World(memory())
    world.say(b"gateway", b.DisconnectRequest(5, "ann"))
    world.say(b"shard-1", b.DisconnectReport(world.told(b.DisconnectCommand)[0].request, 1))
    world.router.tick(world.now + PATIENCE_SECONDS / 2)
    assert world.told(b.DisconnectResponse) == []
    world.router.tick(world.now + PATIENCE_SECONDS)
    assert world.told(b.DisconnectResponse) == [b.DisconnectResponse(5, 1, 1)]
    alone = World(memory(), greet=False)
    alone.say(b"gateway", b.DisconnectRequest(6, "ann"))
    assert alone.sent == [(b"gateway", b.DisconnectResponse(6, 0, 0))]


def test_a_shard_that_has_not_been_heard_of_since_a_restart_is_silent(tmp_path: Path) -> None:
    """It may have the user, and can't be told yet: whoever asked is not to think that it is done."""
    before = on_disk(tmp_path)
    World(before)
    before.close()
    after = on_disk(tmp_path)
    world = World(after, greet=False)
    world.say(b"shard-0", shard(0))
    world.say(b"gateway", b.DisconnectRequest(5, "ann"))
    [(peer, word)] = [(peer, m) for peer, m in world.sent if isinstance(m, b.DisconnectCommand)]
    assert peer == b"shard-0"
    world.say(b"shard-0", b.DisconnectReport(word.request, 0))
    world.router.tick(world.now + PATIENCE_SECONDS)
    assert world.told(b.DisconnectResponse) == [b.DisconnectResponse(5, 0, 1)]
    after.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_metadata_of_a_journal(kind: str, tmp_path: Path) -> None:
    """Several words are put and forgotten together, and found by how their names begin."""
    journal = memory() if kind == "memory" else on_disk(tmp_path)
    assert journal.put_metadata({"a.1": b"x", "a.2": b"y", "b": b"z"})
    assert journal.get_metadata("a.") == {"a.1": b"x", "a.2": b"y"}
    assert journal.put_metadata({"a.1": None, "a.3": b"w", "nosuch": None})
    assert journal.get_metadata("a.") == {"a.2": b"y", "a.3": b"w"}
    assert journal.get_metadata_item("b") == b"z"
    journal.close()
    if kind == "sqlite":
        again = on_disk(tmp_path)
        assert again.get_metadata("a.") == {"a.2": b"y", "a.3": b"w"}
        again.close()
