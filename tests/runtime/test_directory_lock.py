"""A lock on a data directory keeps others away for as long as its holder runs, whatever becomes of its file."""

from __future__ import annotations

import fcntl
import os
import platform
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from solowire.errors import ConfigError
from solowire.runtime.directory_lock import DirectoryLock


def remove_file(lock: Path) -> None:
    lock.unlink()


def replace_file(lock: Path) -> None:
    (lock.parent / "other").touch()
    (lock.parent / "other").rename(lock)


def move_directory(lock: Path) -> None:
    lock.parent.rename(lock.parent.with_name("moved"))


def is_refused(path: Path) -> bool:
    try:
        with DirectoryLock(path, "a router"):
            return False
    except ConfigError:
        return True


def test_a_holder_on_another_host_is_named_with_its_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a volume that several hosts have its number alone would name nobody."""
    path = tmp_path / "router.lock"
    with DirectoryLock(path, "a router"):
        with pytest.raises(ConfigError, match=rf"^a router \(process {os.getpid()}\) already"):
            DirectoryLock(path, "a router").__enter__()
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        with pytest.raises(ConfigError, match=rf"^a router \(process {os.getpid()} on {platform.node()}\) already"):
            DirectoryLock(path, "a router").__enter__()


@pytest.mark.parametrize("disturb", [remove_file, replace_file, move_directory])
def test_a_lock_whose_name_is_gone_is_taken_again(disturb: Callable[[Path], None], tmp_path: Path) -> None:
    """From then on a second process is refused as before; at a directory that was moved away, too."""
    path = tmp_path / "data" / "router.lock"
    path.parent.mkdir(mode=0o700)
    lock = DirectoryLock(path, "a router")
    with lock:
        assert lock.is_in_place()
        disturb(path)
        assert not lock.is_in_place()
        assert lock.restore()
        assert lock.is_in_place()
        assert is_refused(path)
        moved = tmp_path / "moved" / "router.lock"
        assert not moved.exists() or is_refused(moved)
        assert path.parent.stat().st_mode & 0o077 == 0
    assert not is_refused(path)


def test_a_lock_that_another_process_has_taken_ends_its_first_holder(tmp_path: Path) -> None:
    """Not at once: one that only looks whether it is free has it for a moment."""
    path = tmp_path / "router.lock"
    lock = DirectoryLock(path, "a router")
    with lock:
        path.unlink()
        with path.open("w") as other:
            other.write("4711\n")
            other.flush()
            fcntl.flock(other, fcntl.LOCK_EX)
            assert not lock.restore()
        assert lock.restore()
        path.unlink()
        with path.open("w") as other:
            other.write("4711\n")
            other.flush()
            fcntl.flock(other, fcntl.LOCK_EX)
            assert not lock.restore()
            with pytest.raises(ConfigError, match="process 4711 has it now: this one ends"):
                lock.restore()
