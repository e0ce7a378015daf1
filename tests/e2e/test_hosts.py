"""A system on several hosts, each in a network namespace with its own address: router, two shards, a gateway, clients.

Users read one stream while a shard is cut off from the router and comes back, and while the router moves to another
host. What is acknowledged to the publisher reaches every user once and in order, and in the end each user is on one
shard, which is the one that owns it.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from solowire.algorithms.hash_ring import Ring
from solowire.sdk.client import Client
from solowire.sdk.publisher import Publisher
from tests.support.network import Network, can_make
from tests.support.requirements import needs_that
from tests.support.system import ANSWER_SECONDS, READY_SECONDS, UNDISTURBED, end, environment, sign

pytestmark = needs_that(can_make(), "needs network namespaces: root's rights, and iproute2")

SECRET = "a secret of all processes, with 32 bytes"
USERS = [f"user-{n}" for n in range(12)]
LEASE_SECONDS = 5
HOSTS = ("router-a", "router-b", "shard-0", "shard-1", "gateway", "client")


class Cluster:
    """The processes, each on its host. Everything is ended with the test."""

    def __init__(self, network: Network, directory: Path) -> None:
        self.network = network
        self.directory = directory
        self.url = f"http://{network.address('gateway')}:8000"
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.token = sign(SECRET, "admin")

    def start(self, name: str, host: str, *arguments: str, **settings: object) -> subprocess.Popen[str]:
        common = {
            **UNDISTURBED,
            "BACKPLANE": "tcp://router.test:7400",
            "CURVE__SEED": "a seed of all processes, with 32 characters",
            "SECRET": SECRET,
            "LIMITS__LEASE_S": LEASE_SECONDS,
            "AUDIT__OUTPUT": "off",
        }
        with (self.directory / f"{name}.log").open("a") as log:
            self.processes[name] = subprocess.Popen(
                self.network.command(host, sys.executable, "-m", "solowire", *arguments),
                env=environment(common | settings),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        return self.processes[name]

    def start_router(self, host: str) -> None:
        self.start("router", host, "router", "--data-dir", "data", BACKPLANE_BIND="tcp://[::]:7400")

    def start_shard(self, index: int, address: str) -> None:
        options = {
            "SHARD_INDEX": index,
            "HOST": "::",
            "LISTEN__ADVERTISED_HOST": address,
            "LISTEN__API_PORT": 9000,
            "LISTEN__API_HOST": "::",
        }
        self.start(f"shard-{index}", f"shard-{index}", "shard", "--data-dir", f"data-{index}", **options)

    def start_gateway(self) -> None:
        self.start("gateway", "gateway", "gateway", "--data-dir", "data-gateway", HOST="0.0.0.0")

    def close(self) -> None:
        for process in reversed(self.processes.values()):
            end(process, signal.SIGKILL)

    def output(self) -> str:
        return "\n".join(
            f"--- {name}\n{(self.directory / f'{name}.log').read_text()[-3000:]}" for name in self.processes
        )

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str, seconds: float = READY_SECONDS) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while not await condition():
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} has ended:\n{self.output()}"
            assert asyncio.get_running_loop().time() < deadline, f"not within {seconds} s: {what}\n{self.output()}"
            await asyncio.sleep(0.05)

    async def shards(self) -> dict[int, dict[str, Any]]:
        """What the router says of those in the ring; {} while it says nothing."""
        try:
            async with self.http() as http:
                answer = await http.get("/v1/stats/shards")
        except httpx.HTTPError:
            return {}
        return {shard["shard"]: shard for shard in answer.json()} if answer.status_code == 200 else {}

    def http(self, token: str | None = None) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {token or self.token}"}
        return httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=ANSWER_SECONDS, trust_env=False, verify=False
        )

    async def are_in_the_ring(self, *indexes: int) -> bool:
        return set(await self.shards()) == set(indexes)

    async def has_converged(self) -> bool:
        """Whether each user is at the shard that the ring says, and nowhere else, as both shards say themselves."""
        ring = Ring(await self.shards())
        owners = Counter(ring.owner(user) for user in USERS)
        return [await self.count_connections(index) for index in (0, 1)] == [owners[index] for index in (0, 1)]

    async def count_connections(self, index: int) -> int:
        """By a shard's own metrics, which the client's host can see, whoever is cut off from whom."""
        url = f"http://[{self.network.ipv6_address(f'shard-{index}')}]:9000"
        async with httpx.AsyncClient(base_url=url, timeout=ANSWER_SECONDS, trust_env=False, verify=False) as http:
            lines = (await http.get("/metrics")).text.splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith("solowire_shard_connections{"))


class Reader:
    """One user: what it got, and how often it had to connect."""

    def __init__(self, user: str, url: str) -> None:
        self.got: list[str] = []
        self.gaps: list[str] = []
        self.client = Client(
            url, sign(SECRET, user), subscriptions=["custom.*"], reconnect_max=1.0, on_gap=self.gaps.append
        )
        self.entered = asyncio.Event()

    async def run(self) -> None:
        async with self.client as client:
            self.entered.set()
            async for event in client:
                self.got.append(event.id)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with contextlib.ExitStack() as held:
        network = Network(*HOSTS)
        held.callback(network.close)
        cluster = Cluster(network, tmp_path)
        held.callback(cluster.close)
        held.enter_context(network.enter("client"))
        yield cluster


@contextlib.asynccontextmanager
async def reading(cluster: Cluster) -> AsyncIterator[list[Reader]]:
    readers = [Reader(user, cluster.url) for user in USERS]
    tasks = [asyncio.create_task(reader.run()) for reader in readers]
    try:
        async with asyncio.timeout(READY_SECONDS):
            await asyncio.gather(*(reader.entered.wait() for reader in readers))
        yield readers
        assert [task for task in tasks if task.done()] == []
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def publish_on(cluster: Cluster, acknowledged: list[str]) -> None:
    """Publishes a numbered event every 20 ms; what could not be answered is sent again, with the same id."""
    async with Publisher(cluster.url, sign(SECRET, "publisher", "publisher"), retry_for=READY_SECONDS) as publisher:
        number = 0
        while True:
            number += 1
            name = f"step-{number}"
            event = {"type": "custom.step", "id": name, "data": {"number": number}}
            await publisher.publish_and_wait(event)
            acknowledged.append(name)
            await asyncio.sleep(0.02)


async def test_a_shard_that_is_cut_off_and_a_router_that_moves(cluster: Cluster) -> None:
    """Nothing that was acknowledged is lost or comes twice, and in the end no user is on two shards."""
    network = cluster.network
    cluster.start_gateway()  # in any order: the last one is whom all others need
    cluster.start_shard(0, network.address("shard-0"))
    cluster.start_shard(1, network.ipv6_address("shard-1"))
    network.name_addresses({"router.test": network.address("router-a")})
    cluster.start_router("router-a")
    await cluster.until(lambda: cluster.are_in_the_ring(0, 1), "both shards are there")
    shards = await cluster.shards()
    assert shards[0]["address"] == f"{network.address('shard-0')}:8001"
    assert shards[1]["address"] == f"[{network.ipv6_address('shard-1')}]:8002"
    async with cluster.http(sign(SECRET, next(u for u in USERS if Ring((0, 1)).owner(u) == 1))) as http:
        assert (await http.get("/v1/route")).headers["x-solowire-upstream"] == shards[1]["address"]
    async with cluster.http() as http:  # which asks the shard itself
        assert (await http.get("/v1/stats/shards/1")).json()["shard"] == 1

    acknowledged: list[str] = []
    async with reading(cluster) as readers:
        publishing = asyncio.create_task(publish_on(cluster, acknowledged))
        await cluster.until(cluster.has_converged, "each user is at its shard")

        network.part("router-a", "shard-1")
        await cluster.until(lambda: cluster.are_in_the_ring(0), "the router has noticed")
        await cluster.until(cluster.has_converged, "the shard has let its users go")
        network.join("router-a", "shard-1")
        await cluster.until(lambda: cluster.are_in_the_ring(0, 1), "it is back")
        await cluster.until(cluster.has_converged, "each user is at its shard again")

        for other in (
            "shard-0",
            "shard-1",
            "gateway",
        ):  # its host is gone, and nobody is told that connections are over
            network.part("router-a", other)
        end(cluster.processes["router"], signal.SIGKILL)
        count = len(acknowledged)
        network.name_addresses({"router.test": network.ipv6_address("router-b")})
        cluster.start_router("router-b")
        await cluster.until(lambda: has_grown(acknowledged, count + 10), "events are taken again")
        await cluster.until(cluster.has_converged, "each user is where it was")
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
        count = len(acknowledged)
        await cluster.until(lambda: have_all(readers, acknowledged), "all have read all")
    for reader in readers:
        assert reader.gaps == []
        # The last one may be in the log though its answer did not come any more.
        assert reader.got[: len(acknowledged)] == acknowledged
        assert len(reader.got) - len(acknowledged) in (0, 1)


async def test_two_hosts_with_one_shard(cluster: Cluster) -> None:
    """The one that came later waits and says so, and nobody is disturbed. When the first is cut off it is the shard;
    when the first is back, that ends, rather than take the place back, and its users go to the other."""
    network = cluster.network
    network.name_addresses({"router.test": network.address("router-a")})
    cluster.start_router("router-a")
    cluster.start_gateway()
    cluster.start_shard(0, network.address("shard-0"))
    await cluster.until(lambda: cluster.are_in_the_ring(0), "the shard is there")
    first = (await cluster.shards())[0]["address"]
    async with Client(cluster.url, sign(SECRET, "ann"), subscriptions=["custom.*"], reconnect_max=1.0) as client:
        session = client.session
        second = cluster.start("second", "shard-1", "shard", SHARD_INDEX=0, HOST=network.address("shard-1"))
        log = cluster.directory / "second.log"
        await cluster.until(lambda: says(log, "shard_index_taken"), "it waits")
        assert (await cluster.shards())[0]["address"] == first
        assert client.session == session
        network.part("router-a", "shard-0")
        address = f"{network.address('shard-1')}:8001"
        await cluster.until(lambda: is_at(cluster, address), "the other one is the shard")
        network.join("router-a", "shard-0")
        assert await asyncio.to_thread(cluster.processes.pop("shard-0").wait, READY_SECONDS) == 1
        assert await is_at(cluster, address)
        async with cluster.http(sign(SECRET, "publisher", "publisher")) as http:
            assert (await http.post("/v1/events", json={"type": "custom.here", "data": {}})).status_code == 200
        async with asyncio.timeout(ANSWER_SECONDS):
            assert (await anext(aiter(client))).type == "custom.here"
            assert client.session != session
    assert second.poll() is None


async def says(log: Path, event: str) -> bool:
    return event in await asyncio.to_thread(log.read_text)


async def is_at(cluster: Cluster, address: str) -> bool:
    return (await cluster.shards()).get(0, {}).get("address") == address


async def has_grown(found: list[str], count: int) -> bool:
    return len(found) >= count


async def have_all(readers: list[Reader], acknowledged: list[str]) -> bool:
    return all(len(reader.got) >= len(acknowledged) for reader in readers)
