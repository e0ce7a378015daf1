"""The names that a running process has in the data directory: its locks and its sockets.

What it keeps true: a lock keeps others away, and a socket can be reached, for as long as its process runs. A name that
somebody removes is made again within CHECK_SECONDS, and said so. Where another process has taken a lock meanwhile, the
one that had it first ends: two of a kind on one data directory would both be wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import structlog

logger = structlog.get_logger("solowire.process")

CHECK_SECONDS = 1.0

_HINT = "leave run/ and *.lock in the data directory alone while the system runs"


class OwnedFiles:
    """The names of one process."""

    def __init__(self) -> None:
        self._files: dict[Path, tuple[Callable[[], bool], Callable[[], bool]]] = {}
        self._failed: set[Path] = set()  # they were said to be missing

    def own(
        self, path: Path, restore: Callable[[], bool], is_in_place: Callable[[], bool] | None = None
    ) -> Callable[[], None]:
        """Has a name looked after, until what is returned is called.

        restore: makes it again and says whether it did; it may raise OSError, or ConfigError if this process has to
        end. is_in_place: whether the name is ours still; None: whatever has it is ours.
        """
        self._files[path] = (is_in_place or (lambda: os.path.lexists(path)), restore)

        def release() -> None:
            self._files.pop(path, None)
            self._failed.discard(path)

        return release

    def check(self) -> None:
        """Makes again what is missing. Raises ConfigError if this process has to end."""
        for path, (is_in_place, restore) in list(self._files.items()):
            if is_in_place():
                self._failed.discard(path)
                continue
            try:
                restored, reason = restore(), "another process has it"
            except OSError as error:
                restored, reason = False, error.strerror or str(error)
            if restored:
                logger.error("file_removed", path=str(path), reason="it is made again", hint=_HINT)
            elif path not in self._failed:
                self._failed.add(path)
                hint = f"restart this process if it stays so; {_HINT}"
                logger.critical("file_removed", path=str(path), reason=f"it can't be made again: {reason}", hint=hint)


OWNED = OwnedFiles()
"""Those of this process, which `solowire.runtime.process` looks at."""
