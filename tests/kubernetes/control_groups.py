"""Control groups for everything that a cluster runs: below the caller's own, removed in the end.

Version 1 alone, which containerd 1.6 of Debian 12 and its runc handle together.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_NAME = "solowire-tests"
CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd")
"""The hierarchies; the last has no controller, and is the kubelet's and runc's all the same."""
REMOVE_SECONDS = 30.0


class ControlGroups:
    """Within the block the caller is in them, and what it starts. Behind it they are removed: all must have ended."""

    def __init__(self) -> None:
        self._homes = _find_own()

    def __enter__(self) -> None:
        for home in self._homes:
            make_group(home / _NAME)
            _join(home / _NAME)

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + REMOVE_SECONDS
        for home in self._homes:
            _join(home)
            while (home / _NAME).exists():
                try:
                    _remove(home / _NAME)
                except OSError:  # a process of it is ending still
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)


def make_group(path: Path) -> None:
    """Makes a group with the processors and memory of the one above: a new one has none, and takes no process."""
    path.mkdir(exist_ok=True)
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (path / name).exists():
            (path / name).write_text((path.parent / name).read_text())


def _find_own() -> list[Path]:
    """This process's own group of each controller. Raises RuntimeError where there are none of version 1."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    places = {name.removeprefix("name="): place.lstrip("/") for _, name, place in lines}
    homes = [_ROOT / name / places[name] for name in CONTROLLERS if name in places]
    if len(homes) != len(CONTROLLERS) or not all(home.is_dir() for home in homes):
        raise RuntimeError("this machine has no control groups of version 1, which containerd 1.6 needs")
    return homes


def _join(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _remove(group: Path) -> None:
    for child in group.iterdir():
        if child.is_dir():
            _remove(child)
    group.rmdir()
