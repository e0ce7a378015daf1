"""A lock on a data directory, held for as long as the process lives, by the kernel."""

from __future__ import annotations

import fcntl
import os
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

from solowire.errors import ConfigError
from solowire.runtime.settings import Settings


class DirectoryLock(AbstractContextManager[None]):
    """A context manager. path: the lock's file, in the data directory. holder: what holds it, in words."""

    def __init__(self, path: Path, holder: str) -> None:
        self._path = path
        self._holder = holder

    def __enter__(self) -> None:
        """Raises ConfigError if another process has it."""
        self._file = self._path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            process = self._file.read().strip() or "unknown"
            self._file.close()
            raise ConfigError(
                f"{self._holder} (process {process}) already uses the data directory {self._path.parent}; "
                "stop it, or choose another with --data-dir"
            ) from None
        with suppress(OSError):  # a full disk: then nobody can say who has it
            os.ftruncate(self._file.fileno(), 0)
            os.write(self._file.fileno(), f"{os.getpid()}\n".encode())

    def __exit__(self, *_: object) -> None:
        self._file.close()


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
