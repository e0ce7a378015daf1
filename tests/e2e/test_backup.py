"""A backup of a running system, a new one made of it, and clients of before that come to that."""

from __future__ import annotations

import asyncio
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from solowire import Client, Publisher
from tests.support.system import ANSWER_SECONDS, System, run, running


def command(system: System, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run(*map(str, arguments), "--data-dir", str(system.data_dir), cwd=system.data_dir.parent)


async def test_a_system_from_a_backup_goes_on(tmp_path: Path) -> None:
    """Made under a stream of events, of a moment between two; its clients resume, or are told that they can't."""
    with running(tmp_path / "data", shards=2) as old:
        token = old.token("ann", ttl=3600)
        async with Client(old.url, token, subscriptions=["custom.*"]) as client:
            await publish(old, range(10))
            early = await read_upto(client, 9)
        stop = asyncio.Event()
        stream = asyncio.create_task(publish_on(old, stop))
        made = await asyncio.to_thread(command, old, "backup", tmp_path / "backup")
        stop.set()
        await stream
        assert (made.returncode, made.stderr) == (0, "")
        async with Client(old.url, token, subscriptions=["custom.*"], resume=early) as client:
            late = await read_upto(client, "end")
    with_new = System(tmp_path / "new", shards=2)
    restored = command(with_new, "restore", tmp_path / "backup")
    assert (restored.returncode, restored.stderr) == (0, "")
    assert f"goes on from {early[0]}:" in restored.stdout
    try:
        with_new.start()
        await publish(with_new, ["new"])
        numbers: list[Any] = []
        async with Client(with_new.url, token, subscriptions=["custom.*"], resume=early) as client:
            last = await read_upto(client, "new", numbers)
            assert client.gaps == 0
        assert numbers[:-1] == list(range(10, 10 + len(numbers) - 1))
        assert last[0] != early[0]
        async with with_new.session(
            token, {"subscriptions": [], "resume": {"epoch": late[0], "cursor": late[1]}}
        ) as told:
            assert (told.welcome["resumed"], told.welcome["reason"]) == (False, "epoch")
    finally:
        with_new.stop()


async def publish(system: System, numbers: Any) -> None:
    for number in numbers:
        await system.publish({"type": "custom.backup", "data": {"n": number}})


async def publish_on(system: System, stop: asyncio.Event) -> None:
    """Numbers from 10 on, until `stop`, and then one called `end`."""
    async with Publisher(system.url, system.token("publisher", "publisher")) as publisher:
        number = 10
        while not stop.is_set():
            await publisher.publish("custom.backup", {"n": number})
            number += 1
            await asyncio.sleep(0.001)
        await publisher.publish("custom.backup", {"n": "end"})
        await publisher.drain()


async def read_upto(client: Client, number: object, found: list[Any] | None = None) -> tuple[str, int]:
    """Reads events until that one; where the client stands then. found: their numbers."""
    async with asyncio.timeout(ANSWER_SECONDS):
        async for event in client:
            if found is not None:
                found.append(event.data["n"])
            if event.data["n"] == number:
                assert client.epoch is not None
                assert client.cursor is not None
                return client.epoch, client.cursor
    raise AssertionError("the client has ended")


@pytest.mark.parametrize("name", ["backup", "restore"])
def test_what_is_wrong_is_one_line(tmp_path: Path, name: str) -> None:
    """No traceback for a directory that is none, and status 2."""
    with suppress(FileExistsError):
        (tmp_path / "empty").mkdir()
    target = tmp_path / "empty"
    done = run(name, str(target), "--data-dir", str(tmp_path / "data"), cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("solowire: ")
