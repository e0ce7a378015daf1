"""Swagger UI's files, answered by the port in front of Granian: they are large, and anybody may ask for them.

Granian takes an answer whole, as fast as it is made, and holds it for whoever doesn't read: 900 connections that asked
for the script took a gateway from 0.1 to 2 GB. Here a file is in memory once, and a connection has PIECE_BYTES of it
under way.
"""

from __future__ import annotations

from mimetypes import guess_type
from pathlib import Path

from solowire.gateway.front.client_connection import ClientConnection
from solowire.gateway.http.openapi import ASSETS, PAGE_POLICY
from solowire.gateway.http.responses import NO_SNIFFING
from solowire.protocol.opening_handshake import HEAD_END, Head

PIECE_BYTES = 32 * 1024
_METHODS = ("GET", "HEAD")


HEADS = tuple(f"{method} {ASSETS}/".encode() for method in ("GET", "HEAD"))
"""How the requests begin that may be for one of the files."""


class Assets:
    """The files of one folder, as they are at first."""

    def __init__(self, folder: Path) -> None:
        self._files = {f"{ASSETS}/{path.name}": path for path in folder.iterdir() if path.is_file()}
        self._read: dict[str, bytes] = {}

    def can_handle(self, head: Head) -> bool:
        """Whether a request is for one of them; whatever else is asked for is not there."""
        return head.path in self._files and head.method in _METHODS and not head.is_websocket_request

    def serve_file(self, client: ClientConnection, head: Head, rest: bytes) -> None:
        """Answers a request that it `can_handle`, as the connection's last."""
        if head.path not in self._read:
            self._read[head.path] = self._files[head.path].read_bytes()
        content = self._read[head.path]
        kind, _ = guess_type(head.path)
        headers = [
            (b"content-type", (kind or "application/octet-stream").encode()),
            (b"content-length", b"%d" % len(content)),
            (b"connection", b"close"),
            NO_SNIFFING,
            PAGE_POLICY,
        ]
        lines = [b"HTTP/1.1 200 OK", *(b"%s: %s" % header for header in headers)]
        answer = b"\r\n".join(lines) + HEAD_END
        download = _Download(client, [answer] if head.method == "HEAD" else [answer, content])
        client.loop.call_soon(download.begin)  # when the front has done with the request


class _Download:
    """What one client has not been sent yet. It is the connection's tunnel: what the client says is nothing to it."""

    def __init__(self, client: ClientConnection, parts: list[bytes]) -> None:
        self._client = client
        views = [memoryview(part) for part in parts]
        self._pieces = iter([view[at : at + PIECE_BYTES] for view in views for at in range(0, len(view), PIECE_BYTES)])
        self._is_paused = False

    def begin(self) -> None:
        self._client.transport.set_write_buffer_limits(high=0)  # so that there is a pause until a piece is taken
        self._client.start_tunnel(self)
        self._send()

    def receive(self, data: bytes) -> None:
        pass

    def end(self) -> None:
        """Who has closed its half still reads; for who has gone, nothing is written any more."""

    def pause(self) -> None:
        self._is_paused = True

    def resume(self) -> None:
        self._is_paused = False
        self._send()

    def _send(self) -> None:
        while not self._is_paused and not self._client.transport.is_closing():
            piece = next(self._pieces, None)
            if piece is None:
                self._client.close_with(b"")
                return
            self._client.transport.write(piece)
