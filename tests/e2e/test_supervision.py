"""`solowire up` as a supervisor: children killed, stuck, failing for good and drained, and `up` itself ended or killed.

Every process that is signalled here was started by the test, and is named by its id.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from solowire.cli.notify_socket import NotifySocket
from solowire.cli.supervisor import READY_SECONDS, Watchdog
from tests.support.system import System, alive, end, free_ports, ready, run, running

ROUTER, GATEWAY = ("router",), ("gateway",)
SHARD_0, SHARD_1 = ("shard", "--index", "0"), ("shard", "--index", "1")
CHILDREN = (ROUTER, SHARD_0, SHARD_1, GATEWAY)
STUCK_SECONDS = 4.0
LATE_SECONDS = 60.0


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """For tests that leave the system whole; its children count as stuck soon."""
    with running(
        tmp_path_factory.mktemp("up") / "data", settings={"PROCESS__WATCHDOG_TIMEOUT_S": STUCK_SECONDS}
    ) as started:
        yield started


@contextmanager
def short_lived(tmp_path: Path, **settings: object) -> Iterator[System]:
    """A system that the test ends by itself; whatever it leaves is killed."""
    system = System(tmp_path / "data", settings=settings)
    children: list[int] = []  # descriptors: an id may be another process's by then
    try:
        system.start()
        children = [os.pidfd_open(pid) for pid in children_of(system)]
        assert len(children) == len(CHILDREN)
        yield system
    finally:
        if system.process is not None and system.process.poll() is None:
            end(system.process, signal.SIGKILL)
        for child in children:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(child, signal.SIGKILL)
            os.close(child)


def children_of(system: System) -> list[int]:
    assert system.process is not None
    return [
        int(pid) for pid in Path(f"/proc/{system.process.pid}/task/{system.process.pid}/children").read_text().split()
    ]


def until(condition: Callable[[], bool], what: str, seconds: float = LATE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def took(listener: socket.socket, port: int) -> bool:
    """Whether the port could be had; a killed process holds it until the last of its threads is gone."""
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        return False
    listener.listen()
    return True


def replaced(system: System, command: tuple[str, ...], old: int) -> bool:
    with suppress(ValueError, OSError):  # none of them is there just now
        return system.pid_of(*command) != old
    return False


def whole_again(system: System, command: tuple[str, ...], old: int) -> None:
    system.wait_until(lambda: not alive(old), f"{command} {old} is gone")
    system.wait_until(lambda: replaced(system, command, old), f"{command} runs again")
    system.wait_until(system._all_ready, "all are ready again")


def lines(system: System, *words: str) -> list[str]:
    """Of the log, those that hold all of the words."""
    return [line for line in system.said() if all(word in line for word in words)]


async def serves(system: System, users: Sequence[str] = ()) -> None:
    """Clients come back, to each shard if not told which, and get what is published; tried until it is so."""
    async with asyncio.timeout(LATE_SECONDS):
        for user in users or (system.user_on(0), system.user_on(1)):
            while not await _serves(system, user):
                await asyncio.sleep(0.05)


async def _serves(system: System, user: str) -> bool:
    with suppress(httpx.TransportError, AssertionError, InvalidStatus, ConnectionClosed, OSError):
        async with system.session(system.token(user), {"subscriptions": ["custom.*"]}) as session:
            offset = (await system.publish({"type": "custom.test", "data": {}}))["last_offset"]
            while offset not in [event["offset"] for event in await session.events(1)]:
                pass
            return True
    return False


# ------------------------------------------------------------------------------------------- a child that died


@pytest.mark.parametrize("command", [ROUTER, SHARD_1, GATEWAY], ids=lambda c: c[0])
async def test_a_killed_child_is_replaced(up: System, command: tuple[str, ...]) -> None:
    """After SIGKILL of any kind of child a new process serves, and clients come back to it."""
    old = up.pid_of(*command)
    others = {other: up.pid_of(*other) for other in CHILDREN if other != command}
    os.kill(old, signal.SIGKILL)
    whole_again(up, command, old)
    await serves(up)
    assert {other: up.pid_of(*other) for other in others} == others


async def test_all_children_killed_at_once_are_replaced(up: System) -> None:
    """Each child is watched by itself: no end goes unnoticed while another child's pause lasts."""
    old = {command: up.pid_of(*command) for command in CHILDREN}
    for pid in old.values():
        os.kill(pid, signal.SIGKILL)
    for command, pid in old.items():
        whole_again(up, command, pid)
    await serves(up)


def test_a_child_that_keeps_dying_ends_everything_loudly(tmp_path: Path) -> None:
    """What can't run again is tried a few times; then `up` says so, ends the others and itself with status 1."""
    with short_lived(tmp_path) as system:
        pids = children_of(system)
        lock = system.data_dir / "router.lock"
        lock.rename(lock.with_name("aside"))
        lock.mkdir()  # the running router holds its file; the next one can't open it
        os.kill(system.pid_of("router"), signal.SIGKILL)
        assert system.process is not None
        assert system.process.wait(LATE_SECONDS) == 1
        said = "\n".join(system.said())
        assert len(lines(system, "restart_limit_reached", "critical", "router")) == 1, said
        assert len(lines(system, "process_exited", "router")) == 5, said
        assert not any(map(alive, pids))


def test_a_port_taken_meanwhile_is_tried_again(up: System) -> None:
    """A restart that finds its port taken (exit status 2) is no wrong setting: it ran there before, and does again."""
    assert up.process is not None
    old = up.pid_of(*SHARD_0)
    with socket.socket() as other:
        os.kill(up.process.pid, signal.SIGSTOP)  # so that the port is ours before it is started again
        try:
            os.kill(old, signal.SIGKILL)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            until(lambda: took(other, up.port + 1), "the shard has let go of its port")
        finally:
            os.kill(up.process.pid, signal.SIGCONT)
        up.wait_until(
            lambda: bool(lines(up, "process_exited", "shard 0", '"status": 2')), "it has found the port taken"
        )
    whole_again(up, SHARD_0, old)


# ------------------------------------------------------------------------------------------- a child that is stuck


async def test_a_stopped_shard_is_killed_and_replaced(up: System) -> None:
    """A shard that stands still is found by its silence, killed and started again."""
    old = up.pid_of(*SHARD_1)
    os.kill(old, signal.SIGSTOP)
    whole_again(up, SHARD_1, old)
    assert lines(up, "process_unresponsive", "shard 1")
    assert not lines(up, "process_unresponsive", "shard 0")
    await serves(up)


async def test_a_pause_of_up_is_not_held_against_its_children(up: System) -> None:
    """After `up` itself stood still for longer, only that child is killed that goes on being silent."""
    assert up.process is not None
    before = {command: up.pid_of(*command) for command in CHILDREN}
    os.kill(up.process.pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(1.5 * STUCK_SECONDS)  # the pause is the point
    finally:
        os.kill(up.process.pid, signal.SIGCONT)
    os.kill(before[ROUTER], signal.SIGSTOP)
    whole_again(up, ROUTER, before[ROUTER])
    assert {command: up.pid_of(*command) for command in CHILDREN[1:]} == {c: before[c] for c in CHILDREN[1:]}
    await serves(up)


def test_silence_is_judged_by_time() -> None:
    """Heard of: `stuck_s`. Not heard of yet: READY_SECONDS. Named once only; a pause between two looks is added."""
    dog = Watchdog(10.0)
    dog.start_timer("slow", 0.0)
    dog.start_timer("quick", 0.0)
    dog.reset_timer("quick", 1.0)
    dog.reset_timer("nobody", 1.0)
    for now in range(0, 12, 4):
        assert dog.find_stuck(float(now)) == []
    assert dog.find_stuck(11.5) == ["quick"]
    assert dog.find_stuck(12.0) == []
    dog.reset_timer("quick", 12.0)  # it was named: what comes now was said before it was killed
    assert dog.find_stuck(12.5) == []

    assert dog.find_stuck(12.5 + 100) == []  # a pause of 100 s
    for now in range(113, 100 + int(READY_SECONDS) + 1, 3):
        assert dog.find_stuck(float(now)) == []
    assert dog.find_stuck(100 + READY_SECONDS + 1) == ["slow"]
    dog.start_timer("slow", 170.0)
    dog.drop_timer("slow")
    assert dog.find_stuck(171.0 + READY_SECONDS) == []


# ------------------------------------------------------------------------------------------- as systemd watches


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_any_process_gives_signs_of_life_to_systemd(tmp_path: Path, abstract: bool) -> None:
    """Outside of `up`, what NOTIFY_SOCKET names hears READY=1, WATCHDOG=1 again and again, and STOPPING=1."""
    name = f"@solowire-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name.replace("@", "\0"))
        systemd.settimeout(LATE_SECONDS)
        system = System(tmp_path / "data")
        system.environment |= {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1500000", "SOLOWIRE_PORT": str(system.port)}
        process = system.spawn("router")
        try:
            while (heard := systemd.recv(100)) != b"READY=1":
                assert heard == b"WATCHDOG=1"  # it lives while it opens its journal
            for _ in range(7):
                assert systemd.recv(100) == b"WATCHDOG=1"
            os.kill(process.pid, signal.SIGTERM)
            while systemd.recv(100) != b"STOPPING=1":
                pass
            assert process.wait(LATE_SECONDS) == 0
        finally:
            if process.poll() is None:
                end(process, signal.SIGKILL)


SLOW_JOURNAL = """
import sys, time

if "router" in sys.orig_argv:
    from solowire.router import server
    server.OPENING_SECONDS = 0.5
    open_at_once = server.open_journal
    def open_slowly(*given):
        time.sleep({opening_s})
        return open_at_once(*given)
    server.open_journal = open_slowly
elif "up" in sys.orig_argv:
    from solowire.cli import supervisor
    supervisor.READY_SECONDS = {patience_s}
"""


def test_a_journal_that_takes_longer_to_open_than_a_start_may_take_is_waited_for(tmp_path: Path) -> None:
    """By `up`, and by systemd, which is asked for more time: else both would begin it anew, again and again."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_JOURNAL.format(opening_s=12, patience_s=8))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(LATE_SECONDS)
        system = System(tmp_path / "data", shards=1)
        system.environment |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "PYTHONPATH": str(tmp_path)}
        process = system.spawn("up", "--port", str(system.port), "--shards", "1")
        try:
            heard = [systemd.recv(100)]
            while heard[-1] != b"READY=1":
                heard.append(systemd.recv(100))
            assert b"EXTEND_TIMEOUT_USEC=60000000" in heard
        finally:
            assert end(process) == 0


def test_an_ear_hears_its_child_alone(tmp_path: Path) -> None:
    """Signs of life are counted once; anything else that is sent is no sign of life. Its file goes with it."""
    ear = NotifySocket(tmp_path / "ear")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as child:
        child.connect(str(ear.path))
        assert not ear.has_notified()
        for junk in (b"", b"STATUS=WATCHDOG=1", b"\xff" * 5000, b"STOPPING=1"):
            child.send(junk)
        assert not ear.has_notified()
        child.send(b"WATCHDOG=1")
        child.send(b"STATUS=fine\nREADY=1")
        assert ear.has_notified()
        assert not ear.has_notified()
    ear.close()
    assert not ear.path.exists()


def test_a_path_too_long_for_the_sockets_of_up_is_one_line(tmp_path: Path) -> None:
    """Where the router's socket just fits and those of `up` don't, that is said, and nothing is started."""
    data = tmp_path / ("x" * (107 - len(f"{tmp_path}//run/router")))
    port = free_ports(3)
    done = run("up", "--data-dir", str(data), cwd=tmp_path, settings={"PORT": port, "SHARDS": 2})
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "too long for a unix socket" in line
    assert "--data-dir" in line


# ------------------------------------------------------------------------------------------- a shard that was drained


async def test_a_drained_shard_is_not_started_again(tmp_path: Path) -> None:
    """An administrator has drained it; a gateway that ends with status 0 is started again."""
    with short_lived(tmp_path) as system:
        shard, gateway = system.pid_of(*SHARD_1), system.pid_of(*GATEWAY)
        async with system.http(system.token("root")) as http:
            assert (await http.post("/v1/shards/1/drain")).status_code == 202
        system.wait_until(lambda: bool(lines(system, "process_drained", "shard 1")), "it was drained")
        assert not alive(shard)
        os.kill(gateway, signal.SIGTERM)
        system.wait_until(lambda: replaced(system, GATEWAY, gateway), "the gateway runs again")
        await serves(system, [system.user_on(1)])  # on the shard that is left
        assert len(children_of(system)) == len(CHILDREN) - 1
        assert len(lines(system, "process_drained")) == 1
        assert not lines(system, "process_exited", "shard")
        assert end(system.process) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_shard_that_somebody_else_ends_is_started_again(number: signal.Signals, tmp_path: Path) -> None:
    """It sends its users away and ends with status 0, as a drained one does; but nobody has drained it."""
    with short_lived(tmp_path) as system:
        pid = system.pid_of(*SHARD_0)
        os.kill(pid, number)
        until(lambda: bool(lines(system, "process_exited", "shard 0")), "it has ended")
        system.wait_until(lambda: ready(f"http://127.0.0.1:{system.port + 1}"), "it is back")
        assert system.pid_of(*SHARD_0) != pid
        assert not lines(system, "process_drained")


# ------------------------------------------------------------------------------------------- the end of up


def test_an_interrupt_ends_everything_in_order(tmp_path: Path) -> None:
    """Ctrl-C: status 0, no process and no socket left, nobody killed; what a killed `up` left is cleared away."""
    (tmp_path / "data" / "run").mkdir(parents=True)
    left = tmp_path / "data" / "run" / "up-1-router"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(left))
    with short_lived(tmp_path) as system:
        pids = children_of(system)
        assert not left.exists()
        assert len(list(left.parent.glob("up-*"))) == len(CHILDREN)
        assert system.process is not None
        assert end(system.process, signal.SIGINT) == 0
        assert not any(map(alive, pids))
        assert list(left.parent.glob("up-*")) == []
        assert not lines(system, "error")


def test_a_second_signal_ends_everything_at_once(tmp_path: Path) -> None:
    """While the first one waits for a shard that doesn't end, the second kills what is left, and `up` says by which."""
    with short_lived(tmp_path, PROCESS__SHUTDOWN_TIMEOUT_S=600) as system:
        pids = children_of(system)
        gateway = system.pid_of(*GATEWAY)
        os.kill(system.pid_of(*SHARD_0), signal.SIGSTOP)
        assert system.process is not None
        os.kill(system.process.pid, signal.SIGTERM)
        until(lambda: not alive(gateway), "the gateway, the first in order, has ended")
        assert end(system.process, signal.SIGTERM) == 128 + signal.SIGTERM  # long before the grace period is over
        until(lambda: not any(map(alive, pids)), "no process is left")


def test_a_child_that_does_not_end_in_time_is_killed(tmp_path: Path) -> None:
    """The grace period bounds the whole end; who had to be killed is said."""
    with short_lived(tmp_path, PROCESS__SHUTDOWN_TIMEOUT_S=4) as system:
        pids = children_of(system)
        os.kill(system.pid_of(*SHARD_0), signal.SIGSTOP)
        assert end(system.process) == 0  # type: ignore[arg-type]
        assert lines(system, '"process_killed"', "shard 0")
        assert not any(map(alive, pids))


def test_a_killed_up_leaves_nothing_not_even_what_is_stopped(tmp_path: Path) -> None:
    """SIGKILL of `up` ends its children too, of which a stopped one could do nothing for it."""
    with short_lived(tmp_path) as system:
        pids = children_of(system)
        for command in (ROUTER, SHARD_0):
            os.kill(system.pid_of(*command), signal.SIGSTOP)
        assert system.process is not None
        end(system.process, signal.SIGKILL)
        until(lambda: not any(map(alive, pids)), "no process is left")


def test_a_child_whose_up_is_gone_does_not_start(tmp_path: Path) -> None:
    """Between its start and its wish to die with `up`, a child might have lost it: it looks, and ends."""
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    system = System(tmp_path / "data")
    system.environment |= {"_SOLOWIRE_PARENT": str(gone.pid), "SOLOWIRE_PORT": str(system.port)}
    system.environment["SOLOWIRE_SECRET"] = "a secret that is long enough, really"
    orphan = system.spawn("gateway")
    assert orphan.wait(LATE_SECONDS) == 2
    assert "supervisor" in system.output.read_text()
