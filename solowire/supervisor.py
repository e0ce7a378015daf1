"""`solowire up`: router, shards and gateway on this machine, started, watched and ended together.

What it keeps true: the processes that it started end with it, in the order in which users lose least (gateway, shards,
router); one that ends by itself is started again, unless it says that its settings are wrong (exit status 2) or it
keeps ending, which ends everything, loudly.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections import deque
from dataclasses import dataclass, field

import httpx
import structlog

from solowire import process
from solowire.errors import ConfigError
from solowire.serving import listen
from solowire.settings import Settings

log = structlog.get_logger("solowire.up")

READY_SECONDS = 60.0
GRACE_SECONDS = 10.0
RESTARTS_A_MINUTE = 5
WRONG_SETTINGS = 2


@dataclass(eq=False)
class Child:
    """One process. arguments: of `python -m solowire`."""

    name: str
    arguments: list[str]
    url: str | None
    process: asyncio.subprocess.Process | None = None
    ends: deque[float] = field(default_factory=lambda: deque(maxlen=RESTARTS_A_MINUTE))


class Failed(Exception):
    """A child can't run. status: what `up` ends with."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Supervisor:
    """config: the file of --config, which the children read, too."""

    def __init__(self, settings: Settings, config: str | None) -> None:
        self._settings = settings
        self._common = ["--config", config] if config is not None else []
        base = f"http://{_reachable(settings.host)}"
        self.gateway_url = f"{base}:{settings.port}"
        self._router = Child("router", ["router"], None)
        self._shards = [
            Child(f"shard {i}", ["shard", "--index", str(i)], f"{base}:{settings.port_of_shard(i)}")
            for i in range(settings.shards)
        ]
        self._gateway = Child("gateway", ["gateway"], self.gateway_url)
        self._stopping = False

    @property
    def _children(self) -> list[Child]:
        return [self._router, *self._shards, self._gateway]

    async def start(self) -> None:
        """Starts everything; returns when all of it is ready. Raises ConfigError, Failed."""
        if self._settings.port == 0:
            raise ConfigError("SOLOWIRE_PORT: `up` needs a port of its own, 0 is for single processes")
        self._check_ports()
        for child in self._children:
            await self._spawn(child)
        async with httpx.AsyncClient(trust_env=False, timeout=2) as http, asyncio.timeout(READY_SECONDS):
            for child in self._children:
                while child.url is not None and not await self._is_ready(http, child):
                    await asyncio.sleep(0.05)

    async def watch(self, stop: asyncio.Event) -> None:
        """Returns when `stop` is set. Raises Failed if a child can't go on."""
        stopped = asyncio.ensure_future(stop.wait())
        waits = {asyncio.ensure_future(_ended(child)): child for child in self._children}
        try:
            while True:
                done, _ = await asyncio.wait({stopped, *waits}, return_when=asyncio.FIRST_COMPLETED)
                if stopped in done:
                    return
                for wait in done:
                    child = waits.pop(wait)  # type: ignore[arg-type]
                    pause = self._pause_after(child)
                    if (await asyncio.wait({stopped}, timeout=pause))[0]:
                        return
                    await self._spawn(child)
                    waits[asyncio.ensure_future(_ended(child))] = child
        finally:
            for task in (stopped, *waits):
                task.cancel()

    async def stop(self) -> None:
        """Ends all children, in order, within the grace period."""
        self._stopping = True
        for group in ([self._gateway], self._shards, [self._router]):
            for child in group:
                if child.process is not None and child.process.returncode is None:
                    child.process.terminate()
            for child in group:
                if child.process is not None:
                    try:
                        await asyncio.wait_for(child.process.wait(), GRACE_SECONDS)
                    except TimeoutError:
                        log.error("killed", process=child.name, after_s=GRACE_SECONDS)
                        child.process.kill()
                        await child.process.wait()

    def _check_ports(self) -> None:
        for port in (self._settings.port, *map(self._settings.port_of_shard, range(self._settings.shards))):
            listen(self._settings.host, port).close()

    async def _spawn(self, child: Child) -> None:
        s = self._settings
        environment = {
            **os.environ,
            process.PARENT: str(os.getpid()),
            "SOLOWIRE_DATA_DIR": str(s.data_dir.absolute()),
            "SOLOWIRE_HOST": s.host,
            "SOLOWIRE_PORT": str(s.port),
            "SOLOWIRE_SHARDS": str(s.shards),
            "SOLOWIRE_LOG_LEVEL": s.log_level,
        }
        child.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "solowire",
            *child.arguments,
            *self._common,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C comes to us alone, and we end them in order
        )

    async def _is_ready(self, http: httpx.AsyncClient, child: Child) -> bool:
        for other in self._children:
            if other.process is not None and other.process.returncode is not None:
                raise Failed(_status(other.process.returncode))
        try:
            answer = await http.get(f"{child.url}/readyz")
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    def _pause_after(self, child: Child) -> float:
        """How long to wait before a child that has ended is started again, in seconds. Raises Failed."""
        status = child.process.returncode if child.process is not None else None
        now = asyncio.get_running_loop().time()
        while child.ends and now - child.ends[0] > 60:
            child.ends.popleft()
        child.ends.append(now)
        log.error("process_ended", process=child.name, status=status)
        if status == WRONG_SETTINGS:
            raise Failed(WRONG_SETTINGS)
        if len(child.ends) == RESTARTS_A_MINUTE:
            log.critical("gave_up", process=child.name, ends_in_a_minute=RESTARTS_A_MINUTE)
            raise Failed(1)
        return float(0.1 * 2 ** len(child.ends))


async def _ended(child: Child) -> None:
    if child.process is not None:
        await child.process.wait()


def _status(returncode: int) -> int:
    return WRONG_SETTINGS if returncode == WRONG_SETTINGS else 1


def _reachable(host: str) -> str:
    """The address to reach a server at that listens on `host`."""
    if host in ("0.0.0.0", ""):  # noqa: S104
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    try:
        socket.inet_pton(socket.AF_INET6, host)
    except OSError:
        return host
    return f"[{host}]"
