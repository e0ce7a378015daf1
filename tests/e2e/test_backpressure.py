"""Publishers who send more than there is room for: each at its rate, and all when the system can't follow."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from solowire.backplane.messages import VERSION, Join, LogAck, LogBatch, RouterMessage, ShardAddress
from solowire.backplane.router_link import RouterLink
from solowire.sdk.publisher import Publisher
from tests.support.system import ANSWER_SECONDS, System, end, published, running

RATE, BURST = 50, 20
HELD = 6  # so one publisher may have three requests at once


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system with little room for publishers, and short patience."""
    settings = {
        "PUBLISH__RATE": RATE,
        "PUBLISH__BURST": BURST,
        "PUBLISH__MAX_HELD_REQUESTS": HELD,
        "PUBLISH__LAG_SOFT_S": 0.3,
        "PUBLISH__LAG_HARD_S": 2.0,
        "PROCESS__WATCHDOG_TIMEOUT_S": 60,
    }
    with running(tmp_path_factory.mktemp("tight") / "data", shards=1, settings=settings) as started:
        yield started


def publishing(system: System, name: str) -> httpx.AsyncClient:
    return system.http(system.token(name, "publisher"))


async def post(http: httpx.AsyncClient, count: int = 1) -> httpx.Response:
    return await http.post("/v1/events", json=[{"type": "custom.push", "data": {"n": n}} for n in range(count)])


def code_of(answer: httpx.Response) -> str:
    code: str = answer.json()["code"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
    return code


async def test_a_publisher_over_its_rate_is_refused_and_another_is_not(tight: System) -> None:
    """Each publisher has a rate of its own: over it there is 429 with the time to wait, and nothing else."""
    async with publishing(tight, "fast") as fast, publishing(tight, "other") as other:
        # All at once, so that on a slow machine, too, they come faster than the rate.
        answers = await asyncio.gather(*(post(fast, BURST) for _ in range(3)))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert 1 <= len(refused) < len(answers)
        assert {(answer.status_code, code_of(answer)) for answer in refused} == {(429, "publish_rate_limited")}
        assert (await post(other, BURST)).status_code == 200
        metrics = (await other.get("/metrics")).text
    assert f'solowire_gateway_publish_rejected_total{{reason="publish_rate_limited"}} {len(refused)}.0' in metrics


async def test_the_sdk_keeps_to_the_rate_and_loses_nothing(tight: System) -> None:
    """The SDK's publisher waits as it is told and repeats with the same ids, until everything is in the log once."""
    begun = asyncio.get_running_loop().time()
    async with Publisher(tight.url, tight.token("sdk", "publisher"), batch=BURST) as publisher:
        for n in range(60):
            await publisher.publish("custom.push", {"n": n})
        await publisher.drain()
    took = asyncio.get_running_loop().time() - begun
    assert (publisher.stats.accepted, publisher.stats.duplicates) == (60, 0)
    assert publisher.stats.retries >= 1
    assert took >= (60 - BURST) / RATE


async def test_what_the_router_does_not_take_has_a_bound(tight: System) -> None:
    """While the router takes nothing, the gateway holds so many requests and refuses the others at once."""
    router = tight.pid_of("router")
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(publishing(tight, f"p{n}")) for n in range(HELD + 5)]
        await asyncio.gather(*(http.get("/healthz") for http in clients))
        os.kill(router, signal.SIGSTOP)
        try:
            held = {asyncio.ensure_future(post(http)) for http in clients}
            done: set[asyncio.Future[httpx.Response]] = set()
            async with asyncio.timeout(4):
                while len(held) > HELD:
                    ready, held = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
                    done |= ready
        finally:
            os.kill(router, signal.SIGCONT)
        assert sorted((p.result().status_code, code_of(p.result())) for p in done) == [(503, "overloaded")] * 5
        assert [(await answer).status_code for answer in held] == [200] * HELD
        assert (await post(clients[0])).status_code == 200


class SlowShard:
    """A shard by its word alone: it beats, and acks what it gets only while it is told to."""

    def __init__(self, system: System) -> None:
        self.acks = True
        self._address = ShardAddress(7, "127.0.0.1", 9, "slow")
        self._last = ("", 0)
        self._link = RouterLink(f"ipc://{system.data_dir}/run/router", "shard-7-slow", self._hello, self._received)

    @property
    def upto(self) -> int:
        """The newest offset that it has got."""
        return self._last[1]

    def _hello(self) -> Join:
        return Join(VERSION, "slow", self._address, *self._last, credit=1000)

    def _received(self, message: RouterMessage) -> None:
        if isinstance(message, LogBatch):
            self._last = (message.epoch, message.end_offset)
            if self.acks:
                self.ack()

    def ack(self) -> None:
        self._link.send(LogAck(*self._last, credit=1000))

    def close(self) -> None:
        self._link.close()


async def test_a_shard_that_cannot_follow_slows_publishers_and_then_has_them_refused(tight: System) -> None:
    """A live shard that acks nothing makes answers late, then refusals; when it acks, all is as before."""
    shard = SlowShard(tight)
    loop = asyncio.get_running_loop()
    try:
        async with publishing(tight, "steady") as http:
            accepted = await published(http, {"type": "custom.push", "data": {}})
            # One that never followed is a newcomer, for whom nobody waits.
            async with asyncio.timeout(ANSWER_SECONDS):
                while shard.upto < accepted["last_offset"]:
                    await asyncio.sleep(0.02)
            shard.acks = False
            slowest, refused = 0.0, None
            async with asyncio.timeout(ANSWER_SECONDS):
                while refused is None:
                    begun = loop.time()
                    answer = await post(http)
                    if answer.status_code == 200:
                        slowest = max(slowest, loop.time() - begun)
                    else:
                        refused = answer
                    await asyncio.sleep(0.05)
            assert (refused.status_code, code_of(refused)) == (503, "overloaded")
            assert slowest >= 0.2, "answers came at once until they were refused"
            shard.acks = True
            shard.ack()
            await _until_ok(http)
    finally:
        shard.close()


async def _until_ok(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(ANSWER_SECONDS):
        while (await post(http)).status_code != 200:
            await asyncio.sleep(0.1)


async def test_a_journal_that_cannot_follow_has_publishers_refused(tmp_path: Path) -> None:
    """Where a commit takes longer than the settings allow, publishers are refused, be there no shard at all."""
    # Any disk is slower than ten microseconds.
    system = System(tmp_path / "data", shards=0, settings={"PUBLISH__LAG_SOFT_S": 1e-6, "PUBLISH__LAG_HARD_S": 1e-5})
    processes = [system.spawn("router"), system.spawn("gateway", "--port", str(system.port))]
    try:
        system.wait_until(lambda: "gateway_listening" in system.output.read_text(), "the gateway listens")
        async with publishing(system, "steady") as http, asyncio.timeout(ANSWER_SECONDS):
            while (answer := await post(http)).status_code == 200 or code_of(answer) == "router_unavailable":
                await asyncio.sleep(0.05)
        assert (answer.status_code, code_of(answer)) == (503, "overloaded")
        assert "journal" in answer.json()["detail"]
    finally:
        for process in processes:
            end(process)
