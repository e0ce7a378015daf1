"""`solowire up`: router, shards and gateway on this machine, started, watched and ended together.

What it keeps true:
* The processes that it started end with it, in the order in which users lose least (gateway, shards, router) and within
  the grace period; also when it is killed itself (`process` sees to that).
* One that ends, by itself or by somebody else's signal, is started again, after a pause that grows and is never the
  same; all but a shard that was drained on purpose. One that keeps ending ends everything, loudly. Each is watched by a
  task of its own, so that nobody waits for another's pause.
* One whose loop is stuck, or that is stopped, is killed, and so started again. It is found by its silence: each child
  says `WATCHDOG=1` to a socket of its own, as it would to systemd (sd_notify(3)).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import structlog

from solowire.algorithms.backoff import Backoff
from solowire.algorithms.hosts import bracket_host, find_own_address
from solowire.cli.notify_socket import NotifySocket
from solowire.errors import ConfigError
from solowire.runtime import process
from solowire.runtime.api_client import api_address, api_client
from solowire.runtime.data_directory import make_directories
from solowire.runtime.http_server import listen, remove_dead_sockets
from solowire.runtime.settings import Settings
from solowire.runtime.terminal import PARENT

logger = structlog.get_logger("solowire.up")

READY_SECONDS = 60.0
RESTARTS_A_MINUTE = 5
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0
CHECK_SECONDS = 0.5
CHECKS_IN_TIME = 5
"""So often it is looked, at least, within the time after which a silent child is stuck."""
"""How often the children's signs of life are read: five times or more in the shortest `process.watchdog_timeout_s`."""

WRONG_SETTINGS = 2
SUN_PATH_BYTES = 107  # what the address of a unix socket may hold, unix(7)
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
STUCK_HINT = (
    "it is killed and starts again; a machine that is only slow needs a longer SOLOWIRE_PROCESS__WATCHDOG_TIMEOUT_S"
)

GATEWAY_SHARE, SHARDS_SHARE, ROUTER_SHARE = 0.2, 0.65, 0.15
"""Of the grace period. Shards have users to send away; the others only have to let go."""
TOLD_OF_SHARE = 0.8
"""What a child is told to end within, of its share: it should be done before it is killed."""


@dataclass(eq=False)
class ChildProcess:
    """One process. arguments: of `python -m solowire`. share: of the grace period, for its end. scheme: of its API."""

    name: str
    arguments: list[str]
    api: str | None
    share: float
    scheme: str = "http"
    can_drain: bool = False  # ending with status 0 is its right, if no signal was the reason: it was drained
    has_begun: bool = False  # it has given a sign of life, and so knows what signals mean
    reloads: bool = False  # it is to be told to, when it has begun
    process: asyncio.subprocess.Process | None = None
    notify_socket: NotifySocket | None = None
    ended_at: deque[float] = field(default_factory=lambda: deque(maxlen=RESTARTS_A_MINUTE))
    backoff: Backoff = field(
        default_factory=lambda: Backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, floor=FIRST_PAUSE_SECONDS / 2)
    )


class ChildFailed(Exception):
    """A child can't run. status: what `up` ends with."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Watchdog:
    """Which children are stuck: those that have been silent for `stuck_s`, or READY_SECONDS if they only start.

    Times are seconds, monotonic. Who was named once is not named again before it has been started again.
    """

    def __init__(self, stuck_s: float) -> None:
        self._stuck_s = stuck_s
        self._checked_at: float | None = None
        self._due_at: dict[str, float] = {}

    def start_timer(self, name: str, now: float) -> None:
        self._due_at[name] = now + READY_SECONDS

    def reset_timer(self, name: str, now: float) -> None:
        if name in self._due_at:
            self._due_at[name] = now + self._stuck_s

    def drop_timer(self, name: str) -> None:
        self._due_at.pop(name, None)

    def find_stuck(self, now: float) -> list[str]:
        """Those that are stuck. To be called often.

        A call that comes late tells of a pause of the supervisor itself (a suspended machine, SIGSTOP). What the
        children did meanwhile nobody can know, so the pause is not held against them.
        """
        if self._checked_at is not None and now - self._checked_at > self._stuck_s / 2:
            pause = now - self._checked_at
            self._due_at = {name: due + pause for name, due in self._due_at.items()}
        self._checked_at = now
        stuck = [name for name, due in self._due_at.items() if due < now]
        for name in stuck:
            del self._due_at[name]
        return stuck


class Supervisor:
    """Starts, watches and ends the processes of one machine.

    config: the file of --config, which the children read, too.
    """

    def __init__(self, settings: Settings, config: str | None) -> None:
        self._settings = settings
        self._common = ["--config", config] if config is not None else []
        scheme = "http" if settings.listen.tls_certificate_file is None else "https"
        gateway = f"{bracket_host(find_own_address(settings.host))}:{settings.port}"
        self.gateway_url = f"{scheme}://{gateway}"
        self._router = ChildProcess("router", ["router"], None, ROUTER_SHARE)
        self._shards = [
            ChildProcess(
                f"shard {i}",
                ["shard", "--index", str(i)],
                api_address(settings.find_shard_api(i)),
                SHARDS_SHARE,
                can_drain=True,
            )
            for i in range(settings.shards)
        ]
        self._gateway = ChildProcess("gateway", ["gateway"], gateway, GATEWAY_SHARE, scheme=scheme)
        self._watchdog = Watchdog(settings.process.watchdog_timeout_s)

    @property
    def _children(self) -> list[ChildProcess]:
        return [self._router, *self._shards, self._gateway]

    async def start(self) -> None:
        """Starts everything; returns when all of it is ready. Raises ConfigError, Failed, TimeoutError.

        It waits for READY_SECONDS, anew with each child that asks for more time: a router whose journal is large.
        """
        if self._settings.port == 0:
            raise ConfigError("SOLOWIRE_PORT: `up` needs a port of its own, 0 is for single processes")
        self._check_ports()
        self._open_notify_sockets()
        process.on_forced_exit(self.kill)
        for child in self._children:
            await self._spawn(child)
        async with asyncio.timeout(READY_SECONDS) as patience:
            for child in self._children:
                if child.api is not None:
                    async with api_client(child.api, timeout=2, scheme=child.scheme) as http:
                        while not await self._is_ready(http):
                            self._listen()
                            if self._take_extension():
                                process.extend_start()
                                patience.reschedule(asyncio.get_running_loop().time() + READY_SECONDS)
                            await asyncio.sleep(0.05)

    def reload(self, _: Settings) -> None:
        """Has all children read again what can be."""
        for child in self._children:
            child.reloads = True
        self._listen()

    async def watch(self, stop: asyncio.Event) -> None:
        """Returns when `stop` is set. Raises Failed if a child can't go on."""
        coroutines: list[Awaitable[Any]] = [self._supervise(child) for child in self._children]
        tasks = [asyncio.ensure_future(deed) for deed in (*coroutines, self._kill_unresponsive(), stop.wait())]
        unfinished = set(tasks)
        try:
            while not stop.is_set():
                done, unfinished = await asyncio.wait(unfinished, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def stop(self) -> None:
        """Ends all children, in order, within the grace period; what one group leaves of its share the next may use."""
        loop = asyncio.get_running_loop()
        deadline = loop.time()
        for group in ([self._gateway], self._shards, [self._router]):
            deadline += self._settings.process.shutdown_timeout_s * group[0].share
            for child in group:
                _signal(child, signal.SIGTERM)
            for child in group:
                await self._end_child(child, deadline)
        for child in self._children:
            if child.notify_socket is not None:
                child.notify_socket.close()

    def kill(self) -> None:
        """Ends all children at once."""
        for child in self._children:
            _signal(child, signal.SIGKILL)
            if child.notify_socket is not None:
                child.notify_socket.close()

    async def _supervise(self, child: ChildProcess) -> None:
        """Starts the child again whenever it ends. Returns when it was drained. Raises Failed."""
        while True:
            status = await child.process.wait() if child.process is not None else None
            self._watchdog.drop_timer(child.name)
            if child.notify_socket is not None:
                child.notify_socket.has_notified()
            was_signalled = (
                child.notify_socket is not None and child.notify_socket.is_stopping
            )  # by somebody else: it is missed
            if status == 0 and child.can_drain and not was_signalled:
                logger.info("process_drained", process=child.name)
                return
            await asyncio.sleep(self._pause_after(child, status))
            await self._spawn(child)

    async def _kill_unresponsive(self) -> None:
        loop = asyncio.get_running_loop()
        pause = min(CHECK_SECONDS, self._settings.process.watchdog_timeout_s / CHECKS_IN_TIME)
        while True:
            self._listen()
            stuck = self._watchdog.find_stuck(loop.time())
            for child in self._children:
                if child.name in stuck:
                    seconds = self._settings.process.watchdog_timeout_s
                    logger.error("process_unresponsive", process=child.name, stuck_s=seconds, hint=STUCK_HINT)
                    _signal(child, signal.SIGKILL)  # nothing else ends one that is stopped
            await asyncio.sleep(pause)

    def _listen(self) -> None:
        """Takes in the children's signs of life, and tells those to reload that can be told by now."""
        now = asyncio.get_running_loop().time()
        for child in self._children:
            if child.notify_socket is not None and child.notify_socket.has_notified():
                child.has_begun = True
                self._watchdog.reset_timer(child.name, now)
            if child.reloads and child.has_begun:  # before, SIGHUP would kill it
                child.reloads = False
                _signal(child, signal.SIGHUP)

    def _take_extension(self) -> bool:
        """Whether a child has asked for more time since the last call."""
        found = False
        for child in self._children:
            if child.notify_socket is not None and child.notify_socket.has_extended_start:
                child.notify_socket.has_extended_start = False
                found = True
        return found

    async def _end_child(self, child: ChildProcess, deadline: float) -> None:
        if child.process is None:
            return
        try:
            async with asyncio.timeout_at(deadline):
                await child.process.wait()
        except TimeoutError:
            reason, hint = (
                "it did not exit within its share of the shutdown timeout",
                "give it longer by SOLOWIRE_PROCESS__SHUTDOWN_TIMEOUT_S",
            )
            logger.error("process_killed", process=child.name, reason=reason, hint=hint)
            _signal(child, signal.SIGKILL)
            await child.process.wait()

    def _check_ports(self) -> None:
        for port in (self._settings.port, *map(self._settings.find_shard_port, range(self._settings.shards))):
            listen(self._settings.host, port).close()

    def _open_notify_sockets(self) -> None:
        """Makes a notify socket for each child. Raises ConfigError."""
        make_directories(self._settings)
        directory = self._settings.run_dir.absolute()
        # The process id keeps a second `up` on this directory, which its router will refuse, from taking our sockets.
        paths = {child: directory / f"up-{os.getpid()}-{child.name.replace(' ', '-')}" for child in self._children}
        longest = max(paths.values(), key=lambda path: len(os.fsencode(path)))
        if len(os.fsencode(longest)) > SUN_PATH_BYTES:
            raise ConfigError(
                f"the data directory's path is too long for a unix socket: {longest} is over {SUN_PATH_BYTES} bytes; "
                "choose a shorter one with --data-dir"
            )
        remove_dead_sockets(directory, "up-", socket.SOCK_DGRAM)
        for child, path in paths.items():
            child.notify_socket = NotifySocket(path)

    async def _spawn(self, child: ChildProcess) -> None:
        """Where the system can't start a process, child.process is None, as if it had ended at once."""
        if child.notify_socket is not None:
            child.notify_socket.forget()
        child.process, child.has_begun = None, False
        try:
            child.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # whatever lies where `up` was started is none of ours
                "-m",
                "solowire",
                *child.arguments,
                *self._common,
                env=self._environment(child),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C comes to us alone, and we end them in order
            )
        except OSError as error:
            logger.error("process_start_failed", process=child.name, error=str(error), hint="it is tried again")
        self._watchdog.start_timer(child.name, asyncio.get_running_loop().time())

    def _environment(self, child: ChildProcess) -> dict[str, str]:
        s = self._settings
        environment = {
            **os.environ,
            PARENT: str(os.getpid()),
            process.WATCHDOG: str(int(s.process.watchdog_timeout_s * 1e6)),
            "SOLOWIRE_DATA_DIR": str(s.data_dir.absolute()),
            "SOLOWIRE_HOST": s.host,
            "SOLOWIRE_PORT": str(s.port),
            "SOLOWIRE_SHARDS": str(s.shards),
            "SOLOWIRE_LOGGING__LEVEL": s.logging.level,
            "SOLOWIRE_PROCESS__SHUTDOWN_TIMEOUT_S": str(s.process.shutdown_timeout_s * child.share * TOLD_OF_SHARE),
        }
        if child.notify_socket is not None:
            environment[process.NOTIFY] = str(child.notify_socket.path)
        return environment

    async def _is_ready(self, http: httpx.AsyncClient) -> bool:
        for other in self._children:
            status = None if other.process is None else other.process.returncode
            if status is not None and status <= 0:  # it was killed or drained, and found nothing wrong: see `watch`
                return True
            if other.process is None or status is not None:
                raise ChildFailed(_status(other.process))
        try:
            answer = await http.get("/readyz")
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    def _pause_after(self, child: ChildProcess, status: int | None) -> float:
        """How long to wait before a child that has ended is started again, in seconds. Raises Failed.

        Wrong settings are no reason to give up sooner: it has run with them. What it found wrong may pass, such as a
        port that a connection of somebody else's holds.
        """
        now = asyncio.get_running_loop().time()
        while child.ended_at and now - child.ended_at[0] > 60:
            child.ended_at.popleft()
        if not child.ended_at:
            child.backoff.reset()
        child.ended_at.append(now)
        reason, hint = _explain_end(status)
        logger.error("process_exited", process=child.name, status=status, reason=reason, hint=hint)
        if len(child.ended_at) == RESTARTS_A_MINUTE:
            hint = "all processes end now; mend what its lines above name, and start again"
            logger.critical("restart_limit_reached", process=child.name, ends_in_a_minute=RESTARTS_A_MINUTE, hint=hint)
            raise ChildFailed(1)
        return child.backoff.next_delay()


def _signal(child: ChildProcess, number: int) -> None:
    if child.process is not None and child.process.returncode is None:
        with suppress(ProcessLookupError):  # it has ended just now
            child.process.send_signal(number)


def _explain_end(status: int | None) -> tuple[str, str]:
    """Why a child has ended, and what to do."""
    if status is None:
        return "it could not be started", "it is tried again"
    if status >= 0:
        return f"it ended with status {status}", "its own lines above say why; it starts again"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if status == -signal.SIGKILL:
        return (
            f"it was ended by {name}",
            "a line above says so if we did it; else somebody, or the kernel for want of memory",
        )
    if -status in _CRASHES:
        return f"it crashed by {name}", "a library's fault, or the machine's: report it; it starts again"
    return f"it was ended by {name}", "somebody sent it that; it starts again"


def _status(ended: asyncio.subprocess.Process | None) -> int:
    return WRONG_SETTINGS if ended is not None and ended.returncode == WRONG_SETTINGS else 1
