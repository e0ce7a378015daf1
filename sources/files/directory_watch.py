"""A watch on a log's directory by inotify, so that no file comes and goes between two looks.

Watched is the directory, not the file: a watch of a file follows it when it is renamed, and says nothing of the next
one. Where there is no inotify to be had (its limits are reached, the directory can't be read, another kernel), or on a
network file system, whose other writers it doesn't see, the looks that are taken in any case have to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from asyncinotify import Inotify, Mask, Watch

_MASK = Mask.CREATE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE | Mask.MODIFY | Mask.DELETE_SELF | Mask.MOVE_SELF
_CAME = Mask.CREATE | Mask.MOVED_TO
_GONE = Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.IGNORED | Mask.UNMOUNT


class DirectoryWatch:
    """Watches the directories of `paths`, and those of the files which they name if they are symbolic links.

    came: files that have appeared at the paths since `read_events` was first called. uncertain: there may have been
    more. trouble: why there is no watch, None while there is one; a directory that isn't there is none.
    """

    def __init__(self, *paths: Path) -> None:
        self.paths = paths
        self.came = 0
        self.uncertain = False
        self.trouble: OSError | None = None
        self._watches: dict[str, Watch] = {}
        self._names: set[tuple[str, str]] = set()
        self._inotify: Inotify | None = None
        try:
            self._inotify = Inotify(cache_size=64, sync_timeout=0)
        except OSError as error:
            self.trouble = error
        self.cover()

    @property
    def is_watching(self) -> bool:
        return bool(self._watches)

    def cover(self) -> None:
        """Watch what is not watched yet: the directory may come later, and the link may lead elsewhere."""
        if self._inotify is None:
            return
        places = {os.path.split(name(path)) for path in self.paths for name in (os.path.abspath, os.path.realpath)}
        self._names = {(directory, name) for directory, name in places}
        wanted = {directory for directory, _ in places}
        for directory in self._watches.keys() - wanted:
            self._drop(directory)
        for directory in wanted - self._watches.keys():
            try:
                self._watches[directory] = self._inotify.add_watch(directory, _MASK | Mask.ONLYDIR)
                self.trouble = None
                self.uncertain = True  # what came before the watch
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                self.trouble = error

    def read_events(self) -> None:
        """Takes in what has happened, without waiting. Cheap if it is nothing."""
        if self._inotify is None:
            return
        again = False
        while (event := self._inotify.sync_get()) is not None:
            if Mask.Q_OVERFLOW in event.mask:
                self.uncertain = again = True
                continue
            watch = event.watch
            if watch is None:
                continue
            directory = str(watch.path)
            if event.mask & _GONE:
                if self._watches.get(directory) is watch:
                    self._drop(directory)
                again = True
            elif event.mask & _CAME and not event.mask & Mask.ISDIR and (directory, str(event.name)) in self._names:
                self.came += 1
                again = True
        if again or not self._watches:
            self.cover()

    async def wait(self, seconds: float, others: Iterable[asyncio.Future[Any]] = ()) -> None:
        """Returns when something happens in the directory, when one of `others` is done, or after `seconds`."""
        loop = asyncio.get_running_loop()
        happened: asyncio.Future[None] = loop.create_future()
        if self._inotify is not None:
            loop.add_reader(self._inotify.fd, _settle, happened)
        try:
            await asyncio.wait({happened, *others}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if self._inotify is not None:
                loop.remove_reader(self._inotify.fd)
            happened.cancel()

    def close(self) -> None:
        """Ends the watch. Closing twice does no harm."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
        self._watches.clear()

    def _drop(self, directory: str) -> None:
        watch = self._watches.pop(directory)
        if self._inotify is not None:
            with contextlib.suppress(OSError):  # the kernel has dropped it already, with its directory
                self._inotify.rm_watch(watch)


def _settle(happened: asyncio.Future[None]) -> None:
    if not happened.done():
        happened.set_result(None)
