"""Turns for large publish requests: nobody waits for the whole of another's body."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from solowire.gateway.publish.parser_turns import TURN_SECONDS, ParserTurns


class Bodies:
    """Bodies of which each step takes as long as a turn, on a clock of their own. order: whose steps have been run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []
        self.turns = ParserTurns(lambda: self.now)

    def steps(self, name: str, count: int, fails: bool = False) -> Iterator[str | None]:
        for number in range(count):
            self.now += TURN_SECONDS
            self.order.append(name)
            yield f"{name}{number}" if number else None
        if fails:
            raise ValueError(name)

    def run(self, publisher: str, name: str, count: int, fails: bool = False) -> asyncio.Task[list[str]]:
        return asyncio.create_task(self.turns.run(publisher, self.steps(name, count, fails)))


async def test_bodies_of_different_publishers_take_turns() -> None:
    bodies = Bodies()
    both = bodies.run("ann", "a", 3), bodies.run("bob", "b", 3)
    assert list(await asyncio.gather(*both)) == [["a1", "a2"], ["b1", "b2"]]
    assert "".join(bodies.order) == "ababab"


async def test_one_who_sends_many_bodies_has_one_turn_as_everybody_has() -> None:
    bodies = Bodies()
    many = [bodies.run("ann", "a", 4) for _ in range(10)]
    await bodies.run("bob", "b", 4)
    assert bodies.order.count("a") <= 5
    await asyncio.gather(*many)


async def test_everything_else_that_is_due_has_its_turn_between_two_parts() -> None:
    bodies = Bodies()
    running, looks = bodies.run("ann", "a", 5), 0
    while not running.done():
        await asyncio.sleep(0)
        looks += 1
    assert looks >= 5


async def test_nothing_is_kept_of_a_body_that_has_failed_or_whose_client_has_gone() -> None:
    bodies = Bodies()
    with pytest.raises(ValueError, match="a"):
        await bodies.run("ann", "a", 3, fails=True)
    gone, waits = bodies.run("ann", "a", 9), bodies.run("ann", "w", 2)
    await asyncio.sleep(0)
    gone.cancel()
    assert await waits == ["w1"]
    assert len(bodies.turns) == 0
