"""Signals that come while a process is only starting: none is lost, none kills it where it should go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
