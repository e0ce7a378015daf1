"""Attempts to connect, by the clock: so many per second leave, answered or not, on sockets that cost little.

What it keeps true: an attempt that is late, unanswered or answered otherwise than wanted is told, so that a round
can't look good because the load was not there. `busy` is this process's own CPU, as a share of a core.
"""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import time
from collections import Counter
from dataclasses import dataclass, field

from bench.machine import HOST

UNDER_WAY = 1000
"""Attempts that may be unanswered at a time; more, and the load waits, which makes it late."""
LATE_MS = 20.0
ANSWER_S = 10.0


@dataclass
class Answers:
    """statuses: how many answers began with which status and code. Times in ms; late: of the 99th percentile."""

    attempts: int
    wall_s: float
    busy: float
    late_ms: float
    p50_ms: float
    p99_ms: float
    longest_ms: float
    kinds: Counter[tuple[int, str]] = field(default_factory=Counter)
    without_retry: int = 0


def attempt(port: int, requests: list[bytes], per_second: float, seconds: float, *, fresh: bool) -> Answers:
    """Sends `requests` in turn. fresh: each on a TCP connection of its own, else on connections that are kept."""
    poll = select.epoll()
    opened: dict[int, tuple[socket.socket, float]] = {}
    free: list[socket.socket] = []
    buffers: dict[int, bytes] = {}
    took: list[float] = []
    late: list[float] = []
    found: Counter[tuple[int, str]] = Counter()
    without_retry = 0
    count = int(per_second * seconds)
    clock = time.perf_counter
    cpu, start = _cpu(), clock()
    sent = 0

    def send(request: bytes) -> None:
        if free:
            sock = free.pop()
        else:
            sock = socket.socket()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect((HOST, port))  # on loopback done at once, if there is room in the backlog
            if not fresh:
                sock.setblocking(False)
            poll.register(sock.fileno(), select.EPOLLIN)
        sock.send(request)
        opened[sock.fileno()] = (sock, clock())

    def take(descriptor: int) -> None:
        nonlocal without_retry
        sock, at = opened[descriptor]
        piece = sock.recv(65536)
        answer = buffers.pop(descriptor, b"") + piece
        if piece and not _whole(answer):
            buffers[descriptor] = answer
            return
        took.append(clock() - at)
        del opened[descriptor]
        status, code, retry = _read(answer)
        found[status, code] += 1
        without_retry += not retry
        if fresh or not piece:
            poll.unregister(descriptor)
            sock.close()
        else:
            free.append(sock)

    while sent < count or opened:
        now = clock()
        due = start + sent / per_second
        while sent < count and due <= now and len(opened) < UNDER_WAY:
            late.append(now - due)
            send(requests[sent % len(requests)])
            sent += 1
            due = start + sent / per_second
        wait = max(0.0, due - clock()) if sent < count else ANSWER_S
        ready = poll.poll(wait)
        for descriptor, _ in ready:
            if descriptor in opened:
                take(descriptor)
            else:  # one that is kept, closed by the other side
                poll.unregister(descriptor)
                free[:] = [sock for sock in free if sock.fileno() != descriptor or sock.close()]  # type: ignore[func-returns-value]
        if not ready and sent >= count:
            break
    wall = clock() - start
    found[0, "unanswered"] = len(opened)
    for sock, _ in opened.values():
        sock.close()
    for sock in free:
        sock.close()
    poll.close()
    took.sort()
    late.sort()

    def at(ordered: list[float], share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3 if ordered else 0.0

    return Answers(
        sent,
        wall,
        (_cpu() - cpu) / wall,
        at(late, 0.99),
        at(took, 0.5),
        at(took, 0.99),
        at(took, 1.0),
        +found,
        without_retry,
    )


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _whole(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    lowered = head.lower()
    at = lowered.find(b"content-length:")
    if at >= 0:
        return len(body) >= int(lowered[at + 15 :].split(b"\r\n", 1)[0])
    return body.endswith(b"0\r\n\r\n") if b"chunked" in lowered else True


def _read(answer: bytes) -> tuple[int, str, bool]:
    """Status, problem code and whether it says when to try again."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = 0
    with contextlib.suppress(IndexError, ValueError):
        status = int(answer.split(b" ", 2)[1])
    _, found, rest = body.partition(b'"code":"')
    return status, rest.partition(b'"')[0].decode() if found else "", b"retry-after:" in head.lower()
