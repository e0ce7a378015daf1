"""`solowire up` as a server under test, through its outside contract only: /v1/connect, the WebSocket, /v1/events."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import jwt
import msgspec

from bench.load import Http, Refused, Wire
from bench.machine import HOST, SERVER_CORES, BenchError, command_line, placed
from bench.receiver import ANY_STREAM, BINARY, Opened, Plan, Receiver, Style, client_frame, upgrade
from bench.server import Server
from solowire.runtime.settings.renamed_settings import RENAMED

JSON, MSGPACK, DEFLATE = "solowire.v1.json", "solowire.v1.msgpack", "+deflate"
STYLES = {
    JSON: Style(b'"type":"welcome"', b'{"type":"ping"', client_frame(b'{"type":"pong"}')),
    MSGPACK: Style(b"\xa7welcome", b"\xa4type\xa4ping", client_frame(b"\x81\xa4type\xa4pong", BINARY), ping_at=1),
}
STYLES |= {subprotocol + DEFLATE: replace(style, compressed=True) for subprotocol, style in STYLES.items()}
TICKETS_AT_ONCE = 200
"""A ticket lives 30 s."""
LIMITS = {
    "LIMITS__MAX_CONNECTIONS": "100000",
    "LIMITS__CONNECT__RATE": "100000",
    "LIMITS__CONNECT__BURST": "100000",
}
"""Limits are for operators; what is measured here is what stands behind them. All else is as it is by default."""
ROLES = ("shard", "router", "gateway", "up")
OLD_NAMES = {new.replace(".", "__").upper(): old.upper() for old, new in RENAMED.items()}


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Ours without any setting of Solowire's but these, whose names have no prefix."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SOLOWIRE_")}
    return ours | {f"SOLOWIRE_{_spell(name)}": value for name, value in settings.items()}


def _spell(name: str) -> str:
    """A setting as the servers know it: those that `bench.compare` runs may have one flat list of them still."""
    served = Path(os.environ.get("PYTHONPATH", "").split(os.pathsep)[0])
    return OLD_NAMES.get(name, name) if (served / "solowire/runtime/settings.py").is_file() else name


def alone(data: Path, settings: Mapping[str, str], *words: str) -> subprocess.Popen[bytes]:
    """One `solowire WORDS` on a data directory, on the servers' cores; what it says goes to a file there."""
    with (data / f"{words[0]}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "solowire", *words],
            cwd=data,
            env=environment({"DATA_DIR": str(data), **settings}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=placed(SERVER_CORES),
        )


def signed(secret: str, user: str, role: str) -> str:
    """A user's token for an hour, as the application would sign it."""
    now = int(time.time())
    return jwt.encode({"sub": user, "role": role, "iat": now, "exp": now + 3600}, secret, "HS256")


def bearer(token: str) -> str:
    """The line of a request's head."""
    return f"Authorization: Bearer {token}\r\n"


class Ticket(msgspec.Struct):
    """What /v1/connect answers, as far as a client of ours cares."""

    url: str
    shard: int = 0
    subprotocols: list[str] = []


class _Accepted(msgspec.Struct):
    accepted: int


class _Events(Http):
    """POST /v1/events. One event goes as itself, several as an array."""

    _sent = 0

    def body(self, events: Sequence[bytes]) -> bytes:
        self._sent = len(events)
        return events[0] if len(events) == 1 else super().body(events)

    def check(self, body: bytes) -> None:
        if msgspec.json.decode(body, type=_Accepted).accepted != self._sent:
            raise Refused(f"not all of {self._sent} events were accepted: {body[:200]!r}")


class Solowire(Server):
    """One system. settings: environment without its prefix."""

    name = "Solowire"
    about = "`solowire up` with one shard, a router and a gateway, events on disk before they are acknowledged"

    def __init__(self, shards: int = 1, subprotocol: str = JSON, settings: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.shards = shards
        self.subprotocol = subprotocol
        self.style = STYLES[subprotocol]
        self.settings = dict(settings or {})

    def command(self) -> Sequence[str]:
        options = f"--host {HOST} --port {self.port} --shards {self.shards} --data-dir {self.data}"
        return [sys.executable, "-m", "solowire", "up", *options.split()]

    def environment(self) -> Mapping[str, str]:
        return environment(LIMITS | self.settings)

    def start(self) -> None:
        super().start()
        self.secret = (self.data / "secret").read_text().strip()
        self.token = self.sign("bench")
        self.bearer = bearer(self.token)
        self.started = self.processes()

    def ready(self) -> bool:
        if len(self.processes()) < self.shards + 3:
            return False
        return all(_ready(port) for port in range(self.port, self.port + 1 + self.shards))

    def processes(self) -> dict[int, str]:
        found = {}
        for pid in super().processes():
            words = command_line(pid)
            for role in ROLES:
                if f"solowire {role}" in words:
                    found[pid] = role
        return found

    def pid(self, command: str) -> int:
        """The process that runs `solowire COMMAND`, such as "shard --index 0". Raises ValueError if it is not there."""
        [found] = [pid for pid in self.processes() if f"solowire {command} " in command_line(pid)]
        return found

    def sign(self, user: str, role: str = "admin") -> str:
        return signed(self.secret, user, role)

    def wires(self, count: int) -> list[Wire]:
        return [_Events(self.port, "/v1/events", self.bearer) for _ in range(count)]

    # ------------------------------------------------------------ users

    def tickets(self, users: Sequence[str], wires: Sequence[Http]) -> list[Ticket]:
        """One for each user, asked for on these connections in turn. Raises BenchError."""
        tickets = []
        for first in range(0, len(users), len(wires)):
            asked = list(zip(wires, users[first : first + len(wires)], strict=False))
            for wire, user in asked:
                wire.sock.sendall(
                    f"POST /v1/connect HTTP/1.1\r\nHost: {HOST}:{self.port}\r\nContent-Length: 0\r\n"
                    f"{bearer(self.sign(user))}\r\n".encode()
                )
            for wire, _ in asked:
                status, body = wire.await_answer()
                if status >= 300:
                    raise BenchError(f"/v1/connect answered {status}: {body[:300]!r}")
                tickets.append(msgspec.json.decode(body, type=Ticket))
        return tickets

    def offers(self, subprotocol: str) -> bool:
        with contextlib.closing(Http(self.port)) as http:
            return subprotocol in self.tickets(["bench"], [http])[0].subprotocols

    def plan_of(
        self,
        ticket: Ticket,
        hello: Mapping[str, object] | None = None,
        streams: tuple[int, int] = ANY_STREAM,
        *,
        slow: bool = False,
    ) -> Plan:
        """The connection that a ticket is for."""
        url = urlsplit(ticket.url)
        words = {"type": "hello", "subscriptions": ["custom.*"], **(hello or {})}
        if self.subprotocol.startswith(MSGPACK):
            greeting = client_frame(msgspec.msgpack.encode(words), BINARY)
        else:
            greeting = client_frame(msgspec.json.encode(words))
        port = url.port or 80
        return Plan(port, upgrade(port, f"{url.path}?{url.query}", self.subprotocol), greeting, streams, slow)

    def plan(self, user: int) -> list[Plan]:
        with contextlib.closing(Http(self.port)) as http:
            return [self.plan_of(self.tickets([f"u{user}"], [http])[0])]

    def connect(
        self,
        receiver: Receiver,
        users: int,
        first: int = 0,
        hello: Callable[[int], Mapping[str, object]] | None = None,
        streams: Callable[[int], tuple[int, int]] | None = None,
        slow: Callable[[int], bool] | None = None,
    ) -> list[Opened]:
        """In parts, since a ticket lives 30 s. Each function is asked with the number of the user."""
        opened = []
        with contextlib.ExitStack() as stack:
            wires = [stack.enter_context(contextlib.closing(Http(self.port))) for _ in range(8)]
            for start in range(first, first + users, TICKETS_AT_ONCE):
                part = range(start, min(start + TICKETS_AT_ONCE, first + users))
                tickets = self.tickets([f"u{n}" for n in part], wires)
                plans = [
                    self.plan_of(
                        ticket,
                        hello(n) if hello else None,
                        streams(n) if streams else (n, n) if self.own else ANY_STREAM,
                        slow=slow(n) if slow else False,
                    )
                    for n, ticket in zip(part, tickets, strict=True)
                ]
                opened.append(receiver.open(plans))
        return opened


def _ready(port: int) -> bool:
    with contextlib.suppress(OSError, BenchError), contextlib.closing(Http(port)) as http:
        return http.exchange("GET", "/readyz")[0] in (200, 204)
    return False
