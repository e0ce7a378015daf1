"""NATS with its WebSocket listener: core NATS, which keeps nothing and cuts slow readers off.

Built from the Go module proxy; Debian's package, which is years older, where that can't be done.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

from bench.machine import LeftOut
from bench.peers.debian import installed
from bench.peers.go import build, place
from bench.publisher import Refused, Wire
from bench.receiver import Plan, Style
from bench.server import Server
from bench.ws_client import BINARY, client_frame, format_upgrade

VERSION = "v2.15.2"
CONFIGURATION = """\
listen: "127.0.0.1:{port}"
max_connections: 100000
websocket {{ listen: "127.0.0.1:{websocket}", no_tls: true, compression: false }}
"""
HELLO = b'CONNECT {"verbose":false,"pedantic":false,"lang":"bench","version":"1","protocol":1}\r\n'


class _Publications(Wire):
    """PUB for each event of a batch, then a PING: its PONG says that the server has read them.

    channel: which subject an event goes to.
    """

    def __init__(self, port: int, channel: Callable[[bytes], bytes]) -> None:
        super().__init__(port)
        self._channel = channel
        self.sock.sendall(HELLO)

    def send(self, events: Sequence[bytes]) -> None:
        words = [b"PUB %s %d\r\n%s\r\n" % (self._channel(event), len(event), event) for event in events]
        self.sock.sendall(b"".join(words) + b"PING\r\n")

    def receive(self) -> bool:
        *lines, self._received = self._read().split(b"\r\n")
        for line in lines:
            if line.startswith(b"-ERR"):
                raise Refused(line.decode(errors="replace"))
            if line == b"PING":
                self.sock.sendall(b"PONG\r\n")
        return b"PONG" in lines


def _program() -> str:
    """That which was built, or Debian's, which is older."""
    built = place("nats-server", VERSION)
    return str(built) if built.exists() else installed("nats-server")


class Nats(Server):
    name = "NATS"
    about = "nats-server, core NATS over its WebSocket listener; PUB on its own protocol, a PING per batch"
    style = Style(ready=b"PONG", ping=b"PING\r\n", pong=client_frame(b"PONG\r\n", BINARY), between=b"\nPING\r\n")

    @classmethod
    def prepare(cls) -> None:
        try:
            build("nats-server", "github.com/nats-io/nats-server/v2", VERSION)
        except LeftOut as reason:
            if not installed("nats-server") and not installed("nats-server", "nats-server"):
                raise LeftOut(f"{reason}, and Debian's package nats-server is not installed") from None

    @classmethod
    def versions(cls) -> dict[str, str]:
        said = subprocess.run([_program(), "--version"], capture_output=True, text=True).stdout
        whose = "built by Go" if place("nats-server", VERSION).exists() else "Debian's package"
        return {"nats-server": f"{said.strip().rpartition('v')[2]} ({whose})"}

    def command(self) -> Sequence[str]:
        (self.data / "nats.conf").write_text(CONFIGURATION.format(port=self.port, websocket=self.port + 1))
        return [_program(), "-c", str(self.data / "nats.conf")]

    def plan(self, user: int) -> list[Plan]:
        greeting = client_frame(HELLO + b"SUB %s 1\r\nPING\r\n" % self.channel(user), BINARY)
        return [Plan(self.port + 1, format_upgrade(self.port + 1, "/"), greeting)]

    def wires(self, count: int) -> list[Wire]:
        return [_Publications(self.port, self.channel_of) for _ in range(count)]
