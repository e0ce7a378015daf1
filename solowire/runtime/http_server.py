"""Granian inside our own event loop, on a listening socket of our own. It serves HTTP alone, and no WebSocket.

The socket is ours because options set on it are inherited by every connection (design, section 6), because a port
in use must be one line and not a log of the server's, and because Granian's own would share its port with a second
process.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.net import SocketHolder  # type: ignore[attr-defined]
from granian.server.embed import Server

from solowire.errors import ConfigError
from solowire.runtime.data_directory import make_run_directory
from solowire.runtime.owned_files import OWNED

BACKLOG = 4096
SUN_PATH_BYTES = 107
"""What a unix socket's address may have, unix(7)."""
CONNECTIONS = 8192
"""Connections that Granian has at a time: it accepts no more until one of them ends, and has 128 if nobody says
otherwise: as many silent sockets would keep everybody else out."""
HEAD_BYTES = 64 * 1024
"""What a request head may have, and so the memory that an unfinished one may take."""


_HOST_HINT = "name an address of this machine with --host, such as 127.0.0.1, or 0.0.0.0 for all"


def listen(host: str, port: int, *, send_buffer: int | None = None, stalled_s: float = 30.0) -> socket.socket:
    """A listening TCP socket. send_buffer: SO_SNDBUF of its connections, bytes. Raises ConfigError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: what IDNA makes of a name such as a..b
        reason = (error.strerror if isinstance(error, OSError) else None) or "that is no host's name"
        raise ConfigError(f"can't listen on {host}:{port}: {reason}; {_HOST_HINT}") from None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    # A peer that is gone without a word ends when what was sent to it has been unacknowledged for this long.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stalled_s * 2000))
    if send_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    try:
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        reason = "the port is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
        hint = _HOST_HINT if error.errno == errno.EADDRNOTAVAIL else "choose another with --port"
        raise ConfigError(f"can't listen on {host}:{port}: {reason}; {hint}") from None
    sock.setblocking(False)
    return sock


def listen_unix(path: Path) -> socket.socket:
    """A listening socket in the file system, in the place of any that is there. Raises ConfigError."""
    if len(os.fsencode(path)) > SUN_PATH_BYTES:
        raise ConfigError(
            f"the data directory's path is too long for a unix socket: {path} is over {SUN_PATH_BYTES} bytes; "
            "choose a shorter one with --data-dir"
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    draft = path.with_name(f"+{path.name[1:]}")
    try:
        draft.unlink(missing_ok=True)
        sock.bind(os.fspath(draft))
        draft.chmod(0o600)
        sock.listen(BACKLOG)
        draft.rename(path)  # so that there is one at any time, also where another process has it still
    except OSError as error:
        sock.close()
        raise ConfigError(f"can't listen on {path}: {error.strerror or error}") from None
    sock.setblocking(False)
    return sock


def remove_dead_sockets(directory: Path, prefix: str, kind: socket.SocketKind) -> None:
    """Removes the Unix sockets whose processes were killed: those whose names begin so, and that nobody listens on."""
    for path in directory.glob(f"{prefix}*"):
        with socket.socket(socket.AF_UNIX, kind) as probe, suppress(OSError):
            probe.setblocking(False)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()


async def wait_for_disconnect(receive: Callable[[], Awaitable[Any]]) -> None:
    """Until the client of a request has gone. receive: ASGI's; what else comes is passed over."""
    while (await receive())["type"] != "http.disconnect":
        pass


class WebServer:
    """Serves one ASGI application on `sock`, TCP or Unix, in the running loop.

    handshake_s: a connection that has not sent a whole request head after so many seconds is cut, whether it sends
    nothing, slowly, or no further request after the last one's answer. The time of a head runs from the connection's
    begin or the answer before, not from its last byte. path: the name of a Unix socket, which is made again where
    somebody removes it; connections that are there stay.
    """

    def __init__(self, app: Any, sock: socket.socket, *, handshake_s: float = 10.0, path: Path | None = None) -> None:
        logging.getLogger("_granian").setLevel(logging.ERROR)  # its "embedded is experimental" on every start
        self._app = app
        self._handshake_s = handshake_s
        self._servers = [_SocketServer(app, sock, handshake_s)]
        self._path = path
        self._release: Callable[[], None] | None = None

    def start(self) -> None:
        self._servers[0].start()
        if self._path is not None:
            self._release = OWNED.own(self._path, partial(self._restore_socket, self._path))

    async def finish(self) -> None:
        """Stops accepting and drops what is open."""
        if self._release is not None:
            self._release()
        await asyncio.gather(*(server.finish() for server in self._servers))

    def _restore_socket(self, path: Path) -> bool:
        """Makes the removed socket again. Raises OSError."""
        make_run_directory(path.parent)
        try:
            sock = listen_unix(path)
        except ConfigError as error:
            raise OSError(str(error)) from None
        server = _SocketServer(self._app, sock, self._handshake_s)
        self._servers.append(server)
        server.start()
        return True


class _SocketServer(Server):
    """Granian on one listening socket."""

    def __init__(self, app: Any, sock: socket.socket, handshake_s: float) -> None:
        super().__init__(
            app,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            websockets=False,
            backpressure=CONNECTIONS,
            log_enabled=False,
            http1_settings=HTTP1Settings(
                header_read_timeout=max(1, int(handshake_s * 1000)), max_buffer_size=HEAD_BYTES
            ),
        )
        self._listening = sock
        self._task: asyncio.Task[None] | None = None

    def _init_shared_socket(self) -> None:
        # Granian closes the descriptor that it is given.
        is_unix = self._listening.family is socket.AF_UNIX
        self._shd: Any = SocketHolder(os.dup(self._listening.fileno()), is_unix, BACKLOG)  # type: ignore[call-arg]

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self.serve())

    async def finish(self) -> None:
        if self._task is not None:
            self.stop()  # type: ignore[no-untyped-call]
            await asyncio.wait([self._task], timeout=5)
        self._listening.close()
