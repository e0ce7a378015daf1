"""A data directory on a disk that is full when a process starts: one line that says so, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.requirements import reject_machine
from tests.support.system import System, free_ports, run

SECRET = "a secret that is long enough, really"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        reject_machine("needs the right to mount a small disk")
    try:
        file = os.open(folder / "fill", os.O_WRONLY | os.O_CREAT)
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(file, b"x" * size)
        os.close(file)
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    ("command", "secret"),
    [("up --shards 1", ""), ("up --shards 1", SECRET), ("router", SECRET)],
    ids=["up, no secret", "up", "router"],
)
def test_a_process_that_starts_on_a_full_disk(command: str, secret: str, full_disk: Path, tmp_path: Path) -> None:
    """It ends with status 2 and names the directory; its next start, on a disk with room, is like any other."""
    data = full_disk / "data"
    settings = {"PORT": free_ports(5), **({"SECRET": secret} if secret else {})}
    done = run(*command.split(), "--data-dir", str(data), cwd=tmp_path, settings=settings)
    lines = [line for line in done.stderr.splitlines() if line.startswith("solowire: ")]
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert len(lines) == 1
    assert str(data) in lines[0]
    assert "No space left on device" in done.stderr or "disk is full" in done.stderr
    assert [path for path in data.iterdir() if path.name.startswith(".")] == []
    (full_disk / "fill").unlink()
    system = System(data, shards=1)
    system.start()
    assert system.stop() == 0
