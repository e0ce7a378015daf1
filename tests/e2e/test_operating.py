"""What an operator does to a running system, and what befalls it: full pipes, few files, signals, drains."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from websockets.exceptions import InvalidStatus

from tests.support.system import (
    ANSWER_SECONDS,
    READY_SECONDS,
    Session,
    System,
    alive,
    end,
    environment,
    free_ports,
    open_session,
    ready,
    run,
    running,
    sign,
)

CUSTOM = {"subscriptions": ["custom.*"]}


def command_of(system: System) -> list[str]:
    """`up` with one shard, for a test that starts it by itself."""
    options = ["--port", str(system.port), "--shards", "1", "--data-dir", str(system.data_dir)]
    return [sys.executable, "-m", "solowire", "up", *options]


# --------------------------------------------------------------------------------------------------- a full pipe


@pytest.fixture
def unread(tmp_path: Path) -> Iterator[tuple[System, int]]:
    """A system whose standard error is a pipe that is full and that nobody reads, and its reading end."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    system = System(tmp_path / "data", shards=1, settings={"LOGGING__LEVEL": "debug"})
    try:
        system.process = subprocess.Popen(
            command_of(system),
            env=system.environment,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=writing,
            text=True,
        )
        os.close(writing)
        system.output.touch()
        system.wait_until(system._all_ready, "it is ready, though nobody hears what it says")
        yield system, reading
    finally:
        if system.process is not None:
            end(system.process, signal.SIGKILL)
        os.close(reading)


async def test_a_log_that_nobody_reads_stops_nothing(unread: tuple[System, int]) -> None:
    """Wrong tokens, a shard's death and SIGTERM: all of it is logged into a full pipe, and everything goes on."""
    system, _ = unread
    assert system.process is not None
    async with system.http("wrong") as http:
        for _ in range(200):
            assert (await http.post("/v1/connect")).status_code in (401, 429)
    first = system.pid_of("shard", "--index", "0")
    os.kill(first, signal.SIGKILL)
    await asyncio.to_thread(system.wait_until, lambda: not alive(first), "it has ended")
    await asyncio.to_thread(system.wait_until, system._all_ready, "it runs again")
    async with asyncio.timeout(READY_SECONDS):
        while True:
            with contextlib.suppress(AssertionError, httpx.HTTPError):
                async with system.session(system.token("ann"), CUSTOM) as session:
                    await system.publish({"type": "custom.x", "data": {}})
                    await session.events(1)
                    break
            await asyncio.sleep(0.1)
    assert await asyncio.to_thread(end, system.process) == 0


# ----------------------------------------------------------------------------------------------------- few files


@pytest.fixture(scope="module")
def scarce(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system whose processes may have 256 open files each."""
    system = System(tmp_path_factory.mktemp("scarce") / "data", shards=1)
    try:
        with system.output.open("a") as log:
            system.process = subprocess.Popen(
                command_of(system),
                env=system.environment,
                cwd=system.data_dir.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
            )
        system.wait_until(system._all_ready, "it is ready")
        yield system
    finally:
        if system.process is not None:
            system.stop()


async def test_a_limit_of_open_files_is_a_limit_of_connections(scarce: System) -> None:
    """Beyond it there is 503 at once, at the gateway and at the shard; who is here is served; probes answer."""
    async with contextlib.AsyncExitStack() as stack, scarce.http() as http:
        sessions: list[Session] = []
        refused: list[str] = []  # in a row: the first may only have the lease grow
        async with asyncio.timeout(2 * ANSWER_SECONDS):
            while len(refused) < 20:
                token = scarce.token(f"user{len(sessions)}", "viewer")
                answer = await http.post("/v1/connect", headers={"authorization": f"Bearer {token}"})
                if answer.status_code == 503:
                    refused.append(answer.json()["code"])
                    await asyncio.sleep(0.1)
                    continue
                try:
                    session = await stack.enter_async_context(open_session(answer.json()["url"]))
                except InvalidStatus as refusal:
                    refused.append(msgspec.json.decode(refusal.response.body)["code"])
                    await asyncio.sleep(0.1)
                    continue
                await session.ask("welcome", type="hello", **CUSTOM)
                sessions.append(session)
                refused.clear()
        assert set(refused) == {"over_limit"}
        assert 100 < len(sessions) < 156
        silent = [socket.create_connection(("127.0.0.1", scarce.port + 1)) for _ in range(60)]
        try:
            assert await asyncio.to_thread(ready, f"http://127.0.0.1:{scarce.port}")
            assert (await http.get("/readyz")).status_code == 200
            await scarce.publish({"type": "custom.x", "data": {}})
            assert len(await sessions[0].events(1)) == len(await sessions[-1].events(1)) == 1
        finally:
            for one in silent:
                one.close()
    said = scarce.output.read_text()
    assert said.count("file_limit_low") == 1
    assert "Traceback" not in said
    assert said.count("accept_paused") <= 1


@pytest.mark.parametrize(
    ("command", "files"),
    [
        ("shard --index 0", 120),
        ("shard --index 0", 40),
        ("router", 40),
        ("gateway", 40),
        ("up", 40),
        ("source bind9 --query-log q.log --token x", 40),
    ],
)
def test_too_few_files_to_serve_anybody_is_one_line(command: str, files: int, tmp_path: Path) -> None:
    """A process that could not run, or have no connection, says so, with what to do, and ends with status 2."""
    done = subprocess.run(
        [sys.executable, "-m", "solowire", *command.split(), "--data-dir", str(tmp_path / "d")],
        env=environment({"PORT": free_ports(2)}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=READY_SECONDS,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
    )
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("solowire:")]
    assert f"open files is {files}" in line
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------------- signals


def test_a_terminal_that_closes_ends_it_in_order(tmp_path: Path) -> None:
    """`up` in a terminal: when that goes, the shards send their users away and all ends with nothing left."""
    master, slave = pty.openpty()
    system = System(tmp_path / "data", shards=1)

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(slave, 0x540E, 0)  # TIOCSCTTY

    system.process = up = subprocess.Popen(
        command_of(system),
        env=system.environment,
        cwd=tmp_path,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=take_terminal,
        text=True,
    )
    os.close(slave)
    system.output.touch()
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not system._all_ready():
            assert time.monotonic() < deadline
            with contextlib.suppress(OSError):
                os.set_blocking(master, False)
                os.read(master, 65536)
            time.sleep(0.05)

        async def close_it() -> int | None:
            async with system.session(system.token("ann"), CUSTOM) as session:
                os.close(master)  # the kernel sends SIGHUP
                return (await session.closed())[0]

        assert asyncio.run(close_it()) in (1012, 1001)
        assert up.wait(READY_SECONDS) == 0
    finally:
        end(up, signal.SIGKILL)


def test_a_service_that_is_told_to_reload_goes_on(tmp_path: Path) -> None:
    """Without a terminal SIGHUP ends nothing: every process goes on, with the same id."""
    with running(tmp_path / "data", shards=1) as system:
        assert system.process is not None
        before = [system.pid_of(*command) for command in (("router",), ("shard", "--index", "0"), ("gateway",))]
        for pid in (system.process.pid, *before):
            os.kill(pid, signal.SIGHUP)

        async def serve() -> None:
            async with system.session(system.token("ann"), CUSTOM) as session:
                await system.publish({"type": "custom.x", "data": {}})
                await session.events(1)

        asyncio.run(serve())
        assert before == [system.pid_of(*command) for command in (("router",), ("shard", "--index", "0"), ("gateway",))]
        assert system.process.poll() is None


async def test_a_reload_puts_roles_secrets_and_limits_in_force(tmp_path: Path) -> None:
    """Of a service, in every process, without a restart; what is wrong changes nothing, and is said."""
    roles, config = tmp_path / "roles.toml", tmp_path / "solowire.toml"
    admin = '[roles.admin]\npermissions = ["*"]\ndefaults = ["*"]\n'
    publisher = '[roles.publisher]\npermissions = ["events.publish"]\nmay_connect = false\n'
    roles.write_text(admin + publisher)
    config.write_text(f'roles_file = "{roles}"\n[limits]\nmax_connections = 100\n')
    system = System(tmp_path / "data", shards=1)
    system.process = system.spawn("up", "--port", str(system.port), "--shards", "1", "--config", str(config))
    try:
        await asyncio.to_thread(system.wait_until, system._all_ready, "it is ready")
        pid = system.process.pid
        newcomer = sign("another secret that is long enough, really", "newcomer", "reader")
        assert await status_of(system, newcomer) == 401
        roles.write_text(admin + publisher + '[roles.reader]\npermissions = ["custom.read"]\n')
        secret = system.data_dir / "secret"
        secret.write_text(secret.read_text() + "another secret that is long enough, really\n")
        config.write_text(f'roles_file = "{roles}"\n[limits]\nmax_connections = 2\n')
        os.kill(pid, signal.SIGHUP)
        async with asyncio.timeout(ANSWER_SECONDS):
            while await status_of(system, newcomer) != 200:
                await asyncio.sleep(0.05)
        async with system.session(newcomer, CUSTOM), contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(ANSWER_SECONDS):
                for n in range(100):  # until the lease is of two
                    try:
                        await stack.enter_async_context(system.session(system.token(f"more{n}"), CUSTOM))
                    except (AssertionError, InvalidStatus):
                        break
                    await asyncio.sleep(0.05)
            assert n < 99
        async with system.session(newcomer, CUSTOM) as losing:
            roles.write_text(admin + publisher + '[roles.reader]\npermissions = ["dns.read"]\n')
            config.write_text(f'roles_file = "{roles}"\nlegacy = "off"\n[limits]\nmax_connections = 100\n')
            os.kill(pid, signal.SIGHUP)
            assert (await losing.closed())[0] == 1012  # and comes back, with what its role grants now
        waiting = f'"restart_needed": ["{config}: legacy"]'
        await asyncio.to_thread(  # each process has read the files, before they change again
            system.wait_until, lambda: system.output.read_text().count(waiting) == 4, "each names what waits"
        )
        roles.write_text("[roles.reader]\npermissions = 7\n")
        os.kill(pid, signal.SIGHUP)
        await asyncio.to_thread(
            system.wait_until, lambda: system.output.read_text().count("settings_reload_rejected") == 2, "both say so"
        )
        assert await status_of(system, newcomer) == 200
    finally:
        assert system.stop() == 0


async def status_of(system: System, token: str) -> int:
    async with system.http(token) as http:
        return (await http.post("/v1/connect")).status_code


async def test_a_second_up_on_a_live_directory_disturbs_nobody(tmp_path: Path) -> None:
    """With another port, six times: it is refused in one line before anything starts, and nobody is disconnected."""
    with running(tmp_path / "data", shards=2) as system:
        async with system.session(system.token(system.user_on(1)), CUSTOM) as session:
            for _ in range(6):
                done = await asyncio.to_thread(
                    run,
                    *("up", "--port", str(free_ports(4)), "--shards", "2", "--data-dir", str(system.data_dir)),
                    cwd=tmp_path,
                )
                assert done.returncode == 2
                lines = [line for line in done.stderr.splitlines() if "already uses the data directory" in line]
                assert len(lines) == 1
                assert str(system.process.pid if system.process else 0) in lines[0]
                assert (await session.ask("pong", type="ping"))["type"] == "pong"
        assert "superseded" not in system.output.read_text()


def test_ready_is_said_when_it_serves(tmp_path: Path) -> None:
    """A supervisor hears READY=1 of `up` when its gateway answers 200, and never of one that can't start."""
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(address))
        ear.settimeout(READY_SECONDS)
        failed = run("up", "--data-dir", str(tmp_path / "d"), cwd=tmp_path, settings={"SHARD__PORT": 9000})
        assert failed.returncode == 2
        system = System(tmp_path / "data", shards=1)
        system.environment["NOTIFY_SOCKET"] = str(address)
        system.process = system.spawn("up", "--port", str(system.port), "--shards", "1")
        try:
            while b"READY=1" not in ear.recv(4096).split(b"\n"):
                pass
            assert system._all_ready()
        finally:
            assert system.stop() == 0


# -------------------------------------------------------------------------------------------------------- drains


async def test_the_last_shard_is_not_drained_without_a_word(tmp_path: Path) -> None:
    """`solowire drain` refuses, with the way out; of two it drains one, and `undrain` gives that back."""
    with running(tmp_path / "data", shards=2, settings={"SHARD__REBALANCE_USERS_PER_S": 1}) as system:

        def command(*words: str) -> subprocess.CompletedProcess[str]:
            return run(*words, "--data-dir", str(system.data_dir), "--url", system.url, cwd=tmp_path)

        async with contextlib.AsyncExitStack() as stack:
            for n in range(20):  # at one a second it takes as long as this test may
                user = system.user_on(1, f"stays{n}-")
                await stack.enter_async_context(system.session(system.token(user), CUSTOM))
            async with system.http(system.token("root")) as http:
                assert (await http.post("/v1/shards/1/drain")).status_code == 202
                async with asyncio.timeout(ANSWER_SECONDS):
                    while not [r for r in (await http.get("/v1/stats/shards")).json() if r["draining"]]:
                        await asyncio.sleep(0.05)
                done = await asyncio.to_thread(command, "drain", "0")
                assert done.returncode == 2
                assert "last one that takes users" in done.stderr
                assert "--force" in done.stderr
                done = await asyncio.to_thread(command, "undrain", "1")
                assert (done.returncode, done.stderr) == (0, "")
                assert done.stdout.startswith("shard 1 stays, with ")
                async with asyncio.timeout(ANSWER_SECONDS):
                    while [r for r in (await http.get("/v1/stats/shards")).json() if r["draining"]]:
                        await asyncio.sleep(0.05)
                user = system.user_on(1, "comes")
                async with asyncio.timeout(ANSWER_SECONDS):
                    while (await system.negotiate(system.token(user)))["shard"] != 1:
                        await asyncio.sleep(0.05)
                async with system.session(system.token(user), CUSTOM) as session:
                    await system.publish({"type": "custom.x", "data": {}})
                    await session.events(1)
                assert (await http.post("/v1/shards/1/undrain")).json()["code"] == "not_draining"


async def test_the_last_shard_is_not_drained_by_the_api_without_force(tmp_path: Path) -> None:
    """409, which says how; with force it goes."""
    with running(tmp_path / "data", shards=1) as system:
        async with system.http(system.token("root")) as http:
            answer = await http.post("/v1/shards/0/drain")
            assert (answer.status_code, answer.json()["code"]) == (409, "last_shard")
            assert "force=true" in answer.json()["hint"]
            assert (await http.post("/v1/shards/0/drain?force=maybe")).status_code == 400
            assert (await http.post("/v1/shards/0/drain?force=false")).status_code == 409
            assert (await http.post("/v1/shards/0/drain?force=true")).status_code == 202
            system.wait_until(lambda: any('"process_drained"' in line for line in system.said()), "it has gone")


async def test_a_shard_that_is_killed_while_it_is_drained_stays_drained(tmp_path: Path) -> None:
    """The process that `up` starts in its place takes nobody, and ends; the next start is a new beginning."""
    with running(tmp_path / "data", shards=2, settings={"SHARD__REBALANCE_USERS_PER_S": 1}) as system:
        async with contextlib.AsyncExitStack() as stack, system.http(system.token("root")) as http:
            for n in range(20):
                user = system.user_on(1, f"stays{n}-")
                await stack.enter_async_context(system.session(system.token(user), CUSTOM))
            assert (await http.post("/v1/shards/1/drain")).status_code == 202
            os.kill(system.pid_of("shard", "--index", "1"), signal.SIGKILL)
            system.wait_until(lambda: any('"process_drained"' in line for line in system.said()), "it has gone")
            assert any('"drain_resumed"' in line for line in system.said())
            assert [row["shard"] for row in (await http.get("/v1/stats/shards")).json()] == [0]
        assert system.stop() == 0
        system.start()
        async with system.http(system.token("root")) as http:
            rows = (await http.get("/v1/stats/shards")).json()
            assert [(row["shard"], row["draining"]) for row in rows] == [(0, False), (1, False)]
