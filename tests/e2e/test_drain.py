"""A shard is emptied, superseded, added and taken away under load: who has to move moves, and misses nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from solowire.algorithms.hash_ring import Ring
from solowire.sdk.client import Client
from tests.support.system import READY_SECONDS, System, end, environment, open_session, published, ready, running

SETTINGS = {
    "SESSION__HEARTBEAT_INTERVAL_S": 5,
    "SESSION__RECONNECT_MIN_MS": 20,
    "SESSION__RECONNECT_MAX_MS": 200,
    "SHARD__REBALANCE_USERS_PER_S": 50,
}
USERS = [f"user-{n}" for n in range(12)]


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    with running(tmp_path / "data", shards=2, settings=SETTINGS) as started:
        yield started


class Reader:
    """A client that writes down what it gets, and on how many connections."""

    def __init__(self, system: System, user: str) -> None:
        self.user = user
        self.offsets: list[int] = []
        self.gaps: list[str] = []
        self.client = Client(
            system.url,
            system.token(user),
            subscriptions=["custom.*"],
            reconnect_min=0.02,
            reconnect_max=0.2,
            on_gap=self.gaps.append,
        )
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        await self.client.__aenter__()
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self.client:
            self.offsets.append(event.offset)

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
        await self.client.close()


class Load:
    """Events for everyone and for each user, at a steady pace, until it is told to stop."""

    def __init__(self, system: System) -> None:
        self.mine: dict[str, list[int]] = {user: [] for user in USERS}
        self._system = system
        self._going = True
        self._task = asyncio.create_task(self._publish())

    async def _publish(self) -> None:
        number = 0
        async with self._system.http(self._system.token("api")) as http:
            while self._going:
                number += 1
                owner = USERS[number % len(USERS)] if number % 2 else None
                event = {"type": "custom.load", "data": {"n": number}, **({"user": owner} if owner else {})}
                accepted = await published(http, event)
                for user in [owner] if owner else USERS:
                    self.mine[user].append(accepted["last_offset"])
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self._going = False
        await self._task


async def arrived(readers: list[Reader], load: Load) -> None:
    """Until everybody has got what was theirs: exactly that, in order."""
    async with asyncio.timeout(READY_SECONDS):
        while any(len(r.offsets) < len(load.mine[r.user]) for r in readers):
            await asyncio.sleep(0.02)
    for reader in readers:
        assert reader.offsets == load.mine[reader.user]
        assert reader.gaps == []


async def shard_of(system: System, user: str) -> int:
    return int((await system.negotiate(system.token(user)))["shard"])


async def gone(process: subprocess.Popen[str]) -> int:
    return await asyncio.wait_for(asyncio.to_thread(process.wait), READY_SECONDS)


async def test_scaling_up_and_down_under_load_moves_only_who_must_move(system: System) -> None:
    """From two shards to four and back: nothing lost, nothing twice, and the others' connections stay."""
    readers = {user: Reader(system, user) for user in USERS}
    for reader in readers.values():
        await reader.begin()
    load = Load(system)
    movers = [u for u in USERS if Ring(range(4)).owner(u) in (2, 3)]
    stayers = [u for u in USERS if u not in movers]
    assert {Ring(range(4)).owner(u) for u in movers} == {2, 3}
    assert stayers
    added = {i: system.spawn("shard", "--index", str(i), "--port", str(system.port + 1 + i)) for i in (2, 3)}
    try:
        # Each where it is to be: one that is on 2 because 3 has not come yet tells nothing of 3.
        whole = Ring(range(4))
        await until(lambda: all(readers[u].client.shard == whole.owner(u) for u in movers), "the movers have moved")
        async with system.http(system.token("admin")) as http:
            for index, process in added.items():
                assert (await http.post(f"/v1/shards/{index}/drain")).status_code == 202
                assert await gone(process) == 0
        await until(lambda: all(readers[u].client.shard in (0, 1) for u in movers), "the movers are back")
        await load.stop()
        await arrived(list(readers.values()), load)
        assert {u: readers[u].client.connections for u in stayers} == dict.fromkeys(stayers, 1)
    finally:
        for process in added.values():
            end(process)
        for reader in readers.values():
            await reader.end()


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {READY_SECONDS} s: {what}"
        await asyncio.sleep(0.02)


async def test_a_shard_that_gets_sigterm_sends_its_users_away_first(system: System) -> None:
    """SIGTERM to a shard is a drain: the users are told, go to another shard, and miss nothing."""
    third = system.spawn("shard", "--index", "2", "--port", str(system.port + 3))
    readers = [Reader(system, user) for user in USERS]
    try:
        system.wait_until(lambda: ready(f"http://127.0.0.1:{system.port + 3}"), "the third shard is ready")
        movers = [u for u in USERS if Ring([0, 1, 2]).owner(u) == 2]
        async with asyncio.timeout(READY_SECONDS):
            while await shard_of(system, movers[0]) != 2:
                await asyncio.sleep(0.02)
        for reader in readers:
            await reader.begin()
        load = Load(system)
        third.send_signal(signal.SIGTERM)
        assert await gone(third) == 0
        await load.stop()
        await arrived(readers, load)
    finally:
        end(third)
        for reader in readers:
            await reader.end()


async def test_drain_on_the_command_line(system: System) -> None:
    """`solowire drain` says how far it has come, and ends when the shard has gone; one that isn't there is one line."""
    third = system.spawn("shard", "--index", "2", "--port", str(system.port + 3))
    try:
        system.wait_until(lambda: ready(f"http://127.0.0.1:{system.port + 3}"), "the third shard is ready")
        output = await asyncio.to_thread(_drain, system, "2")
        assert (output.returncode, output.stdout.splitlines()[-1]) == (0, "shard 2 is gone")
        assert await gone(third) == 0
        output = await asyncio.to_thread(_drain, system, "7")
        assert output.returncode == 1
        [line] = output.stderr.splitlines()
        assert line.startswith(f"solowire: {system.url}/v1/shards/7/drain answered 404: there is no shard 7 (")
    finally:
        end(third)


async def test_only_administrators_drain(system: System) -> None:
    """A viewer can't empty a shard."""
    async with system.http(system.token("ann", role="viewer")) as http:
        assert (await http.post("/v1/shards/0/drain")).status_code == 403


async def test_a_second_process_of_one_shard_takes_its_place(system: System, tmp_path: Path) -> None:
    """Of two processes with one index the later one is the shard: the other ends, and users are served on."""
    user = next(u for u in USERS if Ring([0, 1]).owner(u) == 0)
    reader = Reader(system, user)
    await reader.begin()
    first = _spawn_elsewhere(system, tmp_path / "elsewhere")
    try:
        async with asyncio.timeout(READY_SECONDS):
            while reader.client.connections < 2:
                await asyncio.sleep(0.02)
        answer = await system.publish({"type": "custom.after", "data": {}})
        async with asyncio.timeout(READY_SECONDS):
            while answer["last_offset"] not in reader.offsets:
                await asyncio.sleep(0.02)
    finally:
        end(first)
        await reader.end()


def _spawn_elsewhere(system: System, data_dir: Path) -> subprocess.Popen[str]:
    """Shard 0 as in another container: on the same data directory it would be refused."""
    router = f"ipc://{system.data_dir}/run/router"
    own = environment({"DATA_DIR": data_dir, "BACKPLANE": router, "SECRET": system.secret})
    command = [sys.executable, "-m", "solowire", "shard", "--index", "0", "--port", str(system.port + 3)]
    return subprocess.Popen(command, env=system.environment | own, cwd=data_dir.parent, text=True)


def _drain(system: System, shard: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "solowire",
        "drain",
        shard,
        "--url",
        system.url,
        "--data-dir",
        str(system.data_dir),
    ]
    return subprocess.run(command, env=system.environment, capture_output=True, text=True, timeout=READY_SECONDS)


async def test_nobody_is_sent_to_a_new_shard_before_it_can_take_users(tmp_path: Path) -> None:
    """It reads its log first: who asks where to connect meanwhile is sent to a shard that takes them."""
    with running(tmp_path / "data", shards=1, settings=SETTINGS) as system:
        user = next(f"moves-{n}" for n in range(1000) if Ring([0, 1]).owner(f"moves-{n}") == 1)
        async with system.http(system.token("api")) as http:
            for _ in range(10):
                await published(http, *({"type": "custom.load", "data": {"text": "x" * 200}} for _ in range(2000)))
        added = system.spawn("shard", "--index", "1", "--port", str(system.port + 2))
        try:
            shard = 0
            async with asyncio.timeout(READY_SECONDS):
                while shard == 0:
                    negotiated = await system.negotiate(system.token(user))
                    try:
                        async with open_session(negotiated["url"]) as session:
                            await session.say(type="hello", subscriptions=["custom.*"])
                            await session.hear("welcome")
                    except InvalidStatus as refused:
                        # The ring may change between the ticket and its use; no shard is one that can't take users yet.
                        if json.loads(refused.response.body)["code"] != "wrong_shard":
                            raise
                    else:
                        shard = negotiated["shard"]
        finally:
            assert end(added) == 0
