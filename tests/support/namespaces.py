"""Linux namespaces for tests: a process as number 1, as in a container, and a file system that can't be written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.support.system import READY_SECONDS, environment

OUTSIDER = 10001
"""The user and group of a container of ours (Containerfile)."""

_WITH_PYTHON = """
set -e
place=$1 base=$2; shift 2
mount --bind "$base" "$place/python"
export LD_LIBRARY_PATH="$place/python/lib" # where a shared libpython is, if it has one
"""
_READ_ONLY = """
mount --bind "$place/data" "$place/data"
for path in "$place/python" /; do mount -o remount,bind,ro "$path"; done
"""


def with_python(place: Path, *command: str | Path) -> list[str]:
    """`command` with our Python at `place`/python, where everybody can use it: it may lie in its owner's home."""
    return [*_run_script(_WITH_PYTHON, place), *map(str, command)]


def as_container(place: Path, *command: str | Path) -> list[str]:
    """`command` as a container of ours runs: below tini, no root, no rights, everything read-only but `place`/data.

    It needs a mount namespace of its own.
    """
    user = ["setpriv", f"--reuid={OUTSIDER}", f"--regid={OUTSIDER}", "--clear-groups"]
    rights = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    script = _run_script(_WITH_PYTHON + _READ_ONLY, place)
    return [*script, *user, *rights, "tini", "--", *map(str, command)]


def _run_script(script: str, place: Path) -> list[str]:
    return ["sh", "-c", script + 'exec "$@"', "sh", str(place), sys.base_prefix]


class FirstProcess:
    """A command as process 1 of a pid and a mount namespace of its own. pid: its number out here.

    more: other namespaces that it gets, as options of unshare(1). Where it is tini, or becomes it, it is ready for
    signals when this returns: what process 1 does not handle yet the kernel drops.
    """

    def __init__(
        self,
        command: list[str],
        settings: Mapping[str, object],
        log: Path,
        *,
        cwd: Path = Path("/"),
        more: Sequence[str] = (),
    ) -> None:
        with log.open("a") as output:
            self._outside = subprocess.Popen(
                ["unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc", *more, "--", *command],
                env=environment(settings),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._wait_for_child(self._outside.pid)
        if "tini" in command:
            self._wait_for_child(self.pid)

    def end(self, number: int = signal.SIGTERM, seconds: float = READY_SECONDS) -> int:
        """Signals it and waits for it; its exit status."""
        if self._outside.poll() is None:
            os.kill(self.pid, number)  # no other can have its number: it is waited for by `unshare` alone
        return self.wait(seconds)

    def wait(self, seconds: float = READY_SECONDS) -> int:
        """Waits for its end; its exit status. What does not end in time is killed."""
        try:
            return self._outside.wait(seconds)
        except subprocess.TimeoutExpired:
            self._outside.kill()
            self._outside.wait()
            raise AssertionError(f"process {self.pid} did not end within {seconds} s") from None

    def _wait_for_child(self, pid: int) -> int:
        """The first child of a process, as soon as it has one."""
        children = Path(f"/proc/{pid}/task/{pid}/children")
        deadline = time.monotonic() + READY_SECONDS
        while self._outside.poll() is None and time.monotonic() < deadline:
            with suppress(OSError):
                if found := children.read_text().split():
                    return int(found[0])
            time.sleep(0.001)
        raise AssertionError(f"it does not start: {self._outside.poll()}")
