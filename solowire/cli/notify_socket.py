"""The socket to which a child of `up` gives its signs of life, as it would to systemd (sd_notify(3))."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

from solowire.errors import ConfigError
from solowire.runtime.data_directory import make_run_directory
from solowire.runtime.owned_files import OWNED

DATAGRAMS_AT_ONCE = 100


class NotifySocket:
    """The socket to which one child gives its signs of life: a file in the run directory, which only we may enter.

    is_stopping: the child says that a signal has told it to end. has_extended_start: it has asked for more time until
    it is ready.
    """

    def __init__(self, path: Path) -> None:
        """Binds the socket. Raises ConfigError."""
        self.path = path
        try:
            self._socket = _bind_datagrams(path)
        except OSError as error:
            raise ConfigError(f"can't make the socket {path}: {error.strerror or error}") from None
        self.is_stopping = False
        self.has_extended_start = False
        self._release = OWNED.own(path, self._restore)

    def has_notified(self) -> bool:
        """Whether the child has given a sign of life since the last call."""
        found = False
        with suppress(BlockingIOError):
            for _ in range(DATAGRAMS_AT_ONCE):
                lines = self._socket.recv(4096).split(b"\n")
                found = found or b"WATCHDOG=1" in lines or b"READY=1" in lines
                self.is_stopping = self.is_stopping or b"STOPPING=1" in lines
                self.has_extended_start |= any(line.startswith(b"EXTEND_TIMEOUT_USEC=") for line in lines)
        return found

    def forget(self) -> None:
        """Forgets what was said before, by a process that has ended."""
        self.has_notified()
        self.is_stopping = self.has_extended_start = False

    def close(self) -> None:
        self._release()
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def _restore(self) -> bool:
        """Makes the file again: without it the child would be taken for stuck. Raises OSError."""
        make_run_directory(self.path.parent)
        fresh = _bind_datagrams(self.path)
        self._socket.close()
        self._socket = fresh
        return True


def _bind_datagrams(path: Path) -> socket.socket:
    """A socket at a path that is free. Raises OSError."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        made.bind(str(path))
    except OSError:
        made.close()
        raise
    made.setblocking(False)
    return made
