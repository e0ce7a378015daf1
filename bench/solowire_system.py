"""`solowire up` as a server under test, through its outside contract only: /v1/connect, the WebSocket, /v1/events.

The servers may be another revision's (`bench.compare`): everything that is started imports the tree that PYTHONPATH
names, and settings are given by the names that this tree has for them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import jwt
import msgspec

from bench.http_client import bearer
from bench.machine import HOST, SERVER_CORES, BenchError, command_line
from bench.publisher import HttpWire, Refused, Wire
from bench.receiver import ANY_STREAM, Opened, Plan, Receiver, Style
from bench.report import ROOT
from bench.server import Server, start_program
from bench.ws_client import BINARY, JSON, Ticket, client_frame, format_upgrade
from solowire.runtime.settings.renamed_settings import RENAMED

MSGPACK, DEFLATE = "solowire.v1.msgpack", "+deflate"
STYLES = {
    JSON: Style(b'"type":"welcome"', b'{"type":"ping"', client_frame(b'{"type":"pong"}')),
    MSGPACK: Style(b"\xa7welcome", b"\xa4type\xa4ping", client_frame(b"\x81\xa4type\xa4pong", BINARY), ping_at=1),
}
STYLES |= {subprotocol + DEFLATE: replace(style, compressed=True) for subprotocol, style in STYLES.items()}
TICKETS_AT_ONCE = 200
"""A ticket lives 30 s."""
Settings = Mapping[str, object]
"""Environment variables without their prefix."""
LIMITS: Settings = {
    "LIMITS__MAX_CONNECTIONS": 100_000,
    "LIMITS__CONNECT__RATE": 100_000,
    "LIMITS__CONNECT__BURST": 100_000,
}
"""Limits are for operators; what is measured here is what stands behind them. All else is as it is by default."""
NO_PUBLISH_LIMIT: Settings = {
    "PUBLISH__RATE": 1_000_000,
    "PUBLISH__BURST": 1_000_000,
    "PUBLISH__BYTES_PER_S": 10**9,
    "PUBLISH__BURST_BYTES": 10**9,
    "PUBLISH__CRITICAL_RATE": 1_000_000,
    "PUBLISH__CRITICAL_BURST": 1_000_000,
}
NEWER = frozenset(name for name in NO_PUBLISH_LIMIT if "BYTES" in name or "CRITICAL" in name)
"""Settings that older revisions refuse: they are left out where the revision's documentation does not know them."""
ROLES = ("shard", "router", "gateway", "up")
FORMER_NAMES = {to.upper().replace(".", "__"): name.upper() for name, to in RENAMED.items()}
"""What revisions whose settings stood in one flat list called them."""


@cache
def _read_settings_page() -> str:
    """What the revision under test documents."""
    page = Path(os.environ.get("PYTHONPATH", "").split(os.pathsep)[0] or ROOT) / "docs" / "settings.md"
    return page.read_text() if page.exists() else ""


def _has_flat_settings() -> bool:
    """Whether the revision under test is one of these: its documentation does not know the others."""
    return "LIMITS__MAX_CONNECTIONS" not in _read_settings_page()


def make_environment(settings: Settings) -> dict[str, str]:
    """Ours without any setting of Solowire's but these, as the revision under test calls them."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SOLOWIRE_")}
    names = FORMER_NAMES if _has_flat_settings() else {}
    known = {n: value for n, value in settings.items() if n not in NEWER or f"SOLOWIRE_{n}`" in _read_settings_page()}
    return ours | {f"SOLOWIRE_{names.get(name, name)}": str(value) for name, value in known.items()}


def start_role(data: Path, settings: Settings, *words: str) -> subprocess.Popen[bytes]:
    """One `solowire WORDS` on a data directory; what it says goes to the file `WORD.log` there."""
    command = [sys.executable, "-m", "solowire", *words]
    environment = make_environment({"DATA_DIR": data, **settings})
    return start_program(command, data, data / f"{words[0]}.log", environment, SERVER_CORES)


def sign(secret: str, user: str, role: str = "admin") -> str:
    """A token as the application would make it."""
    now = int(time.time())
    return jwt.encode({"sub": user, "role": role, "iat": now, "exp": now + 7200}, secret, "HS256")


class _Accepted(msgspec.Struct):
    accepted: int


class EventsWire(HttpWire):
    """Publishes by `POST /v1/events`."""

    _sent = 0

    def body(self, events: Sequence[bytes]) -> bytes:
        self._sent = len(events)
        return super().body(events)

    def check(self, body: bytes) -> None:
        if msgspec.json.decode(body, type=_Accepted).accepted != self._sent:
            raise Refused(f"not all of {self._sent} events were accepted: {body[:200]!r}")


class Solowire(Server):
    """One system. limits: settings in place of LIMITS."""

    name = "Solowire"
    about = "`solowire up` with one shard, a router and a gateway, events on disk before they are acknowledged"

    def __init__(
        self,
        shards: int = 1,
        subprotocol: str = JSON,
        settings: Settings | None = None,
        limits: Settings = LIMITS,
        cores: Iterable[int] = SERVER_CORES,
    ) -> None:
        super().__init__()
        self.shards = shards
        self.subprotocol = subprotocol
        self.style = STYLES[subprotocol]
        self.settings = {**limits, **(settings or {})}
        self.cores = cores

    def command(self) -> Sequence[str]:
        options = f"--host {HOST} --port {self.port} --shards {self.shards} --data-dir {self.data}"
        return [sys.executable, "-m", "solowire", "up", *options.split()]

    def environment(self) -> Mapping[str, str]:
        return make_environment(self.settings)

    def start(self) -> None:
        super().start()
        self.secret = (self.data / "secret").read_text().strip()
        self.token = self.sign("bench")
        self.bearer = bearer(self.token)
        self.started = self.processes()

    def is_ready(self) -> bool:
        if len(self.processes()) < self.shards + 3:
            return False
        return all(_is_ready(port) for port in range(self.port, self.port + 1 + self.shards))

    def processes(self) -> dict[int, str]:
        words = {pid: command_line(pid) for pid in super().processes()}
        return {pid: role for pid in words for role in ROLES if f"solowire {role}" in words[pid]}

    def roles(self) -> dict[str, int]:
        """Every process that is there by its role, shards as `shard 0`, without `up`."""
        found = {}
        for pid, role in self.processes().items():
            _, is_shard, rest = command_line(pid).partition("--index ")
            found[f"shard {rest.split()[0]}" if is_shard else role] = pid
        return {role: pid for role, pid in sorted(found.items()) if role != "up"}

    def sign(self, user: str, role: str = "admin") -> str:
        return sign(self.secret, user, role)

    def wires(self, count: int) -> list[Wire]:
        return [EventsWire(self.port, "/v1/events", self.bearer) for _ in range(count)]

    def stats(self) -> dict[str, int]:
        """What the system says of itself: `connections`, `last_offset`. Raises BenchError, OSError."""
        with contextlib.closing(HttpWire(self.port)) as http:
            reply = http.request("GET", "/v1/stats", self.bearer)
        if reply.status != 200:
            raise BenchError(f"/v1/stats answered {reply}")
        found: dict[str, int] = msgspec.json.decode(reply.body)
        return found

    # ------------------------------------------------------------ users

    def tickets(self, users: Sequence[str]) -> list[Ticket]:
        """One for each user, asked for on some connections in turn. Raises BenchError."""
        tickets: list[Ticket] = []
        with contextlib.ExitStack() as stack:
            wires = [stack.enter_context(contextlib.closing(HttpWire(self.port))) for _ in range(min(8, len(users)))]
            for first in range(0, len(users), len(wires)):
                asked = list(zip(wires, users[first : first + len(wires)], strict=False))
                for wire, user in asked:
                    wire.start_request("POST", "/v1/connect", bearer(self.sign(user)))
                for wire, _ in asked:
                    reply = wire.await_reply()
                    if reply.status >= 300:
                        raise BenchError(f"/v1/connect answered {reply}")
                    tickets.append(msgspec.json.decode(reply.body, type=Ticket))
        return tickets

    def offers(self, subprotocol: str) -> bool:
        return subprotocol in self.tickets(["bench"])[0].subprotocols

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
        return Plan(port, format_upgrade(port, f"{url.path}?{url.query}", self.subprotocol), greeting, streams, slow)

    def plan(self, user: int) -> list[Plan]:
        return [self.plan_of(self.tickets([f"u{user}"])[0])]

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
        for start in range(first, first + users, TICKETS_AT_ONCE):
            part = range(start, min(start + TICKETS_AT_ONCE, first + users))
            plans = [
                self.plan_of(
                    ticket,
                    hello(n) if hello else None,
                    streams(n) if streams else (n, n) if self.has_own else ANY_STREAM,
                    slow=slow(n) if slow else False,
                )
                for n, ticket in zip(part, self.tickets([f"u{n}" for n in part]), strict=True)
            ]
            opened.append(receiver.open(plans))
        return opened


def _is_ready(port: int) -> bool:
    with contextlib.suppress(OSError, BenchError), contextlib.closing(HttpWire(port)) as http:
        return http.request("GET", "/readyz").status in (200, 204)
    return False
