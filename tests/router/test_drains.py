"""A drain holds until the shard has left or is undrained, whatever dies meanwhile; the last one is drained by force."""

from __future__ import annotations

from typing import Any

import pytest

from solowire.backplane.messages import (
    VERSION,
    DrainCommand,
    DrainRequest,
    DrainResponse,
    Join,
    Leave,
    RouterMessage,
    ShardAddress,
    StartDraining,
    UndrainCommand,
    UndrainRequest,
)
from solowire.router.log.journal import MemoryJournal
from solowire.router.router import Router

GATEWAY = b"gateway-a"
NOW = 100.0


class Bench:
    """A router whose process may end, with the journal that stays."""

    def __init__(self) -> None:
        self.journal = MemoryJournal("epoch-1", max_events=10, max_bytes=10**6, window=60.0)
        self.audited: list[tuple[str, dict[str, Any]]] = []
        self.restart()

    def restart(self) -> None:
        self.sent: list[tuple[bytes, RouterMessage]] = []
        self.router = Router(self.journal, self._send, audit=lambda name, **said: self.audited.append((name, said)))
        self.router.receive(GATEWAY, Join(VERSION, "g"), NOW)

    def _send(self, peer: bytes, message: RouterMessage) -> bool:
        self.sent.append((peer, message))
        return True

    def join(self, index: int, boot: str = "a", *, is_draining: bool = False) -> bytes:
        name = f"shard-{index}-{boot}".encode()
        address = ShardAddress(index, "127.0.0.1", 9000 + index, boot)
        self.router.receive(name, Join(VERSION, boot, address, "", 0, 1000, is_draining=is_draining), NOW)
        return name

    def commands(self, peer: bytes) -> list[type[RouterMessage]]:
        return [type(m) for to, m in self.sent if to == peer and isinstance(m, DrainCommand | UndrainCommand)]

    def ask(self, request: DrainRequest | UndrainRequest) -> DrainResponse:
        self.router.receive(GATEWAY, request, NOW)
        [*_, answer] = [m for to, m in self.sent if to == GATEWAY and isinstance(m, DrainResponse)]
        return answer

    @property
    def ring(self) -> list[int]:
        return [address.index for address in self.router.members.shards]

    def drain(self, index: int) -> None:
        name = self.join(index)
        assert self.ask(DrainRequest(1, index, "root")).users == 0
        self.router.receive(name, StartDraining(), NOW)
        assert index not in self.ring


@pytest.mark.parametrize("is_router_killed", [False, True])
def test_a_shard_that_is_killed_comes_back_drained(is_router_killed: bool) -> None:
    """It is told once more, and is in no ring; when it is empty and has left, the drain is done."""
    bench = Bench()
    bench.join(0)
    bench.drain(1)
    if is_router_killed:
        bench.restart()
        bench.join(0)
    name = bench.join(1, "b")
    assert bench.commands(name) == [DrainCommand]
    assert bench.ring == [0]
    assert bench.router.coordinator.registry.live[name].is_draining
    bench.router.receive(name, Leave(), NOW)
    assert bench.commands(bench.join(1, "c")) == []
    assert bench.ring == [0, 1]


def test_a_shard_that_knows_is_not_told_again() -> None:
    bench = Bench()
    bench.join(0)
    bench.drain(1)
    assert bench.commands(bench.join(1, is_draining=True)) == [DrainCommand]  # when it was asked for


def test_undrain_ends_it_also_while_the_shard_is_dead() -> None:
    """Whoever says so needn't wait until the shard has come back to be emptied."""
    bench = Bench()
    bench.join(0)
    bench.drain(1)
    bench.restart()
    bench.join(0)
    assert bench.ask(UndrainRequest(2, 1, "root")) == DrainResponse(2, 0, is_known=True)
    assert bench.commands(bench.join(1, "b")) == []
    assert bench.ring == [0, 1]
    assert bench.audited[-1] == ("undraining", {"user": "root", "shard": 1, "users": 0})
    assert bench.ask(UndrainRequest(3, 1, "root")) == DrainResponse(3, None, is_known=True)
    assert bench.ask(UndrainRequest(4, 7, "root")) == DrainResponse(4, None, is_known=False)


def test_the_last_shard_is_drained_by_force_alone() -> None:
    """Without it nobody could connect."""
    bench = Bench()
    name = bench.join(0)
    assert bench.ask(DrainRequest(1, 0, "root")) == DrainResponse(1, None, is_known=True, is_last=True)
    assert bench.commands(name) == []
    assert bench.ask(DrainRequest(2, 0, "root", is_forced=True)).users == 0
    assert bench.commands(name) == [DrainCommand]


def test_a_shard_beside_one_that_is_being_drained_is_the_last() -> None:
    bench = Bench()
    bench.join(0)
    bench.drain(1)
    assert bench.ask(DrainRequest(2, 0, "root")).is_last
    assert not bench.ask(DrainRequest(3, 1, "root")).is_last  # which takes no users in any case
