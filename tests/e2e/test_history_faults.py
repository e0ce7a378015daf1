"""History while processes are killed and drained: what each may see of the same hour, whole, once and in order."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from tests.chaos.load import Maker
from tests.chaos.oracle import Made, Who, due
from tests.support.system import READY_SECONDS, System, end, published, ready, running

SETTINGS = {
    "SHARD__AGGREGATION__EVENTS_PER_S": 100_000,
    "HISTORY__BURST": 100_000,
    "HISTORY__RATE": 100_000,
    "HISTORY__MAX_PER_USER": 8,
}
PEOPLE = (
    Who("ann", "operator"),
    Who("bob", "viewer", zones=("a.example",)),
    Who("eve", "admin", subscriptions=("dns.*", "audit.*"), filter={"zone": ("example",)}),
)
BATCH = 20
AGAIN = (429, 502, 503, 504)
"""What passes: the shard, or the router, is away for a moment."""

Found = list[tuple[str, dict[str, Any]]]


class Hour:
    """What is published meanwhile, and the places of those who ask for it."""

    def __init__(self, system: System, seed: int) -> None:
        self.system = system
        self.made: list[Made] = []  # acknowledged, in the order of the log
        self.is_over = False
        self._maker = Maker(seed, "history", [who.user for who in PEOPLE])

    async def publish(self) -> None:
        """Batch after batch, each until it is acknowledged: so they are in the log in this order, and once."""
        async with self.system.http(self.system.token("publisher", "publisher")) as http:
            while not self.is_over:
                batch = [self._maker.next() for _ in range(BATCH)]
                events = [{"id": one.id, "type": one.type, "data": one.data, "user": one.user} for one in batch]
                await retry(lambda events=events: published(http, *events))  # type: ignore[misc]
                self.made += batch
                await asyncio.sleep(0.02)

    def expect(self, who: Who) -> Found:
        return [(one.id, data) for one in self.made if (data := due(who, one)) is not None]

    async def pages(self, who: Who, **parameters: str) -> AsyncIterator[Found]:
        """Pages of a question that goes on until there is no more, and forwards until the hour is over."""
        scopes: dict[str, Any] = {"scopes": {"zones": list(who.zones)}} if who.zones else {}
        parameters |= {"since": "1h", "limit": "15"}
        if who.subscriptions is not None:
            parameters["types"] = ",".join(who.subscriptions)
        if who.filter:
            parameters["filter"] = '{"zone": ["example"]}'
        async with self.system.http(self.system.token(who.user, who.role, **scopes)) as http:
            while True:
                was_over = self.is_over
                answer = await retry(lambda: ask(http, parameters))
                found = answer.json()
                yield [(event["id"], event["data"]) for event in found["events"] if event.get("source") != "solowire"]
                if found["complete"]:
                    if was_over or parameters.get("order") == "desc":
                        return
                    await asyncio.sleep(0.05)
                parameters["after"] = found["next"]

    async def read_forwards(self, who: Who) -> Found:
        return [event async for page in self.pages(who) for event in page]

    async def read_backwards(self, who: Who, seed: int) -> int:
        """Newest first, again and again, until the hour is over; how often."""
        random = Random(f"{seed} {who.user}")
        for times in range(1, 10_000):
            before = self.expect(who)
            found = [event async for page in self.pages(who, order="desc") for event in page]
            assert len(found) >= len(before), who
            # What is newest may be in the log, and not acknowledged yet.
            async with asyncio.timeout(READY_SECONDS):
                while len(self.expect(who)) < len(found):
                    await asyncio.sleep(0.02)
            assert found == self.expect(who)[: len(found)][::-1], who
            if self.is_over:
                return times
            await asyncio.sleep(random.random() * 0.3)
        raise AssertionError("it never ended")


async def ask(http: httpx.AsyncClient, parameters: dict[str, str]) -> httpx.Response:
    answer = await http.get("/v1/events", params=parameters)
    if answer.status_code in AGAIN:
        assert int(answer.headers["retry-after"]) >= 1
        raise httpx.TransportError(answer.text)
    assert answer.status_code == 200, answer.text
    return answer


async def retry(attempt: Callable[[], Any]) -> Any:
    async with asyncio.timeout(READY_SECONDS):
        while True:
            try:
                return await attempt()
            except httpx.TransportError:
                await asyncio.sleep(0.1)


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {READY_SECONDS} s: {what}"
        await asyncio.sleep(0.05)


async def disturb(hour: Hour, fault: str, random: Random) -> None:
    system = hour.system
    if fault == "drain":
        added = system.spawn("shard", "--index", "2", "--port", str(system.port + 3))
        try:
            await until(lambda: ready(f"http://127.0.0.1:{system.port + 3}"), "the third shard is ready")
            await asyncio.sleep(random.random() * 0.5)
            async with system.http(system.token("admin")) as http:
                assert (await http.post("/v1/shards/2/drain")).status_code == 202
            await until(lambda: added.poll() is not None, "the third shard has gone")
        finally:
            end(added)
        return
    command = ("shard", "--index", str(random.randrange(2))) if fault == "shard" else (fault,)
    old = system.pid_of(*command)
    os.kill(old, signal.SIGKILL)

    def is_back() -> bool:
        try:
            return system.pid_of(*command) != old
        except ValueError:  # there is none, or both are there for a moment
            return False

    await until(is_back, f"{command} is there again")


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_two_users_get_the_same_hour_as_each_may_see_it(tmp_path: Path, seed: int) -> None:
    """Whatever dies meanwhile: forwards and backwards, each gets what the oracle says, once and in the log's order."""
    random = Random(seed)
    faults = ["router", "shard", "shard", "drain"]
    random.shuffle(faults)
    with running(tmp_path / "data", shards=2, settings=SETTINGS) as system:
        hour = Hour(system, seed)
        async with asyncio.TaskGroup() as group:
            publishing = group.create_task(hour.publish())
            forwards = [group.create_task(hour.read_forwards(who)) for who in PEOPLE]
            backwards = [group.create_task(hour.read_backwards(who, seed)) for who in PEOPLE]
            for fault in faults:
                enough = len(hour.made) + 5 * BATCH
                await until(lambda enough=enough: len(hour.made) >= enough, "it goes on")  # type: ignore[misc]
                await disturb(hour, fault, random)
            enough = len(hour.made) + 5 * BATCH
            await until(lambda: len(hour.made) >= enough, "it goes on behind the last of them")
            hour.is_over = True
            await publishing
        for who, reader in zip(PEOPLE, forwards, strict=True):
            # The last page may have been asked for before the last batch was in the log.
            found, expected = reader.result(), hour.expect(who)
            assert found == expected[: len(found)], who
            assert len(expected) - len(found) <= BATCH, who
            assert [event async for page in hour.pages(who) for event in page] == expected, who
        assert all(task.result() > 1 for task in backwards)
