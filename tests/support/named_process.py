"""A real `named` of any configuration: on loopback and a free high port, ended with its block.

The classes of its kinds write the configuration, and say by which question it is known that the server answers.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from tests.support.requirements import need_program

START_S = 30.0


def run_program(
    program: str, *arguments: str, text: str = "", timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    """Runs one of BIND's programs to its end. text: on its standard input."""
    command = [need_program(program), *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout_s, check=False)


class NamedProcess:
    """`with NamedProcess(dir) as named:` answers when the block begins.

    dir: a directory of the test's own, made if it is not there. READY, READY_TEXT: what is asked until dig prints this.
    """

    READY: ClassVar[tuple[str, ...]] = ("version.bind", "TXT")
    READY_TEXT: ClassVar[str] = "status:"

    def __init__(self, dir: Path) -> None:
        dir.mkdir(parents=True, exist_ok=True)
        self.dir = dir
        self.conf = dir / "named.conf"
        self.output = dir / "named.out"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it and waits until it answers."""
        assert self.try_start(START_S), f"named does not answer on port {self.port}:\n{self.output.read_text()}"

    def try_start(self, timeout_s: float) -> bool:
        """Starts it; returns whether it answers in time."""
        program = need_program("named")
        with self.output.open("ab") as output:
            command = [program, "-f", "-n", "1", "-c", str(self.conf)]
            self._process = subprocess.Popen(command, cwd=self.dir, stdout=output, stderr=output)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._process.poll() is None:
            if self.READY_TEXT in self.dig(*self.READY, "+time=1"):
                return self._process.poll() is None
            time.sleep(0.05)
        return False

    def stop(self) -> None:
        """Ends the process that was started here, and no other, also if it is paused."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=30)

    def send_signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def dig(self, name: str, type: str = "A", *options: str, address: str = "127.0.0.1") -> str:
        """What dig prints. options: more of dig's, such as `+tcp`."""
        place = [f"@{address}", "-p", str(self.port), "+tries=1", "+time=10"]
        return run_program("dig", *place, *options, name, type).stdout


def free_port() -> int:
    """A port that is free for UDP and TCP on 127.0.0.1 at this moment."""
    while True:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        ):
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
