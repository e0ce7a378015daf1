"""A lock on a data directory, held for as long as the process lives, by the kernel.

Who removes the lock's file under its holder, or moves the directory away, lets nobody in for longer than a moment: the
holder takes the lock of the name again, and ends if another process was quicker.
"""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TextIO

from solowire.errors import ConfigError
from solowire.runtime.data_directory import make_private
from solowire.runtime.owned_files import OWNED
from solowire.runtime.settings import Settings

MOST_MISSES = 2
"""So many checks in a row have to find another holder: one that only looks whether the lock is free has it, too."""


class DirectoryLock(AbstractContextManager[None]):
    """A context manager. path: the lock's file, in the data directory. holder: what holds it, in words."""

    def __init__(self, path: Path, holder: str) -> None:
        self._path = path
        self._holder = holder
        self._files: list[TextIO] = []  # the newest last
        self._miss_count = 0

    def __enter__(self) -> None:
        """Raises ConfigError if another process has it."""
        process = self._take()
        if process:
            raise ConfigError(
                f"{self._holder} (process {process}) already uses the data directory {self._path.parent}; "
                "stop it, or choose another with --data-dir"
            )
        self._release = OWNED.own(self._path, self.restore, self.is_in_place)

    def __exit__(self, *_: object) -> None:
        self._release()
        for file in self._files:
            file.close()

    def is_in_place(self) -> bool:
        """Whether the file that is locked is the one under the name: else nobody is kept away."""
        held = os.fstat(self._files[-1].fileno())
        try:
            named = os.stat(self._path)
        except OSError:
            return False
        return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)

    def restore(self) -> bool:
        """Takes the lock of the name again. Raises ConfigError if another process has it, OSError."""
        make_private(self._path.parent)
        process = self._take()
        self._miss_count = self._miss_count + 1 if process else 0
        if self._miss_count >= MOST_MISSES:
            raise ConfigError(
                f"the lock {self._path} was removed under this process, and process {process} has it now: this one "
                "ends, since both would use the same data; leave the locks alone while a system runs"
            )
        return not process

    def _take(self) -> str:
        """Locks the file under the name; which process has it if another one does, else nothing. Raises OSError."""
        file = self._path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            process, _, host = file.read().strip().partition("\n")
            file.close()
            return f"{process} on {host}" if host not in ("", socket.gethostname()) else process or "unknown"
        with suppress(OSError):  # a full disk: then nobody can say who has it
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"{os.getpid()}\n{socket.gethostname()}\n".encode())
        # One that was moved away with its directory goes on to keep others from there.
        for old in [old for old in self._files if os.fstat(old.fileno()).st_nlink == 0]:
            old.close()
            self._files.remove(old)
        self._files.append(file)
        return ""


def router_lock(settings: Settings) -> DirectoryLock:
    """The router's: two routers on one log would give out offsets twice."""
    return DirectoryLock(settings.need_data_dir() / "router.lock", "a router")


def shard_lock(settings: Settings, index: int) -> AbstractContextManager[None]:
    """A shard's, where its HTTP API is a socket in the data directory: a second one would take it, and its users.

    Shards with data directories of their own are the router's to tell apart: the later one is the shard.
    """
    if not isinstance(settings.find_shard_api(index), Path):
        return nullcontext()
    return DirectoryLock(settings.need_data_dir() / f"shard-{index}.lock", f"shard {index}")


def supervisor_lock(settings: Settings) -> DirectoryLock:
    """That of `up`: the shards of a second one would take the places of the first one's."""
    return DirectoryLock(settings.need_data_dir() / "up.lock", "a system started by `up`")
