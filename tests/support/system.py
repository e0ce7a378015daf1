"""A real system for a test: `solowire up`, or single processes, on free loopback ports, ended by their own ids."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import jwt
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from solowire.runtime.api_client import api_client

READY_SECONDS = 60.0
ANSWER_SECONDS = 30.0
"""Deadlines of what comes at once where nobody else uses the machine: they bound how long a failure takes."""

SPARE_PORTS = 2
"""For shards that a test adds to a system, after its own ones."""

UNDISTURBED = {
    "ROUTER__STATS_INTERVAL_S": 0,
    "ALERTS__RAISE_AFTER_S": 3600,
    "SESSION__HELLO_TIMEOUT_S": 60,
    "SESSION__MESSAGE_BURST": 10_000,
    "SESSION__SUBSCRIPTION_BURST": 10_000,
    "LIMITS__CONNECT__BURST_PER_USER": 10_000,
}
"""Tests count events: none but theirs come, unless a test asks for them. Who is slow to say hello is waited for, and no
user is limited for what it said or did in the test before: on a fast machine that was just now.
"""


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on now.

    Below those that the kernel gives to clients' sockets, where it can be: one of these could take a server's port
    before the server does, or while it is restarted.
    """
    clients = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    end = clients if clients >= 20_000 else 60_000
    for _ in range(1000):
        start = random.randrange(10_000, end - count)
        with contextlib.ExitStack() as held:
            try:
                for port in range(start, start + count):
                    sock = held.enter_context(socket.socket())
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return start
    raise RuntimeError("no free ports")


class System:
    """A running `solowire up`. settings: environment without its prefix, such as {"REPLAY__RATE": 1}."""

    def __init__(self, data_dir: Path, shards: int = 2, settings: Mapping[str, object] | None = None) -> None:
        self.data_dir = data_dir
        self.shards = shards
        self.port = free_ports(1 + shards + SPARE_PORTS)
        self.scheme = "https" if "LISTEN__TLS_CERTIFICATE_FILE" in (settings or {}) else "http"
        self.url = f"{self.scheme}://127.0.0.1:{self.port}"
        self.environment = environment({**UNDISTURBED, **(settings or {})})
        self.process: subprocess.Popen[str] | None = None
        self.output = data_dir.parent / f"{data_dir.name}.log"

    def start(self) -> None:
        """Returns when every process is ready."""
        self.process = self.spawn("up", "--port", str(self.port), "--shards", str(self.shards))
        self.wait_until(lambda: self._all_ready(), "the system is ready")

    def spawn(self, *arguments: str) -> subprocess.Popen[str]:
        """A `solowire` process on this system's data directory; its output goes to `self.output`."""
        with self.output.open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "solowire", *arguments, "--data-dir", str(self.data_dir)],
                env=self.environment,
                cwd=self.data_dir.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def stop(self) -> int:
        """SIGTERM to `up`; its exit status."""
        assert self.process is not None
        return end(self.process)

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = READY_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"`up` ended with {self.process.returncode}:\n{self.output.read_text()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s: {what}\n{self.output.read_text()[-4000:]}")
            time.sleep(0.02)

    def said(self) -> list[str]:
        """The lines of `self.output`, all but one that is being written."""
        return whole_lines(self.output)

    def _all_ready(self) -> bool:
        return all(ready(f"{self.scheme}://127.0.0.1:{port}") for port in range(self.port, self.port + self.shards + 1))

    def pid_of(self, *command: str) -> int:
        """The child of `up` that runs `solowire COMMAND`, such as ("shard", "--index", "0")."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        wanted = "\0".join(("solowire", *command)) + "\0"
        [pid] = [int(pid) for pid in children if wanted in read_command(int(pid))]
        return pid

    # ------------------------------------------------------------------------------------------- as its users

    @property
    def printed_token(self) -> str:
        """The administrator's token that `up` has made, out of the file that it names."""
        [path] = re.findall(r"administrator's token +in the file (.+)", self.output.read_text())
        return Path(path).read_text().strip()

    @property
    def secret(self) -> str:
        return (self.data_dir / "secret").read_text().strip()

    def token(self, user: str, role: str = "admin", ttl: float = 600, **claims: Any) -> str:
        """A token as the application would sign it."""
        return sign(self.secret, user, role, ttl, **claims)

    def http(self, token: str | None = None) -> httpx.AsyncClient:
        # verify: reading the machine's certificates takes 20 ms each time, and nobody has one here.
        headers = {"authorization": f"Bearer {token}"} if token is not None else {}
        return httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=ANSWER_SECONDS, trust_env=False, verify=False
        )

    def api(self, shard: int, token: str | None = None) -> httpx.AsyncClient:
        """The HTTP API of a shard, which only processes with this data directory reach."""
        client = api_client(f"unix:{self.data_dir}/run/s{shard}", timeout=ANSWER_SECONDS)
        client.headers.update({"authorization": f"Bearer {token}"} if token is not None else {})
        return client

    async def shard_stats(self, shard: int) -> dict[str, Any]:
        """What a shard says of itself."""
        async with self.api(shard, self.token("counter")) as http:
            stats: dict[str, Any] = (await http.get("/stats")).json()
        return stats

    async def negotiate(self, token: str) -> dict[str, Any]:
        """What `POST /v1/connect` answers."""
        async with self.http(token) as http:
            answer = await http.post("/v1/connect")
        assert answer.status_code == 200, answer.text
        negotiated: dict[str, Any] = answer.json()
        return negotiated

    async def publish(self, *events: dict[str, Any], token: str | None = None) -> dict[str, Any]:
        """What `POST /v1/events` answers."""
        async with self.http(token or self.token("publisher", "publisher")) as http:
            return await published(http, *events)

    def user_on(self, shard: int, prefix: str = "user") -> str:
        """The first user called `prefix`0, 1, … that the full ring gives to `shard`."""
        from solowire.algorithms.hash_ring import Ring

        ring = Ring(range(self.shards))
        return next(f"{prefix}{i}" for i in range(10_000) if ring.owner(f"{prefix}{i}") == shard)

    @contextlib.asynccontextmanager
    async def session(self, token: str, hello: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[Session]:
        """A raw WebSocket to the owning shard; with `hello` (its fields), welcomed already."""
        negotiated = await self.negotiate(token)
        async with open_session(negotiated["url"], **options) as session:
            if hello is not None:
                await session.say(type="hello", **hello)
                session.welcome = await session.hear("welcome")
            yield session


async def published(http: httpx.AsyncClient, *events: dict[str, Any]) -> dict[str, Any]:
    """What `POST /v1/events` answers. What is answered with 503 is sent again with the same ids, as publishers do: on a
    slow disk the router may be away for a moment.
    """
    named = [{"id": uuid4().hex, **event} for event in events]
    async with asyncio.timeout(ANSWER_SECONDS):
        while (answer := await http.post("/v1/events", json=named)).status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
            await asyncio.sleep(0.1)
    assert answer.status_code == 200, answer.text
    accepted: dict[str, Any] = answer.json()
    return accepted


class Session:
    """A WebSocket that speaks JSON, or MessagePack if that was negotiated. compressed: messages that came so."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.port: int = socket.local_address[1]  # the client's own
        self.welcome: dict[str, Any] = {}
        self.compressed = 0
        self._msgpack = (socket.subprotocol or "").startswith("solowire.v1.msgpack")

    async def say(self, **message: Any) -> None:
        if self._msgpack:
            await self.socket.send(msgspec.msgpack.encode(message))
        else:
            await self.socket.send(msgspec.json.encode(message).decode())

    async def hear(self, type: str | None = None, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        """The next message; of `type`, if given, passing over others, pings with a pong.

        A close raises ConnectionClosed.
        """
        async with asyncio.timeout(seconds):
            while True:
                message = self._read(await self.socket.recv())
                if type is None or message["type"] == type:
                    return message
                if message["type"] == "ping":
                    await self.say(type="pong")

    def _read(self, raw: str | bytes) -> dict[str, Any]:
        if isinstance(raw, bytes) and raw[0] == 0xC1:
            assert (self.socket.subprotocol or "").endswith("+deflate"), "nobody has asked for compression"
            self.compressed += 1
            raw = zlib.decompress(raw[1:], wbits=-15)
        else:
            assert isinstance(raw, bytes) == self._msgpack
        decode: Callable[[str | bytes], Any] = msgspec.msgpack.decode if self._msgpack else msgspec.json.decode  # type: ignore[assignment]
        message: dict[str, Any] = decode(raw)
        return message

    async def ask(self, answer: str, **message: Any) -> dict[str, Any]:
        """Says `message` and hears the next message of type `answer`."""
        await self.say(**message)
        return await self.hear(answer)

    async def events(self, count: int, seconds: float = ANSWER_SECONDS) -> list[dict[str, Any]]:
        """The next `count` events, out of as many frames as it takes."""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            found += (await self.hear("events", seconds))["events"]
        return found

    async def closed(self, seconds: float = ANSWER_SECONDS) -> tuple[int | None, str | None]:
        """Reads until the other side closes; its close code and reason."""
        async with asyncio.timeout(seconds):
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await self.socket.recv()
        return self.socket.close_code, self.socket.close_reason


@contextlib.asynccontextmanager
async def open_session(url: str, **options: Any) -> AsyncIterator[Session]:
    """A WebSocket to any URL. options: of `websockets.connect`."""
    settings: dict[str, Any] = {"compression": None, "ping_interval": None, "proxy": None, "close_timeout": 1}
    async with connect(url, **(settings | options)) as socket:
        yield Session(socket)


async def refusal(url: str, **options: Any) -> tuple[int, dict[str, Any]]:
    """Status and problem body with which a WebSocket's handshake is refused: nothing may be accepted."""
    try:
        async with open_session(url, **options) as session:
            raise AssertionError(f"accepted: {session.socket.response}")
    except InvalidStatus as refused:
        response = refused.response
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = msgspec.json.decode(response.body)
    assert problem["status"] == response.status_code
    return response.status_code, problem


def sign(secret: str, user: str, role: str = "admin", ttl: float = 600, **claims: Any) -> str:
    now = time.time()
    return jwt.encode({"sub": user, "role": role, "exp": now + ttl, **claims}, secret, "HS256")


def has_ipv6() -> bool:
    """Whether this machine has ::1."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def environment(settings: Mapping[str, object] | None = None) -> dict[str, str]:
    """This process's environment without any setting of Solowire's but `settings`, nor of OpenTelemetry's.

    It says that it is a container: tests run as root at times, and what is said of that has tests of its own.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SOLOWIRE_", "OTEL_"))} | {"container": "tests"}
    return kept | {f"SOLOWIRE_{name}": str(value) for name, value in (settings or {}).items()}


def run(
    *arguments: str, cwd: Path, settings: Mapping[str, object] | None = None, seconds: float = READY_SECONDS
) -> subprocess.CompletedProcess[str]:
    """One `solowire` command from its start to its end, in a directory of the test's own."""
    return subprocess.run(
        [sys.executable, "-m", "solowire", *arguments],
        env=environment(settings),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def sockets_with(pid: int, *ports: int) -> int:
    """How many TCP connections with these ports at their other end the process holds descriptors of."""
    held = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            held.add(str(entry.readlink()))
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[2].rpartition(":")[2], 16) in ports and f"socket:[{row[9]}]" in held for row in rows)


def read_command(pid: int) -> str:
    """The command line of a process, "" of one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def alive(pid: int) -> bool:
    """Whether the process is there and no zombie: what has ended but is not waited for yet holds nothing."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2, trust_env=False, verify=False).status_code == 200
    except httpx.HTTPError:
        return False


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that processes write to; without the last one if it is not whole yet."""
    text = path.read_text()
    return text[: text.rfind("\n") + 1].splitlines()


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM, seconds: float = READY_SECONDS) -> int:
    """Signals one process that a test started and waits for it; its exit status."""
    if process.poll() is None:
        process.send_signal(number)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise AssertionError(f"process {process.pid} did not end within {seconds} s") from None


@contextlib.contextmanager
def running(data_dir: Path, shards: int = 2, settings: Mapping[str, object] | None = None) -> Iterator[System]:
    """A system for the length of a block."""
    system = System(data_dir, shards, settings)
    try:
        system.start()
        yield system
    finally:
        if system.process is not None:
            system.stop()
