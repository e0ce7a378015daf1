"""A process that is started a second time, beside a running system on the same data directory: it disturbs nobody."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.system import System, end, free_ports, ready, run, running

CUSTOM = {"subscriptions": ["custom.*"]}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("second") / "data", shards=2) as system:
        yield system


async def test_a_second_shard_of_one_index(live: System, tmp_path: Path) -> None:
    """It is refused in one line that names the first, which keeps its users; the same with the first one's port."""
    pid = live.pid_of("shard", "--index", "1")
    async with live.session(live.token(live.user_on(1)), CUSTOM) as session:
        for port in (free_ports(1), live.port + 2):
            command = ("shard", "--index", "1", "--port", str(port), "--data-dir", str(live.data_dir))
            done = await asyncio.to_thread(run, *command, cwd=tmp_path)
            assert done.returncode == 2
            [line] = done.stderr.splitlines()
            assert line.startswith(f"solowire: shard 1 (process {pid}) already uses the data directory ")
            assert (await session.ask("pong", type="ping"))["type"] == "pong"
    assert live.pid_of("shard", "--index", "1") == pid


def test_a_shard_that_was_killed_leaves_its_place(live: System) -> None:
    """The lock is the kernel's: `up` starts the next process at once."""
    pid = live.pid_of("shard", "--index", "0")
    os.kill(pid, signal.SIGKILL)
    live.wait_until(lambda: _is_back(live, pid), "it is back")


def _is_back(live: System, pid: int) -> bool:
    try:
        return live.pid_of("shard", "--index", "0") != pid and ready(f"http://127.0.0.1:{live.port + 1}")
    except (ValueError, OSError):
        return False


def test_a_second_gateway_with_the_same_port_of_another_address(live: System) -> None:
    """Both answer for themselves, also when the second has ended; what one leaves that was killed is cleared away."""
    other = f"http://127.0.0.2:{live.port}"
    for number in (signal.SIGTERM, signal.SIGKILL):
        second = live.spawn("gateway", "--host", "127.0.0.2", "--port", str(live.port))
        try:
            live.wait_until(lambda: _answers(other), "the second gateway is ready")
            assert _answers(live.url)
        finally:
            assert end(second, number) == (0 if number == signal.SIGTERM else -number)
        assert _answers(live.url)
    third = live.spawn("gateway", "--host", "127.0.0.2", "--port", str(live.port))
    live.wait_until(lambda: _answers(other), "the third gateway is ready")
    assert len(list((live.data_dir / "run").glob("g*"))) == 2
    assert end(third) == 0
    assert len(list((live.data_dir / "run").glob("g*"))) == 1
    assert "unexpected_upstream_connection" not in live.output.read_text()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", trust_env=False, timeout=10).status_code == 200
    except httpx.HTTPError:
        return False
