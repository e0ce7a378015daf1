"""Attempts to connect, by the clock: so many per second leave, answered or not, on sockets that cost little.

What it keeps true: an attempt that is late, unanswered or answered otherwise than wanted is told, so that a round
can't look good because the load was not there.
"""

from __future__ import annotations

import select
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.http_client import parse_reply
from bench.machine import HOST

UNDER_WAY = 1000
"""Attempts that may be unanswered at a time; more, and the load waits, which makes it late."""
LATE_MS = 20.0
ANSWER_S = 10.0


@dataclass
class Answers:
    """answers: how many had which status and code. took, late: ms of each, ascending. busy: own CPU, of a core."""

    attempts: int = 0
    wall_s: float = 0.0
    busy: float = 0.0
    late: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    answers: Counter[tuple[int, str]] = field(default_factory=Counter)
    without_retry: int = 0


def percentile(ordered: Sequence[float], share: float) -> float:
    """0.0 of nothing."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class ConnectLoad:
    """Sends requests in turn. fresh: each on a TCP connection of its own, else on connections that are kept."""

    def __init__(self, port: int, requests: Sequence[bytes], *, fresh: bool) -> None:
        self._port = port
        self._requests = requests
        self._fresh = fresh
        self._poll = select.epoll()
        self._waiting: dict[int, tuple[socket.socket, float]] = {}
        self._free: dict[int, socket.socket] = {}
        self._received: dict[int, bytes] = {}
        self._found = Answers()

    def run(self, per_second: float, seconds: float) -> Answers:
        """So many attempts, and the answers to them. Once."""
        found, count = self._found, int(per_second * seconds)
        cpu, start = time.process_time(), time.perf_counter()
        while found.attempts < count or self._waiting:
            due = start + found.attempts / per_second
            while found.attempts < count and due <= (now := time.perf_counter()) and len(self._waiting) < UNDER_WAY:
                found.late.append((now - due) * 1e3)
                self._send(self._requests[found.attempts % len(self._requests)])
                found.attempts += 1
                due = start + found.attempts / per_second
            wait = max(0.0, due - time.perf_counter()) if found.attempts < count else ANSWER_S
            ready = self._poll.poll(wait)
            for descriptor, _ in ready:
                self._read(descriptor)
            if not ready and found.attempts >= count:
                break
        found.wall_s = time.perf_counter() - start
        found.busy = (time.process_time() - cpu) / found.wall_s
        if self._waiting:
            found.answers[0, "unanswered"] = len(self._waiting)
        for sock in [*(sock for sock, _ in self._waiting.values()), *self._free.values()]:
            sock.close()
        self._poll.close()
        found.late.sort()
        found.took.sort()
        return found

    def _send(self, request: bytes) -> None:
        if self._free:
            _, sock = self._free.popitem()
        else:
            sock = socket.create_connection((HOST, self._port))  # on loopback done at once, if the backlog has room
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._poll.register(sock.fileno(), select.EPOLLIN)
        sock.send(request)
        self._waiting[sock.fileno()] = sock, time.perf_counter()

    def _read(self, descriptor: int) -> None:
        if descriptor not in self._waiting:  # one that is kept, closed by the other side
            self._poll.unregister(descriptor)
            self._free.pop(descriptor).close()
            return
        sock, sent_at = self._waiting[descriptor]
        piece = sock.recv(65536)
        received = self._received.pop(descriptor, b"") + piece
        parsed = parse_reply(received)
        if piece and parsed is None:
            self._received[descriptor] = received
            return
        del self._waiting[descriptor]
        self._found.took.append((time.perf_counter() - sent_at) * 1e3)
        reply = parsed[0] if parsed else None
        self._found.answers[(reply.status, reply.code) if reply else (0, "")] += 1
        self._found.without_retry += not (reply and reply.retry_after)
        if self._fresh or not piece:
            self._poll.unregister(descriptor)
            sock.close()
        else:
            self._free[descriptor] = sock
