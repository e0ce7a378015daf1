"""How the BIND agent begins: what it says to whoever starts it, and the directory that it shares with the system."""

from __future__ import annotations

import contextlib
import socket
import stat
from pathlib import Path

import pytest

from tests.support.system import READY_SECONDS, System, end, environment, run


@pytest.fixture
def ear(tmp_path: Path) -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    found.bind(str(tmp_path / "notify"))
    found.settimeout(READY_SECONDS)
    return found


def test_ready_is_said_when_it_reads(tmp_path: Path, ear: socket.socket) -> None:
    """Of an agent that can't read its log, or has no place for its state, nobody hears READY=1; of another one, yes."""
    token = ("--token", "x", "--data-dir", str(tmp_path / "data"))
    settings = environment({})
    settings["NOTIFY_SOCKET"] = str(tmp_path / "notify")
    system = System(tmp_path / "data")
    system.environment = settings
    with ear:
        (tmp_path / "taken").write_text("")
        for wrong in (("--query-log", str(tmp_path)), ("--query-log", "q.log", "--state-dir", str(tmp_path / "taken"))):
            failed = system.spawn("source", "bind9", *wrong, *token[:2])
            assert failed.wait(READY_SECONDS) == 2
        ear.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                assert b"READY=1" not in ear.recv(4096).split(b"\n")
        ear.settimeout(READY_SECONDS)
        agent = system.spawn("source", "bind9", "--query-log", "q.log", *token[:2])
        try:
            while b"READY=1" not in ear.recv(4096).split(b"\n"):
                pass
        finally:
            assert end(agent) == 0


def test_a_data_directory_that_the_agent_has_made(tmp_path: Path) -> None:
    """It is closed to others from its first moment, and the system starts in it; also in one that was left open."""
    (tmp_path / "log").mkdir()
    settings = {"DATA_DIR": tmp_path / "data"}
    failed = run(
        "source", "bind9", "--query-log", str(tmp_path / "log"), "--token", "x", cwd=tmp_path, settings=settings
    )
    assert failed.returncode == 2
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    (tmp_path / "data").chmod(0o755)
    system = System(tmp_path / "data", shards=1)
    system.start()
    assert system.stop() == 0
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
