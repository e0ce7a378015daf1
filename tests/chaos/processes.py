"""The system under chaos: `solowire up`, a second gateway and extra shards beside it, and the proxy before them all.

What it keeps true: only processes that were started here are signalled, through descriptors of theirs, so that a number
that was given to another process since is never hit; whatever is stopped is let go on before anything is ended; and
everything ends, even if this process is killed.

Ports, from a multiple of ten: +0 `up`'s gateway, +1… shards by index, +8 the second gateway; the proxy's links: +10…
shards by index, +18 and +19 the gateways. So `SOLOWIRE_GATEWAY__SHARD_URL` can say a shard's link with nothing but its
index.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random

import httpx

from solowire.runtime.terminal import PARENT
from tests.chaos.proxy import Link
from tests.support.system import System, end, ready

SECOND_GATEWAY = 8
RESTART_SECONDS = 0.3
END_SECONDS = 20.0
SETTINGS = {
    "SESSION__HEARTBEAT_INTERVAL_S": 1,
    "SESSION__HELLO_TIMEOUT_S": 0.5,
    "SESSION__RECONNECT_MIN_MS": 50,
    "SESSION__RECONNECT_MAX_MS": 1000,
}


def free_block() -> int:
    """A multiple of ten with twenty ports that nobody listens on, below those that the kernel gives to clients."""
    for start in range(11_000 + os.getpid() % 1000 * 20, 32_000, 20):
        with ExitStack() as held:
            try:
                for port in range(start, start + 20):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return start
    raise RuntimeError("no free ports")


class Extra:
    """A process beside `up`, started again when it dies while it is wanted."""

    def __init__(self, system: ChaosSystem, *arguments: str) -> None:
        self._system = system
        self._arguments = arguments
        self._process: subprocess.Popen[str] | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """None while it doesn't run."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if running and self._process is not None else None

    def start(self) -> None:
        self._process = self._system.spawn(*self._arguments)
        self._watcher = asyncio.create_task(self._watch())

    async def ended(self, seconds: float) -> int | None:
        """Its exit status, once it has ended; None if it doesn't within `seconds`."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self._process is not None and self._process.poll() is None:
            if asyncio.get_running_loop().time() > deadline:
                return None
            await asyncio.sleep(0.05)
        return None if self._process is None else self._process.returncode

    async def end(self) -> None:
        """SIGTERM, and waits. Raises AssertionError if it had to be killed."""
        self.let_be()
        if self._process is not None:
            await asyncio.to_thread(end, self._process)

    def let_be(self) -> None:
        """It is not started again."""
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            if self.pid is None:
                await asyncio.sleep(RESTART_SECONDS)
                self._process = self._system.spawn(*self._arguments)


class ChaosSystem(System):
    """seed: of the proxy's choices. directory: its data and logs are in it; short, for sockets' paths have a bound."""

    def __init__(self, directory: Path, shards: int, extra_shards: int, seed: int) -> None:
        base = free_block()
        super().__init__(directory / "data", shards, {**SETTINGS, "GATEWAY__SHARD_URL": _shard_url(base)})
        if shards + extra_shards >= SECOND_GATEWAY:
            raise ValueError(f"at most {SECOND_GATEWAY - 1 - extra_shards} shards: ports end there")
        self.environment[PARENT] = str(os.getpid())  # so that they end with us, however that is
        self.port = base
        self.url = f"http://127.0.0.1:{base}"
        ports = {"gateway 0": (18, 0), "gateway 1": (19, SECOND_GATEWAY)}
        ports |= {f"shard {i}": (10 + i, 1 + i) for i in range(shards + extra_shards)}
        self.links = {n: Link(n, base + at, base + to, Random(f"{seed} {n}")) for n, (at, to) in ports.items()}
        self._extras = {"gateway 1": Extra(self, "gateway", "--port", str(base + SECOND_GATEWAY))}
        for i in range(shards, shards + extra_shards):
            self._extras[f"shard {i}"] = Extra(self, "shard", "--index", str(i), "--port", str(base + 1 + i))
        self._stopped: dict[str, int] = {}  # what is stopped now: descriptors of processes

    def link_url(self, name: str) -> str:
        """Where clients reach a gateway."""
        return f"http://127.0.0.1:{self.links[name].port}"

    async def begin(self) -> None:
        """Starts everything but the extra shards; returns when it is ready."""
        for link in self.links.values():
            await link.start()
        await asyncio.to_thread(self.start)
        self._extras["gateway 1"].start()
        url = f"http://127.0.0.1:{self.port + SECOND_GATEWAY}"
        await asyncio.to_thread(self.wait_until, lambda: ready(url), "the second gateway is ready")

    async def finish(self) -> list[str]:
        """Ends everything; returns what did not end by itself in time."""
        faults = []
        for name in list(self._stopped):
            self.go_on(name)
        for link in self.links.values():
            await link.close()
        for name, extra in self._extras.items():
            try:
                await extra.end()
            except AssertionError as fault:
                faults.append(f"{name}: {fault}")
        if self.process is not None:
            if self.process.poll() is not None:
                faults.append(f"`up` ended by itself with {self.process.returncode}")
            try:
                await asyncio.to_thread(end, self.process, seconds=3 * END_SECONDS)
            except AssertionError as fault:
                faults.append(f"up: {fault}")
        return faults

    # ------------------------------------------------------------------------------------------- disturbances

    def pid(self, name: str) -> int | None:
        """None while it doesn't run."""
        extra = self._extras.get(name)
        if extra is not None:
            return extra.pid
        role, _, index = name.partition(" ")
        arguments = ("shard", "--index", index) if role == "shard" else (role,)
        try:
            return self.pid_of(*arguments)
        except (ValueError, OSError):
            return None

    def signal(self, name: str, number: signal.Signals) -> bool:
        """Whether there was a process to send it to."""
        descriptor = self._open(name)
        if descriptor is None:
            return False
        try:
            return _send(descriptor, number)
        finally:
            os.close(descriptor)

    def stop_for_now(self, name: str) -> bool:
        """SIGSTOP; whether there was a process to stop."""
        descriptor = self._open(name)
        if descriptor is None:
            return False
        self._stopped[name] = descriptor
        return _send(descriptor, signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """SIGCONT to the very process that was stopped."""
        descriptor = self._stopped.pop(name, None)
        if descriptor is not None:
            _send(descriptor, signal.SIGCONT)
            os.close(descriptor)

    def add(self, name: str) -> None:
        """Starts an extra shard."""
        self._extras[name].start()

    async def take_away(self, name: str) -> None:
        """Ends an extra shard with SIGTERM. Raises AssertionError if it had to be killed."""
        await self._extras[name].end()

    async def drain(self, name: str, token: str, gateway: str, seconds: float) -> str:
        """Asks for a drain until it is granted, and waits for the end; what came of it, "" if all is well."""
        extra = self._extras[name]
        extra.let_be()
        index = name.partition(" ")[2]
        deadline = asyncio.get_running_loop().time() + seconds
        said = "no answer"
        async with httpx.AsyncClient(trust_env=False, verify=False, timeout=5) as http:
            while asyncio.get_running_loop().time() < deadline:
                with suppress(httpx.TransportError):
                    url = f"{self.link_url(gateway)}/v1/shards/{index}/drain"
                    answer = await http.post(url, headers={"authorization": f"Bearer {token}"})
                    said = f"{answer.status_code} {answer.text[:200]}"
                    if answer.is_success:
                        break
                    if answer.status_code in (404, 405) and "no_such_shard" not in answer.text:
                        await extra.end()
                        return f"not supported: {said}"
                await asyncio.sleep(0.5)
            else:
                await extra.end()
                return f"not granted within {seconds} s: {said}"
        status = await extra.ended(seconds)
        if status is None:
            await extra.end()
            return f"granted, but it has not ended within {seconds} s"
        return "" if status == 0 else f"it ended with {status}"

    def _open(self, name: str) -> int | None:
        pid = self.pid(name)
        if pid is None:
            return None
        try:
            return os.pidfd_open(pid)
        except ProcessLookupError:
            return None


def _send(descriptor: int, number: signal.Signals) -> bool:
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    return True


def _shard_url(base: int) -> str:
    # base + 10 + index, digit by digit: base is a multiple of ten and the index is one digit.
    return "ws://127.0.0.1:" + str((base + 10) // 10) + "{shard}/ws"
