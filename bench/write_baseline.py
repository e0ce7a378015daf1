"""The handle of `write_baseline.c`: what a bare write() loop pays for the same frames to as many sockets.

It is the floor beneath what a server can reach: no publisher, no router, no log.
"""

from __future__ import annotations

import struct
import time
from typing import Self

from bench.machine import SERVER_CORES, BenchError, Program
from bench.receiver import Plan, Receiver, Style


class WriteBaseline:
    """The program on the servers' cores, and a receiver of its own of the same kind."""

    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._program = Program("write_baseline.c", SERVER_CORES, str(connections))
        self._receiver = Receiver(Style())
        self._receiver.open([Plan(int(self._program.read_line()), b"")] * connections)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._program.close()
        self._receiver.__exit__()

    def run(self, frame: bytes, times: int, per_second: float) -> float:
        """Sends a frame of one event so many times to all, each when the last has arrived. CPU seconds per frame.

        Raises BenchError if one does not arrive.
        """
        self._program.order(b"f" + struct.pack("=I", len(frame)) + frame)
        self._receiver.reset()
        before, due = self._program.cpu(), time.monotonic()
        for sent in range(times):
            self._program.order(b"g")
            if not self._receiver.until((sent + 1) * self._connections, 10.0):
                raise BenchError("the floor's frames did not all arrive")
            due += 1 / per_second
            time.sleep(max(0.0, due - time.monotonic()))
        return (self._program.cpu() - before) / times / self._connections
