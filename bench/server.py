"""What a benchmark needs of a server: start it, ask what it takes, connect users, publish.

Solowire (`solowire_system.py`) and every peer (`bench/peers/`) are one of these, so that all meet the same load.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from bench.machine import (
    HOST,
    SERVER_CORES,
    BenchError,
    Memory,
    cpu_seconds,
    end_tree,
    free_ports,
    place_on,
    process_tree,
    sum_memory,
)
from bench.publisher import About, Wire, stream_of
from bench.receiver import Opened, Plan, Receiver, Style

START_TIMEOUT_S = 40.0


def start_program(
    command: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str] | None, cores: Iterable[int]
) -> subprocess.Popen[bytes]:
    """A server's program in a directory, on its cores; what it says goes to the log. environment: None for ours."""
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=place_on(cores),
        )


def wait_until_ready(is_ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, name: str) -> None:
    """Raises BenchError with the end of its output if it ends, or does not get ready."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            output = log.read_text(errors="replace") if log.exists() else ""
            raise BenchError(f"{name} did not get ready; its output ends with:\n{output[-2000:]}")
        time.sleep(0.05)


def is_listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1.0):
        return True
    return False


class Server(ABC):
    """A server in a directory of its own.

    about: how it is set up, in a sentence. sockets: how many each user holds. has_own: whether a user gets only what is
    for it alone: the events of the stream that has its number.
    """

    name = ""
    about = ""
    style = Style()
    sockets = 1
    has_own = False
    cores: Iterable[int] = SERVER_CORES

    def __init__(self) -> None:
        self.data = Path(tempfile.mkdtemp(prefix="solowire-bench-"))
        self.port = free_ports(6)
        self.log = self.data / "bench.log"
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    def prepare(cls) -> None:
        """Installs or builds what it needs. Raises LeftOut with the reason."""
        return

    @classmethod
    def versions(cls) -> dict[str, str]:
        """Of all that it consists of."""
        return {}

    @abstractmethod
    def command(self) -> Sequence[str]:
        """What starts it."""

    @abstractmethod
    def plan(self, user: int) -> list[Plan]:
        """The connections of one user, who is to get every event."""

    @abstractmethod
    def wires(self, count: int) -> list[Wire]:
        """So many connections of a publisher."""

    def addressed(self, number: int) -> About | None:
        """How the `number`th event must be addressed to reach every user; None: as it is."""
        return None

    def addressed_to(self, user: int) -> About:
        """How an event must be addressed to reach this user alone, where each has its own."""
        return About(user, top=f'"user":"u{user}",'.encode())

    def channel(self, user: int) -> bytes:
        """For servers that have channels: one for all, or one for each user who has its own."""
        return b"u%d" % user if self.has_own else b"bench"

    def channel_of(self, published: bytes) -> bytes:
        """Where an event goes."""
        return self.channel(stream_of(published)) if self.has_own else b"bench"

    def environment(self) -> Mapping[str, str] | None:
        """None: ours."""
        return None

    def is_ready(self) -> bool:
        return is_listening(self.port)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self) -> None:
        """Returns when it is ready. Raises BenchError."""
        self.process = start_program(self.command(), self.data, self.log, self.environment(), self.cores)
        wait_until_ready(self.is_ready, self.process, self.log, self.name)

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            end_tree(self.process)
        shutil.rmtree(self.data, ignore_errors=True)

    def connect(
        self, receiver: Receiver, users: int, first: int = 0, *, slow: Callable[[int], bool] | None = None
    ) -> list[Opened]:
        """So many users from the `first` on, each with its connections, all of whom get every event.

        slow: asked with the number of the user.
        """
        plans = [
            replace(plan, slow=slow is not None and slow(user), streams=(user, user) if self.has_own else plan.streams)
            for user in range(first, first + users)
            for plan in self.plan(user)
        ]
        return [receiver.open(plans)]

    # ------------------------------------------------------------ what it takes

    def processes(self) -> dict[int, str]:
        """All its processes with the role that each has."""
        assert self.process is not None
        return dict.fromkeys(process_tree(self.process.pid), "server")

    def cpu(self) -> dict[str, float]:
        """Seconds by role."""
        found: dict[str, float] = {}
        for pid, role in self.processes().items():
            with contextlib.suppress(OSError):
                found[role] = found.get(role, 0.0) + cpu_seconds(pid)
        return found

    def memory(self) -> Memory:
        return sum_memory(self.processes())
