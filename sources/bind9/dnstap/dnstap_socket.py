"""The unix socket to which `named` connects, as a file: made, shared with named's group, kept in its place.

What it keeps true: a socket is taken over only if nobody listens on it, and a file that is no socket never is. The new
one is there with its group and its rights at once, or not at all.
"""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from solowire.errors import ConfigError

MODE = 0o660
MAX_PATH_BYTES = 107
"""Of a unix socket's path, on Linux."""
_BACKLOG = 16
_SUFFIX = ".new"


class SocketInUse(OSError):
    """Another process listens on the path."""


class DnstapSocket:
    """A listening socket at `path`. group: the name of the group that may connect, or None: that of the directory.

    Raises ConfigError for what can't be set up so.
    """

    def __init__(self, path: Path, group: str | None = None) -> None:
        self.path = path.absolute()
        self._new_path = self.path.with_name(self.path.name + _SUFFIX)
        if len(os.fsencode(self._new_path)) > MAX_PATH_BYTES:
            most = MAX_PATH_BYTES - len(_SUFFIX)
            raise ConfigError(f"the dnstap socket {self.path} has too long a path: {most} bytes are the most")
        self._group_id: int | None = None
        if group is not None:
            try:
                self._group_id = grp.getgrnam(group).gr_gid
            except KeyError:
                raise ConfigError(
                    f"there is no group {group!r}; name the one that named runs in, such as bind"
                ) from None
        self._identity: tuple[int, int] | None = None

    def open(self) -> socket.socket:
        """Makes the socket and listens. Raises OSError for what may get better; ConfigError for what doesn't."""
        self._check_place()
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with suppress(FileNotFoundError):
                self._new_path.unlink()
            listening.bind(str(self._new_path))
            try:
                self._share(self._new_path)
                listening.listen(_BACKLOG)
                listening.setblocking(False)
                self._identity = _identify(self._new_path)
                self._new_path.rename(self.path)
            except BaseException:
                self._new_path.unlink(missing_ok=True)
                raise
        except BaseException:
            listening.close()
            raise
        return listening

    def is_in_place(self) -> bool:
        """Whether what is at the path is still the socket that was made here."""
        try:
            return _identify(self.path) == self._identity
        except OSError:
            return False

    def remove(self) -> None:
        """Takes the file away, if it is the one that was made here."""
        if self.is_in_place():
            with suppress(OSError):
                self.path.unlink()
        self._identity = None

    def _check_place(self) -> None:
        """Raises ConfigError if a file is there that is no socket; SocketInUse if somebody listens on it."""
        try:
            mode = self.path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise ConfigError(f"{self.path} is there, and no socket; name a path for the dnstap socket that is free")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(1.0)
            try:
                asking.connect(str(self.path))
            except (ConnectionRefusedError, FileNotFoundError):
                return
        raise SocketInUse(errno.EADDRINUSE, "another process listens on it already", str(self.path))

    def _share(self, path: Path) -> None:
        """Lets a group connect: to connect to a socket is to write to it."""
        if self._group_id is not None:
            os.chown(path, -1, self._group_id)
        else:
            with suppress(PermissionError):  # then only who runs the agent may connect, and its group
                os.chown(path, -1, self.path.parent.stat().st_gid)
        path.chmod(MODE)


def _identify(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
