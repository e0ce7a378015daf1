"""Signals that come while a process is only starting: none is lost, none kills it where it should go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.namespaces import FirstProcess
from tests.support.requirements import NEEDS_ROOT, needs
from tests.support.system import READY_SECONDS, System, end, environment, free_ports

WHILE_IT_LOADS = """
import os, runpy, signal, sys

class Signals:
    def find_spec(self, name, *_):
        if name == "solowire.cli.main":
            os.kill(os.getpid(), {number})

sys.meta_path.insert(0, Signals())
sys.argv = ["solowire", *sys.argv[1:]]
runpy.run_module("solowire", run_name="__main__")
"""
"""The command, which gets a signal at the very moment when it begins to load its modules."""


SERVICES = ["router", "shard --index 0", "gateway", "up --shards 1", "source host"]
BEGUN = {
    "router": "router_ready",
    "shard": "shard_listening",
    "gateway": "gateway_listening",
    "up": "Solowire is ready",
    "source": "events not accepted yet",
}
"""What a service writes when its start is done; a source here, when it has found no gateway."""
MOMENTS = 4
TRIES = 3
END_SECONDS = 1.0


def spawn(number: int, tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            WHILE_IT_LOADS.format(number=int(number)),
            *arguments,
            "--data-dir",
            str(tmp_path / "d"),
        ],
        env=environment({"PORT": free_ports(1), "ROUTER__METRICS_PORT": 0}),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_interrupt_while_it_loads(tmp_path: Path) -> None:
    """Ctrl-C ends it as the shell expects, without a traceback."""
    process = spawn(signal.SIGINT, tmp_path, "config")
    assert process.communicate(timeout=READY_SECONDS)[1] == ""
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("command", ["router", "gateway"])
def test_a_reload_while_it_loads(command: str, tmp_path: Path) -> None:
    """A service goes on: what it would read again it has not even read yet."""
    (tmp_path / "d").mkdir(mode=0o700)
    (tmp_path / "d" / "secret").write_text("a secret that is long enough, really")
    (tmp_path / "d" / "secret").chmod(0o600)
    process = spawn(signal.SIGHUP, tmp_path, command)
    assert process.stderr is not None
    try:
        assert '"event": "' in process.stderr.readline()
    finally:
        assert end(process) == 0
        process.stderr.close()


def test_reloads_while_the_system_starts(tmp_path: Path) -> None:
    """`up` passes them on when its processes can take them: none is killed by one, and each has read again."""
    system = System(tmp_path / "data", shards=1)
    system.process = system.spawn("up", "--port", str(system.port), "--shards", "1")
    children = Path(f"/proc/{system.process.pid}/task/{system.process.pid}/children")
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not (children.read_text() and system._all_ready()):
            if children.read_text():
                os.kill(system.process.pid, signal.SIGHUP)
            assert time.monotonic() < deadline
            time.sleep(0.03)
        system.wait_until(lambda: reloaded(system) == {"up", "router", "shard", "gateway"}, "all have read again")
        assert "process_exited" not in system.output.read_text()
    finally:
        assert system.stop() == 0


def reloaded(system: System) -> set[str]:
    lines = [line for line in system.said() if '"settings_reloaded"' in line]
    return {role for role in ("up", "router", "shard", "gateway") if any(f'"role": "{role}"' in line for line in lines)}


@NEEDS_ROOT
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_first_process_ends_while_it_loads(number: signal.Signals, tmp_path: Path) -> None:
    """The kernel keeps from process 1 what it does not handle: it handles what ends it before it loads anything."""
    command = [sys.executable, "-c", WHILE_IT_LOADS.format(number=int(number)), "router", "--data-dir", "d"]
    process = FirstProcess(command, {}, tmp_path / "log")
    assert process.wait() == 128 + number, (tmp_path / "log").read_text()


@NEEDS_ROOT
@needs("tini")
@pytest.mark.parametrize("service", SERVICES)
def test_it_ends_at_any_moment(service: str, tmp_path: Path) -> None:
    """Below the image's init, within a second, however little of its start is done.

    A machine that is busy may be late now and then: who is late three times at the same moment has lost the signal, or
    waits for something.
    """
    whole_s = start(service, tmp_path / "whole")
    for moment in range(MOMENTS):
        after_s = whole_s * moment / (MOMENTS - 1)
        tries: list[float] = []
        while len(tries) < TRIES and min(tries, default=END_SECONDS + 1) > END_SECONDS:
            tries.append(start(service, tmp_path / f"{moment}-{len(tries)}", after_s))
        assert min(tries) <= END_SECONDS, (after_s, tries)


def start(service: str, data_dir: Path, end_after_s: float | None = None) -> float:
    """Starts a service. How long it took to begin; or, if it is told to end after so long, how long it took to end."""
    port = free_ports(2)
    settings = {"PORT": port, "ROUTER__METRICS_PORT": 0, "DATA_DIR": data_dir, "URL": f"http://127.0.0.1:{port}"}
    settings["SECRET"] = "a secret that is long enough, really"
    log = data_dir.with_suffix(".log")
    begun_at = time.monotonic()
    process = FirstProcess(["tini", "--", sys.executable, "-m", "solowire", *service.split()], settings, log)
    try:
        if end_after_s is not None:
            time.sleep(end_after_s)
        else:
            while BEGUN[service.split()[0]] not in log.read_text():
                assert time.monotonic() < begun_at + READY_SECONDS, log.read_text()
                time.sleep(0.01)
    finally:
        told_at = time.monotonic()
        process.end()
    return time.monotonic() - told_at if end_after_s is not None else told_at - begun_at
