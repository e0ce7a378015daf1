"""Clients that are held while their shard is gone: each is ended once, when there is another for it."""

from __future__ import annotations

import asyncio

import pytest

from solowire.gateway.front import held_clients
from solowire.gateway.front.held_clients import HeldClients


async def test_one_is_ended_when_its_user_may_come_back() -> None:
    """Not while nobody can say, and not before its turn."""
    held, ended = HeldClients(), asyncio.Event()
    answers: list[float | None] = [None, None, 2.5, 0.3, 0.0]
    held.add("page", lambda held_for: answers.pop(0), ended.set)
    await asyncio.wait_for(ended.wait(), 10)
    assert answers == []
    assert len(held) == 0


async def test_it_is_said_for_how_long_one_is_held() -> None:
    held, ended = HeldClients(), asyncio.Event()
    asked: list[float] = []

    def find_delay(held_for: float) -> float | None:
        asked.append(held_for)
        return max(0.0, 0.5 - held_for)

    held.add("page", find_delay, ended.set)
    await asyncio.wait_for(ended.wait(), 10)
    assert asked == sorted(asked)
    assert asked[0] < asked[-1]
    assert asked[-1] >= 0.5


async def test_one_that_has_gone_is_not_ended() -> None:
    held, ended = HeldClients(), []
    held.add("gone", lambda held_for: 0.0, lambda: ended.append("gone"))
    held.discard("gone")
    done = asyncio.Event()
    held.add("stays", lambda held_for: 0.0, done.set)
    await asyncio.wait_for(done.wait(), 10)
    assert ended == []


async def test_all_are_ended_when_the_gateway_ends() -> None:
    held, ended = HeldClients(), []
    for name in ("a", "b"):
        held.add(name, lambda held_for: None, lambda name=name: ended.append(name))  # type: ignore[misc]
    held.close_all()
    assert ended == ["a", "b"]
    assert len(held) == 0


async def test_none_is_held_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no shard comes, the page is told to come again all the same."""
    monkeypatch.setattr(held_clients, "MAX_HELD_SECONDS", 0.2)
    held, ended = HeldClients(), asyncio.Event()
    held.add("page", lambda held_for: None, ended.set)
    await asyncio.wait_for(ended.wait(), 10)
