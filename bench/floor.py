"""The handle of `floor.c`: what a bare write() loop pays for the same frames to as many sockets of a same receiver."""

from __future__ import annotations

import struct
import subprocess
import time
from pathlib import Path

from bench.machine import SERVER_CORES, BenchError, close, compiled, cpu_seconds, placed
from bench.receiver import Receiver, Style


class Floor:
    """floor.c on the servers' cores, and a receiver of its own."""

    def __init__(self, connections: int) -> None:
        self._connections = connections
        binary = compiled(Path(__file__).with_name("floor.c"))
        self._process = subprocess.Popen(
            [binary, str(connections)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=placed(SERVER_CORES),
        )
        assert self._process.stdout is not None
        self._receiver = Receiver(Style())
        self._receiver.open_raw(int(self._process.stdout.readline()), connections)

    def __enter__(self) -> Floor:
        return self

    def __exit__(self, *_: object) -> None:
        close(self._process)
        self._receiver.__exit__()

    def _order(self, words: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(words)
        self._process.stdin.flush()

    def run(self, frame: bytes, times: int, per_second: float) -> float:
        """Sends a frame of one event so many times to all, each when the last has arrived. CPU seconds per frame.

        Raises BenchError if one does not arrive.
        """
        self._order(b"f" + struct.pack("=I", len(frame)) + frame)
        self._receiver.reset()
        before, due = cpu_seconds(self._process.pid), time.monotonic()
        for sent in range(times):
            self._order(b"g")
            if not self._receiver.until((sent + 1) * self._connections, 10.0):
                raise BenchError("the floor's frames did not all arrive")
            due += 1 / per_second
            time.sleep(max(0.0, due - time.monotonic()))
        return (cpu_seconds(self._process.pid) - before) / times / self._connections
